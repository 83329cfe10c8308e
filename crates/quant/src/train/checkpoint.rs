//! Checkpoints: the complete state of a run in one file, so that a run that was killed ends in the same bits as one that
//! was not.
//!
//! ```text
//! bytes 0..8      length h of the header, little endian
//! bytes 8..8+h    JSON: {"__metadata__": {"bitsmith": "<JSON: recipe, position, method state, optimiser counts>",
//!                                          "checksum": "<16 hex digits over the rest of the file>"},
//!                        "<parameter>": {"dtype": "F32", "shape": [n], "data_offsets": [from, to]}, …}
//! the rest        the numbers, little endian
//! ```
//!
//! which is the layout of safetensors, so that its readers can list a checkpoint. Files are written beside their final
//! name and renamed: a crash leaves the old one. Learned values, the optimiser's memory, running statistics, the position
//! in phases, epochs and batches, and the method's own state are all there; order and augmentation of samples are functions of
//! seed, epoch and position, so no generator needs saving.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bitsmith_engine::optim::State as Memory;
use bitsmith_kernels::file::write_atomically;
use serde::{Deserialize, Serialize};

use super::activations::{Activations, Standing};
use super::options::TrainOptions;
use super::state::State;
use crate::error::{Error, Kind};
use crate::method::Method;
use crate::param::Param;

/// A folder of checkpoints: `last.ckpt` and `best.ckpt`.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Position {
    pub phase: usize,
    /// Epochs done in this phase.
    pub phase_epoch: usize,
    /// Epochs done in all.
    pub epoch: usize,
    /// Batches done in this epoch.
    pub batch: usize,
    /// Samples, summed loss and correct answers of this epoch.
    pub samples: u64,
    pub loss_sum: f64,
    pub correct: u64,
    /// Best accuracy after hardening so far.
    pub best: f64,
}

/// What a checkpoint says about itself.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    version: u32,
    recipe: serde_json::Value,
    position: Position,
    method: serde_json::Value,
    /// Widths of activations, where they are looked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    activations: Option<Standing>,
    /// Optimiser step counts by tensor name.
    counts: BTreeMap<String, u64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Metadata {
    bitsmith: String,
    checksum: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    #[serde(rename = "__metadata__")]
    metadata: Metadata,
    #[serde(flatten)]
    tensors: BTreeMap<String, Entry>,
}

const VERSION: u32 = 1;
/// No header of ours comes near this.
const MAX_HEADER: u64 = 64 << 20;

impl Store {
    /// A store in this folder, which is made if it does not exist.
    pub fn open(folder: &Path) -> Result<Self, Error> {
        fs::create_dir_all(folder).map_err(|e| failed("cannot make this folder for checkpoints", folder, e))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The newest checkpoint.
    pub fn last_path(&self) -> PathBuf {
        self.folder.join("last.ckpt")
    }

    /// The checkpoint of the epoch with the best accuracy after hardening.
    pub fn best_path(&self) -> PathBuf {
        self.folder.join("best.ckpt")
    }

    /// Whether there is anything to resume from.
    pub fn has_last(&self) -> bool {
        self.last_path().is_file()
    }

    /// Copies the newest checkpoint to the best one.
    pub(super) fn keep_best(&self) -> Result<(), Error> {
        let path = self.best_path();
        let bytes =
            fs::read(self.last_path()).map_err(|e| failed("cannot read this checkpoint", &self.last_path(), e))?;
        write_atomically(&path, |out| out.write_all(&bytes))
            .map_err(|e| failed("cannot write this checkpoint", &path, e))
    }

    /// Writes `last.ckpt`.
    pub(super) fn save<M: Method>(
        &self,
        recipe: &serde_json::Value,
        method: &M,
        state: &mut State<M::Weight>,
        position: &Position,
    ) -> Result<(), Error> {
        let path = self.last_path();
        let mut names = BTreeMap::new();
        let mut counts = BTreeMap::new();
        let mut data: Vec<u8> = Vec::new();
        let mut bad = None;
        let mut put = |name: String, values: &[f32]| {
            if bad.is_none() && values.iter().any(|x| !x.is_finite()) {
                bad = Some(name.clone());
            }
            let start = data.len();
            data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            names.insert(
                name,
                Entry { dtype: "F32".to_owned(), shape: vec![values.len()], data_offsets: [start, data.len()] },
            );
        };
        state.visit(&mut |name, param| {
            put(name.to_owned(), &param.value);
            for (i, memory) in param.memory.iter().enumerate() {
                put(format!("{name}/first{i}"), &memory.first);
                put(format!("{name}/second{i}"), &memory.second);
                counts.insert(format!("{name}/{i}"), memory.step);
            }
        });
        for (name, values) in state.statistics() {
            put(name, values);
        }
        if let Some(name) = bad {
            let kept =
                if self.has_last() { format!("; {} is the last good one", path.display()) } else { String::new() };
            return Err(Error::new(
                Kind::Diverged,
                format!("`{name}` holds a number that is not finite: nothing was saved{kept}"),
            ));
        }
        let header = Header {
            version: VERSION,
            recipe: recipe.clone(),
            position: *position,
            method: method.state(&state.slots),
            activations: state.activations.as_ref().map(Activations::standing),
            counts,
        };
        let unwritable = |e: serde_json::Error| failed("cannot describe this checkpoint", &path, e.into());
        let metadata = Metadata {
            bitsmith: serde_json::to_string(&header).map_err(unwritable)?,
            checksum: format!("{:016x}", checksum(&data)),
        };
        let index = serde_json::to_vec(&Index { metadata, tensors: names }).map_err(unwritable)?;
        write_atomically(&path, |out| {
            out.write_all(&(index.len() as u64).to_le_bytes())?;
            out.write_all(&index)?;
            out.write_all(&data)
        })
        .map_err(|e| failed("cannot write this checkpoint", &path, e))
    }

    /// Reads `last.ckpt`; `None` if there is none yet.
    pub(super) fn last(&self) -> Result<Option<Saved>, Error> {
        let path = self.last_path();
        match fs::read(&path) {
            Ok(bytes) => {
                Saved::parse(&bytes).map(Some).map_err(|detail| Error::new(Kind::Checkpoint, detail).at(&path))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(failed("cannot read this checkpoint", &path, e)),
        }
    }
}

fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    Error::new(Kind::Checkpoint, format!("{what}: {error}")).at(path).caused_by(error)
}

/// A checkpoint that was read and whose checksum holds.
#[derive(Debug)]
pub(super) struct Saved {
    header: Header,
    tensors: BTreeMap<String, Vec<f32>>,
}

impl Saved {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let damaged = || "this checkpoint is damaged or no checkpoint; delete it to start afresh".to_owned();
        let (length, rest) = bytes.split_first_chunk::<8>().ok_or_else(damaged)?;
        let length = u64::from_le_bytes(*length);
        if length > MAX_HEADER || length > rest.len() as u64 {
            return Err(damaged());
        }
        let (index, data) = rest.split_at(length as usize);
        let index: Index = serde_json::from_slice(index).map_err(|_| damaged())?;
        if format!("{:016x}", checksum(data)) != index.metadata.checksum {
            return Err(damaged());
        }
        let header: Header = serde_json::from_str(&index.metadata.bitsmith).map_err(|_| damaged())?;
        if header.version != VERSION {
            return Err(format!("this checkpoint has version {} but version {VERSION} is read here", header.version));
        }
        let read = |(name, entry): (String, Entry)| {
            let [from, to] = entry.data_offsets;
            let bytes = data.get(from..to).ok_or_else(damaged)?;
            let (numbers, rest) = bytes.as_chunks::<4>();
            if !rest.is_empty() {
                return Err(damaged());
            }
            Ok((name, numbers.iter().map(|b| f32::from_le_bytes(*b)).collect()))
        };
        let tensors = index.tensors.into_iter().map(read).collect::<Result<_, String>>()?;
        Ok(Self { header, tensors })
    }

    /// Puts everything back. The recipe must be the one that the checkpoint was made with.
    pub fn restore<M: Method>(
        mut self,
        recipe: &serde_json::Value,
        method: &mut M,
        state: &mut State<M::Weight>,
    ) -> Result<Position, Error> {
        // Options that did not exist when it was written have had their defaults.
        let defaults = recipe_of::<M>(&M::Options::default(), &TrainOptions::default());
        fill_in(&mut self.header.recipe, &defaults);
        if self.header.recipe != *recipe {
            return Err(Error::new(
                Kind::Checkpoint,
                format!(
                    "this checkpoint was made with other options ({}): resume with the same recipe, or start afresh",
                    difference(&self.header.recipe, recipe)
                ),
            ));
        }
        method.restore(&mut state.slots, &self.header.method)?;
        state.restore_activations(self.header.activations.as_ref())?;
        let mut missing = None;
        let mut note = |name: &str| {
            missing.get_or_insert_with(|| name.to_owned());
        };
        state.visit(&mut |name, param| {
            if !self.fill(name, param) {
                note(name);
            }
        });
        for (name, values) in state.statistics() {
            match self.tensors.remove(&name).filter(|saved| saved.len() == values.len()) {
                Some(saved) => values.copy_from_slice(&saved),
                None => note(&name),
            }
        }
        match missing {
            Some(name) => Err(Error::new(
                Kind::Checkpoint,
                format!("this checkpoint belongs to another model: `{name}` is missing or of another size"),
            )),
            None => Ok(self.header.position),
        }
    }

    fn fill(&mut self, name: &str, param: &mut Param) -> bool {
        match self.tensors.remove(name).filter(|saved| saved.len() == param.value.len()) {
            Some(saved) => param.value = saved,
            None => return false,
        }
        param.clear_grad();
        param.memory.clear();
        while let Some(&step) = self.header.counts.get(&format!("{name}/{}", param.memory.len())) {
            let i = param.memory.len();
            let mut take = |what: &str| self.tensors.remove(&format!("{name}/{what}{i}")).unwrap_or_default();
            let (first, second) = (take("first"), take("second"));
            param.memory.push(Memory { step, first, second });
        }
        true
    }
}

/// What a run was asked for, as checkpoints remember it.
pub fn recipe_of<M: Method>(method: &M::Options, train: &TrainOptions) -> serde_json::Value {
    serde_json::json!({ "method": M::NAME, "options": method, "train": train })
}

/// Adds the keys that `object` lacks, in every section.
fn fill_in(object: &mut serde_json::Value, defaults: &serde_json::Value) {
    let (Some(object), Some(defaults)) = (object.as_object_mut(), defaults.as_object()) else { return };
    for (key, default) in defaults {
        match object.get_mut(key) {
            Some(value) => fill_in(value, default),
            None => drop(object.insert(key.clone(), default.clone())),
        }
    }
}

/// The first key whose values differ, for people.
fn difference(a: &serde_json::Value, b: &serde_json::Value) -> String {
    if let (Some(a), Some(b)) = (a.as_object(), b.as_object()) {
        if let Some((key, value)) = b.iter().find(|(key, _)| !a.contains_key(*key)) {
            return format!("{key} is {value}");
        }
        for (key, value) in a {
            match b.get(key) {
                Some(other) if other == value => {}
                Some(other) if value.is_object() => return difference(value, other),
                Some(other) => return format!("{key} was {value} and is {other}"),
                None => return format!("{key} was {value}"),
            }
        }
    }
    "some differ".to_owned()
}

/// FNV-1a over 8-byte words, the last one padded with zeros: finds what disks and copies break, not what an enemy forges.
fn checksum(data: &[u8]) -> u64 {
    let (words, rest) = data.as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    words.iter().chain([&last]).fold(0xcbf2_9ce4_8422_2325 ^ data.len() as u64, |hash, word| {
        (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(23)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_are_refused() {
        for bytes in [vec![], vec![1; 7], vec![255; 64], [&4u64.to_le_bytes()[..], b"{}  "].concat()] {
            assert!(Saved::parse(&bytes).unwrap_err().contains("damaged"));
        }
    }

    #[test]
    fn other_recipes_are_named() {
        let a = serde_json::json!({"train": {"epochs": 3, "seed": 1}});
        let b = serde_json::json!({"train": {"epochs": 4, "seed": 1}});
        assert_eq!(difference(&a, &b), "epochs was 3 and is 4");
        let c = serde_json::json!({"train": {"epochs": 3, "seed": 1, "groups": 2}});
        assert_eq!(difference(&a, &c), "groups is 2");
    }

    #[test]
    fn options_that_a_checkpoint_does_not_know_had_their_defaults() {
        let defaults = serde_json::json!({"method": "m", "train": {"epochs": 60, "groups": 1, "part": {"rho": 0.0}}});
        let mut saved = serde_json::json!({"method": "m", "train": {"epochs": 3}});
        fill_in(&mut saved, &defaults);
        assert_eq!(
            saved,
            serde_json::json!({"method": "m", "train": {"epochs": 3, "groups": 1, "part": {"rho": 0.0}}})
        );
    }
}
