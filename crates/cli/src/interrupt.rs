//! Ctrl-C: the first asks the running work to stop at its next step, the second stops at once.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::failure::Failure;

static STOP: AtomicBool = AtomicBool::new(false);

/// The exit code of a process ended by Ctrl-C, as shells know it.
pub const EXIT_CODE: u8 = 130;

/// Starts listening. Called by commands that can stop cleanly; the others keep the system's behaviour. Once is enough, and
/// twice does no harm: a grid of runs listens, and so does each run.
pub fn listen() -> Result<(), Failure> {
    static LISTENS: AtomicBool = AtomicBool::new(false);
    if LISTENS.swap(true, Ordering::SeqCst) {
        return Ok(());
    }
    ctrlc::set_handler(|| {
        if STOP.swap(true, Ordering::SeqCst) {
            std::process::exit(EXIT_CODE.into());
        }
        eprintln!("\nstopping after this step; press Ctrl-C again to stop at once");
    })?;
    Ok(())
}

/// Raised when the work should stop.
pub fn flag() -> &'static AtomicBool {
    &STOP
}
