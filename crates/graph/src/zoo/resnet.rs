//! Residual networks: the CIFAR family, ImageNet's 18 and 50, MLPerf Tiny's 8.

use super::build::{Builder, ConvSpec};
use crate::error::Error;
use crate::ops::{Add, Pad, PadMode, Slice};

/// `6 · blocks + 2` layers, `widening` times as wide as published. A shortcut that changes shape takes every second pixel and pads channels with zeros on both
/// sides (option A), so that it has no weights.
pub(super) fn cifar(b: &mut Builder, blocks: usize, widening: usize) -> Result<(), Error> {
    b.conv("conv1", ConvSpec::new(16 * widening, 3, 1))?;
    b.batch_norm("bn1", 1e-5)?;
    b.relu("relu1")?;
    for (stage, width) in [(1, 16), (2, 32), (3, 64)] {
        let width = width * widening;
        for block in 0..blocks {
            let name = format!("layer{stage}.{block}");
            let stride = if stage > 1 && block == 0 { 2 } else { 1 };
            let mut shortcut = b.at;
            b.conv(&format!("{name}.conv1"), ConvSpec::new(width, 3, stride))?;
            b.batch_norm(&format!("{name}.bn1"), 1e-5)?;
            b.relu(&format!("{name}.relu1"))?;
            b.conv(&format!("{name}.conv2"), ConvSpec::new(width, 3, 1))?;
            b.batch_norm(&format!("{name}.bn2"), 1e-5)?;
            if stride != 1 {
                let slice = Slice {
                    starts: vec![0, 0],
                    ends: vec![i64::MAX; 2],
                    axes: Some(vec![2, 3]),
                    steps: Some(vec![2, 2]),
                };
                let side = width as i64 / 4;
                let pad =
                    Pad { pads: vec![0, side, 0, 0, 0, side, 0, 0], axes: None, mode: PadMode::Constant, value: 0.0 };
                shortcut = b.graph.add(&format!("{name}.shortcut.slice"), slice, &[shortcut])?;
                shortcut = b.graph.add(&format!("{name}.shortcut.pad"), pad, &[shortcut])?;
            }
            b.at = b.graph.add(&format!("{name}.add"), Add, &[b.at, shortcut])?;
            b.relu(&format!("{name}.relu2"))?;
        }
    }
    b.pool_and_flatten()?;
    b.linear("linear", b.classes)?;
    Ok(())
}

/// MLPerf Tiny's image classifier, with its Keras names: raw pixels, stride-2 convolutions that pad right and bottom
/// only, convolutions with biases, 1x1 shortcuts without normalisation.
pub(super) fn mlperf_tiny(b: &mut Builder) -> Result<(), Error> {
    const EPSILON: f32 = 1e-3;
    let conv = |out, kernel, stride| {
        let pads = match (kernel, stride) {
            (3, 1) => (1, 1),
            (3, _) => (0, 1),
            _ => (0, 0),
        };
        ConvSpec { pads, ..ConvSpec::new(out, kernel, stride).with_bias() }
    };
    b.conv("conv2d", conv(16, 3, 1))?;
    b.batch_norm("batch_normalization", EPSILON)?;
    b.relu("activation")?;
    // (width, stride, convolutions of the main path, their normalisations, 1x1 shortcut)
    let stacks = [(16, 1, [1, 2], [1, 2], None), (32, 2, [3, 4], [3, 4], Some(5)), (64, 2, [6, 7], [5, 6], Some(8))];
    for (index, (width, stride, convs, norms, projection)) in stacks.into_iter().enumerate() {
        let start = b.at;
        b.conv(&format!("conv2d_{}", convs[0]), conv(width, 3, stride))?;
        b.batch_norm(&format!("batch_normalization_{}", norms[0]), EPSILON)?;
        b.relu(&format!("activation_{}", 2 * index + 1))?;
        b.conv(&format!("conv2d_{}", convs[1]), conv(width, 3, 1))?;
        b.batch_norm(&format!("batch_normalization_{}", norms[1]), EPSILON)?;
        let main = b.at;
        b.at = start;
        if let Some(number) = projection {
            b.conv(&format!("conv2d_{number}"), conv(width, 1, stride))?;
        }
        b.at = b.graph.add(&format!("add_{index}"), Add, &[b.at, main])?;
        b.relu(&format!("activation_{}", 2 * index + 2))?;
    }
    b.pool_and_flatten()?;
    b.linear("dense", b.classes)?;
    Ok(())
}

pub(super) fn resnet18(b: &mut Builder) -> Result<(), Error> {
    imagenet(b, [2, 2, 2, 2], |b, name, width, stride| {
        conv_norm(b, name, 1, ConvSpec::new(width, 3, stride), true)?;
        conv_norm(b, name, 2, ConvSpec::new(width, 3, 1), false)?;
        Ok(width)
    })
}

pub(super) fn resnet50(b: &mut Builder) -> Result<(), Error> {
    imagenet(b, [3, 4, 6, 3], |b, name, width, stride| {
        conv_norm(b, name, 1, ConvSpec::new(width, 1, 1), true)?;
        conv_norm(b, name, 2, ConvSpec::new(width, 3, stride), true)?;
        conv_norm(b, name, 3, ConvSpec::new(4 * width, 1, 1), false)?;
        Ok(4 * width)
    })
}

fn conv_norm(b: &mut Builder, block: &str, index: usize, spec: ConvSpec, relu: bool) -> Result<(), Error> {
    b.conv(&format!("{block}.conv{index}"), spec)?;
    b.batch_norm(&format!("{block}.bn{index}"), 1e-5)?;
    if relu {
        b.relu(&format!("{block}.relu{index}"))?;
    }
    Ok(())
}

/// Four stages of `main` paths (which return their output width) around shortcuts that are 1x1 convolutions where the
/// shape changes.
fn imagenet(
    b: &mut Builder,
    blocks: [usize; 4],
    main: fn(&mut Builder, &str, usize, usize) -> Result<usize, Error>,
) -> Result<(), Error> {
    b.conv("conv1", ConvSpec::new(64, 7, 2))?;
    b.batch_norm("bn1", 1e-5)?;
    b.relu("relu")?;
    b.max_pool("maxpool", 3, 2, 1, false)?;
    for (stage, &count) in blocks.iter().enumerate() {
        for block in 0..count {
            let name = format!("layer{}.{block}", stage + 1);
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let (start, before) = (b.at, b.channels()?);
            let width = main(b, &name, 64 << stage, stride)?;
            let end = b.at;
            b.at = start;
            if stride != 1 || before != width {
                b.conv(&format!("{name}.downsample.0"), ConvSpec::new(width, 1, stride))?;
                b.batch_norm(&format!("{name}.downsample.1"), 1e-5)?;
            }
            b.at = b.graph.add(&format!("{name}.add"), Add, &[end, b.at])?;
            b.relu(&format!("{name}.relu"))?;
        }
    }
    b.pool_and_flatten()?;
    b.linear("fc", b.classes)?;
    Ok(())
}
