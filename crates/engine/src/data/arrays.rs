//! Arrays: pairs of `.npy` files, or tensors in `.safetensors` files.
//!
//! Names say what is what: `x`, `images`, `data`, `inputs` or `features` against `y`, `labels`, `label`, `targets` or
//! `target`, alone or with `train`, `test`, `val` or `valid` before or after (`x_train.npy`, `test_images`, …); a file
//! called `train.safetensors` or `test.safetensors` says it for the tensors in it.
//!
//! Shapes: `[n, features]`, `[n, h, w]`, `[n, c, h, w]`, or `[n, h, w, c]` if the last dimension is 1, 3 or 4 and the
//! second is larger than 4. Bytes stay bytes and are scaled by the transform; every other type becomes f32 and is taken
//! as it is. Labels are whole numbers of any type, `[n]` or `[n, 1]`.

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::error::{Error, FETCH_AGAIN};
use super::npy;
use super::open::{Content, Found, Load, Loaded, MAX_CLASSES, Options, Sets};
use super::transform::Transform;
use super::tree::Tree;

pub(super) const LOOKED_FOR: &str =
    "x.npy and y.npy (or images and labels, with train_ or test_), or a .safetensors with such tensors";

/// The types of elements we read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    U64,
    I64,
    F16,
    F32,
    F64,
}

impl Element {
    /// Bytes of one element.
    pub(super) fn bytes(self) -> usize {
        match self {
            Element::U8 | Element::I8 => 1,
            Element::U16 | Element::I16 | Element::F16 => 2,
            Element::U32 | Element::I32 | Element::F32 => 4,
            Element::U64 | Element::I64 | Element::F64 => 8,
        }
    }
}

/// An array inside a file; it lies within the file.
#[derive(Debug, Clone)]
pub(super) struct Array {
    pub file: usize,
    /// As messages call it.
    pub name: String,
    pub offset: u64,
    pub element: Element,
    pub shape: Vec<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Inputs,
    Labels,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Train,
    Test,
    Whole,
}

/// Finds arrays directly in `root`.
pub(super) fn find(tree: &Tree, root: &str, options: &Options) -> Result<Option<Found>, Error> {
    let mut arrays: Vec<(Role, Side, Array)> = Vec::new();
    for file in tree.children(root).files {
        let name = tree.name(file);
        if let Some(stem) = name.strip_suffix(".npy")
            && let Some((role, side)) = classify(stem)
        {
            arrays.push((role, side, npy::open(tree, file)?));
        }
        if let Some(stem) = name.strip_suffix(".safetensors") {
            let side_of_file = side(&stem.to_lowercase()).unwrap_or(Side::Whole);
            for (key, array) in tensors(tree, file)? {
                if let Some((role, side)) = classify(&key) {
                    arrays.push((role, if side == Side::Whole { side_of_file } else { side }, array?));
                }
            }
        }
    }
    let take = |role: Role, side: Side| -> Result<Option<Array>, Error> {
        let mut matching = arrays.iter().filter(|(r, s, _)| *r == role && *s == side).map(|(_, _, a)| a);
        match (matching.next(), matching.next()) {
            (Some(one), Some(two)) => {
                Err(Error::malformed(&one.name, format!("could be the same thing as `{}`; keep one of them", two.name)))
            }
            (one, _) => Ok(one.cloned()),
        }
    };
    let mut sets = Vec::new();
    let mut highest = 0u32;
    for side in [Side::Train, Side::Test, Side::Whole] {
        let Some(inputs) = take(Role::Inputs, side)? else { continue };
        let labels = match take(Role::Labels, side)? {
            Some(array) => Some(read_labels(tree, &array, &inputs, options)?),
            None if options.unlabelled => None,
            None => {
                return Err(Error::Missing {
                    path: format!("labels for {}", inputs.name),
                    hint: "store them beside it under the same name with `y` or `labels` for `x` or `images`".into(),
                });
            }
        };
        highest = highest.max(labels.iter().flatten().copied().max().unwrap_or(0));
        sets.push((side, inputs, labels));
    }
    if sets.is_empty() {
        return Ok(None);
    }
    let labelled = sets.iter().all(|(_, _, labels)| labels.is_some());
    let (mut train, mut test, mut whole) = (None, None, None);
    for (side, inputs, labels) in sets {
        let load: Load = Box::new(move |tree, options| load(tree, &inputs, labels, options));
        match side {
            Side::Train => train = Some(load),
            Side::Test => test = Some(load),
            Side::Whole => whole = Some(load),
        }
    }
    Ok(Some(Found {
        name: "arrays",
        classes: (0..=highest).map(|c| c.to_string()).collect(),
        labelled,
        transform: Transform::default(),
        sets: match (train, test, whole) {
            (None, None, Some(whole)) => Sets::Whole(whole),
            (train, test, whole) => Sets::Split {
                // Beside a test set, the nameless one is for training.
                train: train.or(whole),
                test,
                hint: "store the other split beside it, or ask for another".into(),
            },
        },
    }))
}

/// What a name says, if it says anything.
fn classify(name: &str) -> Option<(Role, Side)> {
    let name = name.to_lowercase();
    let parts: Vec<&str> = name.split(['_', '-', '.']).collect();
    let (role_part, side) = match parts.as_slice() {
        [role] => (*role, Side::Whole),
        [a, b] => match (side(a), side(b)) {
            (Some(side), None) => (*b, side),
            (None, Some(side)) => (*a, side),
            _ => return None,
        },
        _ => return None,
    };
    match role_part {
        "x" | "images" | "data" | "inputs" | "features" => Some((Role::Inputs, side)),
        "y" | "labels" | "label" | "targets" | "target" => Some((Role::Labels, side)),
        _ => None,
    }
}

fn side(word: &str) -> Option<Side> {
    match word {
        "train" | "training" => Some(Side::Train),
        "test" | "val" | "valid" | "validation" => Some(Side::Test),
        _ => None,
    }
}

/// Name and place of a tensor.
type Tensor = (String, Result<Array, Error>);

/// The tensors of a `.safetensors` file; those of unknown type are errors only when asked for.
fn tensors(tree: &Tree, file: usize) -> Result<Vec<Tensor>, Error> {
    let what = tree.display(file);
    let length = tree.bytes(file);
    let short = |expected: u64| Error::Length { what: what.clone(), expected, found: length, hint: FETCH_AGAIN.into() };
    if length < 8 {
        return Err(short(8));
    }
    let mut buffer = Vec::new();
    tree.read_part(file, 0, 8, &mut buffer)?;
    let header = buffer.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    let start = header.saturating_add(8);
    if start > length {
        return Err(short(start));
    }
    if header > MAX_HEADER_BYTES {
        return Err(Error::too_large(what, Some(header), MAX_HEADER_BYTES));
    }
    tree.read_part(file, 8, header, &mut buffer)?;
    let metadata: Metadata = serde_json::from_slice(&buffer).map_err(|source| Error::Malformed {
        what: what.clone(),
        detail: "the header is not that of a safetensors file; write it again".into(),
        source: Some(Box::new(source)),
    })?;
    let expected = start.saturating_add(metadata.data_len() as u64);
    if expected != length {
        return Err(short(expected));
    }
    let mut names = metadata.offset_keys();
    names.sort();
    let mut tensors = Vec::with_capacity(names.len());
    for name in names {
        let Some(info) = metadata.info(&name) else { continue };
        let called = format!("{what}:{name}");
        let element = match info.dtype {
            Dtype::U8 | Dtype::BOOL => Some(Element::U8),
            Dtype::I8 => Some(Element::I8),
            Dtype::U16 => Some(Element::U16),
            Dtype::I16 => Some(Element::I16),
            Dtype::U32 => Some(Element::U32),
            Dtype::I32 => Some(Element::I32),
            Dtype::U64 => Some(Element::U64),
            Dtype::I64 => Some(Element::I64),
            Dtype::F16 => Some(Element::F16),
            Dtype::F32 => Some(Element::F32),
            Dtype::F64 => Some(Element::F64),
            _ => None,
        };
        let array = match element {
            Some(element) => Ok(Array {
                file,
                name: called,
                offset: start + info.data_offsets.0 as u64,
                element,
                shape: info.shape.clone(),
            }),
            None => Err(Error::malformed(called, format!("elements of type {:?}; store f32 or bytes", info.dtype))),
        };
        tensors.push((name, array));
    }
    Ok(tensors)
}

/// Headers above this are not those of data sets.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Number of samples, and each sample's height, width, channels, and whether channels come first.
fn layout(array: &Array) -> Result<(usize, [usize; 3], bool), Error> {
    let (n, shape, first) = match *array.shape.as_slice() {
        [n, features] => (n, [1, 1, features], true),
        [n, h, w] => (n, [h, w, 1], true),
        [n, d1, d2, d3] if matches!(d3, 1 | 3 | 4) && d1 > 4 => (n, [d1, d2, d3], false),
        [n, c, h, w] => (n, [h, w, c], true),
        _ => {
            return Err(Error::malformed(
                &array.name,
                format!("shape {:?}; inputs are [n, features], [n, h, w], [n, c, h, w] or [n, h, w, c]", array.shape),
            ));
        }
    };
    if n == 0 || shape.contains(&0) || n > u32::MAX as usize {
        return Err(Error::malformed(&array.name, format!("shape {:?} holds no samples, or too many", array.shape)));
    }
    Ok((n, shape, first))
}

fn read_labels(tree: &Tree, array: &Array, inputs: &Array, options: &Options) -> Result<Vec<u32>, Error> {
    let (count, _, _) = layout(inputs)?;
    match *array.shape.as_slice() {
        [n] | [n, 1] if n == count => {}
        [n] | [n, 1] => {
            return Err(Error::malformed(&array.name, format!("{n} labels for {count} samples in {}", inputs.name)));
        }
        _ => {
            return Err(Error::malformed(
                &array.name,
                format!("shape {:?}; labels are [n] class numbers (for one-hot rows store their argmax)", array.shape),
            ));
        }
    }
    let mut labels = Vec::with_capacity(count.min(1 << 24));
    read(tree, array, 1, options.memory_limit, |values, _| {
        for &value in values {
            let label = value as u32;
            if f64::from(label) != value || label as usize >= MAX_CLASSES {
                return Err(Error::Label {
                    what: array.name.clone(),
                    sample: labels.len(),
                    label: value.to_string(),
                    classes: options.classes.unwrap_or(MAX_CLASSES),
                    hint: "labels are class numbers from 0".into(),
                });
            }
            labels.push(label);
        }
        Ok(())
    })?;
    Ok(labels)
}

fn load(tree: &Tree, inputs: &Array, labels: Option<Vec<u32>>, options: &Options) -> Result<Loaded, Error> {
    let (n, [h, w, c], channels_first) = layout(inputs)?;
    let sample = h * w * c;
    let in_memory = if inputs.element == Element::U8 { 1 } else { 4 };
    let total = (n as u64).checked_mul(sample as u64).and_then(|n| n.checked_mul(in_memory));
    if total.is_none_or(|total| total > options.memory_limit) {
        return Err(Error::too_large(&inputs.name, total, options.memory_limit));
    }
    // Where element i of a stored sample goes.
    let place = |i: usize| if channels_first { i % (h * w) * c + i / (h * w) } else { i };
    let samples = if inputs.element == Element::U8 {
        let mut bytes = vec![0u8; n * sample];
        read(tree, inputs, sample, options.memory_limit, |values, first| {
            for (i, &value) in values.iter().enumerate() {
                bytes[(first + i) / sample * sample + place((first + i) % sample)] = value as u8;
            }
            Ok(())
        })?;
        Content::Bytes { shape: [h, w, c], white: 255.0, bytes }
    } else {
        let mut floats = vec![0f32; n * sample];
        read(tree, inputs, sample, options.memory_limit, |values, first| {
            for (i, &value) in values.iter().enumerate() {
                if !value.is_finite() {
                    return Err(Error::malformed(
                        format!("{} sample {}", inputs.name, (first + i) / sample),
                        format!("holds {value}; replace what is not a finite number"),
                    ));
                }
                floats[(first + i) / sample * sample + place((first + i) % sample)] = value as f32;
            }
            Ok(())
        })?;
        Content::Floats { shape: [h, w, c], values: floats }
    };
    Ok(Loaded { samples, labels: labels.unwrap_or_else(|| vec![0; n]), missing: Vec::new() })
}

/// Feeds all elements as f64 (exact but for huge 64-bit integers), some whole samples at a time, to `take` with the
/// number of the first element.
fn read(
    tree: &Tree,
    array: &Array,
    sample: usize,
    limit: u64,
    mut take: impl FnMut(&[f64], usize) -> Result<(), Error>,
) -> Result<(), Error> {
    let size = array.element.bytes();
    let total: usize = array.shape.iter().product();
    if total as u64 > limit {
        return Err(Error::too_large(&array.name, Some(total as u64), limit));
    }
    let step = ((1 << 20) / (sample * size)).max(1) * sample;
    let (mut buffer, mut values) = (Vec::new(), Vec::new());
    let mut first = 0;
    while first < total {
        let count = step.min(total - first);
        tree.read_part(array.file, array.offset + (first * size) as u64, (count * size) as u64, &mut buffer)?;
        values.clear();
        convert(&buffer, array.element, &mut values);
        take(&values, first)?;
        first += count;
    }
    Ok(())
}

fn convert(bytes: &[u8], element: Element, values: &mut Vec<f64>) {
    macro_rules! each {
        ($type:ty) => {
            values.extend(bytes.chunks_exact(size_of::<$type>()).map(|b| {
                let mut raw = [0; size_of::<$type>()];
                raw.copy_from_slice(b);
                <$type>::from_le_bytes(raw) as f64
            }))
        };
    }
    match element {
        Element::U8 => values.extend(bytes.iter().map(|&b| f64::from(b))),
        Element::I8 => each!(i8),
        Element::U16 => each!(u16),
        Element::I16 => each!(i16),
        Element::U32 => each!(u32),
        Element::I32 => each!(i32),
        Element::U64 => each!(u64),
        Element::I64 => each!(i64),
        Element::F16 => values.extend(bytes.chunks_exact(2).map(|b| half(u16::from(b[0]) | u16::from(b[1]) << 8))),
        Element::F32 => each!(f32),
        Element::F64 => each!(f64),
    }
}

/// The value of an IEEE half-precision number.
fn half(bits: u16) -> f64 {
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023));
    let magnitude = match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        _ => (1024.0 + fraction) * 2f64.powi(exponent - 25),
    };
    if bits >> 15 == 1 { -magnitude } else { magnitude }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use safetensors::tensor::{TensorView, serialize};

    use super::super::npy::testing::npy;
    use super::super::{Dataset, Layout, Split, open};
    use super::*;

    fn floats(values: &[f32]) -> Vec<u8> {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    fn safetensors(path: &Path, tensors: &[(&str, Dtype, &[usize], &[u8])]) {
        let views = tensors.iter().map(|(n, d, s, b)| (n.to_string(), TensorView::new(*d, s.to_vec(), b).unwrap()));
        fs::write(path, serialize(views, None).unwrap()).unwrap();
    }

    fn message(spec: &Path) -> String {
        open(spec, &Options::default()).map(|_: Dataset| ()).unwrap_err().to_string()
    }

    #[test]
    fn names_say_role_and_side() {
        assert_eq!(classify("x"), Some((Role::Inputs, Side::Whole)));
        assert_eq!(classify("X_train"), Some((Role::Inputs, Side::Train)));
        assert_eq!(classify("test-labels"), Some((Role::Labels, Side::Test)));
        assert_eq!(classify("val_images"), Some((Role::Inputs, Side::Test)));
        for other in ["weight", "conv1.weight", "x_y", "train_test", "train", "x_train_2", ""] {
            assert_eq!(classify(other), None, "{other}");
        }
    }

    #[test]
    fn pairs_of_npy_files_make_splits() {
        let temp = tempfile::tempdir().unwrap();
        let write = |name: &str, bytes: Vec<u8>| fs::write(temp.path().join(name), bytes).unwrap();
        write("x_train.npy", npy("<f4", "(2, 2, 1, 3)", &floats(&[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.])));
        write("y_train.npy", npy("<i8", "(2,)", &[3u64, 1].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()));
        write("x_test.npy", npy("<f4", "(1, 2, 1, 3)", &floats(&[0.5; 6])));
        write("y_test.npy", npy("|u1", "(1,)", &[5]));
        let train = open(temp.path(), &Options::train()).unwrap();
        assert_eq!((train.len(), train.shape(), train.classes().len()), (2, [2, 1, 3], 6));
        assert_eq!(train.images(&[1], Layout::Nchw).unwrap(), [6., 7., 8., 9., 10., 11.]);
        assert_eq!(train.images(&[0], Layout::Nhwc).unwrap(), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(open(temp.path().join("x_train.npy"), &Options::test()).unwrap().labels(), [5]);
    }

    #[test]
    fn bytes_stay_bytes_and_channels_last_is_seen() {
        let temp = tempfile::tempdir().unwrap();
        let pixels: Vec<u8> = (0..2 * 6 * 5 * 3).map(|i| i as u8).collect();
        fs::write(temp.path().join("images.npy"), npy("|u1", "(2, 6, 5, 3)", &pixels)).unwrap();
        fs::write(
            temp.path().join("labels.npy"),
            npy("<f8", "(2, 1)", &[0f64, 1.].iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
        )
        .unwrap();
        let set = open(temp.path(), &Options { split: Split::Train, ..Options::default() }).unwrap();
        assert_eq!((set.shape(), set.split()), ([3, 6, 5], Split::All));
        assert_eq!(set.images(&[1], Layout::Nhwc).unwrap()[2], 92.0 / 255.0);
        let held =
            open(temp.path(), &Options { split: Split::Train, hold_out: Some(2), ..Options::default() }).unwrap();
        assert_eq!((held.len(), held.split()), (2, Split::Train));
    }

    #[test]
    fn safetensors_files_are_read_alone_or_in_pairs() {
        let temp = tempfile::tempdir().unwrap();
        let one = temp.path().join("one.safetensors");
        let x = floats(&[1., 2., 3., 4., 5., 6.]);
        safetensors(
            &one,
            &[
                ("train_x", Dtype::F32, &[2, 3], &x),
                ("train_y", Dtype::I32, &[2], &[0, 0, 0, 0, 4, 0, 0, 0]),
                ("weights", Dtype::BF16, &[1], &[0, 0]),
            ],
        );
        let set = open(&one, &Options::train()).unwrap();
        assert_eq!((set.shape(), set.labels()), ([3, 1, 1], &[0, 4][..]));
        assert_eq!(set.images(&[1], Layout::Nhwc).unwrap(), [4., 5., 6.]);
        fs::remove_file(&one).unwrap();
        for side in ["train", "test"] {
            let path = temp.path().join(format!("{side}.safetensors"));
            safetensors(
                &path,
                &[("images", Dtype::F16, &[1, 1, 2], &[0, 60, 0, 193]), ("labels", Dtype::U8, &[1], &[0])],
            );
        }
        let set = open(temp.path(), &Options::test()).unwrap();
        assert_eq!((set.split(), set.images(&[0], Layout::Nchw).unwrap()), (Split::Test, vec![1.0, -2.5]));
    }

    #[test]
    fn damage_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let x = temp.path().join("x.npy");
        let y = temp.path().join("y.npy");
        fs::write(&x, npy("<f4", "(2, 2)", &floats(&[0.0; 4]))).unwrap();
        assert!(message(temp.path()).contains("labels for"), "{}", message(temp.path()));
        assert!(open(temp.path(), &Options { unlabelled: true, ..Options::default() }).is_ok_and(|s| !s.is_labelled()));
        for (bytes, expected) in [
            (npy("<i4", "(3,)", &[0; 12]), "3 labels for 2 samples"),
            (npy("<i4", "(2, 2)", &[0; 16]), "argmax"),
            (npy("|i1", "(2,)", &[0, 255]), "label -1 of sample 1"),
            (npy("<f4", "(2,)", &floats(&[0.5, 0.0])), "label 0.5 of sample 0"),
            (npy("<u8", "(2,)", &[0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0]), "label 11529215046068"),
        ] {
            fs::write(&y, bytes).unwrap();
            assert!(message(temp.path()).contains(expected), "{expected}: {}", message(temp.path()));
        }
        fs::write(&y, npy("|u1", "(2,)", &[0, 1])).unwrap();
        fs::write(&x, npy("<f4", "(2, 2)", &floats(&[0.0, 0.0, f32::NAN, 0.0]))).unwrap();
        assert!(message(temp.path()).contains("sample 1") && message(temp.path()).contains("NaN"));
        fs::write(&x, npy("<f4", "(2, 2, 1, 1, 1)", &floats(&[0.0; 4]))).unwrap();
        assert!(message(temp.path()).contains("[n, features]"));
        fs::write(temp.path().join("images.npy"), npy("|u1", "(2, 2)", &[0; 4])).unwrap();
        assert!(message(temp.path()).contains("keep one"));
    }

    #[test]
    fn hostile_safetensors_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.safetensors");
        safetensors(&path, &[("x", Dtype::U8, &[2, 3], &[0; 6]), ("y", Dtype::U8, &[2], &[0; 2])]);
        let good = fs::read(&path).unwrap();
        let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let huge = r#"{"x":{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}}"#;
        let overflow = r#"{"x":{"dtype":"F32","shape":[4294967296,4294967296,4],"data_offsets":[0,0]}}"#;
        for (bytes, expected) in [
            (good[..good.len() - 1].to_vec(), "expected"),
            (good[..5].to_vec(), "expected 8 bytes, found 5"),
            ((1u64 << 60).to_le_bytes().to_vec(), "1152921504606846984"),
            (u64::MAX.to_le_bytes().to_vec(), "expected 18446744073709551615"),
            (header("{not json"), "header"),
            (header(huge), "expected 115292150460684"),
            (header(overflow), "header"),
        ] {
            fs::write(&path, bytes).unwrap();
            assert!(
                message(&path).contains(expected) && message(&path).contains("a.safetensors"),
                "{}",
                message(&path)
            );
        }
        fs::write(&path, header("{}")).unwrap();
        assert!(message(&path).contains("looked for"));
    }

    #[test]
    fn halves_are_decoded() {
        for (bits, value) in [(0x3c00, 1.0), (0xc000, -2.0), (0x0001, 2f64.powi(-24)), (0x7bff, 65504.0), (0, 0.0)] {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7e00).is_nan() && half(0xfc00) == f64::NEG_INFINITY);
    }
}
