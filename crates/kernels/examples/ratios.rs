//! How many times as fast as its reference every kernel is, against stored ratios:
//! `cargo run --release -p bitsmith-kernels --example ratios -- [--isa LEVEL] [--figures FOLDER] [--write] [FILTER]`.
//!
//! Both versions run in turn in one process on one thread, in several passes over all kernels, and the shortest round of each counts:
//! whoever else keeps the machine busy must do so for the whole run to be seen. What falls below 70 % of its stored ratio is measured
//! again for twice as long; if it stays below, the program ends with 1. `--write` stores what was measured instead. Figures
//! lie in `benches/ratios/LEVEL.txt`; a level or case without one cannot fail.

#[path = "../benches/cases/mod.rs"]
mod cases;

use bitsmith_kernels::isa::{self, Isa, Level};
use cases::{Case, Side};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// The share of a stored ratio below which a kernel counts as slower: two runs on a busy machine differ by up to a quarter.
const TOLERATED: f64 = 0.7;
/// Passes over all kernels.
const PASSES: usize = 3;
/// Rounds of each kernel per pass.
const ROUNDS: usize = 4;
/// How long one version runs per round, at least one call.
const SLICE_SECONDS: f64 = 2e-3;
/// Images per call of the reference and of the fast version: few, so that calls are short and some are not interrupted.
const IMAGES: [usize; 2] = [1, 8];

const USAGE: &str = "usage: ratios [--isa portable|neon|avx2|avx512] [--figures FOLDER] [--write] [FILTER]";

struct Options {
    levels: Vec<Isa>,
    figures: PathBuf,
    writes: bool,
    filter: String,
}

fn main() -> ExitCode {
    let options = match parse(std::env::args().skip(1)) {
        Ok(options) => options,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // One thread: a ratio must not depend on who else uses the other cores.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool of one thread");
    match pool.install(|| run(&options)) {
        Ok(slower) if slower.is_empty() => ExitCode::SUCCESS,
        Ok(slower) => {
            println!("\nslower than stored, twice in a row:");
            slower.iter().for_each(|name| println!("  {name}"));
            ExitCode::FAILURE
        }
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Options, String> {
    let figures = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/ratios");
    let mut options = Options { levels: Isa::available().collect(), figures, writes: false, filter: String::new() };
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--write" => options.writes = true,
            "--isa" => {
                let name = arguments.next().ok_or("--isa wants a level")?;
                let level = Level::from_name(&name).ok_or(format!("no level is called `{name}`"))?;
                options.levels = vec![Isa::new(level).ok_or(format!("this processor has no {name}"))?];
            }
            "--figures" => options.figures = arguments.next().ok_or("--figures wants a folder")?.into(),
            other if other.starts_with('-') => return Err(format!("unknown option `{other}`")),
            filter => options.filter = filter.into(),
        }
    }
    Ok(options)
}

/// Measures and prints; returns the names of what became slower.
fn run(options: &Options) -> Result<Vec<String>, String> {
    let cases = cases::all();
    let chosen: Vec<&Case> = cases.iter().filter(|case| name(case).contains(&options.filter)).collect();
    let mut slower = Vec::new();
    print_row(
        ["kernel", "shape", "isa", "reference ms", "fast ms", "G/s", "ratio", "stored", "verdict"].map(String::from),
    );
    for isa in &options.levels {
        let level = isa::force(isa.level()).expect("an available level").level().name();
        let path = options.figures.join(format!("{level}.txt"));
        let mut stored = match std::fs::read_to_string(&path) {
            Ok(text) => read(&text).map_err(|line| format!("{}: line {line} is no figure", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(format!("{}: {error}", path.display())),
        };
        let mut all = measure(&chosen, if options.writes { 2 * PASSES } else { PASSES });
        let verdict =
            |case: &Case, measured: &Measured| Verdict::of(measured.ratio(), stored.get(&name(case)).copied());
        if !options.writes {
            let is_slow = |&i: &usize| verdict(chosen[i], &all[i]) == Verdict::Slower;
            let suspects: Vec<usize> = (0..chosen.len()).filter(is_slow).collect();
            let again = measure(&suspects.iter().map(|&i| chosen[i]).collect::<Vec<_>>(), 2 * PASSES);
            suspects.into_iter().zip(again).for_each(|(i, measured)| all[i] = measured);
        }
        for (&case, measured) in chosen.iter().zip(&all) {
            let verdict = verdict(case, measured);
            if verdict == Verdict::Slower && !options.writes {
                slower.push(format!("{level}: {}", name(case)));
            }
            print_row([
                case.kernel.into(),
                case.shape.clone(),
                level.into(),
                format!("{:.4}", measured.reference * 1e3),
                format!("{:.4}", measured.fast * 1e3),
                format!("{:.2}", case.work as f64 / measured.fast / 1e9),
                short(measured.ratio()),
                stored.get(&name(case)).map_or("-".into(), |&figure| short(figure)),
                if options.writes { "written" } else { verdict.text() }.into(),
            ]);
        }
        if options.writes {
            stored.extend(chosen.iter().zip(&all).map(|(case, measured)| (name(case), measured.ratio())));
            std::fs::create_dir_all(&options.figures)
                .and_then(|()| std::fs::write(&path, write(&cases, &stored)))
                .map_err(|error| format!("{}: {error}", path.display()))?;
        }
    }
    Ok(slower)
}

fn print_row([kernel, shape, isa, reference, fast, speed, ratio, stored, verdict]: [String; 9]) {
    println!(
        "{kernel:<30} {shape:<26} {isa:<8} {reference:>12} {fast:>9} {speed:>7} {ratio:>6} {stored:>6}  {verdict}"
    );
}

/// Seconds per image.
#[derive(Clone)]
struct Measured {
    reference: f64,
    fast: f64,
}

impl Measured {
    /// How many times as fast as the reference.
    fn ratio(&self) -> f64 {
        self.reference / self.fast
    }
}

/// The shortest rounds of both versions of every case, which take turns.
fn measure(cases: &[&Case], passes: usize) -> Vec<Measured> {
    let mut all = vec![Measured { reference: f64::INFINITY, fast: f64::INFINITY }; cases.len()];
    for _ in 0..passes {
        for (case, best) in cases.iter().zip(&mut all) {
            let mut runs = [case.prepare(Side::Reference, IMAGES[0]), case.prepare(Side::Fast, IMAGES[1])];
            // The first call touches memory that is new, the second says how many calls fill a round.
            let calls = runs.each_mut().map(|run| {
                run();
                (SLICE_SECONDS / seconds(run, 1)).clamp(1.0, 1e6) as usize
            });
            for _ in 0..ROUNDS {
                for (i, best) in [&mut best.reference, &mut best.fast].into_iter().enumerate() {
                    *best = best.min(seconds(&mut runs[i], calls[i]) / IMAGES[i] as f64);
                }
            }
        }
    }
    all
}

/// Seconds of one of so many calls.
fn seconds(run: &mut dyn FnMut(), calls: usize) -> f64 {
    let start = Instant::now();
    (0..calls).for_each(|_| run());
    start.elapsed().as_secs_f64().max(1e-9) / calls as f64
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Same,
    Slower,
    Faster,
    NoFigure,
}

impl Verdict {
    fn of(ratio: f64, stored: Option<f64>) -> Verdict {
        match stored {
            None => Verdict::NoFigure,
            // Written so that NaN is slower.
            Some(stored) if ratio >= TOLERATED * stored => {
                if ratio * TOLERATED > stored {
                    Verdict::Faster
                } else {
                    Verdict::Same
                }
            }
            Some(_) => Verdict::Slower,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Verdict::Same => "ok",
            Verdict::Slower => "SLOWER",
            Verdict::Faster => "faster: --write it",
            Verdict::NoFigure => "no stored figure",
        }
    }
}

/// Kernel and shape, what figures are stored under.
fn name(case: &Case) -> String {
    format!("{} {}", case.kernel, case.shape)
}

/// Three digits.
fn short(ratio: f64) -> String {
    let decimals = if ratio < 10.0 { 2 } else { usize::from(ratio < 100.0) };
    format!("{ratio:.decimals$}")
}

/// A figure per line, then its name; lines that begin with `#` say something. Returns the number of a line that does neither.
fn read(text: &str) -> Result<BTreeMap<String, f64>, usize> {
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with('#') && !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            let (figure, name) = line.trim().split_once(' ').ok_or(number + 1)?;
            let figure: f64 = figure.parse().map_err(|_| number + 1)?;
            if figure.is_finite() && figure > 0.0 { Ok((name.trim().to_string(), figure)) } else { Err(number + 1) }
        })
        .collect()
}

/// What [`read`] reads, in the order of the table; figures of cases that are gone are dropped.
fn write(cases: &[Case], figures: &BTreeMap<String, f64>) -> String {
    let mut text = "# How many times as fast as its reference each kernel is, on one thread.\n\
                    # `cargo run --release -p bitsmith-kernels --example ratios -- --write` writes this file.\n"
        .to_string();
    for name in cases.iter().map(name) {
        if let Some(&figure) = figures.get(&name) {
            text += &format!("{:>8}  {name}\n", short(figure));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_round_trip() {
        let cases = cases::all();
        let figures: BTreeMap<String, f64> =
            cases.iter().zip(1..).map(|(case, i)| (name(case), f64::from(i) * 0.5)).collect();
        assert_eq!(figures.len(), cases.len(), "two cases have one name");
        let text = write(&cases, &figures);
        assert_eq!(write(&cases, &read(&text).unwrap()), text);
        assert_eq!(read("# a word\n\n 2.5  conv/forward 3x3\n"), Ok([("conv/forward 3x3".into(), 2.5)].into()));
        for (text, line) in [("x conv", 1), ("1.0 a\n2.0", 2), ("-1 a", 1), ("NaN a", 1)] {
            assert_eq!(read(text), Err(line), "{text}");
        }
    }

    /// A kernel that was renamed takes its figures along.
    #[test]
    fn every_stored_figure_names_a_case() {
        let names: Vec<String> = cases::all().iter().map(name).collect();
        for level in Level::ALL {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("benches/ratios/{}.txt", level.name()));
            let Ok(text) = std::fs::read_to_string(path) else { continue };
            let stale: Vec<String> = read(&text).unwrap().into_keys().filter(|name| !names.contains(name)).collect();
            assert!(stale.is_empty(), "{}: {stale:?}", level.name());
        }
    }

    #[test]
    fn verdicts() {
        for (ratio, stored, verdict) in [
            (10.0, Some(10.0), Verdict::Same),
            (7.1, Some(10.0), Verdict::Same),
            (6.9, Some(10.0), Verdict::Slower),
            (f64::NAN, Some(10.0), Verdict::Slower),
            (15.0, Some(10.0), Verdict::Faster),
            (1.0, None, Verdict::NoFigure),
        ] {
            assert_eq!(Verdict::of(ratio, stored), verdict, "{ratio} {stored:?}");
        }
    }

    #[test]
    fn options() {
        let parse = |line: &str| parse(line.split_whitespace().map(String::from));
        let options = parse("--isa portable --write --figures here conv/").unwrap();
        assert!(options.writes && options.filter == "conv/" && options.figures == Path::new("here"));
        assert_eq!(options.levels, [Isa::new(Level::Portable).unwrap()]);
        assert!(parse("--isa mmx").is_err() && parse("--isa").is_err() && parse("--fast").is_err());
    }
}
