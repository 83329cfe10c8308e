//! A run that was killed and resumed ends in the same files, bit for bit.

use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::{bitsmith, command, json, ok, small_recipe};

#[test]
fn a_killed_run_ends_in_the_same_bits() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    let whole = json(folder, "train small.toml --set train.checkpoint_steps=3 --out whole");
    let took = Duration::from_secs_f64(whole["seconds"].as_f64().unwrap());

    // Killed early, in the middle and late; each time it goes on from its last checkpoint.
    let begin = || {
        let mut child = command(folder, "train small.toml --set train.checkpoint_steps=3 --out killed");
        child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
    };
    let mut child = begin();
    let checkpoint = folder.join("killed/checkpoints/last.ckpt");
    let started = Instant::now();
    while !checkpoint.exists() && started.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    for share in [0.15, 0.3] {
        let mut child = command(folder, "train killed --resume");
        let mut child = child.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(took.mul_f64(share));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // The kills may have come after the end on a slow machine; then there is nothing left to do but the same again.
    ok(folder, "train killed --resume");
    for file in ["model.bitsmith", "model.onnx"] {
        let read = |run: &str| std::fs::read(folder.join(run).join(file)).unwrap();
        assert!(read("whole") == read("killed"), "{file} differs after kills");
    }
    let report = json(folder, "report killed");
    assert_eq!(report["epochs"], 4, "every epoch is in the log once");
}

#[test]
fn a_run_is_never_replaced_by_accident() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path();
    small_recipe(folder);
    let quick = "train small.toml --set train.epochs=1 --data-limit 100 --out run";
    ok(folder, quick);
    let again = bitsmith(folder, quick);
    assert_eq!(again.code, 1);
    assert!(again.stderr.contains("holds a run already") && again.stderr.contains("--force"), "{}", again.stderr);
    ok(folder, &format!("{quick} --force"));
    let other = bitsmith(folder, "train small.toml --set train.epochs=2 --out run --resume");
    assert!(other.code == 1 && other.stderr.contains("another recipe"), "{}", other.stderr);
    let nothing = bitsmith(folder, "train small.toml --out nowhere --resume");
    assert!(nothing.code == 1 && nothing.stderr.contains("no checkpoint"), "{}", nothing.stderr);
}
