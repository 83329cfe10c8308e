//! The work of the innermost loops: a job cut into panels, of some blocks of channels and a chunk each.

use super::Chunk;
use crate::integer::conv::room;
use crate::integer::pixels::Pixels;
use crate::integer::weights::{GROUP, LANES, QUAD};

/// The pixels and channels of one call: outputs `out[pixel * stride + channel]`. `X` are codes, `W` weights and `O` accumulators, or what
/// becomes of them at once.
pub struct Job<'a, X, W, O = i32> {
    /// Input codes, unsigned.
    pub input: &'a [X],
    /// First code of each pixel's window.
    pub pixels: &'a Pixels,
    pub chunks: &'a [Chunk],
    /// Packed weights of consecutive blocks.
    pub weights: &'a [W],
    /// Start value per channel, whole blocks.
    pub start: &'a [i32],
    /// Products of pairs that 16 bits can sum up.
    pub short_sums: usize,
    /// Channels wanted, at most those of the blocks.
    pub channels: usize,
    /// Number of its first channel in the layer, and so of its first output in the band.
    pub first: usize,
    /// From the first output of the first pixel on.
    pub out: &'a mut [O],
    /// Outputs between pixels.
    pub stride: usize,
}

/// Weights to fetch while others are multiplied.
#[derive(Debug, Clone, Copy)]
pub struct Next {
    /// Their first byte, which is never read but fetched.
    first: *const u8,
    bytes: usize,
}

impl Next {
    /// The first `len` of these weights, or as many as there are.
    pub fn new<W>(weights: &[W], len: usize) -> Self {
        Next { first: weights.as_ptr().cast(), bytes: weights.len().min(len) * size_of::<W>() }
    }

    /// How far after `weights` what the `idx`th few pixels fetch lies, 64 bytes for each of so many groups of four inputs; 0 where all is
    /// fetched. One addition in a loop that has no room for two.
    #[cfg(target_arch = "x86_64")]
    pub fn ahead_of(&self, weights: *const i8, idx: usize, quads: usize) -> usize {
        let fetched = idx * quads * GROUP;
        match fetched < self.bytes {
            true => (self.first.addr() + fetched).wrapping_sub(weights.addr()),
            false => 0,
        }
    }
}

/// Some blocks of channels times many pixels, over a chunk: one call of an innermost loop; see [`Job`].
pub struct Panel<'a, X, W> {
    pub input: &'a [X],
    /// First code of each pixel's window.
    pub pixels: &'a [usize],
    pub pieces: &'a [(usize, usize)],
    /// From the chunk's first on.
    pub weights: &'a [W],
    pub block_len: usize,
    pub blocks: usize,
    /// What is read after these weights.
    pub next: Option<Next>,
    /// What is added to: start values, or with `None` the accumulators themselves.
    pub start: Option<&'a [i32]>,
    pub channels: usize,
    pub stride: usize,
    /// Number of its first channel in the layer.
    pub channel: usize,
    /// Number of its first output in the band.
    pub at: usize,
    pub short_sums: usize,
}

/// What is done with a panel and its outputs.
pub type Run<'a, X, W, O> = dyn FnMut(&Panel<'_, X, W>, &mut [O]) + 'a;

impl<X, W> Clone for Panel<'_, X, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X, W> Copy for Panel<'_, X, W> {}

/// How many pixels a panel of AVX2's kernels has: a multiple of six, or less, about as many as a loop takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    One,
    Two,
    Four,
    Many,
}

impl<X, W> Panel<'_, X, W> {
    /// Whether 16 bits cannot hold the sums of all pieces.
    pub fn needs_widening(&self) -> bool {
        self.quads() > self.short_sums
    }

    /// Groups of four inputs.
    pub fn quads(&self) -> usize {
        self.pieces.iter().map(|(_, quads)| quads).sum()
    }

    /// Which loop to take.
    pub fn rest(&self) -> Rest {
        match self.pixels.len() {
            0 | 1 => Rest::One,
            2 => Rest::Two,
            3 | 4 => Rest::Four,
            _ => Rest::Many,
        }
    }

    /// One of its blocks.
    pub fn block(&self, block: usize) -> Self {
        Panel {
            weights: &self.weights[block * self.block_len..],
            blocks: 1,
            start: self.start.map(|start| &start[block * LANES..]),
            channels: (self.channels - block * LANES).min(LANES),
            channel: self.channel + block * LANES,
            at: self.at + block * LANES,
            ..*self
        }
    }

    /// Where the windows of some of its pixels begin. Of fewer than `PIXELS`, the last one several times.
    #[inline(always)]
    pub fn inputs<const PIXELS: usize>(&self, pixels: &[usize]) -> [*const X; PIXELS] {
        let at: [usize; PIXELS] = match pixels.try_into() {
            Ok(whole) => whole,
            Err(_) => std::array::from_fn(|m| pixels[m.min(pixels.len() - 1)]),
        };
        at.map(|at| self.input.as_ptr().wrapping_add(at))
    }
}

impl<X, W> Job<'_, X, W> {
    /// Expands the weights of a block and a chunk at a time, `group_len` elements per group of four inputs, for all pixels, and runs each
    /// as a job of its own.
    pub fn expanded<E: Copy + Default>(
        &mut self,
        group_len: usize,
        panel: &mut Vec<E>,
        expand: impl Fn(&[W], &mut [E]),
        run: impl Fn(&mut Job<'_, X, E>),
    ) {
        let blocks = self.channels.div_ceil(LANES);
        let block_len = self.weights.len() / blocks.max(1);
        for block in 0..blocks {
            for chunk in self.chunks {
                let quads = chunk.quads();
                let panel = room(panel, quads * GROUP, E::default());
                expand(&self.weights[block * block_len + chunk.first * group_len..][..quads * group_len], panel);
                run(&mut Job {
                    input: self.input,
                    pixels: self.pixels,
                    chunks: &[Chunk { first: 0, ..chunk.clone() }],
                    weights: panel,
                    start: &self.start[block * LANES..(block + 1) * LANES],
                    short_sums: self.short_sums,
                    channels: (self.channels - block * LANES).min(LANES),
                    first: self.first + block * LANES,
                    out: &mut self.out[block * LANES..],
                    stride: self.stride,
                });
            }
        }
    }
}

impl<X, W, O> Job<'_, X, W, O> {
    /// Cuts the job into panels. Weights are `group_len` elements per group of four inputs; a panel has at most so many blocks,
    /// and a multiple of so many pixels: what is left is a panel of its own.
    ///
    /// # Panics
    /// If the slices are shorter than they must be.
    pub fn for_each_panel(
        &mut self,
        group_len: usize,
        (most_blocks, multiple): (usize, usize),
        run: &mut Run<'_, X, W, O>,
    ) {
        let blocks = self.channels.div_ceil(LANES);
        let reach = self.chunks.iter().flat_map(|c| &c.pieces).map(|(offset, quads)| offset + quads * QUAD).max();
        let last = self.pixels.last() + reach.unwrap_or(0);
        let pixels = self.pixels.offsets();
        let quads = self.chunks.last().map_or(0, |c| c.first + c.quads());
        let block_len = self.weights.len() / blocks.max(1);
        assert!(last <= self.input.len(), "a window reaches past the input");
        assert!(quads * group_len <= block_len && blocks * LANES <= self.start.len(), "blocks are missing");
        assert!(
            self.chunks.windows(2).all(|pair| pair[0].first + pair[0].quads() == pair[1].first),
            "chunks leave something out"
        );
        if let Some(before) = pixels.len().checked_sub(1) {
            assert!(before * self.stride + self.channels <= self.out.len(), "outputs are missing");
        }
        let mut block = 0;
        while block < blocks {
            let count = (blocks - block).min(most_blocks);
            for (idx, chunk) in self.chunks.iter().enumerate() {
                let next = match self.chunks.get(idx + 1) {
                    Some(next) => block * block_len + next.first * group_len,
                    None => (block + count) * block_len,
                };
                let start = &self.start[block * LANES..(block + count) * LANES];
                let (whole, rest) = pixels.split_at(pixels.len() / multiple * multiple);
                for (first, pixels) in [(0, whole), (whole.len(), rest)] {
                    if pixels.is_empty() {
                        continue;
                    }
                    let at = first * self.stride + block * LANES;
                    let panel = Panel {
                        input: self.input,
                        pixels,
                        pieces: &chunk.pieces,
                        weights: &self.weights
                            [block * block_len + chunk.first * group_len..(block + count) * block_len],
                        block_len,
                        blocks: count,
                        next: self.weights.get(next..).map(|next| Next::new(next, count * block_len)),
                        start: chunk.begins.then_some(start),
                        channels: (self.channels - block * LANES).min(count * LANES),
                        stride: self.stride,
                        channel: self.first + block * LANES,
                        at: self.first + at,
                        short_sums: self.short_sums,
                    };
                    run(&panel, &mut self.out[at..]);
                }
            }
            block += count;
        }
    }
}
