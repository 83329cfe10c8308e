//! Bad input: each is refused with a message that names the thing and the remedy, an exit code, and nothing half-written.

use std::fs;
use std::path::Path;

use crate::{bitsmith, listing, ok, small_recipe};

/// Arguments, exit code, and what the message must contain.
struct Case {
    arguments: &'static str,
    code: i32,
    parts: &'static [&'static str],
}

fn check(folder: &Path, cases: &[Case]) {
    let mut wrong = Vec::new();
    for Case { arguments, code, parts } in cases {
        let ran = bitsmith(folder, arguments);
        let complaint = format!("bitsmith {arguments}\n{ran:?}");
        if ran.code != *code || !ran.stderr.starts_with("error: ") || !ran.stdout.is_empty() {
            wrong.push(format!("exit code or form: {complaint}"));
        } else if let Some(part) = parts.iter().find(|p| !ran.stderr.contains(**p)) {
            wrong.push(format!("`{part}` is missing: {complaint}"));
        }
        if ran.stderr.contains("panicked") {
            wrong.push(format!("panicked: {complaint}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// A packed model, an ONNX file and a safetensors file to be broken.
fn models(folder: &Path) {
    ok(folder, "quantize cnn --method ptq --data random --weight-bits 3 --out made");
    for (from, to) in [("made/model.bitsmith", "m.bitsmith"), ("made/model.onnx", "m.onnx")] {
        fs::copy(folder.join(from), folder.join(to)).unwrap();
    }
    ok(folder, "export cnn --to safetensors --out m.safetensors");
}

#[test]
fn names_and_paths() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    fs::create_dir(folder.join("a-folder")).unwrap();
    fs::create_dir_all(folder.join("classes/cat")).unwrap();
    fs::create_dir_all(folder.join("classes/dog")).unwrap();
    check(
        folder,
        &[
            Case { arguments: "inspect absent.onnx", code: 1, parts: &["no file `absent.onnx`", "try:"] },
            Case { arguments: "inspect resnt20", code: 1, parts: &["`resnt20`", "did you mean `resnet20`?"] },
            Case { arguments: "inspect a-folder", code: 1, parts: &["`a-folder` is a folder"] },
            Case { arguments: "eval cnn --data absent", code: 1, parts: &["absent"] },
            Case { arguments: "eval cnn --data classes", code: 1, parts: &["classes"] },
            Case {
                arguments: "eval cnn --data digits --weights absent.safetensors",
                code: 1,
                parts: &["absent.safetensors"],
            },
            Case { arguments: "eval resnet20 --data digits", code: 1, parts: &["1x8x8", "3x32x32", "try:"] },
            Case { arguments: "eval cnn --classes 4 --data digits", code: 1, parts: &["4"] },
            Case {
                arguments: "quantize cnn --method ptq --data digits --activation-bits 32 --attention-bits 8",
                code: 2,
                parts: &["--attention-bits", "--activation-bits"],
            },
            Case { arguments: "eval cnn --image-size 16 --data digits", code: 1, parts: &["1x8x8", "--image-size 8"] },
            Case { arguments: "train absent.toml", code: 1, parts: &["absent.toml"] },
            Case { arguments: "report a-folder", code: 1, parts: &["events.jsonl", "try:"] },
            Case { arguments: "quantize cnn --data digits --target-bits 0", code: 2, parts: &["--target-bits 0"] },
            Case {
                arguments: "quantize cnn --data digits --target-bits 40",
                code: 2,
                parts: &["--target-bits 40", "8"],
            },
            Case {
                arguments: "quantize cnn --data digits --method csqq",
                code: 2,
                parts: &["`csqq`", "did you mean `csq`?"],
            },
            Case {
                arguments: "quantize cnn --data digits --method ptq --weight-bits 9",
                code: 2,
                parts: &["--weight-bits 9"],
            },
            Case { arguments: "export cnn --to packed", code: 1, parts: &["no integers", "quantize"] },
            Case { arguments: "bench cnn --batch 0", code: 2, parts: &["--batch 0"] },
            Case { arguments: "run cnn", code: 2, parts: &["nothing to run", "--input"] },
        ],
    );
    assert_eq!(listing(folder), ["a-folder", "classes"], "nothing was written");
}

#[test]
fn devices() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    check(
        folder,
        &[Case { arguments: "train small.toml --device gpu", code: 2, parts: &["'gpu'", "cpu, cuda, wgpu"] }],
    );
    // What a build with the feature does depends on the machine.
    if cfg!(not(feature = "cuda")) {
        let parts = &["this build has no `cuda`", "`cargo build --release --features cuda`"];
        check(
            folder,
            &[
                Case { arguments: "train small.toml --device cuda", code: 1, parts },
                Case { arguments: "demo --device cuda", code: 1, parts },
                Case { arguments: "compare small.toml --methods csq,lsq --device cuda", code: 1, parts },
                Case { arguments: "quantize cnn --data digits --device cuda", code: 1, parts },
                Case { arguments: "eval cnn --data digits --device cuda", code: 1, parts },
                Case { arguments: "bench train --model cnn --device cuda", code: 1, parts },
            ],
        );
    }
    assert_eq!(listing(folder), ["small.toml"], "nothing was written");
}

#[test]
fn recipes() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    fs::write(folder.join("typo.toml"), "[model]\nfrom = \"cnn\"\n[data]\npath = \"digits\"\n[train]\nepoch = 3\n")
        .unwrap();
    check(
        folder,
        &[
            Case { arguments: "train typo.toml", code: 2, parts: &["`epoch`", "did you mean `epochs`?"] },
            Case {
                arguments: "train small.toml --set method.target_bit=2",
                code: 2,
                parts: &["`target_bit`", "did you mean `target_bits`?"],
            },
            Case { arguments: "train small.toml --set method.target_bits=40", code: 2, parts: &["target_bits"] },
            Case { arguments: "train small.toml --set method.target_bits=0", code: 2, parts: &["target_bits"] },
            Case {
                arguments: "train small.toml --set method.name=cqs",
                code: 2,
                parts: &["`cqs`", "did you mean `csq`?"],
            },
            Case { arguments: "train small.toml --set train.epochs=0", code: 2, parts: &["epochs"] },
            Case {
                arguments: "train small.toml --set activations.bits=9",
                code: 2,
                parts: &["activations.bits", "1 to 8"],
            },
        ],
    );
    assert_eq!(listing(folder), ["small.toml", "typo.toml"], "nothing was written");
}

#[test]
fn broken_files() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    models(folder);
    for name in ["m.bitsmith", "m.onnx", "m.safetensors"] {
        let whole = fs::read(folder.join(name)).unwrap();
        fs::write(folder.join(format!("cut-{name}")), &whole[..whole.len() * 2 / 3]).unwrap();
        let mut huge = whole.clone();
        huge[..8].copy_from_slice(&(1u64 << 60).to_le_bytes());
        fs::write(folder.join(format!("huge-{name}")), &huge).unwrap();
    }
    let mut flipped = fs::read(folder.join("m.bitsmith")).unwrap();
    let last = flipped.len() - 1;
    flipped[last] ^= 1;
    fs::write(folder.join("flipped.bitsmith"), flipped).unwrap();
    let nan = with_nan(&fs::read(folder.join("m.safetensors")).unwrap());
    fs::write(folder.join("nan.safetensors"), nan).unwrap();
    fs::write(folder.join("text.onnx"), "this is no model").unwrap();
    fs::create_dir_all(folder.join("images/a")).unwrap();
    fs::write(folder.join("images/a/broken.jpg"), b"\xff\xd8\xff\xe0 not a photo").unwrap();
    fs::write(folder.join("cut.tar"), [0x61u8; 700]).unwrap();
    let before = listing(folder);
    check(
        folder,
        &[
            Case { arguments: "inspect cut-m.bitsmith", code: 1, parts: &["cut-m.bitsmith"] },
            Case { arguments: "inspect huge-m.bitsmith", code: 1, parts: &["huge-m.bitsmith"] },
            Case { arguments: "inspect flipped.bitsmith", code: 1, parts: &["flipped.bitsmith"] },
            Case { arguments: "inspect cut-m.onnx", code: 1, parts: &["cut-m.onnx"] },
            Case { arguments: "inspect text.onnx", code: 1, parts: &["text.onnx"] },
            Case {
                arguments: "eval cnn --data digits --weights cut-m.safetensors",
                code: 1,
                parts: &["cut-m.safetensors"],
            },
            Case {
                arguments: "eval cnn --data digits --weights huge-m.safetensors",
                code: 1,
                parts: &["huge-m.safetensors"],
            },
            Case {
                arguments: "eval resnet20 --data random --weights m.safetensors",
                code: 1,
                parts: &["m.safetensors"],
            },
            Case {
                arguments: "quantize cnn --weights nan.safetensors --method ptq --data digits --out q",
                code: 1,
                parts: &["NaN"],
            },
            Case { arguments: "eval m.bitsmith --data images", code: 1, parts: &["broken.jpg"] },
            Case { arguments: "eval m.bitsmith --data cut.tar", code: 1, parts: &["cut.tar"] },
            Case { arguments: "verify m.bitsmith resnet20 --data digits", code: 1, parts: &["resnet20"] },
        ],
    );
    assert!(!folder.join("q/model.bitsmith").exists());
    let after: Vec<String> = listing(folder).into_iter().filter(|f| f != "q").collect();
    assert_eq!(before, after, "nothing was written");
}

/// The same safetensors file with a NaN as its last number.
fn with_nan(file: &[u8]) -> Vec<u8> {
    let mut file = file.to_vec();
    let end = file.len();
    file[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    file
}

#[test]
fn a_loss_that_explodes_stops_and_keeps_the_checkpoint() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    let ran = bitsmith(
        folder,
        "train small.toml --set method.name=float --set train.learning_rate=1e30 --set train.checkpoint_steps=1 --set train.warmup_steps=20 --out run",
    );
    // `method` keeps csq's option here, which float does not have: that must be said first.
    assert_eq!(ran.code, 2, "{}", ran.stderr);
    fs::write(
        folder.join("float.toml"),
        "[model]\nfrom = \"cnn\"\n[data]\npath = \"digits\"\nlimit = 400\nbatch = 50\n[train]\nepochs = 3\nlearning_rate = 1e30\ncheckpoint_steps = 1\n",
    )
    .unwrap();
    let ran = bitsmith(folder, "train float.toml --out run");
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.starts_with("error: ") && ran.stderr.contains("loss is"), "{}", ran.stderr);
    assert!(ran.stderr.contains("learning_rate") && ran.stderr.contains("last.ckpt"), "{}", ran.stderr);
    assert!(!folder.join("run/model.safetensors").exists());
    // The checkpoint that was kept can be read: the run goes on from it, to the same end.
    let again = bitsmith(folder, "train run --resume");
    assert_eq!(again.code, 1, "{}", again.stderr);
    assert!(again.stderr.contains("going on in epoch 1") && again.stderr.contains("loss is"), "{}", again.stderr);
}

#[test]
fn a_read_only_folder_is_named() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    // Even root cannot make a folder below a file.
    fs::write(folder.join("file"), "x").unwrap();
    check(
        folder,
        &[
            Case { arguments: "export cnn --to onnx --out file/x.onnx", code: 1, parts: &["file/x.onnx"] },
            Case {
                arguments: "quantize cnn --method ptq --data random --out file/run",
                code: 1,
                parts: &["file/run", "--out"],
            },
        ],
    );
    assert_eq!(fs::read(folder.join("file")).unwrap(), b"x");
}

#[test]
fn a_full_disk_leaves_nothing_half_written() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    let disk = folder.join("disk");
    fs::create_dir(&disk).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=16k", "tmpfs"])
        .arg(&disk)
        .stderr(std::process::Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("skipped: a small tmpfs cannot be mounted here");
        return;
    }
    let ran = bitsmith(folder, "export resnet20 --to safetensors --out disk/m.safetensors");
    let left = listing(&disk);
    _ = std::process::Command::new("umount").arg(&disk).status();
    assert_eq!(ran.code, 1, "{}", ran.stderr);
    assert!(ran.stderr.contains("m.safetensors") && ran.stderr.contains("full"), "{}", ran.stderr);
    assert!(left.is_empty(), "{left:?}");
}
