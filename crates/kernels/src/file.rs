//! Writing files so that a reader sees the old file or the new one and never half of one.
//!
//! It lives on the bottom floor because the crates that write files are siblings and cannot share it otherwise.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Writes a file through `fill`: into a new file beside `path`, which is flushed to the disk and then takes the name.
///
/// Whatever fails (a full disk, a read-only folder, `fill` itself), what was at `path` stays as it was and nothing is
/// left beside it; only a killed process can leave a `.name.….tmp`. A link is followed; something that is not a
/// plain file (a folder, a device) is refused.
///
/// ```
/// let folder = std::env::temp_dir().join(format!("bitsmith-file-{}", std::process::id()));
/// std::fs::create_dir_all(&folder)?;
/// let path = folder.join("note.txt");
/// bitsmith_kernels::file::write_atomically(&path, |out| out.write_all(b"all of it"))?;
/// assert_eq!(std::fs::read(&path)?, b"all of it");
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn write_atomically(path: &Path, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    let target = target_of(path)?;
    let (temporary, file) = create_beside(&target)?;
    let written = fill_and_rename(file, &temporary, &target, fill);
    if written.is_err() {
        // The first error is the one worth reporting; the file may not even be there any more.
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// The file that `path` means once links are followed, checked to be absent or a plain file.
fn target_of(path: &Path) -> io::Result<PathBuf> {
    if path.file_name().is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not the name of a file"));
    }
    match fs::metadata(path) {
        Ok(found) if found.is_file() => fs::canonicalize(path),
        Ok(found) if found.is_dir() => {
            Err(io::Error::new(io::ErrorKind::IsADirectory, "a folder of this name is in the way"))
        }
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a plain file")),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(e) => Err(e),
    }
}

/// A new file in the target's folder (a rename must not cross file systems), under a name no one else has.
fn create_beside(target: &Path) -> io::Result<(PathBuf, File)> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let name = target.file_name().unwrap_or_default().to_string_lossy().into_owned();
    // Names have a limit, mostly 255 bytes; the start of the name is enough to recognise a leftover by.
    let name: String = name.chars().take(40).collect();
    loop {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        let temporary = target.with_file_name(format!(".{name}.{}-{count}.tmp", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(e),
        }
    }
}

fn fill_and_rename(
    file: File,
    temporary: &Path,
    target: &Path,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(file);
    fill(&mut out)?;
    let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, target)?;
    // The rename itself is durable once the folder is. Not every system can sync a folder; the file is whole either way.
    let folder = target.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("bitsmith-file-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        path
    }

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = folder("failed");
        let path = folder.join("model.bin");
        write_atomically(&path, |out| out.write_all(b"old")).unwrap();
        let failed = write_atomically(&path, |out| {
            out.write_all(b"ne")?;
            Err(io::Error::other("the writer gave up"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the writer gave up");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(&folder), ["model.bin"]);
        write_atomically(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn folders_and_missing_folders_are_refused() {
        let folder = folder("refused");
        fs::create_dir(folder.join("inner")).unwrap();
        assert!(write_atomically(&folder.join("inner"), |_| Ok(())).is_err());
        assert!(write_atomically(&folder.join("absent/model.bin"), |_| Ok(())).is_err());
        assert_eq!(entries(&folder), ["inner"]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn links_stay_links() {
        let folder = folder("links");
        fs::write(folder.join("real"), b"old").unwrap();
        std::os::unix::fs::symlink("real", folder.join("link")).unwrap();
        write_atomically(&folder.join("link"), |out| out.write_all(b"new")).unwrap();
        assert_eq!(fs::read(folder.join("real")).unwrap(), b"new");
        assert!(fs::symlink_metadata(folder.join("link")).unwrap().is_symlink());
        fs::remove_dir_all(folder).unwrap();
    }
}
