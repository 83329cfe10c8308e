//! A folder, a plain tar or a compressed tar, seen as one sorted list of files that can be read by several threads.
//!
//! Folders and plain tars are read in place, on demand. A `.tar.gz` cannot be: it is decompressed into memory once, if
//! that fits the memory limit.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{Cursor, Read, Seek, SeekFrom};
use std::ops::Bound;
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::error::{Error, FETCH_AGAIN};
use super::tar::{self, Member};

/// Folders deeper than this are not data sets; also ends loops of symbolic links.
const MAX_DEPTH: usize = 8;
/// More files than this are not a data set that fits in memory as a list.
const MAX_FILES: usize = 20_000_000;

/// Files below a root. Paths are relative and use `/`.
#[derive(Debug)]
pub(super) struct Tree {
    /// How the root is called in messages.
    label: String,
    /// Sorted by path.
    files: Vec<Member>,
    folders: BTreeSet<String>,
    store: Store,
}

#[derive(Debug)]
enum Store {
    Folder(PathBuf),
    /// One path for each entry of `files`, at any place.
    Files(Vec<PathBuf>),
    Tar(PathBuf),
    Memory(Vec<u8>),
}

/// What lies directly in a folder.
#[derive(Debug, Default)]
pub(super) struct Children<'a> {
    /// Names (not paths) of folders, sorted.
    pub folders: BTreeSet<&'a str>,
    /// Numbers of files, sorted by name.
    pub files: Vec<usize>,
}

impl Tree {
    /// All files below a folder, up to eight levels deep. Hidden files and folders (`.x`) are left out.
    pub(super) fn folder(root: &Path) -> Result<Tree, Error> {
        let mut walk = Walk { files: Vec::new(), folders: BTreeSet::new() };
        walk.enter(root, "", 0)?;
        Ok(Tree::new(root.display().to_string(), walk.files, walk.folders, Store::Folder(root.to_path_buf())))
    }

    /// The given files, in the given order, whatever folders they lie in.
    pub(super) fn of_files(label: &str, paths: &[PathBuf]) -> Result<Tree, Error> {
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let metadata = fs::metadata(path).map_err(|e| Error::io(path, e))?;
            if !metadata.is_file() {
                return Err(Error::WrongKind {
                    path: path.display().to_string(),
                    found: if metadata.is_dir() { "folder" } else { "device or pipe" },
                    wanted: "file",
                    hint: "name the files themselves".into(),
                });
            }
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            files.push(Member { path: name, offset: 0, bytes: metadata.len() });
        }
        // Not through `new`: these keep their order, and names may occur twice.
        let store = Store::Files(paths.to_vec());
        Ok(Tree { label: label.to_string(), files, folders: BTreeSet::new(), store })
    }

    /// No files at all, for data that come from elsewhere.
    pub(super) fn empty(label: &str) -> Tree {
        Tree::new(label.to_string(), Vec::new(), BTreeSet::new(), Store::Files(Vec::new()))
    }

    /// The members of a plain tar, indexed once.
    pub(super) fn tar(path: &Path) -> Result<Tree, Error> {
        let label = path.display().to_string();
        let mut file = File::open(path).map_err(|e| Error::io(path, e))?;
        let length = file.metadata().map_err(|e| Error::io(path, e))?.len();
        let index = tar::index(&mut file, length, &label)?;
        Ok(Tree::indexed(label, index, Store::Tar(path.to_path_buf())))
    }

    /// The members of a compressed tar, decompressed into memory unless that takes more than `limit` bytes.
    pub(super) fn tar_gz(path: &Path, limit: u64) -> Result<Tree, Error> {
        let label = path.display().to_string();
        let file = File::open(path).map_err(|e| Error::io(path, e))?;
        let bytes = gunzip(file, limit, &label)?;
        let index = tar::index(&mut Cursor::new(&bytes), bytes.len() as u64, &label)?;
        Ok(Tree::indexed(label, index, Store::Memory(bytes)))
    }

    fn indexed(label: String, index: tar::Index, store: Store) -> Tree {
        let visible = |path: &str| !path.split('/').any(|part| part.starts_with('.'));
        let files: Vec<Member> = index.files.into_iter().filter(|m| visible(&m.path)).collect();
        let mut folders: BTreeSet<String> = index.folders.into_iter().filter(|p| visible(p)).collect();
        // Archives need not list folders.
        for member in &files {
            let mut path = member.path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                if !folders.insert(parent.to_string()) {
                    break;
                }
                path = parent;
            }
        }
        Tree::new(label, files, folders, store)
    }

    fn new(label: String, mut files: Vec<Member>, folders: BTreeSet<String>, store: Store) -> Tree {
        files.sort_by(|a, b| a.path.cmp(&b.path));
        // A tar may hold a path twice; the later one counts, as when unpacking.
        files.reverse();
        files.dedup_by(|a, b| a.path == b.path);
        files.reverse();
        Tree { label, files, folders, store }
    }

    /// The root as messages call it.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Number of files.
    pub(super) fn len(&self) -> usize {
        self.files.len()
    }

    /// Path of a file relative to the root.
    pub(super) fn path(&self, file: usize) -> &str {
        self.files.get(file).map_or("", |m| m.path.as_str())
    }

    /// The last part of the path of a file.
    pub(super) fn name(&self, file: usize) -> &str {
        let path = self.path(file);
        path.rsplit_once('/').map_or(path, |(_, name)| name)
    }

    /// Length of a file.
    pub(super) fn bytes(&self, file: usize) -> u64 {
        self.files.get(file).map_or(0, |m| m.bytes)
    }

    /// A file as messages call it: `folder/class/x.jpg`, `archive.tar:class/x.jpg`.
    pub(super) fn display(&self, file: usize) -> String {
        match &self.store {
            Store::Files(paths) => paths.get(file).map(|p| p.display().to_string()).unwrap_or_default(),
            _ => self.display_path(self.path(file)),
        }
    }

    /// A path below the root as messages call it.
    pub(super) fn display_path(&self, path: &str) -> String {
        match self.store {
            _ if path.is_empty() => self.label.clone(),
            Store::Folder(_) | Store::Files(_) => format!("{}/{path}", self.label.trim_end_matches('/')),
            Store::Tar(_) | Store::Memory(_) => format!("{}:{path}", self.label),
        }
    }

    /// The file at a path, if there is one.
    pub(super) fn find(&self, path: &str) -> Option<usize> {
        self.files.binary_search_by(|m| m.path.as_str().cmp(path)).ok()
    }

    /// What lies directly in `folder` (`""` is the root).
    pub(super) fn children(&self, folder: &str) -> Children<'_> {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let start = self.files.partition_point(|m| m.path.as_str() < prefix.as_str());
        let below = self.files[start..].iter().enumerate().take_while(|(_, m)| m.path.starts_with(&prefix));
        let mut children = Children::default();
        for (i, member) in below {
            if !member.path[prefix.len()..].contains('/') {
                children.files.push(start + i);
            }
        }
        for path in self.folders.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded)) {
            match path.strip_prefix(&prefix) {
                Some("") => {}
                Some(rest) if !rest.contains('/') => {
                    children.folders.insert(rest);
                }
                Some(_) => {}
                None => break,
            }
        }
        children
    }

    /// All files directly or indirectly below `folder`.
    pub(super) fn count_below(&self, folder: &str) -> usize {
        let prefix = if folder.is_empty() { String::new() } else { format!("{folder}/") };
        let start = self.files.partition_point(|m| m.path.as_str() < prefix.as_str());
        self.files[start..].iter().take_while(|m| m.path.starts_with(&prefix)).count()
    }

    /// The contents of a file, refused above `limit` bytes.
    pub(super) fn read(&self, file: usize, limit: u64) -> Result<Vec<u8>, Error> {
        let mut buffer = Vec::new();
        self.read_into(file, limit, &mut buffer)?;
        Ok(buffer)
    }

    /// As [`read`](Self::read), into a buffer that is cleared first.
    pub(super) fn read_into(&self, file: usize, limit: u64, buffer: &mut Vec<u8>) -> Result<(), Error> {
        let bytes = self.bytes(file);
        if bytes > limit {
            return Err(Error::too_large(self.display(file), Some(bytes), limit));
        }
        self.read_part(file, 0, bytes, buffer)
    }

    /// Exactly `bytes` bytes of a file from `start` on, into a buffer that is cleared first. The part must lie inside
    /// the file as it was when the tree was made.
    pub(super) fn read_part(&self, file: usize, start: u64, bytes: u64, buffer: &mut Vec<u8>) -> Result<(), Error> {
        buffer.clear();
        let Some(member) = self.files.get(file) else { return Ok(()) };
        let io = |source| Error::Io { path: self.display(file), source };
        let mut read = |path: &Path| {
            let mut opened = File::open(path).map_err(|e| Error::io(path, e))?;
            opened.seek(SeekFrom::Start(member.offset + start)).map_err(io)?;
            opened.take(bytes).read_to_end(buffer).map_err(io)
        };
        let found = match &self.store {
            Store::Memory(all) => {
                let first = (member.offset + start) as usize;
                buffer.extend_from_slice(all.get(first..first + bytes as usize).unwrap_or_default());
                buffer.len()
            }
            Store::Tar(path) => read(path)?,
            Store::Folder(root) => read(&root.join(&member.path))?,
            Store::Files(paths) => paths.get(file).map_or(Ok(0), |path| read(path))?,
        };
        if found as u64 == bytes {
            return Ok(());
        }
        Err(Error::Length {
            what: self.display(file),
            expected: bytes,
            found: found as u64,
            hint: "it changed while being read".into(),
        })
    }
}

/// `folder/name`, or `name` at the root.
pub(super) fn join(folder: &str, name: &str) -> String {
    if folder.is_empty() { name.to_string() } else { format!("{folder}/{name}") }
}

struct Walk {
    files: Vec<Member>,
    folders: BTreeSet<String>,
}

impl Walk {
    fn enter(&mut self, folder: &Path, prefix: &str, depth: usize) -> Result<(), Error> {
        let io = |e| Error::io(folder, e);
        for entry in fs::read_dir(folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            let name = entry.file_name();
            let Some(name) = name.to_str() else {
                return Err(Error::malformed(path.display().to_string(), "the name is not UTF-8; rename it"));
            };
            if name.starts_with('.') {
                continue;
            }
            // Follows links; a dangling one is as good as absent.
            let Ok(metadata) = fs::metadata(&path) else { continue };
            let relative = format!("{prefix}{name}");
            if metadata.is_dir() {
                if depth + 1 < MAX_DEPTH {
                    self.enter(&path, &format!("{relative}/"), depth + 1)?;
                }
                self.folders.insert(relative);
            } else if metadata.is_file() {
                self.files.push(Member { path: relative, offset: 0, bytes: metadata.len() });
            }
            if self.files.len() + self.folders.len() > MAX_FILES {
                return Err(Error::malformed(
                    folder.display().to_string(),
                    format!("more than {MAX_FILES} files lie below; name the data set's own folder"),
                ));
            }
        }
        Ok(())
    }
}

/// Decompresses, stopping with an error above `limit` bytes.
pub(super) fn gunzip(reader: impl Read, limit: u64, what: &str) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    let mut stream = MultiGzDecoder::new(std::io::BufReader::with_capacity(1 << 16, reader));
    let result = stream.by_ref().take(limit.saturating_add(1)).read_to_end(&mut bytes);
    if let Err(source) = result {
        return Err(Error::Malformed {
            what: what.to_string(),
            detail: format!("the gzip stream breaks off or is damaged after {} bytes; {FETCH_AGAIN}", bytes.len()),
            source: Some(Box::new(source)),
        });
    }
    if bytes.len() as u64 > limit {
        return Err(Error::too_large(what, Some(bytes.len() as u64), limit));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(root: &Path) {
        for (path, contents) in [("b-c/1", "x"), ("b/2", "yy"), ("b/sub/3", "zzz"), ("top", "t"), (".hidden/4", "h")] {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, contents).unwrap();
        }
        fs::create_dir(root.join("empty")).unwrap();
    }

    fn check(tree: &Tree, separator: &str) {
        let root = tree.children("");
        assert_eq!(root.folders.iter().copied().collect::<Vec<_>>(), ["b", "b-c", "empty"]);
        assert_eq!(root.files.iter().map(|&f| tree.path(f)).collect::<Vec<_>>(), ["top"]);
        let b = tree.children("b");
        assert_eq!(b.folders.iter().copied().collect::<Vec<_>>(), ["sub"]);
        assert_eq!(b.files.iter().map(|&f| tree.name(f)).collect::<Vec<_>>(), ["2"]);
        assert_eq!((tree.count_below(""), tree.count_below("b"), tree.count_below("empty")), (4, 2, 0));
        let file = tree.find("b/sub/3").unwrap();
        assert_eq!(tree.read(file, 3).unwrap(), b"zzz");
        assert!(tree.display(file).ends_with(&format!("{separator}b/sub/3")), "{}", tree.display(file));
        assert!(matches!(tree.read(file, 2), Err(Error::TooLarge { bytes: 3, limit: 2, .. })));
        assert!(tree.find("nothing").is_none());
    }

    #[test]
    fn folder_tar_and_tar_gz_look_the_same() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        fs::create_dir(&root).unwrap();
        sample(&root);
        check(&Tree::folder(&root).unwrap(), "/");

        let mut builder = ::tar::Builder::new(Vec::new());
        builder.append_dir_all(".", &root).unwrap();
        let bytes = builder.into_inner().unwrap();
        let plain = temp.path().join("x.tar");
        fs::write(&plain, &bytes).unwrap();
        check(&Tree::tar(&plain).unwrap(), "x.tar:");

        let packed = temp.path().join("x.tar.gz");
        let mut encoder = flate2::write::GzEncoder::new(File::create(&packed).unwrap(), flate2::Compression::fast());
        std::io::Write::write_all(&mut encoder, &bytes).unwrap();
        encoder.finish().unwrap();
        check(&Tree::tar_gz(&packed, 1 << 20).unwrap(), "x.tar.gz:");
        let message = Tree::tar_gz(&packed, 1000).unwrap_err().to_string();
        assert!(message.contains("limit is 1000") && message.contains("plain .tar"), "{message}");

        let bytes = fs::read(&packed).unwrap();
        fs::write(&packed, &bytes[..bytes.len() / 2]).unwrap();
        let error = Tree::tar_gz(&packed, 1 << 20).unwrap_err();
        assert!(error.to_string().contains("breaks off") && std::error::Error::source(&error).is_some());
    }

    #[cfg(unix)]
    #[test]
    fn loops_of_links_and_sockets_do_no_harm() {
        let temp = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(temp.path(), temp.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("/nowhere", temp.path().join("dangling")).unwrap();
        fs::write(temp.path().join("x"), "1").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(temp.path().join("socket.jpg")).unwrap();
        let tree = Tree::folder(temp.path()).unwrap();
        assert!(tree.len() <= MAX_DEPTH && tree.find("x").is_some() && tree.find("socket.jpg").is_none());
    }
}
