//! Small networks: SqueezeNet 1.1 and MobileNetV2, as torchvision has them.

use super::build::{Builder, ConvSpec};
use crate::error::Error;
use crate::ops::{Add, Clip, Concat};

/// SqueezeNet 1.1 (Iandola et al., arXiv 1602.07360): fire modules, no normalisation, no linear layer.
pub(super) fn squeezenet(b: &mut Builder) -> Result<(), Error> {
    b.conv("features.0", ConvSpec { pads: (0, 0), ..ConvSpec::new(64, 3, 2).with_bias() })?;
    b.relu("features.1")?;
    b.max_pool("features.2", 3, 2, 0, true)?;
    for (index, squeeze, expand) in [
        (3, 16, 64),
        (4, 16, 64),
        (6, 32, 128),
        (7, 32, 128),
        (9, 48, 192),
        (10, 48, 192),
        (11, 64, 256),
        (12, 64, 256),
    ] {
        if index == 6 || index == 9 {
            b.max_pool(&format!("features.{}", index - 1), 3, 2, 0, true)?;
        }
        let name = format!("features.{index}");
        b.conv(&format!("{name}.squeeze"), ConvSpec::new(squeeze, 1, 1).with_bias())?;
        let squeezed = b.relu(&format!("{name}.squeeze_activation"))?;
        let mut halves = Vec::new();
        for kernel in [1, 3] {
            b.at = squeezed;
            b.conv(&format!("{name}.expand{kernel}x{kernel}"), ConvSpec::new(expand, kernel, 1).with_bias())?;
            halves.push(b.relu(&format!("{name}.expand{kernel}x{kernel}_activation"))?);
        }
        b.at = b.graph.add(&format!("{name}.concat"), Concat { axis: 1 }, &halves)?;
    }
    b.conv("classifier.1", ConvSpec::new(b.classes, 1, 1).with_bias())?;
    b.relu("classifier.2")?;
    b.pool_and_flatten()?;
    Ok(())
}

/// MobileNetV2 (Sandler et al., arXiv 1801.04381). Up to 64 pixels the stem and the second stage keep the resolution, as
/// is usual for CIFAR.
pub(super) fn mobilenet_v2(b: &mut Builder) -> Result<(), Error> {
    let small = b.input[1].max(b.input[2]) <= 64;
    let relu6 = Clip { min: Some(0.0), max: Some(6.0) };
    let conv_norm = |b: &mut Builder, name: String, part: usize, spec: ConvSpec, act: bool| -> Result<(), Error> {
        b.conv(&format!("{name}.{part}"), spec)?;
        b.batch_norm(&format!("{name}.{}", part + 1), 1e-5)?;
        if act {
            b.push(&format!("{name}.{}", part + 2), relu6.clone())?;
        }
        Ok(())
    };
    conv_norm(b, "features.0".to_owned(), 0, ConvSpec::new(32, 3, if small { 1 } else { 2 }), true)?;
    let mut index = 1;
    // (expansion, output channels, repeats, stride of the first)
    for (expansion, out, repeats, first_stride) in
        [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    {
        for repeat in 0..repeats {
            let stride = match (repeat, small && index == 2) {
                (0, false) => first_stride,
                _ => 1,
            };
            let (start, c_in) = (b.at, b.channels()?);
            let hidden = c_in * expansion;
            let name = format!("features.{index}.conv");
            let mut part = 0;
            if expansion != 1 {
                conv_norm(b, format!("{name}.{part}"), 0, ConvSpec::new(hidden, 1, 1), true)?;
                part += 1;
            }
            conv_norm(
                b,
                format!("{name}.{part}"),
                0,
                ConvSpec { groups: hidden, ..ConvSpec::new(hidden, 3, stride) },
                true,
            )?;
            conv_norm(b, name, part + 1, ConvSpec::new(out, 1, 1), false)?;
            if stride == 1 && c_in == out {
                b.at = b.graph.add(&format!("features.{index}.add"), Add, &[start, b.at])?;
            }
            index += 1;
        }
    }
    conv_norm(b, format!("features.{index}"), 0, ConvSpec::new(1280, 1, 1), true)?;
    b.pool_and_flatten()?;
    b.linear("classifier.1", b.classes)?;
    Ok(())
}
