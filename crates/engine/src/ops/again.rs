//! Values that are computed again in the backward pass instead of being kept for it.
//!
//! A normalisation, an activation or a rounding takes one pass over memory; the convolution or linear layer that reads its output takes
//! many times as long, and keeps that output for the gradient of its weight. Kept is then only what the value is made of, which the
//! backward pass of its maker needs anyway: about half of what a network would keep. The first backward that wants the value makes it,
//! with the same kernel and so the same bits, and the others find it until its maker's own backward, the last of all, lets it go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bitsmith_kernels::activation::Activation;
use burn_autodiff::Autodiff;
use burn_backend::TensorMetadata;
use burn_backend::tensor::FloatTensor;
use burn_flex::{Flex, FlexTensor};

use super::flex::{self, Affine};
use super::{FakeQuant, rounding};
use crate::memory::tensor;

type Tracked = FloatTensor<Autodiff<Flex>>;

/// Products per element from which a reader takes so long that making the element again does not matter: reading and writing it takes
/// about as long as 30 products of f32 or 60 of bf16, and a step has three times as many as its forward pass.
const MANY: usize = 128;

/// A value that a backward pass reads.
#[derive(Debug, Clone)]
pub(super) enum Saved {
    Kept(FlexTensor),
    Made(Arc<dyn Value>),
}

impl Saved {
    /// The value.
    pub fn get(&self) -> FlexTensor {
        match self {
            Saved::Kept(value) => value.clone(),
            Saved::Made(value) => value.get(),
        }
    }
}

/// What a value is made of.
pub(super) trait How: Debug + Send + Sync + 'static {
    /// The value, as the forward pass made it.
    fn make(&self) -> FlexTensor;
}

/// How a value is made, and the value while it is there.
#[derive(Debug)]
pub(super) struct Recipe<H> {
    pub how: H,
    value: Mutex<Option<FlexTensor>>,
}

/// A [`Recipe`], whatever its value is made of.
pub(super) trait Value: Debug + Send + Sync {
    /// The value, made if it is not there.
    fn get(&self) -> FlexTensor;
    /// Keeps the value, for a reader to which making it again would matter.
    fn keep(&self, value: FlexTensor);
}

impl<H> Recipe<H> {
    pub fn new(how: H) -> Arc<Self> {
        Arc::new(Self { how, value: Mutex::new(None) })
    }

    fn value(&self) -> MutexGuard<'_, Option<FlexTensor>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<H: How> Value for Recipe<H> {
    fn get(&self) -> FlexTensor {
        self.value().get_or_insert_with(|| self.how.make()).clone()
    }

    fn keep(&self, value: FlexTensor) {
        *self.value() = Some(value);
    }
}

/// Of a batch normalisation, and what is fused behind it.
#[derive(Debug)]
pub(super) struct Normalised {
    pub x: FlexTensor,
    pub add: Option<Saved>,
    pub affine: Affine,
    pub activation: Activation,
    pub quant: Option<(f32, FakeQuant)>,
}

impl How for Normalised {
    fn make(&self) -> FlexTensor {
        let add = self.add.as_ref().map(Saved::get);
        let mut y = self.affine.apply(&self.x, add.as_ref(), self.activation);
        if let Some((step, quant)) = &self.quant {
            y = rounding::rounded(y, *step, quant);
        }
        tensor(y, self.x.shape())
    }
}

/// Of a layer normalisation.
#[derive(Debug)]
pub(super) struct Rows {
    pub x: FlexTensor,
    pub gamma: FlexTensor,
    pub beta: FlexTensor,
    pub epsilon: f32,
}

impl How for Rows {
    fn make(&self) -> FlexTensor {
        flex::by_rows(&self.x, &self.gamma, &self.beta, self.epsilon).0
    }
}

#[derive(Debug)]
pub(super) struct Activated {
    pub x: FlexTensor,
    pub activation: Activation,
}

impl How for Activated {
    fn make(&self) -> FlexTensor {
        flex::activate(&self.x, self.activation)
    }
}

#[derive(Debug)]
pub(super) struct Rounded {
    pub x: Saved,
    pub step: f32,
    pub quant: FakeQuant,
}

impl How for Rounded {
    fn make(&self) -> FlexTensor {
        flex::quantize(&self.x.get(), self.step, &self.quant)
    }
}

thread_local! {
    /// How values of the tape are made, by node, for as long as their makers' backward is to come.
    static RECIPES: RefCell<HashMap<u64, Weak<dyn Value>>> = RefCell::new(HashMap::new());
}

/// Remembers how a value on the tape is made.
pub(super) fn remember(value: &Tracked, recipe: Arc<dyn Value>) {
    RECIPES.with_borrow_mut(|recipes| {
        // Numbers are never used twice: what earlier passes left can only lie around.
        if recipes.len() > 1 << 12 {
            recipes.retain(|_, recipe| recipe.strong_count() > 0);
        }
        recipes.insert(value.node().id().value, Arc::downgrade(&recipe));
    });
}

fn recipe_of(value: &Tracked) -> Option<Arc<dyn Value>> {
    RECIPES.with_borrow(|recipes| recipes.get(&value.node().id().value)?.upgrade())
}

/// `to` has the elements of `from`, in the same order.
pub(super) fn same(from: &Tracked, to: &Tracked) {
    if let Some(recipe) = recipe_of(from) {
        remember(to, recipe);
    }
}

/// What the backward of a reader saves of a value, whose elements it multiplies `products` times each.
pub(super) fn saved(value: &Tracked, data: FlexTensor, products: usize) -> Saved {
    match recipe_of(value) {
        Some(recipe) => {
            if products < MANY {
                recipe.keep(data);
            }
            Saved::Made(recipe)
        }
        None => Saved::Kept(data),
    }
}

/// The same for a reader that takes no longer than the making, and reads in the backward pass what is made there anyway.
pub(super) fn lent(value: &Tracked, data: FlexTensor) -> Saved {
    saved(value, data, usize::MAX)
}

#[cfg(test)]
mod tests {
    use bitsmith_kernels::fakequant::Inside;
    use burn_backend::ops::FloatTensorOps;
    use burn_backend::{AutodiffBackend, Shape};

    use super::*;
    use crate::memory::floats;
    use crate::ops::{Fused, Norm, Statistics, TrainOps};

    type Cpu = Autodiff<Flex>;
    type Ops = Fused<Cpu>;

    fn leaf(shape: &[usize], salt: usize) -> Tracked {
        let len = shape.iter().product::<usize>();
        let values = (0..len).map(|i| ((i * 7919 + salt * 104_729) % 1013) as f32 / 506.0 - 1.0).collect();
        let leaf = Cpu::from_inner(tensor(values, Shape::from(shape.to_vec())));
        Cpu::float_set_require_grad(leaf, true)
    }

    fn bits(x: &FlexTensor) -> Vec<u32> {
        floats(x).iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn what_is_made_again_has_the_same_bits() {
        let quant = FakeQuant { low: 0, high: 15, grad_scale: 1.0, inside: Inside::Error };
        let step = || Cpu::float_mul_scalar(leaf(&[1], 0), 0.0.into());
        let step = || Cpu::float_add_scalar(step(), 0.05.into());
        let x = || leaf(&[2, 3, 3, 8], 1);
        let norm = |act, add: Option<Tracked>, quant: Option<FakeQuant>| {
            let norm = Norm { epsilon: 1e-5, statistics: Statistics::Batch, activation: act, quant };
            Ops::norm(x(), leaf(&[8], 2), leaf(&[8], 3), add, quant.map(|_| step()), &norm).0
        };
        let gelu = || Ops::activation(x(), Activation::GeluErf);
        let values = [
            norm(Activation::Relu, None, None),
            norm(Activation::Sigmoid, Some(leaf(&[2, 3, 3, 8], 4)), None),
            norm(Activation::Relu, Some(norm(Activation::Identity, None, None)), Some(quant)),
            Ops::layer_norm(leaf(&[18, 8], 5), leaf(&[8], 6), leaf(&[8], 7), 1e-6),
            gelu(),
            Ops::fake_quant(gelu(), step(), &quant),
            Ops::reshape(gelu(), Shape::new([18, 8])),
        ];
        for (number, value) in values.iter().enumerate() {
            let data = value.primitive().clone();
            let made = saved(value, data.clone(), MANY);
            assert!(matches!(made, Saved::Made(_)), "{number}");
            assert_eq!(bits(&made.get()), bits(&data), "{number}");
            let again = made.get();
            assert_eq!(floats(&again).as_ptr(), floats(&made.get()).as_ptr(), "{number}: made once");
        }
    }

    #[test]
    fn readers_that_are_fast_keep_what_they_read() {
        let value = Ops::activation(leaf(&[4, 8], 1), Activation::GeluErf);
        let data = value.primitive().clone();
        let kept = saved(&value, data.clone(), MANY - 1);
        let other = saved(&value, data.clone(), MANY);
        for reader in [kept, other] {
            assert_eq!(floats(&reader.get()).as_ptr(), floats(&data).as_ptr());
        }
        let leaf = leaf(&[4, 8], 1);
        assert!(
            matches!(saved(&leaf, leaf.primitive().clone(), MANY), Saved::Kept(_)),
            "nobody knows how a leaf is made"
        );
    }
}
