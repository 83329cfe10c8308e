//! Weights of integer convolutions in the order in which the dot kernels read them.
//!
//! A dot instruction multiplies four consecutive input bytes with four weights of each of 16 output channels. A row of
//! input channels (times kernel columns, where these lie side by side in memory) is a *segment*, padded with zero weights to
//! whole groups of four:
//!
//! ```text
//! [group][block of 16 output channels][segment, group of 4][16 channels][4 inputs]     i8, 64 bytes per innermost pair
//! ```
//!
//! Depthwise weights are `[tap][channel]`: there is no sum over channels to speak of.

use crate::conv::ConvShape;

/// Output channels per block.
pub(super) const LANES: usize = 16;
/// Input bytes per dot product.
pub(super) const QUAD: usize = 4;

/// Packed weights with their sums; made once per layer, for any batch and image size.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    pub(super) layout: Layout,
    pub(super) data: Vec<i8>,
    /// Σ w per output channel, which the zero point is multiplied with; padded to whole blocks per group.
    pub(super) sums: Vec<i32>,
    /// How many products of an unsigned byte with a pair of neighbouring weights a 16-bit sum can hold, whatever the bytes:
    /// 0 if not even one.
    pub(super) short_sums: usize,
}

/// What the packing depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub c_in: usize,
    pub c_out: usize,
    pub groups: usize,
    pub kernel: [usize; 2],
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Every channel alone: one weight per tap and channel.
    Depthwise,
    /// A segment per kernel row: its columns and channels are one run of input bytes.
    Rows,
    /// A segment per tap.
    Taps,
}

impl Layout {
    pub fn of(shape: &ConvShape) -> Self {
        let kind = if shape.groups == shape.c_in && shape.c_in == shape.c_out && shape.groups > 1 {
            Kind::Depthwise
        } else if shape.groups == 1 && (shape.dilation[1] == 1 || shape.kernel[1] == 1) {
            Kind::Rows
        } else {
            Kind::Taps
        };
        Layout { c_in: shape.c_in, c_out: shape.c_out, groups: shape.groups, kernel: shape.kernel, kind }
    }

    pub fn group_in(&self) -> usize {
        self.c_in / self.groups
    }

    pub fn group_out(&self) -> usize {
        self.c_out / self.groups
    }

    /// Blocks of output channels per group.
    pub fn blocks(&self) -> usize {
        self.group_out().div_ceil(LANES)
    }

    /// Number of segments and real bytes in each.
    fn segments(&self) -> (usize, usize) {
        let [kernel_h, kernel_w] = self.kernel;
        match self.kind {
            Kind::Depthwise | Kind::Taps => (kernel_h * kernel_w, self.group_in()),
            Kind::Rows => (kernel_h, kernel_w * self.group_in()),
        }
    }

    /// Groups of four input bytes per segment.
    pub fn segment_quads(&self) -> usize {
        self.segments().1.div_ceil(QUAD)
    }

    /// Whether segments end on a group of four, so that no byte beyond them is read.
    pub fn is_exact(&self) -> bool {
        self.segments().1.is_multiple_of(QUAD)
    }

    /// Bytes of packed weights per block.
    pub fn block_len(&self) -> usize {
        self.segments().0 * self.segment_quads() * QUAD * LANES
    }
}

impl ConvWeights {
    /// Packs the OIHW weights `w` of a convolution of this shape (whose batch and image size do not matter).
    ///
    /// # Panics
    /// If the shape is not valid or `w` has another length than it says.
    pub fn new(shape: &ConvShape, w: &[i8]) -> Self {
        if let Err(error) = shape.validate() {
            panic!("{error}");
        }
        assert_eq!(w.len(), shape.weight_len(), "length of the weight of {shape:?}");
        let layout = Layout::of(shape);
        let [kernel_h, kernel_w] = shape.kernel;
        let (group_in, taps) = (layout.group_in(), kernel_h * kernel_w);
        let sum = |c: usize| w[c * group_in * taps..][..group_in * taps].iter().map(|&w| i32::from(w)).sum::<i32>();
        if layout.kind == Kind::Depthwise {
            let data = (0..taps * layout.c_out).map(|i| w[i % layout.c_out * taps + i / layout.c_out]).collect();
            return ConvWeights { layout, data, sums: (0..layout.c_out).map(sum).collect(), short_sums: 0 };
        }
        let (group_out, blocks) = (layout.group_out(), layout.blocks());
        let mut data = vec![0i8; layout.groups * blocks * layout.block_len()];
        let mut sums = vec![0i32; layout.groups * blocks * LANES];
        for c in 0..layout.c_out {
            let lane = c / group_out * blocks * LANES + c % group_out;
            sums[lane] = sum(c);
            let block = lane / LANES * layout.block_len() + lane % LANES * QUAD;
            for i in 0..group_in {
                for tap in 0..taps {
                    // Position of this weight's input byte in its segment.
                    let (segment, at) = match layout.kind {
                        Kind::Rows => (tap / kernel_w, tap % kernel_w * group_in + i),
                        Kind::Depthwise | Kind::Taps => (tap, i),
                    };
                    let quad = segment * layout.segment_quads() + at / QUAD;
                    data[block + quad * QUAD * LANES + at % QUAD] = w[(c * group_in + i) * taps + tap];
                }
            }
        }
        let short_sums = short_sums(&data);
        ConvWeights { layout, data, sums, short_sums }
    }

    /// Bytes that the packed weights take in memory.
    pub fn bytes(&self) -> usize {
        self.data.len() + self.sums.len() * size_of::<i32>()
    }
}

/// See [`ConvWeights::short_sums`]: the largest sum of a pair is 255 times its positive weights, the smallest 255 times its
/// negative ones. 4-bit weights of ±7 allow 9, of 7 bits 1, of 8 bits usually none.
fn short_sums(data: &[i8]) -> usize {
    let largest = data.chunks_exact(2).map(|pair| {
        let (positive, negative): (Vec<i32>, Vec<i32>) = pair.iter().map(|&w| i32::from(w)).partition(|&w| w > 0);
        positive.iter().sum::<i32>().max(-negative.iter().sum::<i32>())
    });
    let largest = largest.max().unwrap_or(0).max(1);
    (i32::from(i16::MAX) / (255 * largest)) as usize
}
