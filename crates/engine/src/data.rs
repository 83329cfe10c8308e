//! Data in: from a folder, an archive or a word to batches of floats.
//!
//! ```
//! use std::sync::Arc;
//! use bitsmith_engine::data::{self, Augment, Loader, LoaderOptions, Options};
//!
//! let train = data::open("digits", &Options::train())?;
//! assert_eq!((train.len(), train.shape(), train.classes().len()), (1442, [1, 8, 8], 10));
//! let loader = Loader::new(Arc::new(train), LoaderOptions::training(64, 7, Augment::digits()))?;
//! for batch in loader.epoch(0) {
//!     let batch = batch?;
//!     assert_eq!((batch.x.len(), batch.shape), (64 * 64, [64, 1, 8, 8]));
//! }
//! # Ok::<(), data::Error>(())
//! ```
//!
//! # What `open` recognises
//!
//! | given | details in |
//! |---|---|
//! | CIFAR-10, CIFAR-100 binary files | `cifar` |
//! | CIFAR-10 as `.webp` sheets with `.labels` | `cifar` |
//! | MNIST and relatives in IDX format, plain or `.gz` | `idx` |
//! | `.npy` pairs, `.safetensors` | `arrays` |
//! | images with a label file | `folder` |
//! | one folder of images per class, with or without `train/` and `val/` or `test/` | `folder` |
//! | `digits`, embedded | `digits` |
//! | `random`, `random:3x224x224:1000:64` | `random` |
//!
//! All but the last two may lie in a folder, in a `.tar` (read in place) or in a `.tar.gz` (decompressed into memory
//! below a limit). Everything read is untrusted: sizes are checked against what is there before memory is taken, and
//! whatever is wrong is an [`Error`] that names the file or member and the remedy.
//!
//! # Promises
//!
//! The same data, options and seed give the same batches, bit for bit, whatever the number of workers, and whether an
//! epoch is read from its start or from the middle. Images are decoded when needed; only CIFAR, MNIST, digits and arrays
//! are kept in memory, as bytes where they are bytes.

mod arrays;
mod cifar;
mod dataset;
mod decode;
mod digits;
mod error;
mod folder;
mod idx;
mod loader;
mod npy;
mod open;
mod random;
mod render;
mod resize;
mod rng;
mod tar;
#[cfg(test)]
mod testing;
mod transform;
mod tree;

pub use dataset::{Broken, Dataset};
pub use error::Error;
pub use loader::{Batch, Epoch, Loader, LoaderOptions, Order};
pub use open::{OnBroken, Options, Split, open, open_images};
pub use random::Random;
pub use render::Layout;
pub use transform::{Augment, Colour, Fit, PRESETS, Preset, RandomResizedCrop, Scale, Transform};
