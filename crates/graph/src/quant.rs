//! Where rounding happens and on which grid: [`Site`], [`QuantSpec`], [`QParams`].
//!
//! | grid | code | decoded value |
//! |---|---|---|
//! | `Affine` | integer of `bits` bits | `scale · (code − zero_point)` |
//! | `Planes` | signed integer whose magnitude uses only the positions in `mask` | `scale · code` |
//! | `Codebook` | index below `2^bits` | `scale · levels[code]` |
//!
//! Decoding is one `f32` multiplication, so a value is on its grid if and only if decoding its code gives it back bit
//! for bit. Rounding itself lives in `bitsmith_kernels::numerics`.

use bitsmith_kernels::numerics;

use crate::error::{Error, Kind};

/// The set of numbers that a quantized tensor may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grid {
    /// Evenly spaced.
    Affine {
        /// Whether codes have a sign.
        signed: bool,
        /// Whether a signed range leaves out its lowest code, so that it is symmetric about zero.
        symmetric: bool,
    },
    /// Sign and magnitude, the magnitude with only these bit positions (bit 0 is worth one `scale`).
    Planes {
        /// Positions that may be set. The lowest is bit 0 unless the mask is empty.
        mask: u8,
    },
    /// A table of `2^bits` values.
    Codebook,
}

/// Which elements share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Granularity {
    /// All of them.
    PerTensor,
    /// Those with the same index along this axis.
    PerChannel {
        /// The axis.
        axis: usize,
    },
}

/// What a site should become: grid, width, granularity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QuantSpec {
    /// The set of numbers.
    pub grid: Grid,
    /// Bits of a code, sign included: 0 (all zero) to 8.
    pub bits: u8,
    /// Which elements share a scale.
    pub per: Granularity,
}

/// Bits that a file stores for an element which can only be −1, 0 or 1: five of them fit into a byte.
pub const TERNARY_BITS: f64 = 1.6;

impl QuantSpec {
    /// Whether the codes are −1, 0 and 1.
    pub fn is_ternary(&self) -> bool {
        match self.grid {
            Grid::Affine { signed, symmetric } => signed && symmetric && self.bits == 2,
            Grid::Planes { mask } => mask.is_power_of_two(),
            Grid::Codebook => false,
        }
    }

    /// Bits that a file stores per element: those of its code, or [`TERNARY_BITS`].
    pub fn stored_bits(&self) -> f64 {
        if self.is_ternary() { TERNARY_BITS } else { self.bits.into() }
    }

    /// Smallest and largest code.
    pub fn code_range(&self) -> (i32, i32) {
        match self.grid {
            Grid::Affine { .. } if self.bits == 0 => (0, 0),
            Grid::Affine { signed, symmetric } => numerics::code_range(self.bits, signed, symmetric),
            Grid::Planes { mask } => (-i32::from(mask), i32::from(mask)),
            Grid::Codebook => (0, (1 << self.bits.min(8)) - 1),
        }
    }
}

/// A [`QuantSpec`] with its numbers filled in.
#[derive(Debug, Clone, PartialEq)]
pub struct QParams {
    /// What they are the parameters of.
    pub spec: QuantSpec,
    /// One per tensor or channel; positive and finite.
    pub scale: Vec<f32>,
    /// One per scale for affine grids; empty means all zero.
    pub zero_point: Vec<i32>,
    /// The values of a codebook, by code; empty for other grids.
    pub levels: Vec<f32>,
    /// Bits of each channel's codes, 0 or 2 to `spec.bits`, where channels differ; empty where they do not. Only signed symmetric
    /// grids of channels along the first axis have them, and `spec.bits` is the most.
    pub rows: Vec<u8>,
}

impl QParams {
    /// An affine grid without zero point: weights, mostly.
    pub fn signed(bits: u8, symmetric: bool, per: Granularity, scale: Vec<f32>) -> Self {
        Self {
            spec: QuantSpec { grid: Grid::Affine { signed: true, symmetric }, bits, per },
            scale,
            zero_point: vec![],
            levels: vec![],
            rows: vec![],
        }
    }

    /// Signed symmetric codes whose channels, along the first axis, have `rows` bits each.
    pub fn by_rows(rows: Vec<u8>, scale: Vec<f32>) -> Self {
        let most = rows.iter().copied().max().unwrap_or(0);
        let mut params = Self::signed(most, true, Granularity::PerChannel { axis: 0 }, scale);
        if most == 0 {
            params.spec.grid = Grid::Planes { mask: 0 };
        }
        if rows.iter().all(|&bits| bits == most) { params } else { Self { rows, ..params } }
    }

    /// An affine grid with one scale: activations, mostly.
    pub fn per_tensor(bits: u8, signed: bool, scale: f32, zero_point: i32) -> Self {
        let spec = QuantSpec { grid: Grid::Affine { signed, symmetric: false }, bits, per: Granularity::PerTensor };
        Self { spec, scale: vec![scale], zero_point: vec![zero_point], levels: vec![], rows: vec![] }
    }

    /// The zero point of channel `channel`.
    pub fn zero_point(&self, channel: usize) -> i32 {
        self.zero_point.get(channel).copied().unwrap_or(0)
    }

    /// The grid of one channel.
    pub fn spec_of(&self, channel: usize) -> QuantSpec {
        self.rows.get(channel).map_or(self.spec, |&bits| QuantSpec { bits, ..self.spec })
    }

    /// The grids of a tensor of `n` elements, in order, and how many lie on each: one, or those of neighbouring channels of equal width.
    pub fn runs(&self, n: usize) -> Vec<(QuantSpec, usize)> {
        match self.rows.len() {
            0 => vec![(self.spec, n)],
            channels => {
                let run = |run: &[u8]| (QuantSpec { bits: run[0], ..self.spec }, run.len() * (n / channels));
                self.rows.chunk_by(|a, b| a == b).map(run).collect()
            }
        }
    }

    /// Bits that a file stores per element: the mean over channels.
    pub fn stored_bits(&self) -> f64 {
        let channels = self.rows.len().max(1);
        (0..channels).map(|channel| self.spec_of(channel).stored_bits()).sum::<f64>() / channels as f64
    }

    /// Smallest and largest code of any channel.
    pub fn code_range(&self) -> (i32, i32) {
        self.spec.code_range()
    }

    /// The decoded value of a code in a channel.
    pub fn decode(&self, code: i32, channel: usize) -> f32 {
        let scale = self.scale.get(channel).or(self.scale.first()).copied().unwrap_or(0.0);
        match self.spec.grid {
            Grid::Affine { .. } => scale * (code - self.zero_point(channel)) as f32,
            Grid::Planes { .. } => scale * code as f32,
            Grid::Codebook => {
                scale * usize::try_from(code).ok().and_then(|c| self.levels.get(c)).copied().unwrap_or(0.0)
            }
        }
    }

    /// The nearest code of a value in a channel (ties to the even code; NaN becomes the code of zero).
    pub fn encode(&self, value: f32, channel: usize) -> i32 {
        let (low, high) = self.spec_of(channel).code_range();
        let scale = self.scale.get(channel).or(self.scale.first()).copied().unwrap_or(0.0);
        match self.spec.grid {
            Grid::Affine { .. } => numerics::quantize(value, scale, self.zero_point(channel), low, high),
            Grid::Planes { mask } => {
                let wanted = numerics::quantize(value, scale, 0, low, high);
                let magnitude = nearest_in_mask(wanted.unsigned_abs() as u8, mask);
                if wanted < 0 { -i32::from(magnitude) } else { i32::from(magnitude) }
            }
            Grid::Codebook => {
                let distance = |code: &i32| (self.decode(*code, channel) - value).abs();
                (low..=high).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
            }
        }
    }

    /// Checks that every number is usable for a tensor with this many channels along the granularity's axis.
    pub fn check(&self, channels: usize) -> Result<(), Error> {
        let bad = |detail: String| Err(Error::new(Kind::Quantization, detail));
        if self.spec.bits > 8 {
            return bad(format!("{} bits per element: at most 8 can be stored", self.spec.bits));
        }
        if self.spec.bits == 0 && matches!(self.spec.grid, Grid::Affine { .. }) {
            return bad("an affine grid needs at least 1 bit".to_owned());
        }
        if self.scale.len() != channels {
            return bad(format!("{} scales for {channels} channels", self.scale.len()));
        }
        if let Some(scale) = self.scale.iter().find(|s| !s.is_normal() || **s < 0.0) {
            return bad(format!("scale {scale} is not a positive normal number"));
        }
        if !self.zero_point.is_empty() && self.zero_point.len() != channels {
            return bad(format!("{} zero points for {channels} channels", self.zero_point.len()));
        }
        let (low, high) = self.code_range();
        if let Some(zero) = self.zero_point.iter().find(|z| !(low..=high).contains(*z)) {
            return bad(format!("zero point {zero} is outside the codes {low}..={high}"));
        }
        if !self.rows.is_empty() {
            let is_fit = self.spec.grid == Grid::Affine { signed: true, symmetric: true }
                && self.spec.per == Granularity::PerChannel { axis: 0 }
                && self.zero_point.iter().all(|&z| z == 0);
            if !is_fit {
                return bad(
                    "only signed symmetric grids with scales along the first axis have channels of several widths"
                        .to_owned(),
                );
            }
            if self.rows.len() != channels {
                return bad(format!("{} widths for {channels} channels", self.rows.len()));
            }
            let most = self.spec.bits;
            if let Some(bits) = self.rows.iter().find(|&&bits| bits == 1 || bits > most) {
                return bad(format!("a channel of {bits} bits: 0 or 2 to {most} here"));
            }
            if !self.rows.contains(&most) {
                return bad(format!("no channel has the {most} bits of the grid"));
            }
        }
        match self.spec.grid {
            Grid::Planes { mask } => {
                let needed = if mask == 0 { 0 } else { mask.count_ones() + 1 };
                if u32::from(self.spec.bits) != needed || mask & 0x80 != 0 || (mask != 0 && mask & 1 == 0) {
                    return bad(format!(
                        "planes {mask:#010b} do not make codes of {} bits with the lowest at bit 0",
                        self.spec.bits
                    ));
                }
            }
            Grid::Codebook if self.levels.len() != 1 << self.spec.bits => {
                return bad(format!("{} levels for {} bits", self.levels.len(), self.spec.bits));
            }
            _ => {}
        }
        match self.levels.iter().find(|l| !l.is_finite()) {
            Some(level) => bad(format!("level {level} is not finite")),
            None => Ok(()),
        }
    }
}

/// The number closest to `magnitude` that has only bits of `mask`; the smaller of two equally close ones.
fn nearest_in_mask(magnitude: u8, mask: u8) -> u8 {
    // Subsets of the mask in falling order; at most 128 of them, and on-grid values (the common case) match at once.
    if magnitude & !mask == 0 {
        return magnitude;
    }
    let mut best = mask;
    let mut subset = mask;
    loop {
        if subset.abs_diff(magnitude) <= best.abs_diff(magnitude) {
            best = subset;
        }
        if subset == 0 {
            return best;
        }
        subset = (subset - 1) & mask;
    }
}

/// What a quantized value is in its network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// A weight of a convolution or linear layer.
    Weight,
    /// A bias.
    Bias,
    /// A computed value.
    Activation,
    /// A network input.
    Input,
}

/// A place where rounding happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Site {
    /// What the value is.
    pub role: Role,
    /// The grid it should be on.
    pub spec: QuantSpec,
    /// The grid's numbers, once calibrated or trained.
    pub params: Option<QParams>,
}

/// Number of channels a granularity distinguishes in a tensor of this shape.
pub fn channels(per: Granularity, shape: &[usize]) -> Result<usize, Error> {
    match per {
        Granularity::PerTensor => Ok(1),
        Granularity::PerChannel { axis } => shape
            .get(axis)
            .copied()
            .ok_or_else(|| Error::shape(format!("channel axis {axis} does not exist in {shape:?}"))),
    }
}

/// Calls `f(element index, channel)` for every element of a row-major tensor.
pub fn for_each_channel(per: Granularity, shape: &[usize], mut f: impl FnMut(usize, usize)) {
    let n: usize = shape.iter().product();
    match per {
        Granularity::PerTensor => (0..n).for_each(|i| f(i, 0)),
        Granularity::PerChannel { axis } => {
            let inner: usize = shape.get(axis + 1..).unwrap_or(&[]).iter().product();
            let count = shape.get(axis).copied().unwrap_or(1).max(1);
            (0..n).for_each(|i| f(i, i / inner.max(1) % count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decoding_inverts_encoding_on_every_grid() {
        let planes = |mask: u8| QParams {
            spec: QuantSpec {
                grid: Grid::Planes { mask },
                bits: mask.count_ones() as u8 + 1,
                per: Granularity::PerTensor,
            },
            scale: vec![0.037],
            zero_point: vec![],
            levels: vec![],
            rows: vec![],
        };
        let binary = QParams {
            spec: QuantSpec { grid: Grid::Codebook, bits: 1, per: Granularity::PerTensor },
            scale: vec![0.2],
            zero_point: vec![],
            levels: vec![-1.0, 1.0],
            rows: vec![],
        };
        let cases = [
            QParams::per_tensor(4, false, 0.1, 3),
            QParams::per_tensor(8, true, 0.013, -7),
            planes(0b1011),
            planes(0b1),
            binary,
        ];
        for params in cases {
            params.check(1).unwrap();
            let (low, high) = params.code_range();
            for code in low..=high {
                let on_grid =
                    !matches!(params.spec.grid, Grid::Planes { mask } if code.unsigned_abs() as u8 & !mask != 0);
                if on_grid {
                    assert_eq!(params.encode(params.decode(code, 0), 0), code, "{params:?}");
                }
            }
        }
    }

    #[test]
    fn channels_may_have_widths_of_their_own() {
        let params = QParams::by_rows(vec![4, 2, 0, 4], vec![0.1; 4]);
        params.check(4).unwrap();
        assert_eq!(params.stored_bits(), (4.0 + 1.6 + 0.0 + 4.0) / 4.0);
        let codes: Vec<i32> = (0..4).map(|c| params.encode(-5.0, c)).collect();
        assert_eq!(codes, [-7, -1, 0, -7]);
        assert!(QParams::by_rows(vec![3, 3], vec![0.1; 2]).rows.is_empty());
        for (rows, message) in [
            (vec![4, 1, 2, 2], "a channel of 1 bits: 0 or 2 to 4 here"),
            (vec![4, 5, 2, 2], "a channel of 5 bits: 0 or 2 to 4 here"),
            (vec![4, 2], "2 widths for 4 channels"),
            (vec![2, 2, 3, 3], "no channel has the 4 bits of the grid"),
        ] {
            assert_eq!(QParams { rows, ..params.clone() }.check(4).unwrap_err().to_string(), message);
        }
        let per_tensor = QParams { rows: vec![2], ..QParams::per_tensor(4, true, 0.1, 0) };
        assert!(per_tensor.check(1).is_err());
    }

    #[test]
    fn the_nearest_number_with_these_bits() {
        for (magnitude, mask, nearest) in [(5, 0b101, 5), (2, 0b101, 1), (3, 0b101, 4), (7, 0b101, 5), (9, 0, 0)] {
            assert_eq!(nearest_in_mask(magnitude, mask), nearest, "{magnitude} in {mask:b}");
        }
    }

    #[test]
    fn unusable_parameters_are_refused() {
        let mut params = QParams::per_tensor(4, false, 0.1, 3);
        params.zero_point = vec![16];
        assert_eq!(params.check(1).unwrap_err().to_string(), "zero point 16 is outside the codes 0..=15");
        params.zero_point = vec![3];
        params.scale = vec![f32::NAN];
        assert!(params.check(1).is_err());
        assert!(QParams::per_tensor(9, false, 0.1, 3).check(1).is_err());
        assert!(QParams::per_tensor(0, false, 0.1, 0).check(1).is_err());
    }

    #[test]
    fn channels_follow_the_axis() {
        let mut seen = vec![];
        for_each_channel(Granularity::PerChannel { axis: 1 }, &[2, 3, 2], |_, c| seen.push(c));
        assert_eq!(seen, [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]);
    }
}
