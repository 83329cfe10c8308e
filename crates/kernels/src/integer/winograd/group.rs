//! Products of a few tiles and blocks of channels.

use super::super::dot::Kernel;
use super::{GROUP, LANES, QUAD};

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
        assert!(self.weights.len() >= self.blocks * self.positions * self.quads * GROUP, "weights are missing");
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

/// Runs a kernel for the tiles that a group has, and for its blocks where it takes several.
#[cfg(target_arch = "x86_64")]
macro_rules! of_size {
    ($f:ident($group:expr, $products:expr), blocks) => {
        of_size!($f, $group, $products, ($group.tiles, $group.blocks),
            (2, 1) 2 1, (2, 2) 2 2, (2, 3) 2 3, (2, 4) 2 4, (4, 1) 4 1, (4, 2) 4 2, (4, 3) 4 3, (4, 4) 4 4,
            (6, 1) 6 1, (6, 2) 6 2, (6, 3) 6 3, (6, 4) 6 4)
    };
    ($f:ident($group:expr, $products:expr)) => {
        of_size!($f, $group, $products, ($group.tiles, $group.blocks), (2, 1) 2, (4, 1) 4, (6, 1) 6)
    };
    ($f:ident, $group:expr, $products:expr, $size:expr, $($is:tt $tiles:literal $($blocks:literal)?),*) => {
        match $size {
            $($is => super::x86::$f::<$tiles $(, $blocks, _)?>($group, $products),)*
            size => unreachable!("{size:?} tiles and blocks"),
        }
    };
}

impl Operands for Group<'_, u8, i8> {
    fn run(&self, kernel: Kernel, products: &mut [i32]) {
        self.check(products);
        match kernel {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose `Vnni` found its instructions; lengths were checked above.
            Kernel::Vnni => unsafe { of_size!(vnni(self, products), blocks) },
            #[cfg(target_arch = "x86_64")]
            Kernel::Short => {
                assert!(self.short_sums.iter().all(|&sums| sums > 0), "sums are too short");
                // SAFETY: whoever chose `Short` found AVX2; lengths were checked above.
                unsafe { of_size!(short(self, products)) }
            }
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose `Dots` found AVX2 and AVX-VNNI; lengths were checked above.
            Kernel::Dots => unsafe { of_size!(dots(self, products)) },
            #[cfg(any(target_arch = "aarch64", test))]
            // SAFETY: whoever chose `ArmDots` found its instruction; lengths were checked above.
            Kernel::ArmDots => unsafe { super::neon::dots(self, products) },
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
            Kernel::Vnni => unsafe { of_size!(vnni(self, products), blocks) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: whoever chose one of these found AVX2; lengths were checked above.
            Kernel::Short | Kernel::Dots | Kernel::Wide => unsafe { of_size!(wide(self, products)) },
            _ => portable(self, products, |lane, input| input / 2 * 2 * LANES + lane * 2 + input % 2),
        }
    }
}

/// One tile and block after the other. `place(lane, input)` is where a weight lies among those of a group of four inputs.
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
            let weights = group.weights[own * group.quads * GROUP..].chunks_exact(GROUP);
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
