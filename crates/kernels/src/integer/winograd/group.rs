//! Products of a few tiles and blocks of channels.

use super::super::dot::Kernel;
use super::{LANES, POSITIONS, QUAD};

/// A few tiles times a few blocks of channels. `X` are transformed inputs and `W` transformed weights.
pub(super) struct Group<'a, X, W> {
    pub planes: &'a [X],
    /// Elements from position to position, to the first tile, and from tile to tile.
    pub plane: usize,
    pub first: usize,
    pub step: usize,
    /// Of all blocks.
    pub weights: &'a [W],
    pub start: &'a [i32],
    /// Per position, products of pairs that 16 bits can sum up.
    pub short_sums: &'a [usize; POSITIONS],
    pub quads: usize,
    pub blocks: usize,
    /// Two, four or six.
    pub tiles: usize,
}

impl<X, W> Group<'_, X, W> {
    /// # Panics
    /// If slices are shorter than the numbers say.
    fn check(&self, products: &[i32]) {
        let last = (POSITIONS - 1) * self.plane + self.first + (self.tiles - 1) * self.step + self.quads * QUAD;
        assert!(last <= self.planes.len(), "a tile lies outside");
        assert!(self.weights.len() >= self.blocks * POSITIONS * self.quads * QUAD * LANES, "weights are missing");
        assert!(self.start.len() >= self.blocks * POSITIONS * LANES, "start values are missing");
        assert!(products.len() >= POSITIONS * self.tiles * self.blocks * LANES, "products have no room");
    }
}

/// Operands that there are products of.
pub(super) trait Operands {
    /// Products `[position][tile][block][16 channels]`.
    ///
    /// # Panics
    /// If slices are shorter than the numbers say.
    fn run(&self, kernel: Kernel, products: &mut [i32]);
}

impl Operands for Group<'_, u8, i8> {
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        self.check(products);
        match kernel {
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni => {
                macro_rules! sizes {
                    ($($tiles:literal $blocks:literal),*) => {
                        match (self.tiles, self.blocks) {
                            // SAFETY: whoever chose `Vnni` found its instructions; lengths were checked above.
                            $(($tiles, $blocks) => unsafe { super::x86::vnni::<$tiles, $blocks>(self, products) },)*
                            size => unreachable!("{size:?} tiles and blocks"),
                        }
                    };
                }
                sizes!(2 1, 2 2, 2 3, 2 4, 4 1, 4 2, 4 3, 4 4, 6 1, 6 2, 6 3, 6 4)
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Short => {
                assert!(self.blocks == 1 && self.short_sums.iter().all(|&sums| sums > 0), "sums are too short");
                // SAFETY: whoever chose `Short` found AVX2; lengths were checked above.
                unsafe {
                    match self.tiles {
                        2 => super::x86::short::<2>(self, products),
                        4 => super::x86::short::<4>(self, products),
                        6 => super::x86::short::<6>(self, products),
                        tiles => unreachable!("{tiles} tiles"),
                    }
                }
            }
            _ => portable(self, products),
        }
    }
}

impl Operands for Group<'_, i16, i16> {
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        self.check(products);
        assert!(kernel.is_wide() && self.blocks == 1, "bytes were expected");
        #[cfg(target_arch = "x86_64")]
        // SAFETY: `Wide` is only chosen where AVX2 was detected; lengths were checked above.
        unsafe {
            match self.tiles {
                2 => super::x86::wide::<2>(self, products),
                4 => super::x86::wide::<4>(self, products),
                6 => super::x86::wide::<6>(self, products),
                tiles => unreachable!("{tiles} tiles"),
            }
        }
    }
}

/// One tile and block after the other.
fn portable(group: &Group<'_, u8, i8>, products: &mut [i32]) {
    let lanes = group.blocks * LANES;
    for (number, products) in products.chunks_exact_mut(lanes).take(POSITIONS * group.tiles).enumerate() {
        let (position, tile) = (number / group.tiles, number % group.tiles);
        let input = &group.planes[position * group.plane + group.first + tile * group.step..][..group.quads * QUAD];
        for (block, sums) in products.chunks_exact_mut(LANES).enumerate() {
            let own = block * POSITIONS + position;
            sums.copy_from_slice(&group.start[own * LANES..][..LANES]);
            let weights = group.weights[own * group.quads * QUAD * LANES..].chunks_exact(QUAD * LANES);
            for (x, w) in input.chunks_exact(QUAD).zip(weights) {
                for (sum, w) in sums.iter_mut().zip(w.chunks_exact(QUAD)) {
                    for (&x, &w) in x.iter().zip(w) {
                        *sum = sum.wrapping_add(i32::from(x) * i32::from(w));
                    }
                }
            }
        }
    }
}
