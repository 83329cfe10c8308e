//! MNIST and its relatives in IDX format, plain or gzipped.
//!
//! IDX: two zero bytes, a type (8 = unsigned byte), the number of dimensions, each dimension as a big-endian u32, then the
//! elements. Images have three dimensions (count, height, width), labels one.

use super::error::{Error, FETCH_AGAIN};
use super::open::{Content, Found, Load, Loaded, Options, Sets};
use super::transform::Transform;
use super::tree::{Tree, gunzip, join};

pub(super) const LOOKED_FOR: &str =
    "train-images-idx3-ubyte and t10k-images-idx3-ubyte (MNIST, also .gz) with their labels-idx1-ubyte";

/// Images and labels of one split.
#[derive(Clone, Copy)]
struct Pair {
    images: usize,
    labels: usize,
}

/// Finds pairs of files in `root`, `root/raw` or `root/MNIST/raw`.
pub(super) fn find(tree: &Tree, root: &str, options: &Options) -> Result<Option<Found>, Error> {
    for folder in [root.to_string(), join(root, "raw"), join(root, "MNIST/raw")] {
        let (mut train, mut test, mut whole) = (None, None, None);
        for file in tree.children(&folder).files {
            let name = tree.name(file);
            if !(name.contains("images") && name.contains("idx3") && name.contains("ubyte")) {
                continue;
            }
            // Plain files sort before their .gz twins and are preferred.
            let slot = match name {
                n if n.contains("train") => &mut train,
                n if n.contains("t10k") || n.contains("test") => &mut test,
                _ => &mut whole,
            };
            if slot.is_none() {
                *slot = Some(Pair { images: file, labels: partner(tree, &folder, name)? });
            }
        }
        let load = |pair: Option<Pair>| -> Option<Load> {
            pair.map(|pair| -> Load { Box::new(move |tree, options| load(tree, pair, options)) })
        };
        let pairs: Vec<Pair> = [train, test, whole].into_iter().flatten().collect();
        if pairs.is_empty() {
            continue;
        }
        // Splits must agree on the classes, so all labels are looked at; they are small.
        let mut classes = 10;
        for pair in &pairs {
            let (_, labels) = elements(tree, pair.labels, 1, options)?;
            classes = classes.max(labels.iter().max().map_or(0, |&m| usize::from(m) + 1));
        }
        let hint = "put the missing files beside the others, or ask for another split".to_string();
        return Ok(Some(Found {
            name: "mnist",
            classes: (0..classes).map(|c| c.to_string()).collect(),
            labelled: true,
            transform: Transform::mnist(),
            sets: match (load(train), load(test), load(whole)) {
                (None, None, Some(whole)) => Sets::Whole(whole),
                (train, test, _) => Sets::Split { train, test, hint },
            },
        }));
    }
    Ok(None)
}

/// The label file that belongs to an image file, plain or gzipped.
fn partner(tree: &Tree, folder: &str, images: &str) -> Result<usize, Error> {
    let name = images.replace("images", "labels").replace("idx3", "idx1");
    let plain = name.strip_suffix(".gz").unwrap_or(&name);
    let found = [plain.to_string(), format!("{plain}.gz")]
        .iter()
        .find_map(|n| tree.children(folder).files.into_iter().find(|&f| tree.name(f) == n));
    found.ok_or_else(|| Error::Missing {
        path: tree.display_path(&join(folder, plain)),
        hint: format!("it holds the labels of {images}; fetch it, too"),
    })
}

fn load(tree: &Tree, pair: Pair, options: &Options) -> Result<Loaded, Error> {
    let (dims, bytes) = elements(tree, pair.images, 3, options)?;
    let (label_dims, labels) = elements(tree, pair.labels, 1, options)?;
    let (count, height, width) = match dims.as_slice() {
        [n, h, w] => (*n, *h, *w),
        _ => (0, 0, 0),
    };
    if label_dims.first() != Some(&count) {
        return Err(Error::malformed(
            tree.display(pair.labels),
            format!("{} labels for {count} images; the two files do not belong together", labels.len()),
        ));
    }
    if height == 0 || width == 0 {
        return Err(Error::malformed(tree.display(pair.images), format!("images of {height} x {width} pixels")));
    }
    Ok(Loaded {
        samples: Content::Bytes { shape: [height, width, 1], white: 255.0, bytes },
        labels: labels.into_iter().map(u32::from).collect(),
        missing: Vec::new(),
    })
}

/// Dimensions and bytes of an IDX file that must have `n_dims` dimensions of unsigned bytes.
fn elements(tree: &Tree, file: usize, n_dims: usize, options: &Options) -> Result<(Vec<usize>, Vec<u8>), Error> {
    let what = || tree.display(file);
    let mut bytes = tree.read(file, options.memory_limit)?;
    if bytes.starts_with(&[0x1f, 0x8b]) {
        bytes = gunzip(bytes.as_slice(), options.memory_limit, &what())?;
    }
    let header = 4 + 4 * n_dims;
    let short = |expected: u64, found: usize| Error::Length {
        what: what(),
        expected,
        found: found as u64,
        hint: FETCH_AGAIN.into(),
    };
    if bytes.len() < header {
        return Err(short(header as u64, bytes.len()));
    }
    if bytes[..4] != [0, 0, 8, n_dims as u8] {
        return Err(Error::malformed(
            what(),
            format!(
                "starts with bytes {:?}; an IDX file of {n_dims}-dimensional bytes starts with [0, 0, 8, {n_dims}]",
                &bytes[..4]
            ),
        ));
    }
    let dims: Vec<usize> =
        bytes[4..header].chunks_exact(4).map(|d| d.iter().fold(0usize, |n, &b| n << 8 | usize::from(b))).collect();
    let expected =
        dims.iter().try_fold(1u64, |n, &d| n.checked_mul(d as u64)).and_then(|n| n.checked_add(header as u64));
    if expected != Some(bytes.len() as u64) {
        return Err(short(expected.unwrap_or(u64::MAX), bytes.len()));
    }
    bytes.drain(..header);
    Ok((dims, bytes))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use super::super::testing::real_data;
    use super::super::{Layout, Split, open};
    use super::*;

    fn idx(dims: &[u32], elements: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        dims.iter().for_each(|d| bytes.extend_from_slice(&d.to_be_bytes()));
        bytes.extend_from_slice(elements);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn plain_and_gzipped_files_are_read() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        fs::write(path("train-images-idx3-ubyte"), idx(&[2, 2, 3], &[0, 1, 2, 3, 4, 5, 10, 11, 12, 13, 14, 15]))
            .unwrap();
        fs::write(path("train-labels-idx1-ubyte.gz"), gz(&idx(&[2], &[7, 9]))).unwrap();
        fs::write(path("t10k-images-idx3-ubyte.gz"), gz(&idx(&[1, 2, 3], &[255; 6]))).unwrap();
        fs::write(path("t10k-labels-idx1-ubyte"), idx(&[1], &[3])).unwrap();
        for spec in [temp.path().to_path_buf(), path("t10k-images-idx3-ubyte.gz"), path("train-images-idx3-ubyte")] {
            let train = open(&spec, &Options { transform: Some(Transform::raw_255()), ..Options::train() }).unwrap();
            assert_eq!((train.shape(), train.labels(), train.classes().len()), ([1, 2, 3], &[7, 9][..], 10));
            assert_eq!(train.images(&[1], Layout::Nchw).unwrap(), [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]);
            let test = open(&spec, &Options::test()).unwrap();
            assert_eq!((test.len(), test.split()), (1, Split::Test));
        }
    }

    #[test]
    fn damage_is_named() {
        let image = "t10k-images-idx3-ubyte";
        let cases: [(&str, Vec<u8>, Vec<u8>, &str); 7] = [
            ("short", idx(&[2, 2, 2], &[0; 7]), idx(&[2], &[0, 0]), "expected 24 bytes, found 23"),
            ("long", idx(&[1, 2, 2], &[0; 5]), idx(&[1], &[0]), "expected 20 bytes, found 21"),
            ("absurd", idx(&[u32::MAX, u32::MAX, u32::MAX], &[0; 5]), idx(&[1], &[0]), "18446744073709551615"),
            ("header", vec![0, 0, 8], idx(&[1], &[0]), "expected 16 bytes, found 3"),
            ("floats", vec![0, 0, 13, 3, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0], idx(&[1], &[0]), "[0, 0, 13, 3]"),
            ("count", idx(&[1, 2, 2], &[0; 4]), idx(&[2], &[0, 0]), "2 labels for 1 images"),
            (
                "cut gzip",
                {
                    let mut g = gz(&idx(&[1, 2, 2], &[0; 4]));
                    g.truncate(12);
                    g
                },
                idx(&[1], &[0]),
                "gzip",
            ),
        ];
        for (name, images, labels, expected) in cases {
            let temp = tempfile::tempdir().unwrap();
            fs::write(temp.path().join(image), images).unwrap();
            fs::write(temp.path().join("t10k-labels-idx1-ubyte"), labels).unwrap();
            let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("t10k"), "{name}: {message}");
        }
        let temp = tempfile::tempdir().unwrap();
        fs::write(temp.path().join(image), idx(&[1, 1, 1], &[0])).unwrap();
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(message.contains("t10k-labels-idx1-ubyte"), "{message}");
    }

    #[test]
    fn the_real_test_set_is_read_and_the_missing_training_set_named() {
        let Some(folder) = real_data("mnist") else { return };
        let test = open(&folder, &Options::test()).unwrap();
        assert_eq!((test.len(), test.shape(), test.labels()[..5].to_vec()), (10_000, [1, 28, 28], vec![7, 2, 1, 0, 4]));
        let message = open(&folder, &Options::train()).unwrap_err().to_string();
        assert!(message.contains("no train split"), "{message}");
    }
}
