//! From a path or a word to a [`Dataset`]: recognises what lies there, chooses the split, keeps what was asked for.
//!
//! Each family of data sets is one entry of [`FAMILIES`]: a name, what it looks for (which is also the error message
//! when nothing is found) and a function that looks. Reading happens only for the split that is wanted.

use std::fmt;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::dataset::{Broken, Dataset, Parts, Samples};
use super::error::Error;
use super::random::Random;
use super::transform::Transform;
use super::tree::{Tree, join};
use super::{arrays, cifar, digits, folder, idx, random};

/// Which samples of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// For training.
    Train,
    /// For evaluation (`test`, `val` and `validation` are the same thing here).
    Test,
    /// Everything.
    #[default]
    All,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Split::Train => "train",
            Split::Test => "test",
            Split::All => "complete",
        })
    }
}

/// What happens when an image cannot be read or decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBroken {
    /// The run fails, naming the image.
    #[default]
    Fail,
    /// The image is left out of its batch and listed in [`Dataset::broken`].
    Skip,
}

/// How to open a data set.
#[derive(Debug, Clone)]
pub struct Options {
    /// The samples wanted. Where the source has no split of its own and [`hold_out`](Self::hold_out) is not given, all
    /// samples come back whatever is asked, and [`Dataset::split`] says [`Split::All`].
    pub split: Split,
    /// Where the source has no split of its own: every n-th sample of each class (the n-th, the 2n-th, …, in the
    /// source's order) is the test split, the rest is the training split. At least 2. The embedded digits use 5.
    pub hold_out: Option<usize>,
    /// At most this many samples, spread evenly over the classes: the first of each class, then the second, ….
    pub limit: Option<usize>,
    /// The number of classes a model can tell apart; any label outside is an error. Without it the data decides.
    pub classes: Option<usize>,
    /// How pixels become inputs; `None` takes what suits the source ([`Transform::cifar`] for CIFAR, and so on).
    pub transform: Option<Transform>,
    /// What to do with images that cannot be decoded.
    pub on_broken: OnBroken,
    /// Whether images without labels will do (to calibrate, to predict): they all get label 0 and
    /// [`Dataset::is_labelled`] is false.
    pub unlabelled: bool,
    /// The most bytes that arrays, CIFAR, MNIST or a decompressed `.tar.gz` may take in memory. Default 2 GiB. Image
    /// folders and plain tars are read in place and do not count.
    pub memory_limit: u64,
    /// What `random` generates.
    pub random: Random,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            split: Split::All,
            hold_out: None,
            limit: None,
            classes: None,
            transform: None,
            on_broken: OnBroken::Fail,
            unlabelled: false,
            memory_limit: 2 << 30,
            random: Random::default(),
        }
    }
}

impl Options {
    /// The defaults, for the training split.
    pub fn train() -> Self {
        Options { split: Split::Train, ..Options::default() }
    }

    /// The defaults, for the test split.
    pub fn test() -> Self {
        Options { split: Split::Test, ..Options::default() }
    }
}

/// Samples of one set as a family delivers them.
pub(super) struct Loaded {
    pub samples: Content,
    pub labels: Vec<u32>,
    /// Images that were listed but are not there.
    pub missing: Vec<Broken>,
}

/// Where the samples are.
pub(super) enum Content {
    /// In memory, interleaved `[h, w, c]` bytes, one after another.
    Bytes { shape: [usize; 3], white: f32, bytes: Vec<u8> },
    /// In memory, interleaved `[h, w, c]` floats.
    Floats { shape: [usize; 3], values: Vec<f32> },
    /// Files of the tree, decoded when needed.
    Files(Vec<u32>),
}

/// Reads one set. Runs at most once, and only if its split is wanted.
pub(super) type Load = Box<dyn FnOnce(&Tree, &Options) -> Result<Loaded, Error>>;

/// What a family found.
pub(super) struct Found {
    /// Short name for reports: `cifar10`, `image folder`, ….
    pub name: &'static str,
    pub classes: Vec<String>,
    pub labelled: bool,
    pub transform: Transform,
    pub sets: Sets,
}

/// The sets of a source: either with a split of its own (one side may be missing), or whole.
pub(super) enum Sets {
    Split { train: Option<Load>, test: Option<Load>, hint: String },
    Whole(Load),
}

/// A kind of data set.
struct Family {
    looked_for: &'static str,
    find: fn(&Tree, &str, &Options) -> Result<Option<Found>, Error>,
}

/// In the order in which they are tried.
const FAMILIES: [Family; 6] = [
    Family { looked_for: cifar::LOOKED_FOR_BINARY, find: cifar::find_binary },
    Family { looked_for: cifar::LOOKED_FOR_SHEETS, find: cifar::find_sheets },
    Family { looked_for: idx::LOOKED_FOR, find: idx::find },
    Family { looked_for: arrays::LOOKED_FOR, find: arrays::find },
    Family { looked_for: folder::LOOKED_FOR_LABEL_FILE, find: folder::find_label_file },
    Family { looked_for: folder::LOOKED_FOR_CLASSES, find: folder::find_classes },
];

/// Opens a data set: a folder, an archive (`.tar`, `.tar.gz`, `.tgz`), a file of arrays, or one of the words `digits` and
/// `random` (also `random:CxHxW:CLASSES:COUNT`; a folder of such a name is `./digits`). The [module](super) lists the
/// families.
pub fn open(spec: impl AsRef<Path>, options: &Options) -> Result<Dataset, Error> {
    let path = spec.as_ref();
    check_options(options)?;
    if let Some(word) = path.to_str() {
        if word == "digits" {
            let options = Options { hold_out: options.hold_out.or(Some(5)), ..options.clone() };
            return finish("digits", None, digits::found(), &options);
        }
        if word == "random" || word.starts_with("random:") {
            return random::dataset(&options.random.parse(word)?, options);
        }
    }
    let (tree, family) = tree_of(path, options)?;
    let found = recognise(&tree, family, options)?;
    finish(&path.display().to_string(), Some(tree), found, options)
}

/// Opens single image files, without labels, in the given order.
pub fn open_images(paths: &[PathBuf], options: &Options) -> Result<Dataset, Error> {
    check_options(options)?;
    let tree = Tree::of_files("images", paths)?;
    let files = (0..tree.len() as u32).collect();
    finish("images", Some(tree), folder::unlabelled(files), options)
}

fn check_options(options: &Options) -> Result<(), Error> {
    if options.hold_out.is_some_and(|n| n < 2) {
        return Err(Error::options("hold_out", "every n-th sample is held out; n must be at least 2"));
    }
    if options.limit == Some(0) {
        return Err(Error::options("data limit", "0 samples are no data; give at least 1, or no limit"));
    }
    if options.classes.is_some_and(|n| n == 0 || n > MAX_CLASSES) {
        return Err(Error::options("classes", format!("must be in 1..={MAX_CLASSES}")));
    }
    Ok(())
}

/// More classes than this are a mistake in the labels.
pub(super) const MAX_CLASSES: usize = 1 << 20;

/// The files behind a path and, if the path is a single data file, the only family that may claim it.
fn tree_of(path: &Path, options: &Options) -> Result<(Tree, Option<usize>), Error> {
    let metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(source) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::Missing {
                path: path.display().to_string(),
                hint: "name a folder, an archive or a file of arrays, or one of the words `digits` and `random`".into(),
            });
        }
        Err(source) => return Err(Error::io(path, source)),
    };
    if metadata.is_dir() {
        return Ok((Tree::folder(path)?, None));
    }
    if !metadata.is_file() {
        return Err(Error::WrongKind {
            path: path.display().to_string(),
            found: "device or pipe",
            wanted: "file or folder",
            hint: "data sets are read more than once; copy it into a file".into(),
        });
    }
    let mut head = Vec::new();
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    file.take(512).read_to_end(&mut head).map_err(|e| Error::io(path, e))?;
    let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let is_idx = name.contains("idx") && name.contains("ubyte");
    if head.starts_with(&[0x1f, 0x8b]) && !is_idx {
        return Ok((Tree::tar_gz(path, options.memory_limit)?, None));
    }
    if head.get(257..262) == Some(b"ustar") || name.ends_with(".tar") {
        return Ok((Tree::tar(path)?, None));
    }
    // A data file stands for its siblings: images for their labels, x.npy for y.npy, one CIFAR batch for all.
    let family = match name.rsplit('.').next() {
        _ if is_idx => 2,
        Some("bin") => 0,
        Some("npy" | "safetensors") => 3,
        _ => {
            return Err(Error::Unrecognised {
                path: path.display().to_string(),
                found: "a file that is neither an archive nor arrays".into(),
                looked_for: format!("{LOOKED_FOR_FILES}; or name a folder with {}", looked_for()),
            });
        }
    };
    let mut siblings: Vec<PathBuf> = if name.ends_with(".safetensors") {
        vec![path.to_path_buf()]
    } else {
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let entries = fs::read_dir(folder).map_err(|e| Error::io(folder, e))?;
        entries.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.is_file()).collect()
    };
    siblings.sort();
    Ok((Tree::of_files(&path.display().to_string(), &siblings)?, Some(family)))
}

const LOOKED_FOR_FILES: &str =
    "a .tar or .tar.gz of a data set, a .npy or .safetensors of arrays, an IDX or CIFAR file";

fn looked_for() -> String {
    let families: Vec<&str> = FAMILIES.iter().map(|f| f.looked_for).collect();
    families.join("; ")
}

/// Asks each family about the root and, where the root holds nothing but one folder, about that folder, and so on.
fn recognise(tree: &Tree, family: Option<usize>, options: &Options) -> Result<Found, Error> {
    if let Some(family) = family {
        let family = &FAMILIES[family];
        return (family.find)(tree, "", options)?.ok_or_else(|| Error::Unrecognised {
            path: tree.label().to_string(),
            found: inventory(tree),
            looked_for: family.looked_for.to_string(),
        });
    }
    let mut root = String::new();
    loop {
        let children = tree.children(&root);
        let only_folder = match (children.folders.len(), children.files.len()) {
            (1, 0) => children.folders.first().map(|name| join(&root, name)),
            _ => None,
        };
        for family in &FAMILIES {
            if let Some(found) = (family.find)(tree, &root, options)? {
                return Ok(found);
            }
        }
        match only_folder {
            Some(folder) => root = folder,
            None => break,
        }
    }
    Err(Error::Unrecognised {
        path: tree.label().to_string(),
        found: inventory(tree),
        looked_for: format!("{}; or {LOOKED_FOR_FILES}", looked_for()),
    })
}

fn inventory(tree: &Tree) -> String {
    let children = tree.children("");
    let mut names: Vec<String> = children.folders.iter().map(|n| format!("{n}/")).collect();
    names.extend(children.files.iter().map(|&f| tree.name(f).to_string()));
    let more = names.len().saturating_sub(8);
    names.truncate(8);
    match (names.len(), more) {
        (0, _) => "nothing".into(),
        (_, 0) => names.join(", "),
        _ => format!("{} and {more} more", names.join(", ")),
    }
}

/// Reads the wanted sets, applies hold-out and limit, and makes the data set.
fn finish(label: &str, tree: Option<Tree>, found: Found, options: &Options) -> Result<Dataset, Error> {
    let Found { name, mut classes, labelled, transform, sets } = found;
    let empty = Tree::empty(label);
    let tree_ref = tree.as_ref().unwrap_or(&empty);
    let (mut loads, mut split, is_whole) = match sets {
        Sets::Whole(load) => (vec![load], Split::All, true),
        Sets::Split { train, test, hint } => {
            let have = match (&train, &test) {
                (Some(_), Some(_)) => "train and test",
                (Some(_), None) => "train",
                _ => "test",
            };
            let chosen: Vec<Load> = match options.split {
                Split::Train => train.into_iter().collect(),
                Split::Test => test.into_iter().collect(),
                Split::All => train.into_iter().chain(test).collect(),
            };
            if chosen.is_empty() {
                let (path, have) = (label.to_string(), have.to_string());
                return Err(Error::NoSplit { path, wanted: options.split, have, hint });
            }
            (chosen, options.split, false)
        }
    };
    let mut loaded = Vec::with_capacity(loads.len());
    for load in loads.drain(..) {
        loaded.push(load(tree_ref, options)?);
    }
    let Loaded { samples, labels, missing } = merge(loaded, label)?;

    if let Some(n) = options.classes {
        for i in classes.len()..n {
            classes.push(format!("class {i}"));
        }
        classes.truncate(n);
    }
    if let Some((sample, bad)) = labels.iter().enumerate().find(|(_, l)| **l as usize >= classes.len()) {
        return Err(Error::Label {
            what: label.to_string(),
            sample,
            label: bad.to_string(),
            classes: classes.len(),
            hint: "the model and the data disagree about the classes; choose matching ones or repair the labels".into(),
        });
    }

    let mut picks: Vec<u32> = (0..labels.len() as u32).collect();
    if let (true, Some(n), Split::Train | Split::Test) = (is_whole, options.hold_out, options.split) {
        picks = held_out(&labels, n, options.split == Split::Test);
        split = options.split;
    }
    if let Some(limit) = options.limit {
        picks = spread(&picks, &labels, limit);
    }
    if picks.is_empty() && missing.is_empty() {
        return Err(Error::malformed(label, format!("the {split} split holds no samples")));
    }
    let samples = match samples {
        Content::Bytes { shape, white, bytes } => Samples::Bytes { shape, white, bytes },
        Content::Floats { shape, values } => Samples::Floats { shape, values },
        Content::Files(files) => Samples::Files { tree: tree.unwrap_or(empty), files },
    };
    Dataset::new(Parts {
        name: name.to_string(),
        label: label.to_string(),
        samples,
        labels: picks.iter().map(|&p| labels[p as usize]).collect(),
        picks,
        classes,
        labelled,
        split,
        transform: options.transform.clone().unwrap_or(transform),
        on_broken: options.on_broken,
        missing,
    })
}

/// Train and test after one another.
fn merge(sets: Vec<Loaded>, label: &str) -> Result<Loaded, Error> {
    let mut sets = sets.into_iter();
    let Some(mut all) = sets.next() else {
        return Ok(Loaded { samples: Content::Files(Vec::new()), labels: Vec::new(), missing: Vec::new() });
    };
    for set in sets {
        match (&mut all.samples, set.samples) {
            (Content::Bytes { shape, bytes, .. }, Content::Bytes { shape: other, bytes: more, .. })
                if *shape == other =>
            {
                bytes.extend_from_slice(&more);
            }
            (Content::Floats { shape, values }, Content::Floats { shape: other, values: more }) if *shape == other => {
                values.extend_from_slice(&more);
            }
            (Content::Files(files), Content::Files(more)) => files.extend(more),
            _ => {
                return Err(Error::malformed(
                    label,
                    "the train and test sets differ in shape or type; open them one by one",
                ));
            }
        }
        all.labels.extend(set.labels);
        all.missing.extend(set.missing);
    }
    Ok(all)
}

/// The positions of the test (or training) side when every n-th sample of each class is held out.
fn held_out(labels: &[u32], n: usize, test: bool) -> Vec<u32> {
    let mut seen = vec![0usize; labels.iter().max().map_or(0, |&m| m as usize + 1)];
    let mut picks = Vec::new();
    for (position, &label) in labels.iter().enumerate() {
        seen[label as usize] += 1;
        if seen[label as usize].is_multiple_of(n) == test {
            picks.push(position as u32);
        }
    }
    picks
}

/// At most `limit` of `picks`, as evenly over the classes as possible, in their old order.
pub(super) fn spread(picks: &[u32], labels: &[u32], limit: usize) -> Vec<u32> {
    if picks.len() <= limit {
        return picks.to_vec();
    }
    // The rank of a sample within its class; lower ranks go first, ties in the source's order.
    let mut seen = vec![0u32; labels.iter().max().map_or(0, |&m| m as usize + 1)];
    let mut ranked: Vec<(u32, u32)> = Vec::with_capacity(picks.len());
    for &pick in picks {
        let count = &mut seen[labels[pick as usize] as usize];
        ranked.push((*count, pick));
        *count += 1;
    }
    ranked.sort_unstable();
    let mut kept: Vec<u32> = ranked.into_iter().take(limit).map(|(_, pick)| pick).collect();
    kept.sort_unstable();
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hold_out_takes_every_nth_of_each_class() {
        let labels = [0, 1, 0, 0, 1, 0, 1, 2];
        assert_eq!(held_out(&labels, 2, true), [2, 4, 5]);
        assert_eq!(held_out(&labels, 2, false), [0, 1, 3, 6, 7]);
    }

    #[test]
    fn limits_spread_over_the_classes() {
        let labels = [0, 0, 0, 0, 1, 1, 2];
        let all: Vec<u32> = (0..7).collect();
        assert_eq!(spread(&all, &labels, 3), [0, 4, 6]);
        assert_eq!(spread(&all, &labels, 5), [0, 1, 4, 5, 6]);
        assert_eq!(spread(&all, &labels, 99), all);
    }

    #[test]
    fn unknown_things_are_named_with_what_was_looked_for() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("notes.txt"), "hello").unwrap();
        let message = open(temp.path(), &Options::default()).unwrap_err().to_string();
        for part in ["notes.txt", "data_batch_", "idx3-ubyte", ".npy", "labels.tsv", "class"] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let message = open(temp.path().join("notes.txt"), &Options::default()).unwrap_err().to_string();
        assert!(message.contains("neither"), "{message}");
        let message = open(temp.path().join("none"), &Options::default()).unwrap_err().to_string();
        assert!(message.contains("does not exist") && message.contains("digits"), "{message}");
        let message = open("random:3x", &Options::default()).unwrap_err().to_string();
        assert!(message.contains("random:CxHxW"), "{message}");
    }

    #[test]
    fn senseless_options_are_refused() {
        for options in [
            Options { hold_out: Some(1), ..Options::default() },
            Options { limit: Some(0), ..Options::default() },
            Options { classes: Some(0), ..Options::default() },
            Options { classes: Some(9), ..Options::default() },
            Options { transform: Some(Transform::cifar()), ..Options::default() },
        ] {
            assert!(open("digits", &options).is_err(), "{options:?}");
        }
    }
}
