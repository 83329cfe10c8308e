//! Tensors that an ONNX file keeps in files beside it. What they name must lie inside the model's folder.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

use super::proto::StringStringEntryProto;
use crate::error::{Error, Kind};

/// Reads external tensors of one model.
#[derive(Debug)]
pub struct External<'a> {
    folder: &'a Path,
    open: HashMap<String, (File, u64)>,
    /// Bytes that may still be read: tensors may share bytes, but not so often that a small file fills the memory.
    budget: u64,
}

impl<'a> External<'a> {
    /// For a model in this folder.
    pub fn new(folder: &'a Path) -> Self {
        Self { folder, open: HashMap::new(), budget: 1 << 20 }
    }

    /// The bytes that these entries (location, offset, length) describe.
    pub fn read(&mut self, entries: &[StringStringEntryProto]) -> Result<Vec<u8>, Error> {
        let entry = |key: &str| entries.iter().find(|e| e.key.as_deref() == Some(key)).and_then(|e| e.value.as_deref());
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.trim().parse::<u64>() {
                Ok(n) => Ok(Some(n)),
                Err(_) => Err(Error::malformed(format!("the {key} of its external data is `{text}`, not a number"))),
            },
        };
        let location = entry("location").ok_or_else(|| Error::malformed("its external data has no location"))?;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        if !self.open.contains_key(location) {
            let opened = self.open(location)?;
            self.budget = self.budget.saturating_add(opened.1.saturating_mul(4));
            self.open.insert(location.to_owned(), opened);
        }
        let Some((file, size)) = self.open.get_mut(location) else { return Err(Error::malformed("unreachable file")) };
        let length = length.unwrap_or(size.saturating_sub(offset));
        if offset.checked_add(length).is_none_or(|end| end > *size) {
            return Err(Error::malformed(format!(
                "its external data is {length} bytes from {offset} on in `{location}`, which has {size}: is the file truncated?"
            )));
        }
        self.budget = self.budget.checked_sub(length).ok_or_else(|| {
            Error::malformed(format!(
                "tensors share the bytes of `{location}` so often that they would fill the memory"
            ))
        })?;
        let failed = |e| Error::io("read", e).at(&self.folder.join(location));
        file.seek(SeekFrom::Start(offset)).map_err(failed)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| Error::malformed("too long for this machine"))?];
        file.read_exact(&mut bytes).map_err(failed)?;
        Ok(bytes)
    }

    fn open(&self, location: &str) -> Result<(File, u64), Error> {
        let path = inside(self.folder, location)?;
        let failed = |e| Error::io("read", e).at(&path);
        let file = File::open(&path).map_err(failed)?;
        let size = file.metadata().map_err(failed)?.len();
        Ok((file, size))
    }
}

/// The plain file at `location` in `folder`, links followed, or why it is not inside.
fn inside(folder: &Path, location: &str) -> Result<PathBuf, Error> {
    let outside = |why: &str| {
        let detail = format!("its external data is `{location}`, {why}: keep the file inside the model's folder");
        Error::new(Kind::Outside, detail)
    };
    let relative = Path::new(location);
    if relative.components().any(|c| matches!(c, Component::RootDir | Component::Prefix(_)))
        || location.starts_with('\\')
    {
        return Err(outside("an absolute path"));
    }
    if relative.components().any(|c| c == Component::ParentDir) || location.split('\\').any(|c| c == "..") {
        return Err(outside("which leaves the folder through `..`"));
    }
    let path = folder.join(relative);
    let failed = |e| Error::io("read", e).at(&path);
    let real = path.canonicalize().map_err(failed)?;
    if !real.starts_with(folder.canonicalize().map_err(failed)?) {
        return Err(outside("a link that leaves the folder"));
    }
    match real.metadata().map_err(failed)?.is_file() {
        true => Ok(real),
        false => Err(Error::malformed(format!("its external data is `{location}`, which is not a plain file"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn entries(location: &str, offset: &str, length: &str) -> Vec<StringStringEntryProto> {
        [("location", location), ("offset", offset), ("length", length)]
            .map(|(k, v)| StringStringEntryProto { key: Some(k.to_owned()), value: Some(v.to_owned()) })
            .to_vec()
    }

    #[test]
    fn only_the_models_folder_is_read() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("model");
        fs::create_dir_all(folder.join("sub")).unwrap();
        fs::write(root.path().join("secret"), b"secret").unwrap();
        fs::write(folder.join("weights"), b"0123456789").unwrap();
        fs::write(folder.join("sub/weights"), b"abc").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink("../secret", folder.join("link")).unwrap();
        let mut external = External::new(&folder);
        assert_eq!(external.read(&entries("weights", "2", "3")).unwrap(), b"234");
        assert_eq!(external.read(&entries("sub/weights", "0", "3")).unwrap(), b"abc");
        let absolute = root.path().join("secret").display().to_string();
        let cases = [
            ("../secret", "0", "1", "leaves the folder through `..`"),
            ("sub/../../secret", "0", "1", "leaves the folder through `..`"),
            (absolute.as_str(), "0", "1", "an absolute path"),
            #[cfg(unix)]
            ("link", "0", "1", "a link that leaves the folder"),
            ("weights", "8", "3", "3 bytes from 8 on in `weights`, which has 10"),
            ("weights", "18446744073709551615", "2", "is the file truncated?"),
            ("weights", "-1", "2", "not a number"),
            ("sub", "0", "1", "not a plain file"),
            ("absent", "0", "1", "there is no such file"),
        ];
        for (location, offset, length, message) in cases {
            let error = external.read(&entries(location, offset, length)).unwrap_err().to_string();
            assert!(error.contains(message), "{location}: {error}");
        }
    }

    #[test]
    fn shared_bytes_do_not_fill_the_memory() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("weights"), vec![0; 1 << 20]).unwrap();
        let mut external = External::new(root.path());
        let all = entries("weights", "0", "1048576");
        let reads = (0..100).take_while(|_| external.read(&all).is_ok()).count();
        assert_eq!(reads, 5);
    }
}
