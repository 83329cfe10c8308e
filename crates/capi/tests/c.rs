//! The C interface as C sees it: the example is compiled against the header and the library, and run.

use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};
use std::process::Command;

use bitsmith_c::{
    bitsmith_close, bitsmith_input_len, bitsmith_last_error, bitsmith_open, bitsmith_open_bytes, bitsmith_output_len,
    bitsmith_preprocess, bitsmith_run, bitsmith_version,
};
use bitsmith_graph::freeze;
use bitsmith_graph::zoo::{ZooOptions, build};
use bitsmith_runtime::{Session, SessionOptions, packed};

fn model() -> bitsmith_graph::QuantModel {
    freeze(build("cnn", &ZooOptions { seed: 3, ..ZooOptions::default() }).unwrap()).unwrap()
}

fn last_error() -> String {
    // SAFETY: the function returns a string of this thread that ends with a zero byte.
    unsafe { CStr::from_ptr(bitsmith_last_error()) }.to_string_lossy().into_owned()
}

/// The shared library beside this test.
fn library() -> Option<PathBuf> {
    let deps = std::env::current_exe().ok()?.parent()?.to_owned();
    let folders = [deps.clone(), deps.parent()?.to_owned()];
    folders.into_iter().find(|folder| folder.join("libbitsmith_c.so").exists())
}

/// What the example computes, in Rust.
fn expected(model: &bitsmith_graph::QuantModel) -> Vec<f32> {
    let session = Session::new(model, SessionOptions::default()).unwrap();
    let pixels: Vec<f32> = (0..64).map(|i| (i * 7 % 256) as f32 * (1.0 / 255.0)).collect();
    session.run(&pixels, 1).unwrap()
}

#[test]
fn the_example_compiles_and_runs() {
    let Some(library) = library() else {
        println!("skipped: no shared library beside the test (only Linux names it libbitsmith_c.so)");
        return;
    };
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("example");
    let compiled = Command::new("cc")
        .args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-I"])
        .arg(here.join("include"))
        .arg(here.join("c/example.c"))
        .arg("-L")
        .arg(&library)
        .args(["-lbitsmith_c", "-o"])
        .arg(&program)
        .output();
    let Ok(compiled) = compiled else {
        println!("skipped: no C compiler called cc");
        return;
    };
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let model = model();
    let file = folder.path().join("m.bitsmith");
    packed::write(&model, &file).unwrap();
    let run = |file: &Path| Command::new(&program).arg(file).env("LD_LIBRARY_PATH", &library).output().unwrap();
    let ran = run(&file);
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    let printed: Vec<f32> = String::from_utf8_lossy(&ran.stdout).lines().map(|l| l.parse().unwrap()).collect();
    assert_eq!(printed, expected(&model));
    let missing = run(&folder.path().join("absent.bitsmith"));
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("absent.bitsmith"));
}

#[test]
fn every_function_says_what_is_wrong() {
    let bytes = packed::encode(&model()).unwrap().0;
    // SAFETY: every pointer is NULL or lives through its call and has the size that the header asks for.
    unsafe {
        assert_eq!(CStr::from_ptr(bitsmith_version()).to_str().unwrap(), env!("CARGO_PKG_VERSION"));
        assert!(bitsmith_open(std::ptr::null(), 1).is_null() && last_error() == "the path is NULL");
        let nowhere = CString::new("/nowhere/m.bitsmith").unwrap();
        assert!(bitsmith_open(nowhere.as_ptr(), 1).is_null() && last_error().contains("/nowhere/m.bitsmith"));
        assert!(bitsmith_open_bytes(bytes.as_ptr().cast(), bytes.len() - 1, 1).is_null() && !last_error().is_empty());
        assert_eq!(bitsmith_input_len(std::ptr::null()), 0);

        let session = bitsmith_open_bytes(bytes.as_ptr().cast(), bytes.len(), 2);
        assert!(!session.is_null(), "{}", last_error());
        assert_eq!((bitsmith_input_len(session), bitsmith_output_len(session)), (64, 10));
        let (pixels, mut x, mut y) = ([7u8; 64], [0f32; 128], [0f32; 20]);
        assert_eq!(bitsmith_preprocess(session, pixels.as_ptr(), x.as_mut_ptr()), 0);
        assert_eq!(bitsmith_preprocess(session, std::ptr::null(), x.as_mut_ptr()), -1);
        x.copy_within(..64, 64);
        assert_eq!(bitsmith_run(session, x.as_ptr(), 2, y.as_mut_ptr()), 0);
        assert_eq!(y[..10], y[10..]);
        x[0] = f32::NAN;
        assert_eq!(bitsmith_run(session, x.as_ptr(), 2, y.as_mut_ptr()), -1);
        assert!(last_error().contains("not a number"), "{}", last_error());
        assert_eq!(bitsmith_run(session, std::ptr::null(), 1, y.as_mut_ptr()), -1);
        assert_eq!(bitsmith_run(std::ptr::null(), x.as_ptr(), 1, y.as_mut_ptr()), -1);
        bitsmith_close(session);
        bitsmith_close(std::ptr::null_mut());
    }
}
