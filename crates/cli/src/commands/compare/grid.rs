//! The cases of a grid: recipes, one for each method, target, perturbation and seed.

use std::path::{Path, PathBuf};

use bitsmith_quant::methods::{METHODS, MethodEntry};
use toml::{Table, Value};

use super::{Args, suggest};
use crate::failure::Failure;
use crate::recipe::{self, Recipe};

/// Options that a comparison on equal terms holds equal, so other methods inherit them: what schemes are allowed, and how much of the
/// training goes into finding one.
const SHARED: [&str; 4] = ["edge_bits", "floor_bits", "per_channel", "search"];

/// One run of the grid.
#[derive(Debug, Clone)]
pub struct Case {
    /// What the runs of one curve have in common: method, sharpness.
    pub label: String,
    /// Mean bits asked for, where the method is asked.
    pub target: Option<f64>,
    /// The seed.
    pub seed: u64,
    /// The whole description.
    pub recipe: Recipe,
    /// Where the run lies.
    pub folder: PathBuf,
}

impl Case {
    /// As progress calls it.
    pub fn name(&self) -> String {
        let target = self.target.map_or(String::new(), |t| format!(" {t} bits"));
        format!("{}{target} seed {}", self.label, self.seed)
    }
}

/// Every case, in the order in which they run: seeds outermost, so that a first picture is there early.
pub fn cases(args: &Args, out: &Path) -> Result<Vec<Case>, Failure> {
    let known: Vec<&str> = METHODS.iter().map(|m| m.name).collect();
    if let Some(wrong) = args.methods.iter().find(|m| !known.contains(&m.as_str())) {
        return Err(Failure::usage(format!("there is no method `{wrong}`")).remedy(suggest::remedy(wrong, &known)));
    }
    if let Some(target) = args.targets.iter().find(|t| !(**t > 0.0 && **t <= 8.0)) {
        return Err(
            Failure::usage(format!("`--targets {target}` cannot be stored")).remedy("choose more than 0 and at most 8")
        );
    }
    let (of_method_alone, of_recipe): (Vec<String>, Vec<String>) =
        args.set.iter().cloned().partition(|text| method_option(text).is_some());
    let mut bases = vec![];
    for path in &args.recipes {
        let mut recipe = Recipe::read(path, &of_recipe)?;
        if let Some(data) = &args.data {
            recipe.data.path.clone_from(data);
        }
        if let Some(weights) = &args.weights {
            recipe.model.weights = Some(weights.clone());
        }
        bases.push(recipe);
    }
    let is_in_grid = |m: &&MethodEntry| match args.methods.is_empty() {
        true => bases.iter().any(|base| base.method() == m.name),
        false => args.methods.iter().any(|name| name == m.name),
    };
    let grid: Vec<&MethodEntry> = METHODS.iter().filter(is_in_grid).collect();
    let grid_options: Vec<&str> = grid.iter().flat_map(|m| (m.options)()).map(|o| o.name).collect();
    let unknown = of_method_alone.iter().filter_map(|text| method_option(text)).find(|o| !grid_options.contains(o));
    if let Some(option) = unknown {
        let names: Vec<&str> = grid.iter().map(|m| m.name).collect();
        return Err(Failure::usage(format!(
            "`--set method.{option}`: no method of {} has this option",
            names.join(", ")
        ))
        .remedy(suggest::remedy(option, &grid_options)));
    }
    let mut cases: Vec<Case> = vec![];
    for &seed in &args.seeds {
        for base in &bases {
            let methods = if args.methods.is_empty() { vec![base.method().to_owned()] } else { args.methods.clone() };
            for method in &methods {
                let Some(entry) = METHODS.iter().find(|m| m.name == method) else {
                    return Err(Failure::usage(format!("there is no method `{method}`"))
                        .remedy(suggest::remedy(method, &known)));
                };
                for case in of_method(args, &of_method_alone, base, entry, bases.len() > 1, seed, out)? {
                    // Methods without a target appear once, however many targets there are.
                    if !cases.iter().any(|known| known.folder == case.folder) {
                        cases.push(case);
                    }
                }
            }
        }
    }
    Ok(cases)
}

fn of_method(
    args: &Args,
    set: &[String],
    base: &Recipe,
    entry: &MethodEntry,
    several: bool,
    seed: u64,
    out: &Path,
) -> Result<Vec<Case>, Failure> {
    let targets: Vec<Option<f64>> = match args.targets.is_empty() {
        true => vec![None],
        false => args.targets.iter().copied().map(Some).collect(),
    };
    let perturbations: Vec<Option<f32>> = match args.sharpness.is_empty() {
        true => vec![None],
        false => args.sharpness.iter().copied().map(Some).collect(),
    };
    let mut cases = vec![];
    for &target in &targets {
        for &rho in &perturbations {
            let mut recipe = base.clone();
            recipe.seed = seed;
            recipe.method = method_table(base, entry, target, set)?;
            if let Some(rho) = rho {
                recipe.train.sharpness.rho = rho;
            }
            let mut label = entry.name.to_owned();
            if recipe.train.sharpness.rho > 0.0 {
                label += &format!("+saq{}", recipe.train.sharpness.rho);
            }
            if several {
                label = format!("{}:{label}", base.name);
            }
            let target = asked(&recipe.method);
            let suffix = target.map_or(String::new(), |t| format!("-{t}"));
            recipe.name = format!("{}{suffix}-seed{seed}", label.replace([':', '+'], "-"));
            let folder = out.join(&recipe.name);
            cases.push(Case { label, target, seed, recipe, folder });
        }
    }
    Ok(cases)
}

/// The option that `--set method.OPTION=VALUE` is about. A method's name is one of the recipe's values.
fn method_option(text: &str) -> Option<&str> {
    let option = text.split('=').next()?.trim().strip_prefix("method.")?.split('.').next()?;
    (option != "name").then_some(option)
}

/// The method's table: the recipe's own, or what another method takes of it; with what `set` says of options it has, and the target where
/// it has one.
fn method_table(base: &Recipe, entry: &MethodEntry, target: Option<f64>, set: &[String]) -> Result<Table, Failure> {
    let options: Vec<&str> = (entry.options)().iter().map(|o| o.name).collect();
    let mut table = match base.method() == entry.name {
        true => base.method.clone(),
        false => {
            let inherited = base.method.iter().filter(|(key, _)| SHARED.contains(&key.as_str()));
            inherited.filter(|(key, _)| options.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect()
        }
    };
    table.insert("name".to_owned(), Value::String(entry.name.to_owned()));
    for text in set.iter().filter(|text| method_option(text).is_some_and(|option| options.contains(&option))) {
        recipe::set(&mut table, text.trim_start().trim_start_matches("method."))?;
    }
    let Some(target) = target else { return Ok(table) };
    if options.contains(&"target_bits") {
        table.insert("target_bits".to_owned(), Value::Float(target));
    } else if options.contains(&"weight_bits") {
        if target.fract() != 0.0 {
            return Err(Failure::usage(format!("{} has one width for all layers, so {target} bits", entry.name))
                .remedy("give it whole numbers in a grid of its own"));
        }
        table.insert("weight_bits".to_owned(), Value::Integer(target as i64));
    }
    Ok(table)
}

/// The mean bits that a method's table asks for.
fn asked(table: &Table) -> Option<f64> {
    let number = |key: &str| match table.get(key) {
        Some(Value::Float(v)) => Some(*v),
        Some(Value::Integer(v)) => Some(*v as f64),
        _ => None,
    };
    number("target_bits").or_else(|| number("weight_bits"))
}
