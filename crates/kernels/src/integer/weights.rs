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
//! The wide kernel reads `[…, pair][16 channels][2 inputs]`, i16. Layers with few pixels read weights about once each: theirs stay
//! as narrow as they are ([`narrow`](super::narrow)), or bytes for the wide kernel. Depthwise weights have an order of their own
//! ([`depthwise`](super::depthwise)): there is no sum over channels to speak of.

use super::depthwise;
use super::dot::Kernel;
use super::narrow::Narrow;
use super::winograd::{self, Winograd};
use crate::conv::ConvShape;
use crate::threads;

/// Output channels per block.
pub(super) const LANES: usize = 16;
/// Input bytes per dot product.
pub(super) const QUAD: usize = 4;
/// Weights of a block and a group of four inputs.
pub(super) const GROUP: usize = QUAD * LANES;

/// Packed weights with their sums; made once per layer, for any batch and image size.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    pub(super) layout: Layout,
    /// Which loops these are packed for.
    pub(super) kernel: Kernel,
    pub(super) data: Packed,
    /// Σ w per output channel, which the zero point is multiplied with; padded to whole blocks per group.
    pub(super) sums: Vec<i32>,
    /// How many products of a pair of inputs with a pair of neighbouring weights a 16-bit sum can hold, whatever the inputs: 0
    /// if not even one.
    pub(super) short_sums: usize,
    /// No input code, as an unsigned byte, is larger.
    pub(super) largest: u8,
}

/// Weights as wide as their kernel takes them.
#[derive(Debug, Clone)]
pub(super) enum Packed {
    Bytes(Vec<i8>),
    Words(Vec<i16>),
    Narrow(Narrow, Vec<u8>),
    Winograd(Winograd),
}

/// Up to so many pixels, a layer is packed for reading its weights fast.
const FEW_PIXELS: usize = 4;

/// Fewer weights than this are in the first cache anyway.
const FEWEST_NARROW: usize = 1 << 13;

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

    /// Groups of four inputs of a dot product.
    pub fn quads(&self) -> usize {
        self.segments().0 * self.segment_quads()
    }

    /// Whether segments end on a group of four, so that no byte beyond them is read.
    pub fn is_exact(&self) -> bool {
        self.segments().1.is_multiple_of(QUAD)
    }

    /// Bytes of packed weights per block.
    pub fn block_len(&self) -> usize {
        self.quads() * GROUP
    }
}

impl ConvWeights {
    /// Packs the OIHW weights `w` of a convolution of this shape. Its batch does not matter, its image size only for speed.
    ///
    /// # Panics
    /// If the shape is not valid or `w` has another length than it says.
    pub fn new(shape: &ConvShape, w: &[i8]) -> Self {
        Self::for_inputs(shape, w, u8::MAX)
    }

    /// [`new`](Self::new) where no input, as an unsigned byte, is larger than `largest`: small codes make faster sums. Signed
    /// codes are 128 larger as bytes.
    ///
    /// # Panics
    /// As [`new`](Self::new).
    pub fn for_inputs(shape: &ConvShape, w: &[i8], largest: u8) -> Self {
        let ordered = in_order(shape, w);
        let sums = short_sums(Layout::of(shape).kind, &ordered, largest);
        let kernel = Kernel::best(sums);
        match winograd::faster(kernel, shape, w, largest) {
            Some(winograd) => Self::transformed(kernel, winograd, shape, &ordered, largest),
            None => Self::packed(kernel, sums, shape, ordered, largest, FEWEST_NARROW),
        }
    }

    /// Weights of transforms, and as they are, [in order](in_order).
    pub(super) fn transformed(
        kernel: Kernel,
        winograd: Winograd,
        shape: &ConvShape,
        ordered: &[i8],
        largest: u8,
    ) -> Self {
        let layout = Layout::of(shape);
        let sums = block_sums(&layout, ordered);
        ConvWeights { layout, kernel, data: Packed::Winograd(winograd), sums, short_sums: 0, largest }
    }

    /// Packs weights that are [in order](in_order) for a kernel; no fewer than `fewest_narrow` of them as narrow as they are.
    pub(super) fn packed(
        kernel: Kernel,
        short_sums: usize,
        shape: &ConvShape,
        ordered: Vec<i8>,
        largest: u8,
        fewest_narrow: usize,
    ) -> Self {
        let layout = Layout::of(shape);
        let taps = shape.kernel[0] * shape.kernel[1];
        if layout.kind == Kind::Depthwise {
            let sum = |w: &[i8]| w.iter().map(|&w| i32::from(w)).sum();
            let mut sums: Vec<i32> = ordered.chunks_exact(taps).map(sum).collect();
            sums.resize(layout.c_out.next_multiple_of(depthwise::SLACK), 0);
            let data = depthwise::pack(kernel, short_sums, taps, &ordered);
            return ConvWeights { layout, kernel, data, sums, short_sums, largest };
        }
        let sums = block_sums(&layout, &ordered);
        let few = shape.out_h() * shape.out_w() <= FEW_PIXELS;
        // AVX2 adds products of narrow weights in 16 bits.
        let fits = kernel.has_vnni() || short_sums > 0;
        let narrows = few && kernel.expands() && fits && ordered.len() >= fewest_narrow;
        let narrow = narrows.then(|| Narrow::of(&ordered)).flatten();
        let short_sums = if narrow.is_some() { short_sums } else { kernel.room(short_sums) };
        let data = match narrow {
            Some(form) => Packed::Narrow(form, form.pack(&ordered)),
            None if kernel.is_wide() && few => Packed::Bytes(by_pairs(&ordered)),
            None if kernel.is_wide() => Packed::Words(words_by_pairs(&ordered)),
            None => Packed::Bytes(ordered),
        };
        ConvWeights { layout, kernel, data, sums, short_sums, largest }
    }

    /// Groups of four inputs that their kernel takes at a time.
    pub(super) fn longest_chunk(&self) -> usize {
        match self.data {
            Packed::Narrow(..) => self.kernel.longest_narrow_chunk(self.short_sums),
            _ => self.kernel.longest_chunk(self.short_sums),
        }
    }

    /// Whether inputs are widened for them.
    pub(super) fn takes_words(&self) -> bool {
        self.kernel.is_wide() && self.layout.kind != Kind::Depthwise
    }

    /// Whether all of a sum is made in a register of x86, and can become a code there: with AVX2, where a chunk is all of it, none of it
    /// has to be widened earlier, and channels fill registers.
    pub(super) fn finishes_in_registers(&self) -> bool {
        let (layout, kernel) = (&self.layout, self.kernel);
        let fits_sums = match self.data {
            Packed::Bytes(_) if kernel.has_vnni() => return true,
            Packed::Bytes(_) | Packed::Words(_) if layout.kind == Kind::Depthwise => {
                return kernel.has_avx2() && layout.c_out.is_multiple_of(8);
            }
            Packed::Bytes(_) => kernel.has_avx2() && !kernel.is_wide() && layout.quads() <= self.short_sums,
            Packed::Words(_) => true,
            Packed::Narrow(..) | Packed::Winograd(_) => false,
        };
        fits_sums && layout.group_out().is_multiple_of(8) && layout.quads() <= self.longest_chunk()
    }

    /// Bytes that the packed weights take in memory.
    pub fn bytes(&self) -> usize {
        let data = match &self.data {
            Packed::Bytes(data) => data.len(),
            Packed::Words(data) => data.len() * size_of::<i16>(),
            Packed::Narrow(_, data) => data.len(),
            Packed::Winograd(data) => data.bytes(),
        };
        data + self.sums.len() * size_of::<i32>()
    }
}

/// The OIHW weights `w` in the order of the dot kernels for bytes; those of a depthwise layer as they are.
///
/// # Panics
/// If the shape is not valid or `w` has another length than it says.
pub(super) fn in_order(shape: &ConvShape, w: &[i8]) -> Vec<i8> {
    if let Err(error) = shape.validate() {
        panic!("{error}");
    }
    assert_eq!(w.len(), shape.weight_len(), "weights of {shape:?}");
    let layout = Layout::of(shape);
    if layout.kind == Kind::Depthwise {
        return w.to_vec();
    }
    let [kernel_h, kernel_w] = shape.kernel;
    let (group_in, taps) = (layout.group_in(), kernel_h * kernel_w);
    let (group_out, blocks) = (layout.group_out(), layout.blocks());
    let mut out = vec![0i8; layout.groups * blocks * layout.block_len()];
    threads::for_each_part_weighing(&mut out, layout.block_len(), w.len(), |start, part| {
        let first = start / layout.block_len().max(1);
        for (number, block) in (first..).zip(part.chunks_exact_mut(layout.block_len().max(1))) {
            // The channels of the group from this block on.
            let (group, channel) = (number / blocks, number % blocks * LANES);
            let filters = &w[(group * group_out + channel) * group_in * taps..];
            for (lane, filter) in filters.chunks_exact(group_in * taps).take(LANES.min(group_out - channel)).enumerate()
            {
                for tap in 0..taps {
                    // Position of this tap's first input in its segment.
                    let (segment, first) = match layout.kind {
                        Kind::Rows => (tap / kernel_w, tap % kernel_w * group_in),
                        Kind::Depthwise | Kind::Taps => (tap, 0),
                    };
                    let first = segment * layout.segment_quads() * QUAD + first;
                    for (at, &w) in (first..).zip(filter[tap..].iter().step_by(taps)) {
                        block[at / QUAD * QUAD * LANES + lane * QUAD + at % QUAD] = w;
                    }
                }
            }
        }
    });
    out
}

/// Σ w per output channel, padded to whole blocks per group, of weights in order.
fn block_sums(layout: &Layout, ordered: &[i8]) -> Vec<i32> {
    let add = |sum: i32, w: &i8| sum + i32::from(*w);
    let mut sums = vec![0i32; layout.groups * layout.blocks() * LANES];
    for (block, sums) in ordered.chunks_exact(layout.block_len().max(1)).zip(sums.chunks_exact_mut(LANES)) {
        for group in block.chunks_exact(GROUP) {
            sums.iter_mut().zip(group.chunks_exact(QUAD)).for_each(|(sum, w)| *sum = w.iter().fold(*sum, add));
        }
    }
    sums
}

/// From groups of four inputs per channel to two groups of two.
pub(super) fn by_pairs<T: Copy>(ordered: &[T]) -> Vec<T> {
    let mut out = Vec::with_capacity(ordered.len());
    for group in ordered.chunks_exact(GROUP) {
        for half in 0..2 {
            out.extend(group.chunks_exact(QUAD).flat_map(|w| [w[2 * half], w[2 * half + 1]]));
        }
    }
    out
}

/// [`by_pairs`], as words.
pub(super) fn words_by_pairs(ordered: &[i8]) -> Vec<i16> {
    by_pairs(ordered).into_iter().map(i16::from).collect()
}

/// See [`ConvWeights::short_sums`]: the largest sum of a pair is `largest` times its positive weights, the smallest `largest`
/// times its negative ones. With inputs of 8 bits, 4-bit weights of ±7 allow 9, of 7 bits 1, of 8 bits usually none; with inputs
/// of 4 bits, 4-bit weights allow 156. Weights are [in order](in_order); depthwise ones, whose pairs are made later, count one by one.
pub(super) fn short_sums(kind: Kind, ordered: &[i8], largest: u8) -> usize {
    let neighbours = if kind == Kind::Depthwise { 1 } else { 2 };
    let (mut most, mut least) = (1i16, -1i16);
    for pair in ordered.chunks(neighbours) {
        most = most.max(pair.iter().map(|&w| i16::from(w.max(0))).sum());
        least = least.min(pair.iter().map(|&w| i16::from(w.min(0))).sum());
    }
    let worst = i32::from(most.max(-least));
    (i32::from(i16::MAX) / (i32::from(largest).max(1) * worst)) as usize
}
