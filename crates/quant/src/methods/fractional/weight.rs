//! A tensor between two neighbouring widths: latent float weights, the steps of both grids, and the share of the wider one.

use bitsmith_graph::{Granularity, QParams};

use crate::blocks::fit::best_steps;
use crate::blocks::gate::Draw;
use crate::blocks::grid::{SMALLEST_STEP, fake_quantize, fake_quantize_backward, lsq_grad_scale};
use crate::blocks::range::Range;
use crate::blocks::searched::Search;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

/// How a tensor gets from one pair of widths to the next.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Chain {
    /// A share above 1 or below 0 carries over into the next pair: the width is one real number.
    Both,
    /// A share below the threshold makes the narrower width the wider one of the next pair, with this share. There is no way
    /// back.
    Down {
        /// Where a width is given up.
        threshold: f32,
        /// Share that the next pair starts with.
        initial: f32,
    },
}

/// The quantizer of one tensor in search of its width.
#[derive(Debug, Clone)]
pub struct PairWeight {
    per: Granularity,
    rows: Rows,
    /// Planes of the wider grid; the narrower has one less.
    upper: usize,
    /// Fewest planes.
    floor: usize,
    /// Most planes.
    most: usize,
    latent: Param,
    wide_steps: Param,
    narrow_steps: Param,
    /// β, one number.
    pub(super) share: Param,
    /// What this step's forward pass does.
    draw: Draw,
    /// Whether [`Quantizer::forward`] shows the width that would be deployed.
    pub(super) show_hard: bool,
    /// Squared rounding error per weight of the wider and the narrower grid, in the unit of the row's range.
    errors: (f64, f64),
    grad: Vec<f32>,
    wide: Vec<f32>,
    narrow: Vec<f32>,
}

fn q_max(planes: usize) -> i32 {
    (1 << planes) - 1
}

impl PairWeight {
    /// A tensor at `width` planes, a number between `floor` (at least 1) and `most`; its fraction is the share.
    pub fn new(per: Granularity, rows: Rows, init: &[f32], width: f64, (floor, most): (usize, usize)) -> Self {
        let floor = floor.clamp(1, most.max(1));
        let width = width.clamp(floor as f64, most as f64);
        let upper = (width.ceil() as usize).clamp((floor + 1).min(most), most);
        let share = if upper == floor { 1.0 } else { (width - (upper - 1) as f64) as f32 };
        let mut latent = vec![0.0; init.len()];
        rows.gather(init, &mut latent);
        let steps = |planes: usize| best_steps(&latent, &rows, planes.max(1), Range::Mse);
        let (wide, narrow) = (steps(upper), steps(upper - 1));
        let n = init.len();
        let mut this = Self {
            per,
            upper,
            floor,
            most,
            wide_steps: Param::new("wide", Group::Scale, wide),
            narrow_steps: Param::new("narrow", Group::Scale, narrow),
            share: Param::new("share", Group::Gate, vec![share]),
            draw: Draw { mix: 1.0, slope: 1.0 },
            show_hard: false,
            errors: (0.0, 0.0),
            grad: vec![0.0; n],
            wide: vec![0.0; n],
            narrow: vec![0.0; n],
            rows,
            latent: Param::new("latent", Group::Weight, latent),
        };
        this.settle();
        this
    }

    /// The share of the wider grid.
    pub fn share(&self) -> f32 {
        self.share.value.first().copied().unwrap_or(1.0)
    }

    /// The width as a real number, in planes.
    pub fn width(&self) -> f64 {
        if self.has_pair() { (self.upper - 1) as f64 + f64::from(self.share()) } else { self.upper as f64 }
    }

    /// Planes of both grids; equal ones where the width is the fewest possible or given.
    pub fn pair(&self) -> (usize, usize) {
        if self.has_pair() { (self.upper - 1, self.upper) } else { (self.upper, self.upper) }
    }

    /// Whether there is a narrower grid to go to.
    fn has_pair(&self) -> bool {
        self.upper > self.floor
    }

    /// A width that is given learns no share.
    fn settle(&mut self) {
        self.share.frozen = !self.has_pair();
        self.narrow_steps.frozen = !self.has_pair();
        if !self.has_pair() {
            self.share.value.fill(1.0);
        }
    }

    /// Sets what the next passes do.
    pub fn set_draw(&mut self, draw: Draw) {
        self.draw = if self.has_pair() { draw } else { Draw { mix: 1.0, slope: 0.0 } };
    }

    /// Adds to the gradient of the share.
    pub fn push_share(&mut self, by: f64) {
        if self.has_pair() {
            self.share.grad.iter_mut().for_each(|g| *g += by as f32);
        }
    }

    /// Squared rounding error of the wider grid less that of the narrower one, per weight, as of the last backward pass.
    pub fn error_gap(&self) -> f64 {
        self.errors.0 - self.errors.1
    }

    /// Keeps share and steps in their ranges, and moves to the next pair of widths where the chain says so. Returns whether
    /// it did.
    pub fn walk(&mut self, chain: Chain) -> bool {
        for step in self.wide_steps.value.iter_mut().chain(&mut self.narrow_steps.value) {
            *step = step.max(SMALLEST_STEP);
        }
        if !self.has_pair() {
            self.settle();
            return false;
        }
        let share = self.share();
        let (next, share) = match chain {
            Chain::Both if share > 1.0 && self.upper < self.most => (self.upper + 1, (share - 1.0).min(1.0)),
            Chain::Both if share < 0.0 && self.upper - 1 > self.floor => (self.upper - 1, (share + 1.0).max(0.0)),
            Chain::Down { threshold, initial } if share < threshold => (self.upper - 1, initial),
            _ => (self.upper, share.clamp(0.0, 1.0)),
        };
        let moved = next != self.upper;
        if next > self.upper {
            self.narrow_steps = Param { name: "narrow", ..self.wide_steps.clone() };
            self.wide_steps = self.fresh("wide", next);
        } else if next < self.upper {
            self.wide_steps = Param { name: "wide", ..self.narrow_steps.clone() };
            self.narrow_steps = self.fresh("narrow", next.saturating_sub(1).max(1));
        }
        self.upper = next;
        self.share.value.fill(share);
        if moved {
            self.share.memory.clear();
        }
        self.settle();
        moved
    }

    fn fresh(&self, name: &'static str, planes: usize) -> Param {
        Param::new(name, Group::Scale, best_steps(&self.latent.value, &self.rows, planes, Range::Mse))
    }

    /// Share of the wider grid that a forward pass uses now.
    fn mix(&self) -> f32 {
        match (self.has_pair(), self.show_hard) {
            (false, _) => 1.0,
            (true, true) => f32::from(self.share() >= 0.5),
            (true, false) => self.draw.mix,
        }
    }

    fn round(&mut self, wide: bool) {
        let (steps, planes, out) = match wide {
            true => (&self.wide_steps, self.upper, &mut self.wide),
            false => (&self.narrow_steps, self.upper - 1, &mut self.narrow),
        };
        fake_quantize(&self.latent.value, &steps.value, q_max(planes), &self.rows, out);
    }
}

impl Quantizer for PairWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        let mix = self.mix();
        if mix > 0.0 {
            self.round(true);
        }
        if mix < 1.0 {
            self.round(false);
        }
        match mix {
            1.0 => self.rows.scatter(&self.wide, weights),
            0.0 => self.rows.scatter(&self.narrow, weights),
            _ => {
                for (wide, narrow) in self.wide.iter_mut().zip(&self.narrow) {
                    *wide = mix * *wide + (1.0 - mix) * narrow;
                }
                self.rows.scatter(&self.wide, weights);
            }
        }
    }

    fn backward(&mut self, grad: &[f32]) {
        self.rows.gather(grad, &mut self.grad);
        if self.has_pair() {
            self.round(true);
            self.round(false);
            let row = self.rows.row_len.max(1);
            let (mut difference, mut wide_error, mut narrow_error) = (0f64, 0f64, 0f64);
            for (i, g) in self.grad.iter().enumerate() {
                let (x, wide, narrow) = (self.latent.value[i], self.wide[i], self.narrow[i]);
                difference += f64::from(g * (wide - narrow));
                let range = self.wide_steps.value[i / row] * q_max(self.upper) as f32;
                wide_error += f64::from((wide - x) / range).powi(2);
                narrow_error += f64::from((narrow - x) / range).powi(2);
            }
            let n = self.rows.len().max(1) as f64;
            self.errors = (wide_error / n, narrow_error / n);
            self.push_share(f64::from(self.draw.slope) * difference);
        }
        let mix = self.draw.mix;
        for (share, planes, steps) in
            [(mix, self.upper, &mut self.wide_steps), (1.0 - mix, self.upper - 1, &mut self.narrow_steps)]
        {
            if share == 0.0 {
                continue;
            }
            if share != 1.0 {
                // Both grids have their part; the buffer of rounded weights is free by now.
                self.wide.iter_mut().zip(&self.grad).for_each(|(part, g)| *part = share * g);
            }
            let q = q_max(planes);
            fake_quantize_backward(
                &self.latent.value,
                &steps.value,
                q,
                &self.rows,
                if share == 1.0 { &self.grad } else { &self.wide },
                lsq_grad_scale(self.rows.row_len, q),
                &mut self.latent.grad,
                &mut steps.grad,
            );
        }
    }

    fn latent_gradient(&self, grad: &mut [f32]) -> bool {
        self.rows.scatter(&self.latent.grad, grad);
        true
    }

    fn visit(&mut self, f: &mut dyn FnMut(&mut Param)) {
        f(&mut self.latent);
        f(&mut self.wide_steps);
        f(&mut self.narrow_steps);
        f(&mut self.share);
    }

    fn bits(&self) -> f32 {
        self.width() as f32 + 1.0
    }

    fn qparams(&self) -> Option<QParams> {
        let planes = self.planes();
        let steps = if planes == self.upper { &self.wide_steps } else { &self.narrow_steps };
        Some(QParams::signed(planes as u8 + 1, true, self.per, steps.value.clone()))
    }
}

impl Search for PairWeight {
    fn target(&mut self) -> Vec<f32> {
        self.latent.value.clone()
    }

    fn planes(&self) -> usize {
        if self.has_pair() && self.share() < 0.5 { self.upper - 1 } else { self.upper }
    }

    fn state(&self) -> usize {
        self.upper
    }

    fn restore(&mut self, state: usize) {
        self.upper = state.clamp(self.floor, self.most);
        self.settle();
    }
}
