//! A tensor between two neighbouring widths: latent float weights, the steps of both grids, and the share of the wider one.

use bitsmith_graph::{Granularity, QParams};

use crate::blocks::fit::best_steps;
use crate::blocks::gate::{Chain, Gate, Walk};
use crate::blocks::grid::{fake_quantize, fake_quantize_backward, lsq_grad_scale};
use crate::blocks::range::Range;
use crate::blocks::searched::Search;
use crate::param::{Group, Param};
use crate::quantizer::{Quantizer, Rows};

/// The quantizer of one tensor in search of its width.
#[derive(Debug, Clone)]
pub struct PairWeight {
    per: Granularity,
    rows: Rows,
    /// Between which widths, in planes.
    pub(super) gate: Gate,
    latent: Param,
    wide_steps: Param,
    narrow_steps: Param,
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
        let gate = Gate::new(width, floor, most);
        let mut latent = vec![0.0; init.len()];
        rows.gather(init, &mut latent);
        let steps = |planes: usize| best_steps(&latent, &rows, planes.max(1), Range::Mse);
        let (wide, narrow) = (steps(gate.upper()), steps(gate.upper() - 1));
        let n = init.len();
        let mut this = Self {
            per,
            gate,
            wide_steps: Param::new("wide", Group::Scale, wide),
            narrow_steps: Param::new("narrow", Group::Scale, narrow),
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

    /// A width that is given learns no second grid.
    fn settle(&mut self) {
        self.narrow_steps.frozen = !self.gate.is_open();
    }

    /// Squared rounding error of the wider grid less that of the narrower one, per weight, as of the last backward pass.
    pub fn error_gap(&self) -> f64 {
        self.errors.0 - self.errors.1
    }

    /// Keeps the share in its range, and moves to the next pair of widths where the chain says so. Returns whether
    /// it did.
    pub fn walk(&mut self, chain: Chain) -> bool {
        let walk = self.gate.walk(chain);
        let upper = self.gate.upper();
        match walk {
            Walk::Stayed => {}
            Walk::Up => {
                self.narrow_steps = Param { name: "narrow", ..self.wide_steps.clone() };
                self.wide_steps = self.fresh("wide", upper);
            }
            Walk::Down => {
                self.wide_steps = Param { name: "wide", ..self.narrow_steps.clone() };
                self.narrow_steps = self.fresh("narrow", upper.saturating_sub(1).max(1));
            }
        }
        self.settle();
        walk != Walk::Stayed
    }

    fn fresh(&self, name: &'static str, planes: usize) -> Param {
        Param::new(name, Group::Scale, best_steps(&self.latent.value, &self.rows, planes, Range::Mse))
    }

    fn round(&mut self, wide: bool) {
        let (steps, planes, out) = match wide {
            true => (&self.wide_steps, self.gate.upper(), &mut self.wide),
            false => (&self.narrow_steps, self.gate.upper() - 1, &mut self.narrow),
        };
        fake_quantize(&self.latent.value, &steps.value, q_max(planes), &self.rows, out);
    }
}

impl Quantizer for PairWeight {
    fn forward(&mut self, weights: &mut [f32]) {
        let mix = self.gate.mix(self.show_hard);
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
        if self.gate.is_open() {
            self.round(true);
            self.round(false);
            let row = self.rows.row_len.max(1);
            let (mut difference, mut wide_error, mut narrow_error) = (0f64, 0f64, 0f64);
            for (i, g) in self.grad.iter().enumerate() {
                let (x, wide, narrow) = (self.latent.value[i], self.wide[i], self.narrow[i]);
                difference += f64::from(g * (wide - narrow));
                let range = self.wide_steps.value[i / row] * q_max(self.gate.upper()) as f32;
                wide_error += f64::from((wide - x) / range).powi(2);
                narrow_error += f64::from((narrow - x) / range).powi(2);
            }
            let n = self.rows.len().max(1) as f64;
            self.errors = (wide_error / n, narrow_error / n);
            self.gate.push(f64::from(self.gate.draw().slope) * difference);
        }
        let (mix, upper) = (self.gate.draw().mix, self.gate.upper());
        for (share, planes, steps) in
            [(mix, upper, &mut self.wide_steps), (1.0 - mix, upper - 1, &mut self.narrow_steps)]
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
        f(&mut self.gate.share);
    }

    fn bits(&self) -> f32 {
        self.gate.width() as f32 + 1.0
    }

    fn qparams(&self) -> Option<QParams> {
        let planes = self.planes();
        let steps = if planes == self.gate.upper() { &self.wide_steps } else { &self.narrow_steps };
        Some(QParams::signed(planes as u8 + 1, true, self.per, steps.value.clone()))
    }
}

impl Search for PairWeight {
    fn target(&mut self) -> Vec<f32> {
        self.latent.value.clone()
    }

    fn planes(&self) -> usize {
        self.gate.nearest()
    }

    fn state(&self) -> usize {
        self.gate.upper()
    }

    fn restore(&mut self, state: usize) {
        self.gate.restore(state);
        self.settle();
    }
}
