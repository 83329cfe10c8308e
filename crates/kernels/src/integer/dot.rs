//! The innermost loops: dot products of a few pixels with blocks of 16 output channels.
//!
//! | kernel | per instruction | at a time |
//! |---|---|---|
//! | VNNI (AVX-512) | `vpdpbusd`: 64 products of u8 and i8, summed by fours into 16 i32 | 12 pixels x 1 block, 6 x 2, 4 x 3, 3 or 6 x 4 |
//! | short (AVX2) | `vpmaddubsw`: 32 products of u8 and i8, summed by twos into 16 i16, several of which are added before they are widened | 6 pixels x 1 block |
//! | dots (AVX-VNNI) | `vpdpbusd`: 32 products of u8 and i8, summed by fours into 8 i32 | 6 pixels x 1 block |
//! | wide (AVX2) | `vpmaddwd`: 16 products of i16, summed by twos into 8 i32 | 6 pixels x 1 block |
//! | narrow (AVX2) | as short, weights expanded from 1–7 bits in registers ([`narrow`](super::narrow)) | 6 pixels x 1 block |
//! | narrow (AVX-512) | as VNNI, weights expanded in the same way; of many pixels, the first ones leave them expanded for the others | 1, 2, 4 or 6 pixels x 1–4 blocks |
//! | dots (ARM) | `sdot`: 16 products of i8, summed by fours into 4 i32 | 4 pixels x 1 block |
//! | portable | | 1 pixel x 1 block |
//!
//! All take input codes as unsigned numbers; signed codes were shifted by 128 on the way in, which the start value of the
//! accumulators makes up for. `vpmaddubsw` saturates, so it is used only where the weights at hand cannot make it: how
//! many of its results a 16-bit lane can hold for any input is known from packing, and nothing is ever clipped. Everything
//! else is widened to 16 bits, inputs on the way into a band's strip, weights when they are packed, or when they are loaded
//! where a layer has so few pixels that reading its weights takes longest.
//!
//! Both AVX2 kernels do a multiplication and an addition per register of weights and pixel. Zen 3 does two of each per cycle: 64
//! multiply-accumulates for short sums and 32 for wide ones.

use std::cell::Cell;

pub(super) use chunk::Chunk;

use super::conv::room;
use super::narrow::Narrow;
use super::pixels::Pixels;
use super::weights::{GROUP, LANES, QUAD};
#[cfg(any(target_arch = "aarch64", test))]
use crate::arm::has_dotprod;
use crate::isa::{Isa, Level};
use crate::multiversion::multiversion;

/// Most blocks that a kernel takes at once.
#[cfg(target_arch = "x86_64")]
pub(super) const MAX_BLOCKS: usize = 4;

/// The pixels and channels of one call: outputs `out[pixel * stride + channel]`. `X` are codes, `W` weights and `O` accumulators, or what
/// becomes of them at once.
pub(super) struct Job<'a, X, W, O = i32> {
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
pub(super) struct Next {
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

/// With room for so many sums, chunks are cut so that each needs widening once; with less, it is done within them.
#[cfg(target_arch = "x86_64")]
const MANY_SHORT_SUMS: usize = 64;

/// Groups of four inputs in a chunk, 64 bytes each: the inputs of many pixels share the first cache with them.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const LONGEST: usize = 128;

/// The same of weights that are kept expanded.
const LONGEST_KEPT: usize = 1024;

/// More products than any sum of 32 bits can have.
#[cfg(target_arch = "x86_64")]
const LONG_SUMS: usize = 1 << 24;

/// Pixels from which on weights are expanded once for all of them.
const MANY_PIXELS: usize = 8;

thread_local! {
    /// Expanded weights.
    static BYTES: Cell<Vec<i8>> = const { Cell::new(vec![]) };
    static WORDS: Cell<Vec<i16>> = const { Cell::new(vec![]) };
}

/// Which kernel a layer runs; chosen when its weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Short,
    #[cfg(target_arch = "x86_64")]
    Dots,
    #[cfg(target_arch = "x86_64")]
    Wide,
    #[cfg(any(target_arch = "aarch64", test))]
    ArmDots,
    Portable,
}

impl Kernel {
    /// The best kernel of the level in use for weights with so many [`short_sums`](super::ConvWeights).
    pub fn best(short_sums: usize) -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let level = Isa::current().level();
            if level == Level::Avx512 && is_x86_feature_detected!("avx512vnni") {
                return Kernel::Vnni;
            }
            if level >= Level::Avx2 {
                if avx2::has_dots() {
                    return Kernel::Dots;
                }
                // A single sum that must be widened at once is no faster than products of words, which are simpler.
                return if short_sums > 1 { Kernel::Short } else { Kernel::Wide };
            }
        }
        #[cfg(any(target_arch = "aarch64", test))]
        if Isa::current().level() == Level::Neon && has_dotprod() {
            return Kernel::ArmDots;
        }
        Kernel::Portable
    }

    /// All kernels that this processor can run for such weights.
    #[cfg(test)]
    pub fn available(short_sums: usize) -> Vec<Self> {
        let mut all = vec![Kernel::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            all.extend(Isa::new(Level::Avx2).map(|_| Kernel::Wide));
            all.extend(Isa::new(Level::Avx2).filter(|_| short_sums > 0).map(|_| Kernel::Short));
            all.extend(Isa::new(Level::Avx2).filter(|_| avx2::has_dots()).map(|_| Kernel::Dots));
            let vnni = is_x86_feature_detected!("avx512vnni");
            all.extend(Isa::new(Level::Avx512).filter(|_| vnni).map(|_| Kernel::Vnni));
        }
        all.extend(Isa::new(Level::Neon).filter(|_| has_dotprod()).map(|_| Kernel::ArmDots));
        all
    }

    /// Whether inputs and weights are widened to 16 bits.
    pub fn is_wide(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Kernel::Wide;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Blocks of channels whose sums fit the registers together, for a few pixels.
    pub fn blocks_at_once(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => MAX_BLOCKS,
            _ => 1,
        }
    }

    /// Products of pairs that one of its sums can hold, where 16 bits can hold `short_sums`.
    pub fn room(self, short_sums: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Dots => LONG_SUMS,
            _ => short_sums,
        }
    }

    /// Whether products of bytes are added in 16 bits first.
    pub fn has_short_sums(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Kernel::Short;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether its sums hold such weights at all.
    pub fn takes(self, short_sums: usize) -> bool {
        !self.has_short_sums() || short_sums > 0
    }

    /// Whether [`narrow`](super::narrow) weights can be run.
    pub fn expands(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Kernel::Short | Kernel::Dots | Kernel::Vnni);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether it uses `vpdpbusd` of AVX-512, which whoever chose it found there.
    pub fn has_vnni(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return self == Kernel::Vnni;
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Whether the processor has AVX2, as whoever chose this kernel found out.
    pub fn has_avx2(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self, Kernel::Vnni | Kernel::Short | Kernel::Dots | Kernel::Wide);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// What it takes off every input; start values have to make up for it.
    pub fn input_offset(self) -> i32 {
        match self {
            #[cfg(any(target_arch = "aarch64", test))]
            Kernel::ArmDots => neon::OFFSET,
            _ => 0,
        }
    }

    /// The longest chunk that this kernel takes: 8 KiB of weights, and no more sums than 16 bits hold if they hold many.
    pub fn longest_chunk(self, short_sums: usize) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Short if short_sums >= MANY_SHORT_SUMS => short_sums.min(LONGEST),
            #[cfg(target_arch = "x86_64")]
            Kernel::Short | Kernel::Dots => LONGEST,
            #[cfg(target_arch = "x86_64")]
            Kernel::Wide => LONGEST / 2,
            #[cfg(any(target_arch = "aarch64", test))]
            Kernel::ArmDots => LONGEST,
            _ => usize::MAX,
        }
    }

    /// [`longest_chunk`](Self::longest_chunk) of [`narrow`](super::narrow) weights. VNNI keeps so many expanded: of several blocks a quarter of the
    /// second cache. Fewer would fit the first, but sums would come and go more often: 14 % slower.
    pub fn longest_narrow_chunk(self, short_sums: usize) -> usize {
        if self.has_vnni() { LONGEST_KEPT } else { self.longest_chunk(short_sums) }
    }

    /// Accumulates every pixel and channel of a job of bytes.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, or the kernel is [`wide`](Self::is_wide).
    pub fn run_bytes(self, job: &mut Job<'_, u8, i8>) {
        assert!(!self.is_wide(), "words were expected");
        match self {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni | Kernel::Short | Kernel::Dots | Kernel::Wide => self.with_x86(job, x86::Sums),
            #[cfg(any(target_arch = "aarch64", test))]
            Kernel::ArmDots => job.for_each_panel(
                GROUP,
                |_| (1, neon::PIXELS),
                // SAFETY: `ArmDots` is only chosen where its instruction was detected; the rest as in `with_vnni`.
                |panel, acc| unsafe { neon::panel(panel, acc) },
            ),
            Kernel::Portable => job.for_each_panel(GROUP, |_| (1, 1), portable),
        }
    }

    /// Every pixel and channel of a job of bytes, whose sums `finish` turns into outputs while they are in a register.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, if sums are made in [several chunks](Self::longest_chunk), or if the kernel is none of
    /// x86's for bytes.
    #[cfg(target_arch = "x86_64")]
    pub fn finish_bytes<F: x86::Finish>(self, job: &mut Job<'_, u8, i8, F::Out>, finish: F) {
        assert!(job.chunks.len() == 1, "sums are not in registers");
        self.with_x86(job, finish);
    }

    /// The same for words, with the [wide](Self::is_wide) kernel.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, if sums are made in several chunks, or with another kernel.
    #[cfg(target_arch = "x86_64")]
    pub fn finish_words<F: x86::Finish>(self, job: &mut Job<'_, i16, i16, F::Out>, finish: F) {
        assert!(job.chunks.len() == 1, "sums are not in registers");
        self.with_words(job, finish);
    }

    #[cfg(target_arch = "x86_64")]
    fn with_x86<F: x86::Finish>(self, job: &mut Job<'_, u8, i8, F::Out>, finish: F) {
        match self {
            Kernel::Vnni => job.for_each_panel(
                GROUP,
                |left| (left.min(MAX_BLOCKS), 1),
                // SAFETY: `Vnni` is only chosen where its instructions were detected. `for_each_panel` sees to it that every piece of
                // every pixel lies within the input, and that weights, start values and outputs exist.
                |panel, out| unsafe { x86::vnni_panel(panel, finish, out) },
            ),
            Kernel::Short => job.for_each_panel(
                GROUP,
                |_| (1, SIX),
                // SAFETY: `Short` is only chosen where AVX2 and FMA were detected; the rest as above.
                |panel, out| unsafe { avx2::bytes::<avx2::InWords, F>(panel, finish, out) },
            ),
            Kernel::Dots => job.for_each_panel(
                GROUP,
                |_| (1, SIX),
                // SAFETY: `Dots` is only chosen where AVX2, FMA and AVX-VNNI were detected; the rest as above.
                |panel, out| unsafe { avx2::bytes::<avx2::InLongs, F>(panel, finish, out) },
            ),
            _ => unreachable!("{self:?} multiplies no bytes with instructions of x86"),
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn with_words<W: Word, F: x86::Finish>(self, job: &mut Job<'_, i16, W, F::Out>, finish: F) {
        assert!(self.is_wide(), "bytes were expected");
        job.for_each_panel(
            GROUP,
            |_| (1, SIX),
            // SAFETY: `Wide` is only chosen where AVX2 and FMA were detected; the rest as for bytes.
            |panel, out| unsafe {
                match panel.rest() {
                    Rest::Many => avx2::wide::<6, W, F>(panel, finish, out),
                    Rest::Four => avx2::wide::<4, W, F>(panel, finish, out),
                    Rest::Two => avx2::wide::<2, W, F>(panel, finish, out),
                    Rest::One => avx2::wide::<1, W, F>(panel, finish, out),
                }
            },
        );
    }

    /// Accumulates every pixel and channel of a job of bytes whose weights are [`narrow`](super::narrow).
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, or the kernel does not [expand](Self::expands).
    pub fn run_narrow(self, job: &mut Job<'_, u8, u8>, form: Narrow) {
        assert!(self.expands(), "weights of another kind were expected");
        #[cfg(target_arch = "x86_64")]
        if self.has_vnni() {
            let mut expanded = BYTES.take();
            job.for_each_panel(
                form.group_bytes(),
                |left| (left.min(MAX_BLOCKS), 1),
                // SAFETY: `Vnni` is only chosen where its instructions were detected; the rest as for bytes.
                |panel, acc| unsafe { super::narrow::x86::vnni(panel, form, &mut expanded, acc) },
            );
            return BYTES.set(expanded);
        }
        if job.pixels.offsets().len() >= MANY_PIXELS {
            let mut panel = BYTES.take();
            let expand = |narrow: &[u8], bytes: &mut [i8]| form.expand(narrow, bytes);
            job.expanded(form.group_bytes(), &mut panel, expand, |job| self.run_bytes(job));
            BYTES.set(panel);
        } else {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Short` and `Dots` are only chosen where their instructions were detected; the rest as for bytes.
            job.for_each_panel(
                form.group_bytes(),
                |_| (1, SIX),
                |panel, acc| unsafe {
                    match self {
                        Kernel::Dots => super::narrow::x86::run::<avx2::InLongs>(panel, form, acc),
                        _ => super::narrow::x86::run::<avx2::InWords>(panel, form, acc),
                    }
                },
            );
        }
    }

    /// Accumulates every pixel and channel of a job of words, with weights of either width.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, or the kernel is not [`wide`](Self::is_wide).
    pub fn run_words<W: Word>(self, job: &mut Job<'_, i16, W>) {
        assert!(self.is_wide(), "bytes were expected");
        if size_of::<W>() == 1 && job.pixels.offsets().len() >= MANY_PIXELS {
            let mut panel = WORDS.take();
            job.expanded(GROUP, &mut panel, W::widen, |job: &mut Job<'_, i16, i16>| self.run_words(job));
            return WORDS.set(panel);
        }
        #[cfg(target_arch = "x86_64")]
        self.with_words(job, x86::Sums);
        #[cfg(not(target_arch = "x86_64"))]
        let _ = job;
    }
}

/// A weight that the wide kernel multiplies with words.
pub(super) trait Word: Copy {
    /// As many weights as words.
    fn widen(from: &[Self], to: &mut [i16]);

    /// 16 consecutive weights as words.
    ///
    /// # Safety
    /// AVX2 is available and `at` holds 16 weights.
    #[cfg(target_arch = "x86_64")]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i;
}

impl Word for i16 {
    fn widen(from: &[Self], to: &mut [i16]) {
        to.copy_from_slice(from);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i {
        // SAFETY: the caller promises 16 words, and AVX2.
        unsafe { std::arch::x86_64::_mm256_loadu_si256(at.cast()) }
    }
}

impl Word for i8 {
    fn widen(from: &[Self], to: &mut [i16]) {
        widen_bytes(from, to);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn load(at: *const Self) -> std::arch::x86_64::__m256i {
        use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtepi8_epi16};
        // SAFETY: the caller promises 16 bytes, and AVX2.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(at.cast())) }
    }
}

multiversion! {
    fn widen_bytes(from: &[i8], to: &mut [i16]) {
        to.iter_mut().zip(from).for_each(|(to, &w)| *to = i16::from(w));
    }
}

/// Some blocks of channels times many pixels, over a chunk: one call of an innermost loop; see [`Job`].
pub(super) struct Panel<'a, X, W> {
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

impl<X, W> Clone for Panel<'_, X, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<X, W> Copy for Panel<'_, X, W> {}

/// How many pixels a panel of AVX2's kernels has: a multiple of six, or less, about as many as a loop takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rest {
    One,
    Two,
    Four,
    Many,
}

/// Pixels that AVX2's kernels take at a time.
const SIX: usize = 6;

impl<X, W> Panel<'_, X, W> {
    /// Whether 16 bits cannot hold the sums of all pieces.
    fn needs_widening(&self) -> bool {
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
    fn expanded<E: Copy + Default>(
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
    /// Cuts the job into panels. Weights are `group_len` elements per group of four inputs; `size(blocks left)` is how many blocks
    /// a panel has, and of how many pixels it has a multiple: what is left is a panel of its own.
    ///
    /// # Panics
    /// If the slices are shorter than they must be.
    fn for_each_panel(
        &mut self,
        group_len: usize,
        size: impl Fn(usize) -> (usize, usize),
        mut run: impl FnMut(&Panel<'_, X, W>, &mut [O]),
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
            let (count, multiple) = size(blocks - block);
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

/// A pixel at a time.
fn portable(panel: &Panel<'_, u8, i8>, acc: &mut [i32]) {
    for (acc, &pixel) in acc.chunks_mut(panel.stride).zip(panel.pixels) {
        let acc = &mut acc[..panel.channels];
        let mut sums = [0; LANES];
        sums[..panel.channels].copy_from_slice(panel.start.map_or(&*acc, |start| &start[..panel.channels]));
        let mut weights = panel.weights.chunks_exact(GROUP);
        for &(offset, quads) in panel.pieces {
            let input = &panel.input[pixel + offset..][..quads * QUAD];
            for (x, w) in input.chunks_exact(QUAD).zip(&mut weights) {
                for (sum, w) in sums.iter_mut().zip(w.chunks_exact(QUAD)) {
                    for (&x, &w) in x.iter().zip(w) {
                        *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                    }
                }
            }
        }
        acc.copy_from_slice(&sums[..panel.channels]);
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
mod chunk;
#[cfg(any(target_arch = "aarch64", test))]
pub(super) mod neon;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;
