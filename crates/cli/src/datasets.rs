//! What `--data` means for a given model: opened, brought to the model's input range and shape, checked against its classes.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bitsmith_engine::data::{
    self, Augment, Colour, Dataset, Fit, Loader, LoaderOptions, OnBroken, Options, Random, Scale, Split, Transform,
};
use bitsmith_graph::{Graph, Preprocess};

use crate::failure::{Explain, Failure};
use crate::progress::Progress;

/// `--data` and what goes with it, as several commands take it.
#[derive(Debug, Clone, clap::Args)]
pub struct DataArgs {
    /// A folder, an archive (.tar, .tar.gz), `digits` (embedded) or `random`
    #[arg(long, value_name = "PATH")]
    pub data: PathBuf,
    /// At most this many samples, spread over the classes
    #[arg(long, value_name = "N")]
    pub data_limit: Option<usize>,
    /// Where the data has no split of its own: hold out every N-th sample of each class
    #[arg(long, value_name = "N")]
    pub hold_out: Option<usize>,
    /// Leave out images that cannot be decoded, and count them, instead of stopping
    #[arg(long)]
    pub skip_broken: bool,
    /// How pixels become input, overriding the model's own: cifar, imagenet, mnist, digits, zero-one, raw-255
    #[arg(long, value_name = "PRESET")]
    pub preprocess: Option<String>,
}

/// What a network wants of its data.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// Channels, height, width; a flat input of n numbers is `[n, 1, 1]`.
    pub shape: [usize; 3],
    /// Numbers in one sample.
    pub sample: usize,
    /// Outputs.
    pub classes: usize,
    /// How pixels become input.
    pub preprocess: Option<Preprocess>,
}

impl Wanted {
    /// Reads it off a graph with one image input.
    pub fn of(graph: &Graph, preprocess: Option<&Preprocess>) -> Result<Self, Failure> {
        let [input] = graph.inputs() else {
            return Err(Failure::new(format!(
                "the model has {} inputs, but data sets feed exactly one",
                graph.inputs().len()
            ))
            .remedy("use `bitsmith run` with --input NAME=FILE.npy for each"));
        };
        let shapes = graph.shapes(1)?;
        let dims = &shapes[input.value.index()];
        let sample = dims.iter().skip(1).product();
        let shape = match dims.get(1..) {
            Some(&[c, h, w]) => [c, h, w],
            Some(&[c, w]) => [c, 1, w],
            _ => [sample, 1, 1],
        };
        let classes = graph.outputs().first().map_or(0, |&o| shapes[o.index()].iter().skip(1).product());
        Ok(Self { shape, sample, classes, preprocess: preprocess.cloned() })
    }
}

impl DataArgs {
    /// Opens a split. `labelled` data is what accuracy needs; calibration and benchmarks do without.
    pub fn open(&self, wanted: &Wanted, split: Split, labelled: bool, seed: u64) -> Result<Dataset, Failure> {
        let options = Options {
            split,
            hold_out: self.hold_out,
            limit: self.data_limit,
            on_broken: if self.skip_broken { OnBroken::Skip } else { OnBroken::Fail },
            unlabelled: !labelled,
            ..Options::default()
        };
        open(&self.data, wanted, self.preprocess.as_deref(), options, seed)
    }
}

/// Whether `--data` asks for random samples.
pub fn is_noise(path: &Path) -> bool {
    path.to_str().is_some_and(|d| d == "random" || d.starts_with("random:"))
}

/// Opens data for a network. Only `split`, `hold_out`, `limit`, `on_broken` and `unlabelled` of the options are the
/// caller's; the rest follows from what the network wants.
pub fn open(
    path: &Path,
    wanted: &Wanted,
    preset: Option<&str>,
    options: Options,
    seed: u64,
) -> Result<Dataset, Failure> {
    let random = Random { shape: wanted.shape, classes: wanted.classes.max(1), seed, ..Random::default() };
    let classes = Some(wanted.classes).filter(|&n| n > 0 && !options.unlabelled);
    let options = Options { classes, random, ..options };
    let place = || format!("cannot use the data `{}`", path.display());
    let set = data::open(path, &options).context(place)?;
    fit(set, wanted, preset).map_err(|f| f.context(place()))
}

/// The same samples as the network wants them, or why that cannot be.
pub fn fit(set: Dataset, wanted: &Wanted, preset: Option<&str>) -> Result<Dataset, Failure> {
    let mismatch = |[c, h, w]: [usize; 3]| {
        let [wc, wh, ww] = wanted.shape;
        Failure::new(format!("the samples are {c}x{h}x{w} but the model takes {wc}x{wh}x{ww}"))
            .remedy(match c == wc && h == w && wh > 1 {
                true => format!("use data of the model's shape, or build the model for this data: model.image_size = {h} in a recipe, --image-size {h} elsewhere"),
                false => "use data of the model's shape, or a model built for this data".to_owned(),
            })
    };
    // Arrays cannot change their number of channels; image files can.
    if set.transform().fit == Fit::AsIs && wanted.shape[1] > 1 && set.shape()[0] != wanted.shape[0] {
        return Err(mismatch(set.shape()));
    }
    let set = match fitted(&set, wanted, preset)? {
        Some(transform) => set.with_transform(transform)?,
        None => set,
    };
    if set.sample_len() != wanted.sample || (wanted.shape[1] > 1 && set.shape() != wanted.shape) {
        return Err(mismatch(set.shape()));
    }
    Ok(set)
}

/// The transform that suits the network, or `None` where the data's own does.
fn fitted(set: &Dataset, wanted: &Wanted, preset: Option<&str>) -> Result<Option<Transform>, Failure> {
    let own = set.transform();
    let [channels, height, width] = wanted.shape;
    let mut transform = match (preset, &wanted.preprocess) {
        (Some(name), _) => Transform { fit: own.fit, colour: own.colour, ..Transform::preset(name)? },
        (None, Some(p)) => normalised(p, own),
        (None, None) => own.clone(),
    };
    // Image files come in any size and colour; everything else is what it is.
    if own.fit != Fit::AsIs && height > 1 {
        transform.colour = if channels == 1 { Colour::Grey } else { Colour::Rgb };
        transform.fit = match height == width {
            true => Fit::CentreCrop { short_side: (height * 8).div_ceil(7), crop: height },
            false => Fit::Stretch { height, width },
        };
    }
    Ok((transform != *own).then_some(transform))
}

/// The same normalisation, in the loader's words: it divides by the white level or not at all.
fn normalised(p: &Preprocess, own: &Transform) -> Transform {
    let is_unit = (p.scale * 255.0 - 1.0).abs() < 1e-6;
    let (scale, factor) = if is_unit { (Scale::ZeroOne, 1.0) } else { (Scale::Raw, p.scale) };
    let divided = |values: &[f32]| values.iter().map(|v| v / factor).collect();
    Transform { scale, mean: divided(&p.mean), std: divided(&p.std), ..own.clone() }
}

/// Batches in order, prepared in parallel.
pub fn in_order(set: Dataset, batch: usize, workers: usize) -> Result<Loader, Failure> {
    Ok(Loader::new(Arc::new(set), LoaderOptions { workers, ..LoaderOptions::evaluation(batch) })?)
}

/// Batches for training: shuffled, augmented.
pub fn shuffled(set: Dataset, batch: usize, seed: u64, augment: Augment, workers: usize) -> Result<Loader, Failure> {
    let batch = batch.min(set.len().max(1));
    Ok(Loader::new(Arc::new(set), LoaderOptions { workers, ..LoaderOptions::training(batch, seed, augment) })?)
}

/// Says which images were left out.
pub fn report_broken(set: &Dataset, progress: &Progress) {
    let broken = set.broken();
    if let Some(first) = broken.first() {
        progress.say(&format!(
            "left out {} broken images, among them `{}`: {}",
            broken.len(),
            first.name,
            first.reason
        ));
    }
}
