//! Plain stacks: VGG-16 with batch normalisation, a small CNN, an MLP.

use super::build::{Builder, ConvSpec};
use crate::error::Error;
use crate::ops::Flatten;

/// VGG-16 with batch normalisation, torchvision's names. Up to 64 pixels the classifier is global pooling and one linear
/// layer, as is usual for CIFAR; above, the three linear layers need the 7x7 map of a 224-pixel input.
pub(super) fn vgg16(b: &mut Builder) -> Result<(), Error> {
    let small = b.input[1].max(b.input[2]) <= 64;
    let mut index = 0;
    for (width, convs) in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)] {
        for _ in 0..convs {
            b.conv(&format!("features.{index}"), ConvSpec::new(width, 3, 1).with_bias())?;
            b.batch_norm(&format!("features.{}", index + 1), 1e-5)?;
            b.relu(&format!("features.{}", index + 2))?;
            index += 3;
        }
        b.max_pool(&format!("features.{index}"), 2, 2, 0, false)?;
        index += 1;
    }
    if small {
        b.pool_and_flatten()?;
        b.linear("classifier", b.classes)?;
        return Ok(());
    }
    b.push("flatten", Flatten::default())?;
    for (index, width) in [(0, 4096), (3, 4096)] {
        b.linear(&format!("classifier.{index}"), width)?;
        b.relu(&format!("classifier.{}", index + 1))?;
    }
    b.linear("classifier.6", b.classes)?;
    Ok(())
}

/// Three 3x3 convolutions (16, 32, 64 channels, the later two with stride 2), global pooling, one linear layer.
pub(super) fn cnn(b: &mut Builder) -> Result<(), Error> {
    for (index, (width, stride)) in [(16, 1), (32, 2), (64, 2)].into_iter().enumerate() {
        b.conv(&format!("conv{}", index + 1), ConvSpec::new(width, 3, stride))?;
        b.batch_norm(&format!("bn{}", index + 1), 1e-5)?;
        b.relu(&format!("relu{}", index + 1))?;
    }
    b.pool_and_flatten()?;
    b.linear("fc", b.classes)?;
    Ok(())
}

/// Two hidden layers of 64 with ReLU.
pub(super) fn mlp(b: &mut Builder) -> Result<(), Error> {
    b.push("flatten", Flatten::default())?;
    for index in 1..=2 {
        b.linear(&format!("fc{index}"), 64)?;
        b.relu(&format!("relu{index}"))?;
    }
    b.linear("fc3", b.classes)?;
    Ok(())
}
