//! What a MODEL argument means: a file of any known format, or the name of a built-in architecture.

use std::path::{Path, PathBuf};

use bitsmith_graph::zoo::{self, ZooOptions};
use bitsmith_graph::{Model, QuantModel};

use crate::failure::{Explain, Failure};
use crate::{forge, suggest};

/// MODEL and what goes with it, as several commands take it.
#[derive(Debug, Clone, clap::Args)]
pub struct ModelArgs {
    /// A model file (.bitsmith, .onnx), the folder of a run, or a built-in name (resnet20, squeezenet1_1, cnn, …)
    pub model: String,
    /// Weights of a built-in model, as safetensors; random ones without
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,
    /// Classes of a built-in model [default: the architecture's own]
    #[arg(long, value_name = "N")]
    pub classes: Option<usize>,
    /// Height and width of a built-in model's images [default: the architecture's own]
    #[arg(long, value_name = "PIXELS")]
    pub image_size: Option<usize>,
}

/// What a built-in architecture is built for, where it is not its own default.
#[derive(Debug, Clone, Copy, Default)]
pub struct BuiltFor {
    /// Number of classes.
    pub classes: Option<usize>,
    /// Height and width of images.
    pub image_size: Option<usize>,
    /// Draws the weights of a model that gets none.
    pub seed: u64,
}

/// An opened model.
#[derive(Debug, Clone)]
pub enum Opened {
    /// Float weights, on their way to integers or back.
    Float(Model),
    /// Integers.
    Packed(QuantModel),
}

impl ModelArgs {
    /// Opens the model. `seed` draws the weights of a built-in one that gets none.
    pub fn open(&self, seed: u64) -> Result<Opened, Failure> {
        let built_for = BuiltFor { classes: self.classes, image_size: self.image_size, seed };
        open(&self.model, self.weights.as_deref(), &built_for)
    }

    /// Whether this is a built-in architecture with random weights.
    pub fn is_random(&self) -> bool {
        self.weights.is_none() && zoo::names().any(|n| n == self.model)
    }
}

impl Opened {
    /// The float model, or why there is none.
    pub fn into_float(self, what_for: &str) -> Result<Model, Failure> {
        match self {
            Opened::Float(model) => Ok(model),
            Opened::Packed(_) => Err(Failure::new(format!("{what_for} needs a float model, but this one is packed"))
                .remedy("give the ONNX file or built-in model that it was made from")),
        }
    }

    /// The name inside the file.
    pub fn name(&self) -> &str {
        match self {
            Opened::Float(model) => &model.name,
            Opened::Packed(model) => model.name(),
        }
    }
}

/// The file that a MODEL argument means: of a run's folder, the packed model in it.
pub fn file_of(model: &str) -> PathBuf {
    let inside = Path::new(model).join(forge::PACKED);
    if inside.is_file() { inside } else { PathBuf::from(model) }
}

/// Opens a file or builds an architecture.
pub fn open(model: &str, weights: Option<&Path>, built_for: &BuiltFor) -> Result<Opened, Failure> {
    let path = file_of(model);
    let path = path.as_path();
    let is_built_in = zoo::names().any(|name| name == model);
    if is_built_in && !path.is_file() {
        let BuiltFor { classes, image_size, seed } = *built_for;
        let input = image_size.zip(zoo::input(model)).map(|(size, [channels, ..])| [channels, size, size]);
        let mut built = zoo::build(model, &ZooOptions { classes, input, seed })?;
        if let Some(weights) = weights {
            check_file(weights)?;
            bitsmith_formats::safetensors::load_into(&mut built, weights)
                .context(|| format!("cannot load `{}` into {model}", weights.display()))?;
        }
        return Ok(Opened::Float(built));
    }
    if !path.exists() {
        let names: Vec<&str> = zoo::names().collect();
        let looks_like_a_file = model.contains(['/', '\\']) || path.extension().is_some();
        return Err(match looks_like_a_file {
            true => Failure::new(format!("there is no file `{model}`")).remedy("check the path"),
            false => Failure::new(format!("`{model}` is neither a file nor a built-in model"))
                .remedy(suggest::remedy(model, &names)),
        });
    }
    check_file(path)?;
    if weights.is_some() {
        return Err(Failure::usage(format!("`{model}` is a file and brings its own weights"))
            .remedy("leave out --weights, or give the name of a built-in model"));
    }
    if built_for.image_size.is_some() {
        return Err(Failure::usage(format!("`{model}` is a file, whose image size is in it"))
            .remedy("leave out the image size, or give the name of a built-in model"));
    }
    if is_packed(path)? {
        return Ok(Opened::Packed(bitsmith_runtime::packed::read(path).context(|| format!("cannot read `{model}`"))?));
    }
    let opened = bitsmith_formats::open(path).context(|| format!("cannot read `{model}`"))?;
    Ok(Opened::Float(opened))
}

/// Refuses folders and files that are not there, by name.
fn check_file(path: &Path) -> Result<(), Failure> {
    let found =
        std::fs::metadata(path).context(|| format!("cannot read `{}`", path.display())).remedy("check the path")?;
    match found.is_dir() {
        true => Err(Failure::new(format!("`{}` is a folder, but a model is one file", path.display()))
            .remedy("name the file inside it")),
        false => Ok(()),
    }
}

/// Whether a file is packed: by its extension, or by its first bytes where it has another.
fn is_packed(path: &Path) -> Result<bool, Failure> {
    use std::io::Read;
    if path.extension().is_some_and(|e| e == "bitsmith") {
        return Ok(true);
    }
    let mut start = Vec::new();
    let file = std::fs::File::open(path).context(|| format!("cannot read `{}`", path.display()))?;
    file.take(4096).read_to_end(&mut start)?;
    Ok(bitsmith_runtime::packed::is_packed(&start))
}
