//! Files as the command reads and writes them: errors name the file, and a file is written whole or not at all.

use std::path::Path;

use crate::failure::{Explain, Failure};

/// Writes a file so that readers see the old one or the new one, never half of one.
pub fn write(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    bitsmith_kernels::file::write_atomically(path, |out| out.write_all(bytes))
        .context(|| format!("cannot write `{}`", path.display()))
}

/// Creates a folder with its parents.
pub fn create_folder(path: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(path)
        .context(|| format!("cannot create the folder `{}`", path.display()))
        .remedy("choose another place with --out")
}

/// Reads a text file.
pub fn read_text(path: &Path) -> Result<String, Failure> {
    std::fs::read_to_string(path).context(|| format!("cannot read `{}`", path.display()))
}

/// Bytes of a file.
pub fn size(path: &Path) -> Result<u64, Failure> {
    Ok(std::fs::metadata(path).context(|| format!("cannot read `{}`", path.display()))?.len())
}
