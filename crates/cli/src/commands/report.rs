//! `bitsmith report RUN`: makes a run's page again, also while it is still training.

use std::path::PathBuf;

use serde_json::json;

use super::{Context, Outcome};
use crate::failure::Failure;
use crate::report::{self, ReportData};
use crate::{events, files};

/// Make one self-contained HTML page about a run
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith report runs/demo
  bitsmith report runs/cifar10-resnet20-csq3 --out page.html   (works while the run is still training)")]
pub struct Args {
    /// The folder of a run
    run: PathBuf,
    /// Where to write the page [default: report.html in the run's folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let data = ReportData::from_events(&events::read(&args.run)?);
    let path = args.out.clone().unwrap_or_else(|| args.run.join(report::FILE_NAME));
    let page = report::render(&data);
    files::write(&path, page.as_bytes())?;
    let value = json!({ "report": path, "epochs": data.epochs.len(), "bytes": page.len() });
    context.out.result(&value, || format!("{}\n", path.display()))?;
    Ok(Outcome::Done)
}
