//! Values that are computed again in the backward pass instead of being kept for it.
//!
//! A normalisation, an activation or a rounding takes one pass over memory; the convolution or linear layer that reads its output takes
//! many times as long, and keeps that output for the gradient of its weight. Kept is then only what the value is made of, which the
//! backward pass of its maker needs anyway: about half of what a network would keep. The first backward that wants the value makes it,
//! with the same kernel and so the same bits, and the others find it until its maker's own backward, the last of all, lets it go.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

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
    Made(Arc<Recipe>),
}

impl Saved {
    /// The value.
    pub fn get(&self) -> FlexTensor {
        match self {
            Saved::Kept(value) => value.clone(),
            Saved::Made(recipe) => recipe.get(),
        }
    }
}

/// How a value is made, and the value while it is there.
#[derive(Debug)]
pub(super) struct Recipe {
    pub how: How,
    value: Mutex<Option<FlexTensor>>,
}

#[derive(Debug)]
pub(super) enum How {
    Norm { x: FlexTensor, add: Option<Saved>, affine: Affine, activation: Activation, quant: Option<(f32, FakeQuant)> },
    Rows { x: FlexTensor, gamma: FlexTensor, beta: FlexTensor, epsilon: f32 },
    Activation { x: FlexTensor, activation: Activation },
    Round { x: Saved, step: f32, quant: FakeQuant },
}

impl Recipe {
    pub fn new(how: How) -> Arc<Self> {
        Arc::new(Self { how, value: Mutex::new(None) })
    }

    /// The value, made if it is not there.
    pub fn get(&self) -> FlexTensor {
        self.value.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| self.how.make()).clone()
    }

    /// Keeps the value, for a reader to which making it again would matter.
    pub fn keep(&self, value: FlexTensor) {
        *self.value.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }
}

impl How {
    fn make(&self) -> FlexTensor {
        match self {
            How::Norm { x, add, affine, activation, quant } => {
                let add = add.as_ref().map(Saved::get);
                let mut y = affine.apply(x, add.as_ref(), *activation);
                if let Some((step, quant)) = quant {
                    y = rounding::rounded(y, *step, quant);
                }
                tensor(y, x.shape())
            }
            How::Rows { x, gamma, beta, epsilon } => flex::by_rows(x, gamma, beta, *epsilon).0,
            How::Activation { x, activation } => flex::activate(x, *activation),
            How::Round { x, step, quant } => flex::quantize(&x.get(), *step, quant),
        }
    }
}

thread_local! {
    /// How values of the tape are made, by node, for as long as their makers' backward is to come.
    static RECIPES: RefCell<HashMap<u64, Weak<Recipe>>> = RefCell::new(HashMap::new());
}

/// Remembers how a value on the tape is made.
pub(super) fn remember(value: &Tracked, recipe: &Arc<Recipe>) {
    RECIPES.with_borrow_mut(|recipes| {
        // Numbers are never used twice: what earlier passes left can only lie around.
        if recipes.len() > 1 << 12 {
            recipes.retain(|_, recipe| recipe.strong_count() > 0);
        }
        recipes.insert(value.node().id().value, Arc::downgrade(recipe));
    });
}

fn recipe_of(value: &Tracked) -> Option<Arc<Recipe>> {
    RECIPES.with_borrow(|recipes| recipes.get(&value.node().id().value)?.upgrade())
}

/// `to` has the elements of `from`, in the same order.
pub(super) fn same(from: &Tracked, to: &Tracked) {
    if let Some(recipe) = recipe_of(from) {
        remember(to, &recipe);
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
