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
#[cfg(target_arch = "x86_64")]
pub(super) use panel::Rest;
pub(super) use panel::{Job, Panel};
use word::Word;

use super::narrow::Narrow;
use super::weights::{GROUP, LANES, QUAD};
#[cfg(any(target_arch = "aarch64", test))]
use crate::arm::has_dotprod;
use crate::isa::{Isa, Level};

/// Most blocks that a kernel takes at once.
#[cfg(target_arch = "x86_64")]
pub(super) const MAX_BLOCKS: usize = 4;

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

/// Pixels that AVX2's kernels take at a time.
#[cfg(target_arch = "x86_64")]
const SIX: usize = 6;

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
            Kernel::Vnni => self.finish_panels(job, x86::Sums),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: both are only chosen where AVX2, FMA and their own instructions were detected; the rest as in `finish_panels`.
            Kernel::Short | Kernel::Dots => job.for_each_panel(GROUP, (1, SIX), &mut |panel, acc| unsafe {
                match self {
                    Kernel::Dots => avx2::bytes::<avx2::InLongs>(panel, acc),
                    _ => avx2::bytes::<avx2::InWords>(panel, acc),
                }
            }),
            #[cfg(target_arch = "x86_64")]
            Kernel::Wide => {}
            #[cfg(any(target_arch = "aarch64", test))]
            Kernel::ArmDots => job.for_each_panel(
                GROUP,
                (1, neon::PIXELS),
                // SAFETY: `ArmDots` is only chosen where its instruction was detected; the rest as in `finish_panels`.
                &mut |panel, acc| unsafe { neon::panel(panel, acc) },
            ),
            Kernel::Portable => job.for_each_panel(GROUP, (1, 1), &mut portable),
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
        self.finish_panels(job, finish);
    }

    /// The same for words, with the [wide](Self::is_wide) kernel.
    ///
    /// # Panics
    /// If the job's slices do not hold what it describes, if sums are made in several chunks, or with another kernel.
    #[cfg(target_arch = "x86_64")]
    pub fn finish_words<F: x86::Finish>(self, job: &mut Job<'_, i16, i16, F::Out>, finish: F) {
        assert!(job.chunks.len() == 1, "sums are not in registers");
        assert!(self.is_wide() && F::WITH_EIGHTS, "another kernel was expected");
        if F::WITH_EIGHTS {
            job.for_each_panel(
                GROUP,
                (1, SIX),
                // SAFETY: `Wide` is only chosen where AVX2 and FMA were detected; the rest as in `finish_panels`.
                &mut |panel, out| unsafe { avx2::finish_words(panel, finish, out) },
            );
        }
    }

    #[cfg(target_arch = "x86_64")]
    fn finish_panels<F: x86::Finish>(self, job: &mut Job<'_, u8, i8, F::Out>, finish: F) {
        if self == Kernel::Vnni {
            return job.for_each_panel(
                GROUP,
                (MAX_BLOCKS, 1),
                // SAFETY: `Vnni` is only chosen where its instructions were detected. `for_each_panel` sees to it that every piece of
                // every pixel lies within the input, and that weights, start values and outputs exist.
                &mut |panel, out| unsafe { x86::vnni_panel(panel, finish, out) },
            );
        }
        assert!(matches!(self, Kernel::Short | Kernel::Dots) && F::WITH_EIGHTS, "another kernel was expected");
        if F::WITH_EIGHTS {
            // SAFETY: both are only chosen where AVX2, FMA and their own instructions were detected; the rest as above.
            job.for_each_panel(GROUP, (1, SIX), &mut |panel, out| unsafe {
                match self {
                    Kernel::Dots => avx2::finish_bytes::<avx2::InLongs, F>(panel, finish, out),
                    _ => avx2::finish_bytes::<avx2::InWords, F>(panel, finish, out),
                }
            });
        }
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
                (MAX_BLOCKS, 1),
                // SAFETY: `Vnni` is only chosen where its instructions were detected; the rest as for bytes.
                &mut |panel, acc| unsafe { super::narrow::x86::vnni(panel, form, &mut expanded, acc) },
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
            job.for_each_panel(
                form.group_bytes(),
                (1, SIX),
                // SAFETY: `Short` and `Dots` are only chosen where AVX2 and FMA were detected; the rest as for bytes.
                &mut |panel, acc| unsafe { super::narrow::x86::run(panel, form, acc) },
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
        job.for_each_panel(
            GROUP,
            (1, SIX),
            // SAFETY: `Wide` is only chosen where AVX2 and FMA were detected; the rest as for bytes.
            &mut |panel, acc| unsafe { avx2::words(panel, acc) },
        );
        #[cfg(not(target_arch = "x86_64"))]
        let _ = job;
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
mod panel;
mod word;
#[cfg(target_arch = "x86_64")]
pub(super) mod x86;
