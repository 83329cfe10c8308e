//! The smallest program around the runtime: loads a packed file, runs one sample, says how long both took.
//!
//! ```console
//! $ cargo build --profile small -p bitsmith-runtime --example run
//! $ target/small/examples/run model.bitsmith
//! ```

use std::io::Write;
use std::time::Instant;

use bitsmith_runtime::{Session, SessionOptions, packed};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args().nth(1).ok_or("usage: run model.bitsmith")?;
    let began = Instant::now();
    let model = packed::read(path.as_ref())?;
    let session = Session::new(&model, SessionOptions::default())?;
    // The session has packed the weights; nothing but the name is needed of the model any more.
    let name = model.name().to_owned();
    drop(model);
    let input = session.graph().inputs().first().ok_or("the model has no input")?;
    let x = vec![0.5; input.shape(1).iter().product()];
    let y = session.run(&x, 1)?;
    // Not `println!`, which panics where nobody reads.
    let mut out = std::io::stdout();
    writeln!(out, "{name}: loaded and run once in {:.1} ms", began.elapsed().as_secs_f64() * 1e3)?;
    let runs = 100;
    let began = Instant::now();
    for _ in 0..runs {
        session.run(&x, 1)?;
    }
    writeln!(
        out,
        "{:.3} ms per run; {} outputs, the first {:?}",
        began.elapsed().as_secs_f64() * 1e3 / f64::from(runs),
        y.len(),
        y.first()
    )?;
    Ok(())
}
