//! What a model may cost, in words: `bits=2.5`, `bytes=80kB`, `bops=4G`, `latency=1.2ms`. A searching method understands mean bits, or a cost
//! of every layer at every width in which 8 bits everywhere are 8 "bits"; all other budgets become one of these.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use bitsmith_graph::{Model, QuantModel};
use bitsmith_quant::blocks::budget::{Count, Weighting};
use bitsmith_quant::blocks::cost::{BitOperations, CostModel, Costs, LayerShape, WeightBits};
use serde_json::json;

use crate::commands::Context;
use crate::events::LayerRow;
use crate::failure::Failure;
use crate::latency::{self, Latencies};
use crate::{files, suggest, table};

/// The file of a run's folder that keeps what was measured when it began.
pub const LATENCIES: &str = "latency.json";

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Mean stored bits of a weight.
    Bits(f64),
    /// Bytes of the packed file.
    Bytes(f64),
    /// Bit operations for a sample: multiply-accumulates times bits of weights times bits of activations.
    BitOperations(f64),
    /// Seconds of a run of one sample on this machine.
    Latency(f64),
}

const KINDS: [&str; 4] = ["bits", "bytes", "bops", "latency"];

/// Units of each kind, with what they are.
fn units(kind: &str) -> &'static [(&'static str, f64)] {
    match kind {
        "bytes" => &[("kB", 1e3), ("MB", 1e6), ("B", 1.0), ("", 1.0)],
        "bops" => &[("M", 1e6), ("G", 1e9), ("T", 1e12), ("", 1.0)],
        "latency" => &[("ms", 1e-3), ("us", 1e-6), ("µs", 1e-6), ("s", 1.0)],
        _ => &[("", 1.0)],
    }
}

impl FromStr for Budget {
    type Err = Failure;

    fn from_str(text: &str) -> Result<Self, Failure> {
        let form = "for example bits=2.5, bytes=80kB, bops=4G or latency=1.2ms";
        let bad = |what: String| Failure::usage(what).remedy(form);
        let Some((kind, amount)) = text.split_once('=') else {
            return Err(bad(format!("the budget `{text}` is not of the form KIND=AMOUNT")));
        };
        let (kind, amount) = (kind.trim(), amount.trim());
        if !KINDS.contains(&kind) {
            return Err(Failure::usage(format!("there is no budget of `{kind}`")).remedy(suggest::remedy(kind, &KINDS)));
        }
        let number = amount.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
        let unit = amount[number.len()..].trim();
        let known = units(kind);
        let factor = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).map(|(_, factor)| *factor);
        let (Ok(number), Some(factor)) = (number.parse::<f64>(), factor) else {
            let names: Vec<&str> =
                known.iter().map(|(name, _)| if name.is_empty() { "no unit" } else { name }).collect();
            return Err(bad(format!("`{amount}` is no amount of {kind}: a number, then {}", names.join(" or "))));
        };
        let value = number * factor;
        if !(value > 0.0 && value.is_finite()) {
            return Err(bad(format!("a budget of {text} leaves nothing")));
        }
        Ok(match kind {
            "bits" if value > 8.0 => return Err(bad(format!("{text}: a weight has at most 8 bits"))),
            "bits" => Budget::Bits(value),
            "bytes" => Budget::Bytes(value),
            "bops" => Budget::BitOperations(value),
            _ => Budget::Latency(value),
        })
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.amount(self.limit()))
    }
}

/// A budget as a method understands it.
#[derive(Debug, Clone, PartialEq)]
pub struct Terms {
    /// `target_bits`.
    pub target: f64,
    /// `weighting`.
    pub weighting: Weighting,
    /// What layers cost, where that is the weighting.
    pub costs: Option<Costs>,
}

impl Budget {
    /// How much it is, in its own unit.
    fn limit(self) -> f64 {
        match self {
            Budget::Bits(v) | Budget::Bytes(v) | Budget::BitOperations(v) | Budget::Latency(v) => v,
        }
    }

    /// An amount of what is limited, with its unit.
    fn amount(self, value: f64) -> String {
        match self {
            Budget::Bits(_) => format!("{value:.3} bits"),
            Budget::Bytes(_) => table::bytes(value.round() as u64),
            Budget::BitOperations(_) => format!("{} bit operations", table::short(value.round() as u64)),
            Budget::Latency(_) => format!("{:.3} ms", value * 1e3),
        }
    }

    /// What methods are to be told for this network, whose activations are calibrated. Latencies that a run began with stay with
    /// it, in its folder; a run that goes on reads them there.
    pub fn terms(self, model: &Model, folder: &Path, resume: bool, context: &Context) -> Result<Terms, Failure> {
        let (rest, costs) = match self {
            Budget::Bits(target) => return Ok(Terms { target, weighting: Weighting::Size, costs: None }),
            Budget::Bytes(_) => bytes(model)?,
            Budget::BitOperations(_) => (0.0, costs(model, &BitOperations)?),
            Budget::Latency(_) => {
                let latencies = latencies(model, folder, resume, context)?;
                (latencies.rest, latencies.layers)
            }
        };
        self.within(rest, costs)
    }

    /// The terms of layers that cost this, beside a rest that nothing changes.
    fn within(self, rest: f64, costs: Costs) -> Result<Terms, Failure> {
        let limit = self.limit();
        let at = |bits: usize| costs.values().map(|layer| layer[bits]).sum::<f64>();
        if limit <= rest + at(2) {
            return Err(Failure::usage(format!(
                "a budget of {self} cannot be met: with 2 bits everywhere the model takes {}, {} of it beside the weights of layers (with 8 bits: {})",
                self.amount(rest + at(2)),
                self.amount(rest),
                self.amount(rest + at(8))
            ))
            .remedy("allow more"));
        }
        let target = (8.0 * (limit - rest) / at(8).max(f64::MIN_POSITIVE)).min(8.0);
        Ok(Terms { target, weighting: Weighting::Cost, costs: Some(costs) })
    }

    /// What a packed model takes of it, and by how much it misses it, if it does.
    pub fn spent(self, model: &QuantModel, layers: &[LayerRow], bytes: u64) -> Result<Spent, Failure> {
        let value = match self {
            Budget::Bits(_) => crate::layers::mean_stored_bits(layers),
            Budget::Bytes(_) => bytes as f64,
            Budget::BitOperations(_) => layers.iter().map(|l| l.macs as f64 * l.stored_bits * l.activation_bits).sum(),
            Budget::Latency(_) => latency::of_packed(model, 1)?,
        };
        // Two measurements of one time differ by some percent; everything else is counted.
        let slack = if matches!(self, Budget::Latency(_)) { 1.03 } else { 1.0 + 1e-9 };
        Ok(Spent { budget: self, value, is_met: value <= self.limit() * slack })
    }
}

/// What became of a budget.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spent {
    budget: Budget,
    value: f64,
    /// Whether it holds.
    pub is_met: bool,
}

impl Spent {
    /// For scripts.
    pub fn json(&self) -> serde_json::Value {
        json!({ "budget": self.budget.limit(), "spent": self.value, "met": self.is_met })
    }
}

impl fmt::Display for Spent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (amount, by) = (self.budget.amount(self.value), 100.0 * (self.value / self.budget.limit() - 1.0));
        match self.is_met {
            true => write!(f, "{amount} of a budget of {}", self.budget),
            false => write!(f, "the budget of {} is missed by {by:.1} %: {amount}", self.budget),
        }
    }
}

/// Measures, or reads what was measured when the run began.
fn latencies(model: &Model, folder: &Path, resume: bool, context: &Context) -> Result<Latencies, Failure> {
    let path = folder.join(LATENCIES);
    if resume && path.exists() {
        return latency::read_run(&path);
    }
    let measured = latency::measure(model, 1, false, context)?.latencies;
    files::write(&path, &serde_json::to_vec_pretty(&measured)?)?;
    // As a run that goes on will read it: numbers may lose a bit on their way through text.
    latency::read_run(&path)
}

/// Bytes of the file that layers take, and those that it has besides.
fn bytes(model: &Model) -> Result<(f64, Costs), Failure> {
    let mut costs = costs(model, &WeightBits)?;
    costs.values_mut().flatten().for_each(|bits| *bits /= 8.0);
    let all = bitsmith_runtime::packed::sizes(&latency::uniform(model, 8)?)?.total as f64;
    let weights: f64 = costs.values().map(|layer| layer[8]).sum();
    // Codes of layers begin at whole words, and the list of layers is text.
    Ok((all - weights + 64.0 + 4.0 * costs.len() as f64, costs))
}

/// What layers cost at each width, with their activations as they are.
fn costs(model: &Model, cost: &dyn CostModel) -> Result<Costs, Failure> {
    let mut costs = Costs::new();
    for layer in model.layers()? {
        let site = model.activation_of(&layer).and_then(|id| model.sites.get(&id));
        let activation_bits = site.map_or(32.0, |site| f32::from(site.spec.bits));
        let shape = LayerShape { weights: layer.weights, macs: layer.macs };
        // A code has a sign besides its planes.
        let at = |bits: usize| cost.layer(&shape, Count::Stored.bits(bits.saturating_sub(1)) as f32, activation_bits);
        costs.insert(model.graph.value(layer.weight).name.clone(), std::array::from_fn(at));
    }
    Ok(costs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_read_with_their_units() {
        let read = |text: &str| text.parse::<Budget>().unwrap();
        assert_eq!(read("bits=2.5"), Budget::Bits(2.5));
        assert_eq!((read("bytes=80kB"), read("bytes = 80000")), (Budget::Bytes(8e4), Budget::Bytes(8e4)));
        assert_eq!(read("bops=4G"), Budget::BitOperations(4e9));
        assert_eq!((read("latency=1.5 ms"), read("latency=500us")), (Budget::Latency(1.5e-3), Budget::Latency(500e-6)));
        assert_eq!(read("latency=1.5ms").to_string(), "1.500 ms");
        for (text, part) in [
            ("latency", "KIND=AMOUNT"),
            ("latenci=2ms", "did you mean `latency`?"),
            ("latency=2", "ms or us"),
            ("latency=fast", "`fast` is no amount"),
            ("bytes=0", "leaves nothing"),
            ("bits=9", "at most 8 bits"),
            ("bits=-2", "leaves nothing"),
        ] {
            let message = text.parse::<Budget>().unwrap_err().to_string();
            assert!(message.contains(part), "{text}: {message}");
        }
    }

    #[test]
    fn limits_become_targets() {
        let costs: Costs = [("a".to_owned(), std::array::from_fn(|b| b as f64)), ("b".to_owned(), [3.0; 9])].into();
        let terms = |limit| Budget::Latency(limit).within(1.0, costs.clone());
        // 11 at 8 bits, besides a rest of 1.
        assert_eq!(terms(12.0).unwrap().target, 8.0);
        assert_eq!(terms(100.0).unwrap().target, 8.0);
        assert!((terms(6.5).unwrap().target - 4.0).abs() < 1e-12);
        let message = terms(5.0).unwrap_err().to_string();
        assert!(message.contains("cannot be met") && message.contains("6000.000 ms"), "{message}");
    }
}
