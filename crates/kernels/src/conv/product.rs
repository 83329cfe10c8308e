//! What the sums of gradients add up: products of f32, or of pairs of bf16.
//!
//! The loops work on *elements* of 32 bits: one number, or two that are summed over and lie side by side (the first in the low
//! half). bf16 has the range of f32 and 8 significant bits: each operand is off by at most 2⁻⁸ of itself, a product of two exact in
//! f32, where everything is summed.

use std::marker::PhantomData;

use crate::isa::Isa;
use crate::simd::{self, Kernel, Vector};

/// A kind of product.
///
/// # Safety
/// Functions generic over a vector want its instruction set, and for pairs what [`Isa::has_bf16`] says.
pub(super) trait Product: Sync {
    /// Numbers of an element.
    const NUMBERS: usize;

    /// Runs a kernel that forms such products.
    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output;
    /// An element of up to two numbers.
    fn element(numbers: [f32; 2]) -> f32;
    /// The element at `p` in all lanes.
    unsafe fn splat<V: Vector>(p: *const f32) -> V;
    /// `sum` plus the products of all numbers of the elements.
    unsafe fn add<V: Vector>(x: V, w: V, sum: V) -> V;
    /// Writes the elements of a vector of neighbouring numbers.
    unsafe fn store<V: Vector>(numbers: V, to: *mut f32);
    /// Elements whose numbers are those of the vectors.
    unsafe fn join<V: Vector>(numbers: [V; 2]) -> V;
    /// Writes elements whose numbers are neighbours.
    unsafe fn along<V: Vector>(from: &[f32], to: &mut [f32]);
    /// Writes elements whose numbers have the same place in two slices, of which the second may be missing: zeros.
    unsafe fn across<V: Vector>(from: [&[f32]; 2], to: &mut [f32]);
}

/// Products of f32.
pub(super) struct Singles;

impl Product for Singles {
    const NUMBERS: usize = 1;

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        simd::dispatch(isa, kernel)
    }

    fn element([number, _]: [f32; 2]) -> f32 {
        number
    }

    #[inline(always)]
    unsafe fn splat<V: Vector>(p: *const f32) -> V {
        // SAFETY: the trait's contract; the caller promises an element.
        unsafe { V::splat(*p) }
    }

    #[inline(always)]
    unsafe fn add<V: Vector>(x: V, w: V, sum: V) -> V {
        // SAFETY: the trait's contract.
        unsafe { x.mul_add(w, sum) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(numbers: V, to: *mut f32) {
        // SAFETY: the trait's contract; the caller has room for a vector.
        unsafe { numbers.store(to) }
    }

    #[inline(always)]
    unsafe fn join<V: Vector>([number, _]: [V; 2]) -> V {
        number
    }

    #[inline(always)]
    unsafe fn along<V: Vector>(from: &[f32], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[inline(always)]
    unsafe fn across<V: Vector>([from, _]: [&[f32]; 2], to: &mut [f32]) {
        to.copy_from_slice(from);
    }
}

/// Products of pairs of bf16.
pub(super) struct Pairs;

impl Product for Pairs {
    const NUMBERS: usize = 2;

    fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
        simd::dispatch_bf16(isa, kernel)
    }

    fn element([low, high]: [f32; 2]) -> f32 {
        f32::from_bits(simd::to_bf16(low) | simd::to_bf16(high) << 16)
    }

    #[inline(always)]
    unsafe fn splat<V: Vector>(p: *const f32) -> V {
        // SAFETY: the trait's contract; the caller promises an element.
        unsafe { V::splat_pair(p) }
    }

    #[inline(always)]
    unsafe fn add<V: Vector>(x: V, w: V, sum: V) -> V {
        // SAFETY: the trait's contract.
        unsafe { x.dot_pairs(w, sum) }
    }

    #[inline(always)]
    unsafe fn store<V: Vector>(numbers: V, to: *mut f32) {
        // SAFETY: the trait's contract; the caller has room for half a vector.
        unsafe { numbers.store_halves(to) }
    }

    #[inline(always)]
    unsafe fn join<V: Vector>([low, high]: [V; 2]) -> V {
        // SAFETY: the trait's contract.
        unsafe { V::pairs(low, high) }
    }

    #[inline(always)]
    unsafe fn along<V: Vector>(from: &[f32], to: &mut [f32]) {
        assert_eq!(from.len(), 2 * to.len());
        let whole = from.len() - from.len() % V::LANES;
        for at in (0..whole).step_by(V::LANES) {
            // SAFETY: a vector of numbers from `at` on lies within `from`, its half within `to`; the trait's contract.
            unsafe { V::load(from.as_ptr().add(at)).store_halves(to.as_mut_ptr().add(at / 2)) };
        }
        for (to, from) in to[whole / 2..].iter_mut().zip(from[whole..].chunks_exact(2)) {
            *to = Self::element([from[0], from[1]]);
        }
    }

    #[inline(always)]
    unsafe fn across<V: Vector>([first, second]: [&[f32]; 2], to: &mut [f32]) {
        assert!(first.len() == to.len() && (second.is_empty() || second.len() == to.len()));
        for at in (0..to.len()).step_by(V::LANES) {
            let lanes = (to.len() - at).min(V::LANES);
            // SAFETY: `lanes` elements from `at` on lie within each slice that is not empty; the trait's contract.
            unsafe {
                let low = V::load_up_to(first.as_ptr().add(at), lanes);
                let high = if second.is_empty() { V::zero() } else { V::load_up_to(second.as_ptr().add(at), lanes) };
                V::pairs(low, high).store_up_to(to.as_mut_ptr().add(at), lanes);
            }
        }
    }
}

/// Lines of numbers that become lines of elements.
pub(super) trait Lines {
    /// Writes line `row`.
    ///
    /// # Safety
    /// The CPU has the instruction set that the type stands for.
    unsafe fn line(&self, row: usize, to: &mut [f32]);
}

/// The lines of an image, whose numbers are joined along the line.
pub(super) struct Along<'a, P, V> {
    image: &'a [f32],
    kind: PhantomData<fn() -> (P, V)>,
}

impl<'a, P, V> Along<'a, P, V> {
    pub fn new(image: &'a [f32]) -> Self {
        Along { image, kind: PhantomData }
    }
}

impl<P: Product, V: Vector> Lines for Along<'_, P, V> {
    #[inline(always)]
    unsafe fn line(&self, row: usize, to: &mut [f32]) {
        let len = to.len() * P::NUMBERS;
        // SAFETY: the function's contract.
        unsafe { P::along::<V>(&self.image[row * len..(row + 1) * len], to) };
    }
}

/// The lines of images, as many as an element has numbers, joined across images; those that are missing are empty.
pub(super) struct Across<'a, P, V> {
    images: [&'a [f32]; 2],
    kind: PhantomData<fn() -> (P, V)>,
}

impl<'a, P: Product, V> Across<'a, P, V> {
    /// The images of group `number`; an image has `len` elements.
    pub fn new(source: &'a [f32], number: usize, len: usize) -> Self {
        let image = |i: usize| source.get(i * len..(i + 1) * len).unwrap_or_default();
        let first = number * P::NUMBERS;
        let second = if P::NUMBERS == 2 { image(first + 1) } else { &[] };
        Across { images: [image(first), second], kind: PhantomData }
    }

    /// The same elements of each image.
    pub fn part(&self, range: std::ops::Range<usize>) -> [&'a [f32]; 2] {
        self.images.map(|image| image.get(range.clone()).unwrap_or_default())
    }
}

impl<P: Product, V: Vector> Lines for Across<'_, P, V> {
    #[inline(always)]
    unsafe fn line(&self, row: usize, to: &mut [f32]) {
        let range = row * to.len()..(row + 1) * to.len();
        let [first, second] = self.images;
        let second = if second.is_empty() { second } else { &second[range.clone()] };
        // SAFETY: the function's contract.
        unsafe { P::across::<V>([&first[range], second], to) };
    }
}
