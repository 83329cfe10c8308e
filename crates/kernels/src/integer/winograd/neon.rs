//! Products of a few tiles for ARM, all positions one after the other.

// See `dot::neon`.
#![allow(unused_unsafe)]

use super::super::dot::neon::products as add_products;
use super::group::Group;
use super::{GROUP, LANES, QUAD};
use crate::arm::*;

/// Tiles at a time, of which there are an even number.
const TILES: usize = 2;

/// One block.
///
/// # Safety
/// FEAT_DotProd is available; `group` has one block, `products` room for its tiles, and slices are as long as [`Group::run`] asks.
#[cfg_attr(target_arch = "aarch64", target_feature(enable = "neon,dotprod"))]
pub unsafe fn dots(group: &Group<'_, u8, i8>, products: &mut [i32]) {
    for position in 0..group.positions {
        let weights = &group.weights[position * group.quads * GROUP..][..group.quads * GROUP];
        let start = &group.start[position * LANES..][..LANES];
        for tile in (0..group.tiles).step_by(TILES) {
            let first = position * group.plane + group.first + tile * group.step;
            let inputs = [first, first + group.step].map(|at| group.planes[at..][..group.quads * QUAD].as_ptr());
            let out = &mut products[(position * group.tiles + tile) * LANES..][..TILES * LANES];
            // SAFETY: the caller promises the instruction; slices are as long as they must be.
            unsafe {
                let start = std::array::from_fn(|part| vld1q_s32(start[4 * part..].as_ptr()));
                let mut sums = [start; TILES];
                add_products(&mut sums, inputs, weights.as_ptr(), group.quads);
                for (out, sum) in out.chunks_exact_mut(4).zip(sums.as_flattened()) {
                    vst1q_s32(out.as_mut_ptr(), *sum);
                }
            }
        }
    }
}
