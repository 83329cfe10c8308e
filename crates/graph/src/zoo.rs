//! Built-in architectures, by name, with seeded random weights.
//!
//! Constants are named as in the usual published weight files (PyTorch's module paths; the MLPerf Tiny ResNet-8 keeps its
//! Keras names), so that a safetensors file loads by name. Convolutions and linear layers start He-normal
//! (`std = sqrt(2 / fan_out)` and `sqrt(1 / fan_in)`), batch normalisations at the identity.
//!
//! | name | input | meant for |
//! |---|---|---|
//! | `resnet20` `resnet32` `resnet44` `resnet56` | 3x32x32 | CIFAR; option-A shortcuts, as He et al. 2015, section 4.2 |
//! | `resnet20x2` `resnet20x4` | 3x32x32 | the first with two and four times the channels |
//! | `resnet8` | 3x32x32, raw pixels | MLPerf Tiny image classification |
//! | `squeezenet1_1` | 3x224x224 | ImageNet, as torchvision |
//! | `resnet18` `resnet50` | 3x224x224 | ImageNet, as torchvision |
//! | `mobilenetv2` | 3x224x224, or the CIFAR stem up to 64 pixels | as torchvision |
//! | `vgg16-bn` | 3x224x224, or one linear layer up to 64 pixels | as torchvision |
//! | `vit-tiny` | 3x32x32 | patches of 4, 192 features, 6 blocks of 3 heads, mean of tokens |
//! | `vit-tiny-224` | 3x224x224 | DeiT-tiny's size: patches of 16, 12 blocks; mean of tokens instead of a class token |
//! | `cnn` | any image of at least 8x8 | digits, MNIST: three convolutions |
//! | `mlp` | anything | two hidden layers of 64 |

mod build;
mod classic;
mod mobile;
mod resnet;
mod vit;

use crate::error::{Error, Kind};
use crate::model::{Model, Preprocess};

use build::Builder;

/// What an architecture is built for. `None` means the architecture's own default.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ZooOptions {
    /// Number of classes.
    pub classes: Option<usize>,
    /// Channels, height, width of the input.
    pub input: Option<[usize; 3]>,
    /// Seed of the initial weights.
    pub seed: u64,
}

/// An architecture: its name, its defaults, how it is built.
struct Entry {
    name: &'static str,
    input: [usize; 3],
    classes: usize,
    preprocess: fn(usize) -> Preprocess,
    build: fn(&mut Builder) -> Result<(), Error>,
}

fn imagenet(channels: usize) -> Preprocess {
    if channels == 3 { Preprocess::imagenet() } else { unit(channels) }
}

fn unit(channels: usize) -> Preprocess {
    Preprocess::scaled(1.0 / 255.0, channels)
}

fn raw(channels: usize) -> Preprocess {
    Preprocess::scaled(1.0, channels)
}

const CIFAR: [usize; 3] = [3, 32, 32];
const IMAGENET: [usize; 3] = [3, 224, 224];

const SMALL: vit::Vit = vit::Vit { patch: 4, dim: 192, depth: 6, heads: 3 };
const TINY: vit::Vit = vit::Vit { patch: 16, dim: 192, depth: 12, heads: 3 };

const ENTRIES: &[Entry] = &[
    Entry { name: "resnet20", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 3, 1) },
    Entry { name: "resnet32", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 5, 1) },
    Entry { name: "resnet44", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 7, 1) },
    Entry { name: "resnet56", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 9, 1) },
    Entry { name: "resnet20x2", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 3, 2) },
    Entry { name: "resnet20x4", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| resnet::cifar(b, 3, 4) },
    Entry { name: "resnet8", input: CIFAR, classes: 10, preprocess: raw, build: resnet::mlperf_tiny },
    Entry { name: "resnet18", input: IMAGENET, classes: 1000, preprocess: imagenet, build: resnet::resnet18 },
    Entry { name: "resnet50", input: IMAGENET, classes: 1000, preprocess: imagenet, build: resnet::resnet50 },
    Entry { name: "squeezenet1_1", input: IMAGENET, classes: 1000, preprocess: imagenet, build: mobile::squeezenet },
    Entry { name: "mobilenetv2", input: IMAGENET, classes: 1000, preprocess: imagenet, build: mobile::mobilenet_v2 },
    Entry { name: "vgg16-bn", input: IMAGENET, classes: 1000, preprocess: imagenet, build: classic::vgg16 },
    Entry { name: "vit-tiny", input: CIFAR, classes: 10, preprocess: imagenet, build: |b| vit::vit(b, SMALL) },
    Entry { name: "vit-tiny-224", input: IMAGENET, classes: 1000, preprocess: imagenet, build: |b| vit::vit(b, TINY) },
    Entry { name: "cnn", input: [1, 8, 8], classes: 10, preprocess: unit, build: classic::cnn },
    Entry { name: "mlp", input: [1, 8, 8], classes: 10, preprocess: unit, build: classic::mlp },
];

/// The names of all built-in architectures.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENTRIES.iter().map(|e| e.name)
}

/// Channels, height and width that a built-in architecture takes unless told otherwise.
pub fn input(name: &str) -> Option<[usize; 3]> {
    ENTRIES.iter().find(|e| e.name == name).map(|e| e.input)
}

/// Builds an architecture with random weights.
///
/// ```
/// use bitsmith_graph::zoo::{self, ZooOptions};
/// let model = zoo::build("resnet20", &ZooOptions::default())?;
/// let weights: usize = model.layers()?.iter().map(|l| l.weights).sum();
/// assert_eq!(weights, 268_336);
/// # Ok::<(), bitsmith_graph::Error>(())
/// ```
pub fn build(name: &str, options: &ZooOptions) -> Result<Model, Error> {
    let Some(entry) = ENTRIES.iter().find(|e| e.name == name) else {
        let known: Vec<_> = names().collect();
        return Err(Error::new(
            Kind::Operator,
            format!("there is no built-in model `{name}`; there are {}", known.join(", ")),
        ));
    };
    let input = options.input.unwrap_or(entry.input);
    let mut builder = Builder::new(input, options.classes.unwrap_or(entry.classes), options.seed)?;
    (entry.build)(&mut builder)?;
    let mut model = builder.finish(name)?;
    model.preprocess = Some((entry.preprocess)(input[0]));
    Ok(model)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_architecture_has_its_published_size() {
        // Parameters with batch-norm factors and offsets, without running statistics.
        let published = [
            ("resnet20", 269_722),
            ("resnet32", 464_154),
            ("resnet44", 658_586),
            ("resnet56", 853_018),
            ("resnet20x2", 1_073_962),
            ("resnet20x4", 4_286_026),
            ("resnet8", 78_186),
            ("resnet18", 11_689_512),
            ("resnet50", 25_557_032),
            ("squeezenet1_1", 1_235_496),
            ("mobilenetv2", 3_504_872),
            ("vgg16-bn", 138_365_992),
        ];
        for (name, parameters) in published {
            let model = build(name, &ZooOptions::default()).unwrap();
            let count: usize = model
                .graph
                .values()
                .iter()
                .filter(|v| !v.name.contains("running_"))
                .filter_map(|v| v.constant.as_ref().map(|t| t.len()))
                .sum();
            assert_eq!(count, parameters, "{name}");
        }
    }

    #[test]
    fn every_architecture_fits_together_at_any_batch() {
        // VGG-16 at full size is 138 million weights: the test above builds it, which checks its shapes too.
        for name in names().filter(|&n| n != "vgg16-bn") {
            let model = build(name, &ZooOptions::default()).unwrap();
            let classes = ENTRIES.iter().find(|e| e.name == name).unwrap().classes;
            let shapes = model.graph.shapes(3).unwrap();
            assert_eq!(shapes[model.graph.outputs()[0].index()], [3, classes], "{name}");
            assert!(!model.activation_values().unwrap().is_empty(), "{name}");
        }
        for name in ["mobilenetv2", "vgg16-bn", "cnn", "mlp", "resnet18"] {
            let options = ZooOptions { classes: Some(7), input: Some([3, 32, 32]), seed: 1 };
            let model = build(name, &options).unwrap();
            let shapes = model.graph.shapes(2).unwrap();
            assert_eq!(shapes[model.graph.outputs()[0].index()], [2, 7], "{name}");
        }
    }

    #[test]
    fn seeds_make_weights() {
        let of = |seed| build("cnn", &ZooOptions { seed, ..ZooOptions::default() }).unwrap();
        assert_eq!(of(1), of(1));
        assert_ne!(of(1), of(2));
        assert!(build("resnet99", &ZooOptions::default()).unwrap_err().to_string().contains("resnet56"));
    }
}
