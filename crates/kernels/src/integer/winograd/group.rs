//! Products of a few tiles and blocks of channels.

use super::super::dot::Kernel;
use super::{LANES, QUAD};

/// A few tiles times a few blocks of channels. `X` are transformed inputs and `W` transformed weights.
pub(super) struct Group<'a, X, W> {
    pub planes: &'a [X],
    pub positions: usize,
    /// Elements from position to position, to the first tile, and from tile to tile.
    pub plane: usize,
    pub first: usize,
    pub step: usize,
    /// Of all blocks.
    pub weights: &'a [W],
    pub start: &'a [i32],
    /// Per position, products of pairs that 16 bits can sum up. Only for bytes.
    pub short_sums: &'a [usize],
    pub quads: usize,
    pub blocks: usize,
    /// Two, four or six.
    pub tiles: usize,
}

impl<X, W> Group<'_, X, W> {
    /// # Panics
    /// If slices are shorter than the numbers say.
    fn check(&self, products: &[i32]) {
        let last = (self.positions - 1) * self.plane + self.first + (self.tiles - 1) * self.step + self.quads * QUAD;
        assert!(last <= self.planes.len(), "a tile lies outside");
        assert!(self.weights.len() >= self.blocks * self.positions * self.quads * QUAD * LANES, "weights are missing");
        assert!(self.start.len() >= self.blocks * self.positions * LANES, "start values are missing");
        assert!(products.len() >= self.positions * self.tiles * self.blocks * LANES, "products have no room");
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

/// A function for the tiles and blocks that a group has.
#[cfg(target_arch = "x86_64")]
macro_rules! of_size {
    ($group:expr, $f:ident($($arg:expr),*)) => {
        of_size!(@ $group, $f, ($($arg),*), 2 1, 2 2, 2 3, 2 4, 4 1, 4 2, 4 3, 4 4, 6 1, 6 2, 6 3, 6 4)
    };
    (@ $group:expr, $f:ident, $args:tt, $($tiles:literal $blocks:literal),*) => {
        match ($group.tiles, $group.blocks) {
            $(($tiles, $blocks) => of_size!(@call $f $tiles $blocks $args),)*
            size => unreachable!("{size:?} tiles and blocks"),
        }
    };
    (@call $f:ident $tiles:literal $blocks:literal ($($arg:expr),*)) => { super::x86::$f::<$tiles, $blocks>($($arg),*) };
}

impl Operands for Group<'_, u8, i8> {
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        self.check(products);
        match kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose `Vnni` found its instructions; lengths were checked above.
            Kernel::Vnni => unsafe { of_size!(self, vnni(self, products)) },
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
            _ => portable(self, products, |lane, input| lane * QUAD + input),
        }
    }
}

impl Operands for Group<'_, i16, i16> {
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        self.check(products);
        match kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose `Vnni` found its instructions; lengths were checked above.
            Kernel::Vnni => unsafe { of_size!(self, vnni_words(self, products)) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose `Short` or `Wide` found AVX2; lengths were checked above.
            Kernel::Short | Kernel::Wide => unsafe {
                assert_eq!(self.blocks, 1);
                match self.tiles {
                    2 => super::x86::wide::<2>(self, products),
                    4 => super::x86::wide::<4>(self, products),
                    6 => super::x86::wide::<6>(self, products),
                    tiles => unreachable!("{tiles} tiles"),
                }
            },
            _ => portable(self, products, |lane, input| input / 2 * 2 * LANES + lane * 2 + input % 2),
        }
    }
}

/// One tile and block after the other; a group of four inputs has `weight(group, lane, input)`.
fn portable<X: Copy + Into<i32>, W: Copy + Into<i32>>(
    group: &Group<'_, X, W>,
    products: &mut [i32],
    place: impl Fn(usize, usize) -> usize,
) {
    let lanes = group.blocks * LANES;
    for (number, products) in products.chunks_exact_mut(lanes).take(group.positions * group.tiles).enumerate() {
        let (position, tile) = (number / group.tiles, number % group.tiles);
        let input = &group.planes[position * group.plane + group.first + tile * group.step..][..group.quads * QUAD];
        for (block, sums) in products.chunks_exact_mut(LANES).enumerate() {
            let own = block * group.positions + position;
            sums.copy_from_slice(&group.start[own * LANES..][..LANES]);
            let weights = group.weights[own * group.quads * QUAD * LANES..].chunks_exact(QUAD * LANES);
            for (x, w) in input.chunks_exact(QUAD).zip(weights) {
                for (lane, sum) in sums.iter_mut().enumerate() {
                    for (i, &x) in x.iter().enumerate() {
                        *sum = sum.wrapping_add(x.into().wrapping_mul(w[place(lane, i)].into()));
                    }
                }
            }
        }
    }
}
