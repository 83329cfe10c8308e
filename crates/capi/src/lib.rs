//! The runtime for C: `include/bitsmith.h` says what each function does, `c/example.c` uses them.
//!
//! A function that fails returns NULL or −1 and leaves a message for `bitsmith_last_error`. No panic crosses into C: it becomes
//! such a failure. Null pointers are refused with a message; any other pointer must be what the header says.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use bitsmith_graph::{Preprocess, QuantModel};
use bitsmith_runtime::{Session, SessionOptions, packed};

/// `bitsmith_session`: a model that is ready to run.
pub struct CSession {
    session: Session,
    preprocess: Option<Preprocess>,
    /// Channels, and elements of one.
    planes: (usize, usize),
    input_len: usize,
    output_len: usize,
}

thread_local! {
    static LAST_ERROR: RefCell<CString> = RefCell::default();
}

/// Runs `f`; what it fails with, or panics with, becomes the thread's last error and `failure` is returned.
fn guarded<T>(failure: T, f: impl FnOnce() -> Result<T, String>) -> T {
    let message = match catch_unwind(AssertUnwindSafe(f)) {
        Ok(Ok(value)) => return value,
        Ok(Err(message)) => message,
        Err(_) => "a mistake inside bitsmith: please report it with the model".to_owned(),
    };
    let message = CString::new(message.replace('\0', " ")).unwrap_or_default();
    LAST_ERROR.with(|last| *last.borrow_mut() = message);
    failure
}

fn prepare(model: &QuantModel, threads: usize) -> Result<*mut CSession, String> {
    let session = Session::new(model, SessionOptions { threads, ..SessionOptions::default() });
    let session = session.map_err(|e| e.to_string())?;
    let graph = session.graph();
    let shapes = graph.shapes(1).map_err(|e| e.to_string())?;
    let ([input], &[output]) = (graph.inputs(), graph.outputs()) else {
        return Err(format!(
            "the model has {} inputs and {} outputs: C can run those with one of each",
            graph.inputs().len(),
            graph.outputs().len()
        ));
    };
    let shape = &shapes[input.value.index()];
    let input_len: usize = shape.iter().product();
    let channels = shape.get(1).copied().unwrap_or(1).max(1);
    let output_len = shapes[output.index()].iter().product();
    let preprocess = model.preprocess().cloned();
    let planes = (channels, input_len / channels);
    Ok(Box::into_raw(Box::new(CSession { session, preprocess, planes, input_len, output_len })))
}

/// A reference to a session, or why there is none.
///
/// # Safety
/// `session` is NULL or comes from an open function and is not closed yet.
unsafe fn known<'a>(session: *const CSession) -> Result<&'a CSession, String> {
    // SAFETY: the caller's promise is this function's own.
    unsafe { session.as_ref() }.ok_or_else(|| "the session is NULL".to_owned())
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_version() -> *const c_char {
    const VERSION: &CStr = match CStr::from_bytes_with_nul(concat!(env!("CARGO_PKG_VERSION"), "\0").as_bytes()) {
        Ok(version) => version,
        Err(_) => c"",
    };
    VERSION.as_ptr()
}

/// See the header.
///
/// # Safety
/// `path` is NULL or a string that ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_open(path: *const c_char, threads: usize) -> *mut CSession {
    guarded(std::ptr::null_mut(), || {
        if path.is_null() {
            return Err("the path is NULL".to_owned());
        }
        // SAFETY: not NULL, so a string that ends with a zero byte.
        let path = unsafe { CStr::from_ptr(path) };
        let path = path.to_str().map_err(|_| "the path is not UTF-8".to_owned())?;
        prepare(&packed::read(Path::new(path)).map_err(|e| e.to_string())?, threads)
    })
}

/// See the header.
///
/// # Safety
/// `bytes` is NULL or points to `len` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_open_bytes(bytes: *const c_void, len: usize, threads: usize) -> *mut CSession {
    guarded(std::ptr::null_mut(), || {
        if bytes.is_null() {
            return Err("the bytes are NULL".to_owned());
        }
        // SAFETY: not NULL, so `len` bytes that stay as they are during the call.
        let bytes = unsafe { std::slice::from_raw_parts(bytes.cast::<u8>(), len) };
        prepare(&packed::read_bytes(bytes).map_err(|e| e.to_string())?, threads)
    })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or an open session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_input_len(session: *const CSession) -> usize {
    // SAFETY: the caller's promise is that of `known`.
    guarded(0, || unsafe { known(session) }.map(|s| s.input_len))
}

/// See the header.
///
/// # Safety
/// `session` is NULL or an open session.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_output_len(session: *const CSession) -> usize {
    // SAFETY: the caller's promise is that of `known`.
    guarded(0, || unsafe { known(session) }.map(|s| s.output_len))
}

/// See the header.
///
/// # Safety
/// `session` is NULL or an open session; `pixels` and `x` are NULL or have as many elements as its input.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_preprocess(session: *const CSession, pixels: *const u8, x: *mut f32) -> c_int {
    guarded(-1, || {
        // SAFETY: the caller's promise is that of `known`.
        let s = unsafe { known(session) }?;
        if pixels.is_null() || x.is_null() {
            return Err("pixels or x is NULL".to_owned());
        }
        let preprocess = s.preprocess.as_ref().ok_or("the model does not say how pixels become input")?;
        let (channels, plane) = s.planes;
        if [preprocess.mean.len(), preprocess.std.len()] != [channels; 2] {
            return Err(format!(
                "the model normalises {} channels but its input has {channels}",
                preprocess.mean.len()
            ));
        }
        // SAFETY: neither is NULL, so both have `input_len` elements, and `x` is the caller's to write.
        let (pixels, x) = unsafe {
            (std::slice::from_raw_parts(pixels, s.input_len), std::slice::from_raw_parts_mut(x, s.input_len))
        };
        for (i, (x, pixel)) in x.iter_mut().zip(pixels).enumerate() {
            let c = i / plane.max(1) % channels;
            *x = (f32::from(*pixel) * preprocess.scale - preprocess.mean[c]) / preprocess.std[c];
        }
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or an open session; `x` and `y` are NULL or have as many floats as the header says, and do not overlap.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_run(session: *const CSession, x: *const f32, batch: usize, y: *mut f32) -> c_int {
    guarded(-1, || {
        // SAFETY: the caller's promise is that of `known`.
        let s = unsafe { known(session) }?;
        if x.is_null() || y.is_null() {
            return Err("x or y is NULL".to_owned());
        }
        let len = s.input_len.checked_mul(batch).ok_or_else(|| format!("{batch} samples are too many"))?;
        // SAFETY: not NULL, so `batch` samples that stay as they are during the call.
        let out = s.session.run(unsafe { std::slice::from_raw_parts(x, len) }, batch).map_err(|e| e.to_string())?;
        // SAFETY: `y` has `batch` outputs, which is what the session returned, and is the caller's to write.
        unsafe { std::ptr::copy_nonoverlapping(out.as_ptr(), y, out.len()) };
        Ok(0)
    })
}

/// See the header.
///
/// # Safety
/// `session` is NULL or an open session, and is not used afterwards.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn bitsmith_close(session: *mut CSession) {
    guarded((), || {
        if !session.is_null() {
            // SAFETY: it was made by `prepare`, and the caller gives it up.
            drop(unsafe { Box::from_raw(session) });
        }
        Ok(())
    });
}

/// See the header.
#[unsafe(no_mangle)]
pub extern "C" fn bitsmith_last_error() -> *const c_char {
    LAST_ERROR.with(|last| last.borrow().as_ptr())
}
