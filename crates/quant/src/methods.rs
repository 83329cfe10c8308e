//! The methods, one file each, and the table that names them.

pub mod adaqat;
pub mod bsq;
pub mod csq;
pub mod dorefa;
pub mod float;
pub mod fracbits;
pub mod fractional;
pub mod lsq;
pub mod pdqat;
pub mod sdq;

use bitsmith_engine::Device;
use bitsmith_graph::Model;

use crate::error::Error;
use crate::method::Method;
use crate::options::{OptionDoc, Options};
use crate::train::data::Batch;
use crate::train::options::TrainOptions;
use crate::train::{Context, Outcome, Timed, steps_json, train_json};

/// Trains a model by a method whose options are JSON (null: defaults).
pub type Train = fn(Model, &serde_json::Value, &TrainOptions, &mut Context<'_>) -> Result<Outcome, Error>;

/// Gives steps on one batch, in the middle of a phase, to whoever times them.
pub type Steps =
    fn(Model, &serde_json::Value, &TrainOptions, Device, &Batch, usize, &mut Timed<'_>) -> Result<(), Error>;

/// A method as the command line and the documentation see it.
#[derive(Debug, Clone, Copy)]
pub struct MethodEntry {
    /// What recipes call it.
    pub name: &'static str,
    /// One line.
    pub summary: &'static str,
    /// Its options with help and defaults.
    pub options: fn() -> Vec<OptionDoc>,
    /// Whether these options are acceptable, before any data is read.
    pub check: fn(&serde_json::Value) -> Result<(), Error>,
    /// Runs it.
    pub train: Train,
    /// Runs single steps of it, for benchmarks.
    pub steps: Steps,
}

const fn entry<M: Method>() -> MethodEntry {
    MethodEntry {
        name: M::NAME,
        summary: M::SUMMARY,
        options: M::Options::docs,
        check: |options| M::new(M::Options::from_json(options)?).map(|_| ()),
        train: train_json::<M>,
        steps: steps_json::<M>,
    }
}

/// Every method.
pub const METHODS: &[MethodEntry] = &[
    entry::<adaqat::AdaQat>(),
    entry::<bsq::Bsq>(),
    entry::<csq::Csq>(),
    entry::<dorefa::Dorefa>(),
    entry::<float::Float>(),
    entry::<fracbits::FracBits>(),
    entry::<lsq::Lsq>(),
    entry::<pdqat::PdQat>(),
    entry::<sdq::Sdq>(),
];

/// A method by name, or an error that lists those there are.
pub fn find(name: &str) -> Result<&'static MethodEntry, Error> {
    METHODS.iter().find(|m| m.name == name).ok_or_else(|| {
        let known: Vec<_> = METHODS.iter().map(|m| m.name).collect();
        Error::option(format!("there is no method `{name}`; there are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::activations::ActivationWidths;
    use crate::train::options::TrainOptions;
    use crate::train::sharpness::SharpnessOptions;

    /// Options of training that are tables of their own.
    const SECTIONS: [&str; 2] = ["sharpness", "activation_widths"];

    fn table(options: &[OptionDoc]) -> String {
        let row = |o: &OptionDoc| format!("| `{}` | {} | {} |\n", o.name, o.default.replace('|', "\\|"), o.help);
        format!("| key | default | meaning |\n|---|---|---|\n{}", options.iter().map(row).collect::<String>())
    }

    /// The page that lists every option, made from the code; kept in the repository so that it can be read without building.
    #[test]
    fn the_page_of_options_is_as_stored() {
        let mut page = String::from(
            "# Options of every method\n\nMade from the code by the tests (`BITSMITH_UPDATE_GOLDENS=1 cargo test`). In a recipe, a method's options stand under \
             `[method]` beside its `name`.\n",
        );
        for method in METHODS {
            page += &format!("\n## {}\n\n{}.\n", method.name, capitalised(method.summary));
            let options = (method.options)();
            if !options.is_empty() {
                page += &format!("\n{}", table(&options));
            }
        }
        page += "\n## Training: `[train]`\n\n";
        page += &table(&TrainOptions::docs().into_iter().filter(|o| !SECTIONS.contains(&o.name)).collect::<Vec<_>>());
        page += "\n## Sharpness-aware steps: `[train.sharpness]`\n\n";
        page += &table(&SharpnessOptions::docs());
        page += "\n## Widths of activations that differ: `[train.activation_widths]`\n\n";
        page += &table(&ActivationWidths::docs());
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/methods/options.md");
        if std::env::var_os("BITSMITH_UPDATE_GOLDENS").is_some() {
            std::fs::write(&path, &page).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == page, "docs/methods/options.md differs: run with BITSMITH_UPDATE_GOLDENS=1");
    }

    fn capitalised(text: &str) -> String {
        let mut letters = text.chars();
        letters.next().map_or(String::new(), |first| first.to_uppercase().collect::<String>() + letters.as_str())
    }
}
