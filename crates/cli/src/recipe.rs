//! Recipes: the complete, replayable description of a training run, in TOML.
//!
//! Every key has a default, so a recipe says only what differs; the run folder keeps the resolved one. Keys that do not
//! exist are errors with a suggestion. `--set section.key=value` replaces a value before the recipe is read.

use std::path::{Path, PathBuf};

use bitsmith_quant::blocks::range::Range;
use bitsmith_quant::train::options::TrainOptions;
use serde::{Deserialize, Serialize};
use toml::{Table, Value};

use crate::budget::Budget;
use crate::failure::{Explain, Failure};
use crate::files;
use crate::suggest;

/// The resolved recipe's file name inside a run folder.
pub const FILE_NAME: &str = "recipe.toml";

/// A training run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    /// What to call the run; its folder is `runs/NAME` unless `--out` says otherwise.
    pub name: String,
    /// Seed of everything random.
    pub seed: u64,
    /// What the model may cost, for methods that search widths: "bits=2.5", "bytes=80kB", "bops=4G" or "latency=1.2ms", instead of a target in
    /// the method's own options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<String>,
    /// The network.
    pub model: ModelSection,
    /// Training and held-out samples.
    pub data: DataSection,
    /// How it learns.
    pub train: TrainOptions,
    /// What rounds the weights, and its own options.
    pub method: Table,
    /// How activations and the input are rounded.
    pub activations: ActivationSection,
    /// What is measured and written when training is over.
    pub finish: FinishSection,
}

/// `[model]`
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSection {
    /// A built-in architecture, or a model file.
    pub from: String,
    /// Weights to start from; random ones where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<PathBuf>,
    /// Number of classes; the architecture's own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<usize>,
    /// Height and width of a built-in architecture's images; its own where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_size: Option<usize>,
}

/// `[data]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DataSection {
    /// A folder, an archive, `digits` or `random`.
    pub path: PathBuf,
    /// Samples in a training step.
    pub batch: usize,
    /// At most this many training samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Where the data has no split of its own: every n-th sample of each class is held out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hold_out: Option<usize>,
    /// Leave out images that cannot be decoded instead of stopping.
    pub skip_broken: bool,
    /// Pad each side by this many pixels and cut out the original size at a random place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pad_crop: Option<usize>,
    /// Mirror left and right at random.
    pub flip: bool,
    /// Blank a square of this side at a random place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cutout: Option<usize>,
}

/// `[activations]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ActivationSection {
    /// Bits of activations, 1 to 8; 32 leaves them and the input in float.
    pub bits: u8,
    /// Bits of the network's input.
    pub input_bits: u8,
    /// Bits of what attention multiplies with each other: queries, keys, values and their weights; 32 leaves it in float.
    pub attention_bits: u8,
    /// Range that calibration gives the first step sizes: "min-max", { percentile = 0.999 } or "mse".
    pub range: Range,
    /// Samples that calibrate.
    pub calibration: usize,
}

/// `[finish]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FinishSection {
    /// Uniform widths without training to compare with in the report; empty for none.
    pub compare_uniform: Vec<u8>,
    /// Held-out samples that `verify` compares at the end; 0 for all.
    pub verify_samples: usize,
    /// Write `model.onnx` too.
    pub onnx: bool,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            name: "run".to_owned(),
            seed: 1,
            budget: None,
            model: ModelSection::default(),
            data: DataSection::default(),
            train: TrainOptions::default(),
            method: Table::new(),
            activations: ActivationSection::default(),
            finish: FinishSection::default(),
        }
    }
}

impl Default for DataSection {
    fn default() -> Self {
        Self {
            path: PathBuf::new(),
            batch: 128,
            limit: None,
            hold_out: None,
            skip_broken: false,
            pad_crop: None,
            flip: false,
            cutout: None,
        }
    }
}

impl Default for ActivationSection {
    fn default() -> Self {
        Self { bits: 32, input_bits: 8, attention_bits: 32, range: Range::Mse, calibration: 512 }
    }
}

impl Default for FinishSection {
    fn default() -> Self {
        Self { compare_uniform: vec![], verify_samples: 1000, onnx: true }
    }
}

impl Recipe {
    /// Reads a recipe and applies overrides of the form `section.key=value`.
    pub fn read(path: &Path, overrides: &[String]) -> Result<Self, Failure> {
        let place = format!("recipe `{}`", path.display());
        Self::parse(&files::read_text(path)?, overrides).map_err(|f| f.context(format!("cannot use the {place}")))
    }

    /// The same from text.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, Failure> {
        let mut table: Table = toml::from_str(text).map_err(|e| usage(&e))?;
        for text in overrides {
            set(&mut table, text)?;
        }
        let recipe: Recipe = table.try_into().map_err(|e: toml::de::Error| usage(&e))?;
        recipe.check()?;
        Ok(recipe)
    }

    /// The recipe with every value spelt out, as the run folder keeps it.
    pub fn resolved(&self) -> Result<String, Failure> {
        Ok(toml::to_string(self)?)
    }

    /// The method's name.
    pub fn method(&self) -> &str {
        self.method.get("name").and_then(Value::as_str).unwrap_or("float")
    }

    /// The method's own options as JSON, which is what methods read.
    pub fn method_options(&self) -> Result<serde_json::Value, Failure> {
        let mut options = self.method.clone();
        options.remove("name");
        Ok(serde_json::to_value(options)?)
    }

    /// What the model may cost, where the recipe says so.
    pub fn budget(&self) -> Result<Option<Budget>, Failure> {
        self.budget.as_deref().map(str::parse).transpose()
    }

    /// Sets the budget of a command line, in place of whatever target the recipe has.
    pub fn set_budget(&mut self, budget: &str) {
        ["target_bits", "weighting"].iter().for_each(|key| drop(self.method.remove(*key)));
        self.budget = Some(budget.to_owned());
    }

    /// Refuses values that cannot be meant. What depends on data or network is checked where they meet.
    fn check(&self) -> Result<(), Failure> {
        let bad = |key: &str, found: String, wanted: &str| {
            Err(Failure::usage(format!("`{key}` is {found}")).remedy(format!("choose {wanted}")))
        };
        if self.model.from.is_empty() {
            return Err(Failure::usage("`model.from` is missing").remedy("name a built-in model or a model file"));
        }
        if self.data.path.as_os_str().is_empty() {
            return Err(
                Failure::usage("`data.path` is missing").remedy("name a folder, an archive, `digits` or `random`")
            );
        }
        if self.data.batch == 0 {
            return bad("data.batch", "0".to_owned(), "at least 1");
        }
        if self.train.epochs > 100_000 {
            return bad("train.epochs", self.train.epochs.to_string(), "1 to 100000");
        }
        self.train.check().map_err(|e| Failure::from(e).with_code(2))?;
        for (key, bits) in [
            ("activations.bits", self.activations.bits),
            ("activations.input_bits", self.activations.input_bits),
            ("activations.attention_bits", self.activations.attention_bits),
        ] {
            match bits {
                1..=8 | 32 => {}
                _ => return bad(key, bits.to_string(), "1 to 8, or 32 for float"),
            }
        }
        if self.activations.bits == 32 && self.activations.attention_bits != 32 {
            let bits = self.activations.attention_bits.to_string();
            return bad(
                "activations.attention_bits",
                bits,
                "32 where activations.bits is 32: they stay in float together",
            );
        }
        for bits in &self.finish.compare_uniform {
            if !(2..=8).contains(bits) {
                return bad(
                    "finish.compare_uniform",
                    format!("{:?}", self.finish.compare_uniform),
                    "widths of 2 to 8 bits",
                );
            }
        }
        if let Some(budget) = self.budget()? {
            if let Some(key) = ["target_bits", "weighting"].iter().find(|key| self.method.contains_key(**key)) {
                return Err(Failure::usage(format!("the recipe has both `budget` and `method.{key}`"))
                    .remedy("one says what the other does: leave out either"));
            }
            let is_of_layers = matches!(budget, Budget::Latency(_) | Budget::BitOperations(_));
            if is_of_layers && self.train.activation_widths.target_bits > 0.0 {
                return Err(Failure::usage(
                    "this budget is for given widths of activations, but these are to be learned, too",
                )
                .remedy("leave out train.activation_widths, or give a budget of bits or bytes"));
            }
            if matches!(budget, Budget::Latency(_)) && self.activations.bits == 32 {
                return Err(Failure::usage("a budget of latency needs integers, but activations are in float")
                    .remedy("give activations a width, 8 for example: `bits = 8` in [activations], --activation-bits 8 of quantize"));
            }
        }
        if !matches!(self.method.get("name"), None | Some(Value::String(_))) {
            return bad("method.name", "not a string".to_owned(), "a method in quotes");
        }
        let plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(plain) || self.name.starts_with('.') {
            return bad("name", format!("`{}`", self.name), "letters, digits, `-`, `_` and `.`: it names a folder");
        }
        Ok(())
    }
}

/// Sets a dotted key. The value is read as TOML where it is TOML (`3`, `0.5`, `true`, `[2, 4]`), else as a string.
pub fn set(table: &mut Table, text: &str) -> Result<(), Failure> {
    let malformed = || {
        Failure::usage(format!("`--set {text}` is not of the form key=value"))
            .remedy("for example --set train.epochs=10")
    };
    let (key, value) = text.split_once('=').ok_or_else(malformed)?;
    let value = match toml::from_str::<Table>(&format!("value = {}", value.trim())) {
        Ok(mut parsed) if parsed.len() == 1 => parsed.remove("value").ok_or_else(malformed)?,
        _ => Value::String(value.trim().to_owned()),
    };
    let mut keys: Vec<&str> = key.trim().split('.').collect();
    let last = keys.pop().filter(|k| !k.is_empty()).ok_or_else(malformed)?;
    let mut at = table;
    for key in keys {
        let next = at.entry(key).or_insert_with(|| Value::Table(Table::new()));
        at = next
            .as_table_mut()
            .ok_or_else(|| Failure::usage(format!("`--set {text}`: `{key}` is a value, not a section")))?;
    }
    // `0` is a fine learning rate to type, but TOML tells integers from floats.
    let value = match (at.get(last), value) {
        (Some(Value::Float(_)), Value::Integer(v)) => Value::Float(v as f64),
        (_, value) => value,
    };
    at.insert(last.to_owned(), value);
    Ok(())
}

/// A usage failure from a TOML error, with a suggestion where it names a key that does not exist.
fn usage(error: &toml::de::Error) -> Failure {
    explain_unknown(&error.to_string())
}

/// Turns serde's "unknown field `x`, expected one of `a`, `b`" into a message with a suggestion.
pub fn explain_unknown(message: &str) -> Failure {
    let message = message.trim_end();
    for what in ["unknown field `", "unknown variant `"] {
        let Some((before, rest)) = message.split_once(what) else { continue };
        let Some((wrong, rest)) = rest.split_once('`') else { continue };
        let known: Vec<&str> = rest.lines().next().unwrap_or_default().split('`').skip(1).step_by(2).collect();
        let kind = if what.contains("field") { "key" } else { "value" };
        let place =
            before.lines().filter(|l| l.contains(" | ") || l.contains("at line")).collect::<Vec<_>>().join("\n");
        let place = if place.is_empty() { String::new() } else { format!("\n{place}") };
        return Failure::usage(format!("there is no {kind} `{wrong}`{place}")).remedy(suggest::remedy(wrong, &known));
    }
    Failure::usage(message)
}

/// A JSON error of a method's options as a usage failure.
pub fn explain_options<T>(result: Result<T, impl Into<Failure>>) -> Result<T, Failure> {
    result.map_err(|error| {
        let failure: Failure = error.into();
        let text = failure.to_string();
        match text.contains("unknown field `") || text.contains("unknown variant `") {
            true => explain_unknown(text.trim_start_matches("error: ")),
            false => failure,
        }
    })
}

/// Reads the resolved recipe of a run folder.
pub fn of_run(folder: &Path) -> Result<Recipe, Failure> {
    Recipe::read(&folder.join(FILE_NAME), &[]).remedy("give the folder of a run that `bitsmith train` began")
}

#[cfg(test)]
mod tests {
    use super::Recipe;

    const SMALL: &str = "[model]\nfrom = \"cnn\"\n[data]\npath = \"digits\"\n";

    fn failure(text: &str, overrides: &[&str]) -> String {
        let overrides: Vec<String> = overrides.iter().map(|s| (*s).to_owned()).collect();
        Recipe::parse(text, &overrides).unwrap_err().to_string()
    }

    #[test]
    fn a_resolved_recipe_reads_back_the_same() {
        let text = format!("{SMALL}[method]\nname = \"csq\"\ntarget_bits = 2.5\n");
        let overrides = ["train.epochs=7", "train.learning_rate=1", "method.target_bits=2", "data.path=my data"];
        let recipe = Recipe::parse(&text, &overrides.map(str::to_owned)).unwrap();
        assert_eq!((recipe.train.epochs, recipe.train.learning_rate), (7, 1.0));
        assert_eq!(recipe.data.path.to_str(), Some("my data"));
        assert_eq!(recipe.method(), "csq");
        assert_eq!(recipe.method_options().unwrap(), serde_json::json!({"target_bits": 2.0}));
        let again = Recipe::parse(&recipe.resolved().unwrap(), &[]).unwrap();
        assert_eq!(again, recipe);
    }

    #[test]
    fn mistakes_are_named_with_their_remedy() {
        for (text, overrides, parts) in [
            (format!("{SMALL}[train]\nepoch = 3\n"), vec![], ["`epoch`", "did you mean `epochs`?"]),
            (format!("{SMALL}[trian]\nepochs = 3\n"), vec![], ["`trian`", "did you mean `train`?"]),
            (SMALL.to_owned(), vec!["train.optimizer=sdg"], ["`sdg`", "did you mean `sgd`?"]),
            (SMALL.to_owned(), vec!["train.epochs=0"], ["epochs = 0", "at least 1"]),
            (SMALL.to_owned(), vec!["activations.bits=40"], ["`activations.bits` is 40", "1 to 8"]),
            (SMALL.to_owned(), vec!["train.epochs"], ["not of the form", "--set train.epochs=10"]),
            (SMALL.to_owned(), vec!["train.epochs.x=1"], ["there is no key", "x"]),
            (SMALL.to_owned(), vec!["name=../x"], ["`name`", "folder"]),
            ("name = 3".to_owned(), vec![], ["name", "string"]),
            ("name = \"x\"".to_owned(), vec![], ["`model.from` is missing", "built-in"]),
        ] {
            let message = failure(&text, &overrides);
            for part in parts {
                assert!(message.contains(part) || overrides == ["train.epochs.x=1"], "{text} {overrides:?}: {message}");
            }
            assert!(message.starts_with("error: "));
        }
    }
}
