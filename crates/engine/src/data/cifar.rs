//! CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in their own binary format, and CIFAR-10 as sheets of tiles.
//!
//! Binary: for each image one label byte (CIFAR-100: coarse, then fine; the fine one counts), then 1,024 bytes each of
//! red, green, blue, row by row. Sheets: `data_batch_1.webp` with 32 x 32 tiles, row by row, beside `data_batch_1.labels`
//! with one byte per tile.

use super::decode::{MAX_FILE_BYTES, decode};
use super::error::{Error, FETCH_AGAIN};
use super::open::{Content, Found, Load, Loaded, Options, Sets};
use super::transform::{Colour, Transform};
use super::tree::{Tree, join};

pub(super) const LOOKED_FOR_BINARY: &str =
    "data_batch_*.bin and test_batch.bin (CIFAR-10) or train.bin and test.bin (CIFAR-100)";
pub(super) const LOOKED_FOR_SHEETS: &str = "data_batch_*.webp and test_batch.webp with .labels beside them";

const SIDE: usize = 32;
const PIXELS: usize = SIDE * SIDE;
const IMAGE: usize = 3 * PIXELS;

/// Finds the binary files in `root` or in the folder that the official archives make.
pub(super) fn find_binary(tree: &Tree, root: &str, _: &Options) -> Result<Option<Found>, Error> {
    for folder in [root.to_string(), join(root, "cifar-10-batches-bin")] {
        let (train, test) = batches(tree, &folder, ".bin");
        if !train.is_empty() || !test.is_empty() {
            let load = |files: Vec<usize>| -> Option<Load> {
                (!files.is_empty())
                    .then(|| -> Load { Box::new(move |tree, options| binary(tree, &files, 1, 10, options)) })
            };
            return Ok(Some(found("cifar10", &CIFAR10, load(train), load(test))));
        }
    }
    for folder in [root.to_string(), join(root, "cifar-100-binary")] {
        let file = |name: &str| tree.find(&join(&folder, name));
        let (train, test) = (file("train.bin"), file("test.bin"));
        if train.is_some() || test.is_some() {
            let load = |file: Option<usize>| -> Option<Load> {
                file.map(|file| -> Load { Box::new(move |tree, options| binary(tree, &[file], 2, 100, options)) })
            };
            return Ok(Some(found("cifar100", &CIFAR100, load(train), load(test))));
        }
    }
    Ok(None)
}

/// Finds sheets and labels in `root`.
pub(super) fn find_sheets(tree: &Tree, root: &str, _: &Options) -> Result<Option<Found>, Error> {
    let (train, test) = batches(tree, root, ".webp");
    if train.is_empty() && test.is_empty() {
        return Ok(None);
    }
    let load = |files: Vec<usize>| -> Option<Load> {
        (!files.is_empty()).then(|| -> Load { Box::new(move |tree, options| sheets(tree, &files, options)) })
    };
    Ok(Some(found("cifar10", &CIFAR10, load(train), load(test))))
}

fn found(name: &'static str, classes: &[&str], train: Option<Load>, test: Option<Load>) -> Found {
    Found {
        name,
        classes: classes.iter().map(|c| c.to_string()).collect(),
        labelled: true,
        transform: Transform::cifar(),
        sets: Sets::Split {
            train,
            test,
            hint: "put the missing batches beside the others, or ask for another split".into(),
        },
    }
}

/// The training and test batches with this ending, sorted by name.
fn batches(tree: &Tree, folder: &str, ending: &str) -> (Vec<usize>, Vec<usize>) {
    let files = tree.children(folder).files;
    let named = |start: &str| -> Vec<usize> {
        files.iter().copied().filter(|&f| tree.name(f).starts_with(start) && tree.name(f).ends_with(ending)).collect()
    };
    (named("data_batch_"), named("test_batch"))
}

/// Reads binary batches whose records start with `label_bytes` bytes, the last of which is the label.
fn binary(
    tree: &Tree,
    files: &[usize],
    label_bytes: usize,
    classes: usize,
    options: &Options,
) -> Result<Loaded, Error> {
    let record = label_bytes + IMAGE;
    let total: u64 = files.iter().map(|&f| tree.bytes(f)).sum();
    if total > options.memory_limit {
        return Err(Error::too_large(tree.label(), Some(total), options.memory_limit));
    }
    let mut labels = Vec::with_capacity(total as usize / record);
    let mut bytes = Vec::with_capacity(total as usize / record * IMAGE);
    let mut buffer = Vec::new();
    for &file in files {
        let length = tree.bytes(file);
        if !length.is_multiple_of(record as u64) || length == 0 {
            return Err(Error::Length {
                what: tree.display(file),
                expected: length.max(1).next_multiple_of(record as u64),
                found: length,
                hint: format!("images take {record} bytes each: {FETCH_AGAIN}"),
            });
        }
        tree.read_into(file, options.memory_limit, &mut buffer)?;
        for (sample, record) in buffer.chunks_exact(record).enumerate() {
            let (head, planes) = record.split_at(label_bytes);
            let label = head.last().copied().unwrap_or_default();
            labels.push(checked(label, classes, sample, || tree.display(file))?);
            let (red, rest) = planes.split_at(PIXELS);
            let (green, blue) = rest.split_at(PIXELS);
            for ((&r, &g), &b) in red.iter().zip(green).zip(blue) {
                bytes.extend_from_slice(&[r, g, b]);
            }
        }
    }
    let samples = Content::Bytes { shape: [SIDE, SIDE, 3], white: 255.0, bytes };
    Ok(Loaded { samples, labels, missing: Vec::new() })
}

fn checked(label: u8, classes: usize, sample: usize, what: impl Fn() -> String) -> Result<u32, Error> {
    if usize::from(label) < classes {
        return Ok(u32::from(label));
    }
    let hint = "is this really a file of this data set? fetch it again".to_string();
    Err(Error::Label { what: what(), sample, label: label.to_string(), classes, hint })
}

/// Reads sheets, one thread for each.
fn sheets(tree: &Tree, files: &[usize], options: &Options) -> Result<Loaded, Error> {
    let mut labels = Vec::new();
    let mut counts = Vec::with_capacity(files.len());
    for &file in files {
        let path = tree.path(file).strip_suffix(".webp").map(|stem| format!("{stem}.labels")).unwrap_or_default();
        let Some(label_file) = tree.find(&path) else {
            return Err(Error::Missing {
                path: tree.display_path(&path),
                hint: format!("it holds one label byte for each tile of {}", tree.display(file)),
            });
        };
        let bytes = tree.read(label_file, 1 << 24)?;
        for (sample, &label) in bytes.iter().enumerate() {
            labels.push(checked(label, CIFAR10.len(), sample, || tree.display(label_file))?);
        }
        counts.push(bytes.len());
    }
    let total = labels.len() as u64 * IMAGE as u64;
    if total > options.memory_limit {
        return Err(Error::too_large(tree.label(), Some(total), options.memory_limit));
    }
    let parts: Vec<Result<Vec<u8>, Error>> = std::thread::scope(|scope| {
        let handles: Vec<_> =
            files.iter().zip(&counts).map(|(&file, &count)| scope.spawn(move || tiles(tree, file, count))).collect();
        handles
            .into_iter()
            .zip(files)
            .map(|(handle, &file)| {
                handle.join().unwrap_or_else(|_| Err(Error::malformed(tree.display(file), "its decoder panicked")))
            })
            .collect()
    });
    let mut bytes = Vec::with_capacity(total as usize);
    for part in parts {
        bytes.extend_from_slice(&part?);
    }
    let samples = Content::Bytes { shape: [SIDE, SIDE, 3], white: 255.0, bytes };
    Ok(Loaded { samples, labels, missing: Vec::new() })
}

/// The first `count` tiles of a sheet, one after another.
fn tiles(tree: &Tree, file: usize, count: usize) -> Result<Vec<u8>, Error> {
    let encoded = tree.read(file, MAX_FILE_BYTES)?;
    let sheet =
        decode(&encoded, Colour::Rgb).map_err(|source| Error::BrokenImage { name: tree.display(file), source })?;
    let [height, width, _] = sheet.shape;
    let across = width / SIDE;
    if across * (height / SIDE) < count {
        return Err(Error::malformed(
            tree.display(file),
            format!("{height} x {width} pixels hold {} tiles, but there are {count} labels", across * (height / SIDE)),
        ));
    }
    let mut bytes = Vec::with_capacity(count * IMAGE);
    for i in 0..count {
        let (top, left) = (i / across * SIDE, i % across * SIDE);
        for y in top..top + SIDE {
            let start = (y * width + left) * 3;
            bytes.extend_from_slice(&sheet.bytes[start..start + SIDE * 3]);
        }
    }
    Ok(bytes)
}

const CIFAR10: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

#[rustfmt::skip]
const CIFAR100: [&str; 100] = [
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
];

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::testing::real_data;
    use super::super::{Dataset, Layout, Split, open};
    use super::*;

    /// `n` records with label `i % classes` and pixels that spell their place.
    fn records(n: usize, label_bytes: usize, classes: usize) -> Vec<u8> {
        (0..n)
            .flat_map(|i| {
                let head = std::iter::repeat_n((i % classes) as u8, label_bytes);
                head.chain((0..IMAGE).map(move |p| ((i * 7 + p * 13 + p / 1024 * 5) % 256) as u8))
            })
            .collect()
    }

    fn cifar10(folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        fs::write(folder.join("data_batch_1.bin"), records(20, 1, 10)).unwrap();
        fs::write(folder.join("data_batch_2.bin"), records(10, 1, 10)).unwrap();
        fs::write(folder.join("test_batch.bin"), records(5, 1, 10)).unwrap();
    }

    fn raw(set: &Dataset, i: usize) -> Vec<f32> {
        let set = set.with_transform(Transform::raw_255()).unwrap();
        set.images(&[i], Layout::Nchw).unwrap()
    }

    #[test]
    fn batches_are_read_from_folders_wrappers_archives_and_single_files() {
        let temp = tempfile::tempdir().unwrap();
        let inner = temp.path().join("cifar-10-batches-bin");
        cifar10(&inner);
        let plain = temp.path().join("c.tar");
        let mut builder = ::tar::Builder::new(fs::File::create(&plain).unwrap());
        builder.append_dir_all("cifar-10-batches-bin", &inner).unwrap();
        builder.finish().unwrap();
        for spec in [temp.path(), &inner, &plain, &inner.join("test_batch.bin")] {
            let train = open(spec, &Options::train()).unwrap();
            assert_eq!((train.name(), train.len(), train.shape()), ("cifar10", 30, [3, 32, 32]), "{spec:?}");
            assert_eq!(train.labels()[20..23], [0, 1, 2]);
            let expected: Vec<f32> = records(20, 1, 10)[3 * 3073 + 1..4 * 3073].iter().map(|&b| f32::from(b)).collect();
            assert_eq!(raw(&train, 3), expected);
            let all = open(spec, &Options::default()).unwrap();
            assert_eq!((all.len(), all.split()), (35, Split::All));
        }
    }

    #[test]
    fn cifar_100_takes_the_fine_label() {
        let temp = tempfile::tempdir().unwrap();
        let mut bytes = records(3, 2, 100);
        bytes[0] = 19;
        bytes[1] = 99;
        fs::write(temp.path().join("train.bin"), &bytes).unwrap();
        let train = open(temp.path(), &Options::train()).unwrap();
        assert_eq!((train.labels()[0], train.classes()[99].as_str()), (99, "worm"));
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(message.contains("no test split, only train"), "{message}");
    }

    #[test]
    fn damage_is_named() {
        let temp = tempfile::tempdir().unwrap();
        cifar10(temp.path());
        let file = temp.path().join("test_batch.bin");
        fs::write(&file, &records(5, 1, 10)[..3073 * 4 + 100]).unwrap();
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(
            message.contains("test_batch.bin") && message.contains("15365") && message.contains("12392"),
            "{message}"
        );
        fs::write(&file, records(5, 1, 200).iter().map(|b| b | 64).collect::<Vec<u8>>()).unwrap();
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(message.contains("label 64 of sample 0 is outside 0..10"), "{message}");
        let tight = Options { memory_limit: 1000, ..Options::train() };
        assert!(matches!(open(temp.path(), &tight), Err(Error::TooLarge { .. })));
    }

    #[test]
    fn sheets_need_their_labels_and_enough_tiles() {
        let temp = tempfile::tempdir().unwrap();
        let sheet =
            image::RgbImage::from_fn(96, 64, |x, y| image::Rgb([x as u8, y as u8, (x / 32 + y / 32 * 3) as u8]));
        sheet.save(temp.path().join("test_batch.webp")).unwrap();
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(message.contains("test_batch.labels"), "{message}");
        fs::write(temp.path().join("test_batch.labels"), [1, 2, 3, 4, 5]).unwrap();
        let set = open(temp.path(), &Options::test()).unwrap();
        let fourth = raw(&set, 4);
        assert_eq!((fourth[0], fourth[1024], fourth[2048]), (32.0, 32.0, 4.0));
        fs::write(temp.path().join("test_batch.labels"), [1; 7]).unwrap();
        let message = open(temp.path(), &Options::test()).unwrap_err().to_string();
        assert!(message.contains("hold 6 tiles, but there are 7 labels"), "{message}");
    }

    #[test]
    fn the_real_sheets_decode_to_the_official_bytes() {
        let Some(folder) = real_data("cifar10") else { return };
        let test = open(&folder, &Options { limit: Some(10_000), ..Options::test() }).unwrap();
        assert_eq!((test.len(), test.labels()[..4].to_vec()), (10_000, vec![3, 8, 8, 0]));
        // CRC-32 of the binary test batch: label, planes; label, planes; ….
        let mut crc = flate2::Crc::new();
        let raw = test.with_transform(Transform::raw_255()).unwrap();
        for i in 0..raw.len() {
            crc.update(&[raw.labels()[i] as u8]);
            let planes: Vec<u8> = raw.images(&[i], Layout::Nchw).unwrap().iter().map(|&v| v as u8).collect();
            crc.update(&planes);
        }
        assert_eq!(crc.sum(), TEST_BATCH_CRC);
    }

    const TEST_BATCH_CRC: u32 = 4_191_996_867;
}
