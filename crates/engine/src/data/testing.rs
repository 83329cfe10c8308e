//! What the tests of this module share.

use std::path::PathBuf;

/// A folder of the real data, in `BITSMITH_DATA` or beside the workspace; `None`, with a message, where there is none.
pub(super) fn real_data(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("BITSMITH_DATA")
        .map(PathBuf::from)
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data"));
    let folder = root.join(name);
    if folder.exists() {
        return Some(folder);
    }
    eprintln!("skipped: {} does not exist (set BITSMITH_DATA)", folder.display());
    None
}
