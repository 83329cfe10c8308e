//! How pixels become network inputs: [`Transform`] (always, the same every time) and [`Augment`] (training only, random).
//! Both are plain data that a recipe can hold; `render` carries them out.

use serde::{Deserialize, Serialize};

use super::error::Error;

/// The fixed part: which pixels, in which range, normalised how.
///
/// A byte `p` of channel `c` becomes `(p / white - mean[c]) / std[c]` in f32, in that order of operations (as torchvision
/// does), where `white` is 255 (16 for the embedded digits) with [`Scale::ZeroOne`] and absent with [`Scale::Raw`].
/// Floating-point arrays are taken as they are: `(x - mean[c]) / std[c]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Transform {
    /// How images of other sizes are brought to one size.
    pub fit: Fit,
    /// Whether bytes are divided by the white level.
    pub scale: Scale,
    /// One value per channel, or one for all, or empty for 0.
    pub mean: Vec<f32>,
    /// One value per channel, or one for all, or empty for 1. Not zero.
    pub std: Vec<f32>,
    /// Image files only: colour or grey.
    pub colour: Colour,
}

/// How an image is brought to the size the network wants. Resampling is bilinear with antialiasing, to the last bit
/// that of Pillow (torchvision's `Resize` on images).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Fit {
    /// Images are taken as they are and must all have one size.
    #[default]
    AsIs,
    /// The short side is resized to `short_side`, then the central square of side `crop` is cut out. An image that
    /// already is `crop` x `crop` is taken as it is.
    CentreCrop {
        /// Length of the short side after resizing, at least `crop`.
        short_side: usize,
        /// Side of the square that is kept.
        crop: usize,
    },
    /// Resized to exactly this size, whatever that does to proportions.
    Stretch {
        /// Height in pixels.
        height: usize,
        /// Width in pixels.
        width: usize,
    },
}

/// The range of bytes before mean and std.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scale {
    /// Divided by the white level: [0, 1].
    #[default]
    ZeroOne,
    /// As stored: 0..=255.
    Raw,
}

/// What image files are decoded to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Colour {
    /// Three channels; grey images are repeated, transparency is dropped.
    #[default]
    Rgb,
    /// One channel, the luminance.
    Grey,
}

impl Colour {
    /// Number of channels.
    pub fn channels(self) -> usize {
        match self {
            Colour::Rgb => 3,
            Colour::Grey => 1,
        }
    }
}

impl Default for Transform {
    /// [0, 1], nothing subtracted, images as they are.
    fn default() -> Self {
        Transform { fit: Fit::AsIs, scale: Scale::ZeroOne, mean: Vec::new(), std: Vec::new(), colour: Colour::Rgb }
    }
}

/// Mean and standard deviation of ImageNet, which the published CIFAR-10 ResNets use, too.
const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Makes a preset.
pub type Preset = fn() -> Transform;

/// The presets by name, for recipes and the command line.
pub const PRESETS: [(&str, Preset); 6] = [
    ("cifar", Transform::cifar),
    ("imagenet", Transform::imagenet),
    ("mnist", Transform::mnist),
    ("digits", Transform::digits),
    ("zero-one", Transform::default),
    ("raw-255", Transform::raw_255),
];

impl Transform {
    /// [0, 1] RGB normalised by ImageNet's mean and std, no resizing.
    pub fn cifar() -> Self {
        Transform { mean: IMAGENET_MEAN.to_vec(), std: IMAGENET_STD.to_vec(), ..Transform::default() }
    }

    /// As [`cifar`](Self::cifar), with the short side resized to 256 and the centre 224 x 224 cut out.
    pub fn imagenet() -> Self {
        Transform { fit: Fit::CentreCrop { short_side: 256, crop: 224 }, ..Transform::cifar() }
    }

    /// [0, 1] grey normalised by MNIST's mean 0.1307 and std 0.3081.
    pub fn mnist() -> Self {
        Transform { mean: vec![0.1307], std: vec![0.3081], colour: Colour::Grey, ..Transform::default() }
    }

    /// [0, 1] grey: the digits' 0..=16 divided by 16.
    pub fn digits() -> Self {
        Transform { colour: Colour::Grey, ..Transform::default() }
    }

    /// Bytes 0..=255 as they are, as the MLPerf Tiny ResNet-8 wants them.
    pub fn raw_255() -> Self {
        Transform { scale: Scale::Raw, ..Transform::default() }
    }

    /// A preset by its name in [`PRESETS`].
    pub fn preset(name: &str) -> Result<Self, Error> {
        match PRESETS.iter().find(|(n, _)| *n == name) {
            Some((_, make)) => Ok(make()),
            None => {
                let names: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
                Err(Error::options(name, format!("no such transform preset; there are {}", names.join(", "))))
            }
        }
    }

    /// Mean and std of channel `c`; [`check`](Self::check) has made sure that they exist.
    pub(super) fn mean_std(&self, c: usize) -> (f32, f32) {
        let at = |v: &[f32], default: f32| match v {
            [] => default,
            [one] => *one,
            many => many.get(c).copied().unwrap_or(default),
        };
        (at(&self.mean, 0.0), at(&self.std, 1.0))
    }

    /// Refuses what cannot be applied to `channels` channels.
    pub(super) fn check(&self, channels: usize) -> Result<(), Error> {
        for (name, values) in [("mean", &self.mean), ("std", &self.std)] {
            if values.len() > 1 && values.len() != channels {
                return Err(Error::options(
                    format!("transform.{name}"),
                    format!("{} values for images of {channels} channels; give {channels}, one, or none", values.len()),
                ));
            }
            if let Some(bad) = values.iter().find(|v| !v.is_finite() || (name == "std" && **v == 0.0)) {
                return Err(Error::options(
                    format!("transform.{name}"),
                    format!("{bad} is not usable; give finite numbers, and a std other than 0"),
                ));
            }
        }
        match self.fit {
            Fit::CentreCrop { short_side, crop } if crop == 0 || short_side < crop || short_side > MAX_SIDE => {
                Err(Error::options(
                    "transform.fit",
                    format!("short_side {short_side} and crop {crop}: needs 1 <= crop <= short_side <= {MAX_SIDE}"),
                ))
            }
            Fit::Stretch { height, width } if height.min(width) == 0 || height.max(width) > MAX_SIDE => {
                Err(Error::options("transform.fit", format!("{height} x {width}: each must be in 1..={MAX_SIDE}")))
            }
            _ => Ok(()),
        }
    }
}

/// The longest side of an image that we resize to or decode.
pub(super) const MAX_SIDE: usize = 1 << 14;

/// The random part, applied while training. Off by default.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Augment {
    /// Pads each side with this many black pixels and cuts out a window of the original size at a random place.
    pub pad_crop: Option<usize>,
    /// Mirrors left and right with probability 1/2.
    pub flip: bool,
    /// Sets a square of this side around a random centre to 0 after normalisation, that is, to the mean colour
    /// (DeVries & Taylor, arXiv 1708.04552; the square may reach over the border).
    pub cutout: Option<usize>,
    /// Cuts out a random part of random proportions and resizes it to the output size, in place of `Transform::fit`.
    pub random_resized_crop: Option<RandomResizedCrop>,
}

/// Ranges of a random resized crop, as in torchvision: area as a fraction of the image, proportions as width / height,
/// drawn uniformly in the logarithm.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RandomResizedCrop {
    /// Smallest and largest fraction of the area, in (0, 1].
    pub area: [f64; 2],
    /// Smallest and largest width / height, positive.
    pub ratio: [f64; 2],
}

impl Default for RandomResizedCrop {
    fn default() -> Self {
        RandomResizedCrop { area: [0.08, 1.0], ratio: [3.0 / 4.0, 4.0 / 3.0] }
    }
}

impl Augment {
    /// Nothing random.
    pub fn none() -> Self {
        Augment::default()
    }

    /// The usual CIFAR recipe: pad by 4 and crop, flip.
    pub fn cifar() -> Self {
        Augment { pad_crop: Some(4), flip: true, ..Augment::default() }
    }

    /// The usual ImageNet recipe: random resized crop, flip.
    pub fn imagenet() -> Self {
        Augment { flip: true, random_resized_crop: Some(RandomResizedCrop::default()), ..Augment::default() }
    }

    /// For handwriting: shifts by up to one pixel, never mirrored.
    pub fn digits() -> Self {
        Augment { pad_crop: Some(1), ..Augment::default() }
    }

    /// Whether anything is random at all.
    pub fn is_none(&self) -> bool {
        *self == Augment::default()
    }

    /// Refuses ranges that make no sense for images of `height` x `width`.
    pub(super) fn check(&self, height: usize, width: usize) -> Result<(), Error> {
        if let Some(pad) = self.pad_crop
            && pad > height.max(width)
        {
            return Err(Error::options(
                "augment.pad_crop",
                format!("{pad} pixels around images of {height} x {width}; at most {} make sense", height.max(width)),
            ));
        }
        if let Some(crop) = self.random_resized_crop {
            let [a0, a1] = crop.area;
            let [r0, r1] = crop.ratio;
            let fine = 0.0 < a0 && a0 <= a1 && a1 <= 1.0 && 0.0 < r0 && r0 <= r1 && r1.is_finite();
            if !fine {
                return Err(Error::options(
                    "augment.random_resized_crop",
                    format!("area {a0}..{a1} and ratio {r0}..{r1}: needs 0 < area <= 1 and 0 < ratio, smaller first"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_found_by_name_and_a_wrong_name_lists_them() {
        for (name, make) in PRESETS {
            let transform = Transform::preset(name).unwrap();
            assert_eq!(transform, make());
            transform.check(transform.colour.channels()).unwrap();
        }
        let message = Transform::preset("cifr").unwrap_err().to_string();
        assert!(message.contains("cifr") && message.contains("imagenet"), "{message}");
    }

    #[test]
    fn unusable_values_are_refused() {
        let mean = |mean: Vec<f32>| Transform { mean, ..Transform::default() };
        let std = |std: Vec<f32>| Transform { std, ..Transform::default() };
        let fit = |fit: Fit| Transform { fit, ..Transform::default() };
        for bad in [
            mean(vec![0.0, 0.0]),
            mean(vec![f32::NAN]),
            std(vec![0.0]),
            fit(Fit::CentreCrop { short_side: 10, crop: 11 }),
            fit(Fit::CentreCrop { short_side: 10, crop: 0 }),
            fit(Fit::Stretch { height: 0, width: 4 }),
            fit(Fit::Stretch { height: usize::MAX, width: 4 }),
        ] {
            assert!(bad.check(3).is_err(), "{bad:?}");
        }
        let bad_area = Augment {
            random_resized_crop: Some(RandomResizedCrop { area: [0.0, 1.0], ..Default::default() }),
            ..Augment::none()
        };
        assert!(bad_area.check(8, 8).is_err());
        assert!(Augment { pad_crop: Some(9), ..Augment::none() }.check(8, 8).is_err());
        assert!(Augment::cifar().check(32, 32).is_ok());
    }
}
