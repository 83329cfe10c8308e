//! Image files: one folder per class, or a label file beside them.
//!
//! - Class folders: `cat/1.jpg`, `dog/2.jpg` (also `cat/images/1.jpg`), directly or inside `train/` and one of `val/`,
//!   `valid/`, `validation/`, `test/` (the first that exists). Classes are numbered in the order of their sorted names,
//!   over all splits together.
//! - Label file: `labels.tsv`, `.csv` or `.txt`, or one for each split (`train.csv`, `val.csv`, …). With a header, columns
//!   are found by name (`file`, `class_index` or `label`, `name` or `class`, `split`; others are ignored); without one,
//!   they are the file and its label. Labels are class numbers or names. Files are looked up beside the label file, in
//!   `images/` and in the folder of the split.

use std::collections::{BTreeMap, BTreeSet};

use csv::ReaderBuilder;

use super::dataset::Broken;
use super::decode::is_image;
use super::error::Error;
use super::open::{Content, Found, Load, Loaded, MAX_CLASSES, OnBroken, Options, Sets};
use super::transform::Transform;
use super::tree::{Tree, join};

pub(super) const LOOKED_FOR_LABEL_FILE: &str = "labels.tsv, .csv or .txt (or train and val ones) naming image files";
pub(super) const LOOKED_FOR_CLASSES: &str =
    "a folder of images (jpg, png, webp, bmp, gif) for each class, directly or inside train/ and val/ or test/";

const TRAIN: [&str; 2] = ["train", "training"];
const TEST: [&str; 5] = ["val", "valid", "validation", "test", "testing"];
/// Label files above this are not label files.
const MAX_LABEL_FILE: u64 = 512 << 20;

/// Images that no label belongs to.
pub(super) fn unlabelled(files: Vec<u32>) -> Found {
    Found {
        name: "images",
        classes: vec!["unlabelled".into()],
        labelled: false,
        transform: Transform::imagenet(),
        sets: Sets::Whole(load(files.into_iter().map(|f| (f, 0)).collect(), Vec::new())),
    }
}

fn load(samples: Vec<(u32, u32)>, missing: Vec<Broken>) -> Load {
    Box::new(move |_, _| {
        let (files, labels) = samples.into_iter().unzip();
        Ok(Loaded { samples: Content::Files(files), labels, missing })
    })
}

fn found(classes: Vec<String>, sets: Sets) -> Found {
    Found { name: "image folder", classes, labelled: true, transform: Transform::imagenet(), sets }
}

fn split(train: Option<Load>, test: Option<Load>) -> Sets {
    Sets::Split { train, test, hint: "add the folder of the missing split, or ask for another".into() }
}

/// Finds class folders.
pub(super) fn find_classes(tree: &Tree, root: &str, options: &Options) -> Result<Option<Found>, Error> {
    let children = tree.children(root);
    // A folder `train` that holds images is a class of vehicles, not a split.
    let side = |names: &[&str]| -> Option<String> {
        let name = names.iter().find(|n| children.folders.contains(**n))?;
        let folder = join(root, name);
        let inner = tree.children(&folder);
        (!inner.folders.is_empty() && images(tree, &folder).is_empty()).then_some(folder)
    };
    let (train, test) = (side(&TRAIN), side(&TEST));
    if train.is_some() || test.is_some() {
        let train = train.map(|f| classes_in(tree, &f)).transpose()?;
        let test = test.map(|f| classes_in(tree, &f)).transpose()?;
        if let (Some(train), Some(test)) = (&train, &test)
            && let Some((stranger, (folder, _))) = test.iter().find(|(class, _)| !train.contains_key(*class))
        {
            return Err(Error::malformed(
                tree.display_path(folder),
                format!("class `{stranger}` has no folder in the training split; both must use the same names"),
            ));
        }
        let names: BTreeSet<String> = train.iter().chain(&test).flat_map(|c| c.keys().cloned()).collect();
        let names: Vec<String> = names.into_iter().collect();
        let numbered = |classes: Option<Classes>| classes.map(|classes| load(number(&names, classes), Vec::new()));
        let sets = split(numbered(train), numbered(test));
        return Ok(Some(found(names, sets)));
    }

    let loose = images(tree, root);
    if !loose.is_empty() && children.folders.is_empty() {
        if options.unlabelled {
            return Ok(Some(unlabelled(loose)));
        }
        return Err(Error::malformed(
            tree.display_path(root),
            format!("{} images without labels; put them into one folder per class, or write a labels.tsv", loose.len()),
        ));
    }
    let any_images = children.folders.iter().any(|name| !images_of_class(tree, &join(root, name)).is_empty());
    // A lone folder of a class is a class only if images lie directly in it.
    if !any_images {
        return Ok(None);
    }
    let classes = classes_in(tree, root)?;
    let names: Vec<String> = classes.keys().cloned().collect();
    let samples = number(&names, classes);
    Ok(Some(found(names, Sets::Whole(load(samples, Vec::new())))))
}

/// For each class its folder and images.
type Classes = BTreeMap<String, (String, Vec<u32>)>;

fn classes_in(tree: &Tree, root: &str) -> Result<Classes, Error> {
    let mut classes = Classes::new();
    for name in tree.children(root).folders {
        let folder = join(root, name);
        let images = images_of_class(tree, &folder);
        if images.is_empty() {
            return Err(Error::EmptyClass { folder: tree.display_path(&folder), others: tree.count_below(&folder) });
        }
        classes.insert(name.to_string(), (folder, images));
    }
    Ok(classes)
}

fn number(names: &[String], classes: Classes) -> Vec<(u32, u32)> {
    let mut samples = Vec::new();
    for (name, (_, images)) in classes {
        let label = names.binary_search(&name).unwrap_or_default() as u32;
        samples.extend(images.into_iter().map(|file| (file, label)));
    }
    samples
}

/// The image files directly in a folder, sorted by name.
fn images(tree: &Tree, folder: &str) -> Vec<u32> {
    let files = tree.children(folder).files;
    files.into_iter().filter(|&f| is_image(tree.name(f))).map(|f| f as u32).collect()
}

fn images_of_class(tree: &Tree, folder: &str) -> Vec<u32> {
    let direct = images(tree, folder);
    if direct.is_empty() { images(tree, &join(folder, "images")) } else { direct }
}

/// Finds label files.
pub(super) fn find_label_file(tree: &Tree, root: &str, options: &Options) -> Result<Option<Found>, Error> {
    let mut tables: [Vec<Row>; 3] = Default::default();
    let mut any = false;
    for file in tree.children(root).files {
        let name = tree.name(file).to_lowercase();
        let Some((stem, "tsv" | "csv" | "txt")) = name.rsplit_once('.') else { continue };
        let stem = stem.strip_suffix("_labels").or(stem.strip_suffix("-labels")).unwrap_or(stem);
        let (slot, folder) = match stem {
            "labels" => (2, ""),
            s if TRAIN.contains(&s) => (0, s),
            s if TEST.contains(&s) => (1, s),
            _ => continue,
        };
        let Some(rows) = rows(tree, file)? else { continue };
        any = true;
        for row in rows {
            let slot = match row.split.as_deref() {
                Some(s) if TRAIN.contains(&s) => 0,
                Some(s) if TEST.contains(&s) => 1,
                _ => slot,
            };
            tables[slot].push(Row { folder: folder.to_string(), ..row });
        }
    }
    if !any {
        return Ok(None);
    }
    let classes = class_names(tree, &tables)?;
    let numbers: BTreeMap<&str, u32> = classes.iter().enumerate().map(|(i, n)| (n.as_str(), i as u32)).collect();
    let mut sets = Vec::new();
    for rows in &tables {
        let (mut samples, mut missing) = (Vec::with_capacity(rows.len()), Vec::new());
        for row in rows {
            let label = match &row.label {
                Label::Number(n) => *n,
                Label::Name(name) => numbers.get(name.as_str()).copied().unwrap_or_default(),
            };
            let folders = [root.to_string(), join(root, "images"), join(root, &row.folder)];
            match folders.iter().find_map(|folder| tree.find(&join(folder, &row.file))) {
                Some(file) => samples.push((file as u32, label)),
                None => {
                    let path = tree.display_path(&join(root, &row.file));
                    let hint = format!("{} names it; looked beside it and in images/", row.place(tree));
                    match options.on_broken {
                        OnBroken::Fail => return Err(Error::Missing { path, hint }),
                        OnBroken::Skip => {
                            missing.push(Broken { name: path, reason: format!("does not exist; {hint}") })
                        }
                    }
                }
            }
        }
        sets.push((!rows.is_empty()).then(|| load(samples, missing)));
    }
    let mut sets = sets.into_iter();
    let sets = match (sets.next().flatten(), sets.next().flatten(), sets.next().flatten()) {
        (None, None, Some(whole)) => Sets::Whole(whole),
        (train, test, None) => split(train, test),
        (train, test, Some(whole)) if train.is_none() => split(Some(whole), test),
        _ => {
            return Err(Error::malformed(
                tree.display_path(root),
                "has a labels file for everything and others for splits; keep one kind",
            ));
        }
    };
    Ok(Some(found(classes, sets)))
}

/// A line of a label file.
struct Row {
    file: String,
    label: Label,
    class: Option<String>,
    split: Option<String>,
    /// The folder named after the split that the label file is for.
    folder: String,
    source: usize,
    line: u64,
}

enum Label {
    Number(u32),
    Name(String),
}

impl Row {
    fn place(&self, tree: &Tree) -> String {
        format!("{} line {}", tree.display(self.source), self.line)
    }
}

/// The rows of a label file, or `None` if it does not look like one.
fn rows(tree: &Tree, file: usize) -> Result<Option<Vec<Row>>, Error> {
    let bytes = tree.read(file, MAX_LABEL_FILE)?;
    let first = bytes.split(|&b| b == b'\n').next().unwrap_or_default();
    let delimiter = [b'\t', b',', b';'].into_iter().find(|d| first.contains(d)).unwrap_or(b' ');
    let mut reader = ReaderBuilder::new().delimiter(delimiter).has_headers(false).flexible(true).from_reader(&*bytes);
    let mut columns: Option<Columns> = None;
    let mut rows = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|source| Error::Malformed {
            what: tree.display(file),
            detail: "a line is not readable as delimited text".into(),
            source: Some(Box::new(source)),
        })?;
        let fields: Vec<&str> = record.iter().map(str::trim).collect();
        let line = record.position().map_or(0, |p| p.line());
        if columns.is_none() {
            columns = Columns::of_header(&fields);
            if columns.is_some() {
                continue;
            }
            if fields.len() < 2 || !fields.first().is_some_and(|f| is_image(f)) {
                return Ok(None);
            }
        }
        let columns = columns.get_or_insert_with(Columns::default);
        let field = |column: Option<usize>| column.and_then(|c| fields.get(c)).copied().filter(|f| !f.is_empty());
        let place = || format!("{} line {line}", tree.display(file));
        let (Some(name), Some(label)) = (field(Some(columns.file)), field(columns.label).or(field(columns.class)))
        else {
            return Err(Error::malformed(place(), format!("needs a file and a label, found {fields:?}")));
        };
        // Whole numbers are class numbers, everything else is a name.
        let label = match label.parse::<i128>() {
            Ok(number) if (0..MAX_CLASSES as i128).contains(&number) => Label::Number(number as u32),
            Ok(_) => {
                return Err(Error::Label {
                    what: place(),
                    sample: rows.len(),
                    label: label.to_string(),
                    classes: MAX_CLASSES,
                    hint: "labels are class numbers from 0, or names".into(),
                });
            }
            Err(_) => Label::Name(label.to_string()),
        };
        rows.push(Row {
            file: name.replace('\\', "/").trim_start_matches("./").to_string(),
            label,
            class: field(columns.class).map(str::to_string),
            split: field(columns.split).map(str::to_lowercase),
            folder: String::new(),
            source: file,
            line,
        });
    }
    Ok(columns.map(|_| rows))
}

/// Which column is what.
struct Columns {
    file: usize,
    label: Option<usize>,
    class: Option<usize>,
    split: Option<usize>,
}

impl Default for Columns {
    fn default() -> Self {
        Columns { file: 0, label: Some(1), class: None, split: None }
    }
}

impl Columns {
    fn of_header(fields: &[&str]) -> Option<Columns> {
        let position = |names: &[&str]| {
            names.iter().find_map(|name| {
                fields.iter().position(|f| f.trim_start_matches('\u{feff}').eq_ignore_ascii_case(name))
            })
        };
        let file = position(&["file", "filename", "file_name", "path", "image", "image_id"])?;
        let label = position(&["class_index", "class_id", "label", "labels", "target", "index"]);
        let class = position(&["name", "class", "class_name", "category"]);
        (label.is_some() || class.is_some()).then(|| Columns {
            file,
            label,
            class,
            split: position(&["split", "subset"]),
        })
    }
}

/// The names of all classes: sorted names where labels are names, else what the name column says of each number.
fn class_names(tree: &Tree, tables: &[Vec<Row>; 3]) -> Result<Vec<String>, Error> {
    let rows = || tables.iter().flatten();
    let named = rows().find(|r| matches!(r.label, Label::Name(_)));
    let numbered = rows().find(|r| matches!(r.label, Label::Number(_)));
    if let (Some(named), Some(numbered)) = (named, numbered) {
        return Err(Error::malformed(
            named.place(tree),
            format!("the label is a name, but that of {} is a number; use one kind", numbered.place(tree)),
        ));
    }
    if named.is_some() {
        let names: BTreeSet<&str> = rows()
            .filter_map(|r| match &r.label {
                Label::Name(name) => Some(name.as_str()),
                Label::Number(_) => None,
            })
            .collect();
        return Ok(names.into_iter().map(str::to_string).collect());
    }
    let mut names: Vec<Option<&str>> = Vec::new();
    for row in rows() {
        if let Label::Number(number) = row.label {
            if names.len() <= number as usize {
                names.resize(number as usize + 1, None);
            }
            let name = &mut names[number as usize];
            *name = name.or(row.class.as_deref());
        }
    }
    Ok(names.iter().enumerate().map(|(i, n)| n.map_or_else(|| i.to_string(), str::to_string)).collect())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::super::testing::real_data;
    use super::super::{Augment, Dataset, Fit, Layout, Loader, LoaderOptions, Split, open, open_images};
    use super::*;

    /// Writes a 4 x 3 PNG of one colour.
    fn image(path: &Path, colour: u8) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(4, 3, image::Rgb([colour, 0, 255])).save(path).unwrap();
    }

    fn plain(split: Split) -> Options {
        Options { split, transform: Some(Transform::raw_255()), ..Options::default() }
    }

    fn message(spec: &Path, options: &Options) -> String {
        open(spec, options).map(|_: Dataset| ()).unwrap_err().to_string()
    }

    #[test]
    fn class_folders_are_numbered_by_sorted_name() {
        let temp = tempfile::tempdir().unwrap();
        // `b-c` sorts after `b` as a name, though `b-c/` sorts before `b/` as a path.
        for (path, colour) in
            [("b/2.png", 1), ("b/10.png", 2), ("b-c/x.png", 3), ("a/images/y.PNG", 4), ("a/notes.txt", 0)]
        {
            let path = temp.path().join(path);
            if colour == 0 { fs::write(path, "x").unwrap() } else { image(&path, colour) }
        }
        let set = open(temp.path(), &plain(Split::All)).unwrap();
        assert_eq!(set.classes(), ["a", "b", "b-c"]);
        assert_eq!((set.labels(), set.shape()), (&[0, 1, 1, 2][..], [3, 3, 4]));
        let first: Vec<f32> = (0..4).map(|i| set.images(&[i], Layout::Nchw).unwrap()[0]).collect();
        assert_eq!(first, [4.0, 2.0, 1.0, 3.0]);
        assert!(set.sample_name(1).unwrap().ends_with("b/10.png"));
    }

    #[test]
    fn splits_share_their_classes_and_archives_look_like_folders() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("photos");
        for path in ["train/x/1.png", "train/y/1.png", "train/z/1.png", "val/z/1.png", "val/y/1.png"] {
            image(&root.join(path), 9);
        }
        let archive = temp.path().join("photos.tar");
        let mut builder = ::tar::Builder::new(fs::File::create(&archive).unwrap());
        builder.append_dir_all("photos", &root).unwrap();
        builder.finish().unwrap();
        let packed = temp.path().join("photos.tgz");
        let mut gz = flate2::write::GzEncoder::new(fs::File::create(&packed).unwrap(), flate2::Compression::fast());
        std::io::copy(&mut fs::File::open(&archive).unwrap(), &mut gz).unwrap();
        gz.finish().unwrap();
        for spec in [&root, &archive, &packed] {
            let val = open(spec, &plain(Split::Test)).unwrap();
            assert_eq!((val.labels(), val.split(), val.classes().len()), (&[1, 2][..], Split::Test, 3));
            assert_eq!(open(spec, &plain(Split::All)).unwrap().len(), 5);
            assert_eq!(val.images(&[0, 1], Layout::Nhwc).unwrap()[..3], [9.0, 0.0, 255.0]);
        }
        image(&root.join("val/w/1.png"), 1);
        assert!(message(&root, &plain(Split::Test)).contains("class `w` has no folder"));
        // A class called `train` is not a split.
        let other = temp.path().join("vehicles");
        image(&other.join("train/1.png"), 1);
        image(&other.join("ship/1.png"), 1);
        assert_eq!(open(&other, &plain(Split::All)).unwrap().classes(), ["ship", "train"]);
    }

    #[test]
    fn empty_classes_loose_images_and_mixed_sizes_are_named() {
        let temp = tempfile::tempdir().unwrap();
        image(&temp.path().join("a/1.png"), 1);
        fs::create_dir(temp.path().join("b")).unwrap();
        fs::write(temp.path().join("b/1.tiff"), "x").unwrap();
        let text = message(temp.path(), &Options::default());
        assert!(text.contains("/b` holds no images (1 other files)"), "{text}");
        fs::remove_dir_all(temp.path().join("b")).unwrap();
        image::RgbImage::new(5, 5).save(temp.path().join("a/2.png")).unwrap();
        let set = open(temp.path(), &plain(Split::All)).unwrap();
        let error = set.images(&[1], Layout::Nchw).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("resizes"));
        let stretched = Transform { fit: Fit::Stretch { height: 2, width: 2 }, ..Transform::raw_255() };
        assert_eq!(set.with_transform(stretched).unwrap().images(&[0, 1], Layout::Nchw).unwrap().len(), 24);

        let loose = temp.path().join("a");
        assert!(message(&loose, &Options::default()).contains("labels.tsv"));
        let unlabelled = Options { unlabelled: true, ..plain(Split::All) };
        assert_eq!(open(&loose, &unlabelled).unwrap().len(), 2);
        let chosen = open_images(&[loose.join("2.png"), loose.join("1.png")], &Options::default()).unwrap();
        assert_eq!((chosen.len(), chosen.shape(), chosen.is_labelled()), (2, [3, 224, 224], false));
        assert!(chosen.sample_name(0).unwrap().ends_with("a/2.png"));
        assert!(matches!(open_images(&[loose], &Options::default()), Err(Error::WrongKind { .. })));
    }

    #[test]
    fn label_files_are_understood_in_their_dialects() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..4 {
            image(&temp.path().join(format!("images/{i}.png")), i);
        }
        for (name, text, classes, labels) in [
            (
                "labels.tsv",
                "file\tclass_index\tname\n0.png\t2\tcat\n3.png\t0\tdog\n",
                vec!["dog", "1", "cat"],
                vec![2, 0],
            ),
            (
                "labels.csv",
                "image,label\r\nimages/1.png,\"owl, grey\"\r\n2.png,bat\r\n",
                vec!["bat", "owl, grey"],
                vec![1, 0],
            ),
            ("labels.txt", "0.png 1\n1.png 0\n2.png 1\n", vec!["0", "1"], vec![1, 0, 1]),
            ("labels.csv", "split,file,label\nval,0.png,1\nval,1.png,0", vec!["0", "1"], vec![1, 0]),
        ] {
            fs::write(temp.path().join(name), text).unwrap();
            let set = open(temp.path(), &plain(Split::Test)).unwrap();
            assert_eq!(
                (set.classes(), set.labels()),
                (&classes.iter().map(|c| c.to_string()).collect::<Vec<_>>()[..], &labels[..]),
                "{text}"
            );
            fs::remove_file(temp.path().join(name)).unwrap();
        }
        fs::write(temp.path().join("train.csv"), "file,label\n0.png,a\n1.png,b\n").unwrap();
        fs::write(temp.path().join("val.csv"), "file,label\n2.png,b\n").unwrap();
        assert_eq!(open(temp.path(), &plain(Split::Train)).unwrap().len(), 2);
        assert_eq!(open(temp.path(), &plain(Split::Test)).unwrap().labels(), [1]);
    }

    #[test]
    fn wrong_label_files_are_named_by_line() {
        let temp = tempfile::tempdir().unwrap();
        image(&temp.path().join("0.png"), 1);
        for (text, expected) in [
            ("file,label\n0.png,-1\n", "labels.csv line 2`: label -1"),
            ("file,label\n0.png,1152921504606846976\n", "label 1152921504606846976"),
            ("file,label\n0.png\n", "line 2"),
            ("file,label\n0.png,1\n0.png,cat\n", "line 3"),
            ("file,label\n0.png,1\ngone.png,1\n", "gone.png"),
            ("file,label\n0.png,\"\u{ff}\n", "labels.csv"),
        ] {
            let bytes: Vec<u8> = text.chars().map(|c| c as u8).collect();
            fs::write(temp.path().join("labels.csv"), bytes).unwrap();
            let text = message(temp.path(), &Options::default());
            assert!(text.contains(expected), "{expected}: {text}");
        }
        fs::write(temp.path().join("labels.csv"), "file,label\n0.png,1\ngone.png,1\n").unwrap();
        let skipping = Options { on_broken: OnBroken::Skip, ..plain(Split::All) };
        let set = open(temp.path(), &skipping).unwrap();
        assert_eq!((set.len(), set.broken().len()), (1, 1));
        assert!(set.broken()[0].name.ends_with("gone.png"));
        let few = Options { classes: Some(1), ..skipping };
        assert!(message(temp.path(), &few).contains("outside 0..1"));
    }

    #[test]
    fn broken_images_fail_or_are_skipped_and_counted() {
        let temp = tempfile::tempdir().unwrap();
        for i in 0..6 {
            image(&temp.path().join(format!("a/{i}.png")), i);
        }
        let jpeg = temp.path().join("a/2.jpg");
        image::RgbImage::from_fn(4, 3, |x, y| image::Rgb([x as u8 * 60, y as u8 * 80, 7])).save(&jpeg).unwrap();
        let bytes = fs::read(&jpeg).unwrap();
        fs::write(&jpeg, &bytes[..bytes.len() - 20]).unwrap();
        fs::write(temp.path().join("a/0.png"), "not a png").unwrap();
        let set = open(temp.path(), &plain(Split::All));
        let error = set.map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("a/0.png"), "{error}");

        let set = open(temp.path(), &Options { on_broken: OnBroken::Skip, ..plain(Split::All) }).unwrap();
        let set = std::sync::Arc::new(set);
        for workers in [0, 1, 3] {
            let options = LoaderOptions { workers, ..LoaderOptions::evaluation(3) };
            let loader = Loader::new(set.clone(), options).unwrap();
            for _ in 0..2 {
                let batches: Vec<_> = loader.epoch(0).map(|b| b.unwrap()).collect();
                let indices: Vec<Vec<u32>> = batches.iter().map(|b| b.indices.clone()).collect();
                // 0.png and 2.jpg (the third file) are broken.
                assert_eq!(indices, [vec![1], vec![3, 4, 5], vec![6]]);
                assert_eq!(batches[0].x.len(), 36);
            }
        }
        let broken: Vec<String> = set.broken().into_iter().map(|b| b.name).collect();
        assert!(broken.len() == 2 && broken[0].ends_with("a/0.png") && broken[1].ends_with("a/2.jpg"), "{broken:?}");
    }

    #[test]
    fn the_real_photos_are_read() {
        let Some(folder) = real_data("imagenet-1k-samples") else { return };
        let set = open(&folder, &Options { limit: Some(24), ..Options::test() }).unwrap();
        assert_eq!((set.len(), set.shape(), set.classes().len(), set.split()), (24, [3, 224, 224], 1000, Split::All));
        assert_eq!((set.classes()[1].as_str(), set.labels()[1]), ("goldfish", 1));
        let options = LoaderOptions { augment: Augment::imagenet(), ..LoaderOptions::evaluation(10) };
        let loader = Loader::new(std::sync::Arc::new(set), options).unwrap();
        let sizes: Vec<usize> = loader.epoch(0).map(|b| b.unwrap().n()).collect();
        assert_eq!(sizes, [10, 10, 4]);
    }
}
