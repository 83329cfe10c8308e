//! The one thread pool that kernels, data loading and burn share.

use crate::error::{Error, Kind};

/// Sets the number of threads for the whole process, once, before anything runs in parallel.
///
/// Asking again for the number in force is fine; asking for another one is an error, because the pool cannot change.
pub fn set_threads(threads: usize) -> Result<(), Error> {
    let fail = |detail: String| Err(Error::new(Kind::Threads, "", detail));
    if threads == 0 {
        return fail("the number of threads must be at least 1".to_owned());
    }
    let built = rayon::ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("bitsmith-{i}"));
    match built.build_global() {
        Ok(()) => Ok(()),
        Err(_) if rayon::current_num_threads() == threads => Ok(()),
        Err(e) => fail(format!(
            "{threads} threads cannot be set: the pool already runs with {} ({e})",
            rayon::current_num_threads()
        )),
    }
}

/// The number of threads in force.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
