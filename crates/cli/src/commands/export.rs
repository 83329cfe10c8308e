//! `bitsmith export MODEL --to FORMAT`: files that others can read, with a table of what each layer became.

use std::path::{Path, PathBuf};

use bitsmith_formats::onnx;
use clap::ValueEnum;
use serde_json::json;

use super::{Context, Outcome};
use crate::failure::{Explain, Failure};
use crate::files;
use crate::models::{ModelArgs, Opened};
use crate::table::{Table, bytes};

/// Write a model in a format that others can read
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  bitsmith export runs/demo/model.bitsmith --to onnx --out model.onnx
  bitsmith export model.bitsmith --to onnx --target opset25      (2-bit types for the narrowest layers)
  bitsmith export resnet20 --weights w.safetensors --to onnx     (a float file)
  bitsmith export model.bitsmith --to safetensors                (decoded floats under their usual names)

A packed model becomes ONNX with QuantizeLinear and DequantizeLinear around each layer; each weight is stored in the narrowest
standard type that holds it: 8 bits everywhere, 4 bits from opset 21, 2 bits from opset 25.

JSON: {file, bytes, opset, layers: [{name, learned_bits, stored_bits, type, arithmetic}]}.")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The format
    #[arg(long, value_enum)]
    to: Format,
    /// Where to write [default: the model's name in the current folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// What will read the ONNX file
    #[arg(long, value_enum, default_value_t = Target::Opset21)]
    target: Target,
}

/// A format to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// ONNX
    Onnx,
    /// This project's own file
    Packed,
    /// Float tensors by name
    Safetensors,
}

/// What will read an ONNX file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Target {
    /// Any runtime of the last years: 8-bit types
    Opset17,
    /// ONNX Runtime from 1.20: 4-bit types too
    Opset21,
    /// The newest: 2-bit types too
    Opset25,
}

impl Target {
    /// The opset.
    pub fn opset(self) -> u32 {
        match self {
            Target::Opset17 => 17,
            Target::Opset21 => 21,
            Target::Opset25 => 25,
        }
    }
}

pub fn run(args: &Args, context: &Context) -> Result<Outcome, Failure> {
    let opened = args.model.open(context.seed.unwrap_or(1))?;
    let extension = match args.to {
        Format::Onnx => "onnx",
        Format::Packed => "bitsmith",
        Format::Safetensors => "safetensors",
    };
    let stem = Path::new(&args.model.model).file_stem().and_then(|s| s.to_str()).unwrap_or("model").to_owned();
    let path = args.out.clone().unwrap_or_else(|| PathBuf::from(format!("{stem}.{extension}")));
    let failed = || format!("cannot write `{}`", path.display());
    let opset = args.target.opset();
    let mut rows = Vec::new();
    match (args.to, &opened) {
        (Format::Onnx, Opened::Packed(model)) => {
            rows = onnx::write_qdq(model, &path, onnx::Target { opset }).context(failed)?;
        }
        (Format::Onnx, Opened::Float(model)) => onnx::write_float(model, &path, opset).context(failed)?,
        (Format::Packed, Opened::Packed(model)) => {
            bitsmith_runtime::packed::write(model, &path).context(failed)?;
        }
        (Format::Packed, Opened::Float(_)) => {
            return Err(Failure::new("a float model has no integers to pack")
                .remedy("make them with `bitsmith quantize MODEL --data DIR --method ptq` or `--method csq`"));
        }
        (Format::Safetensors, Opened::Packed(model)) => {
            bitsmith_formats::safetensors::save(&model.to_model()?, &path).context(failed)?;
        }
        (Format::Safetensors, Opened::Float(model)) => {
            bitsmith_formats::safetensors::save(model, &path).context(failed)?
        }
    }
    let size = files::size(&path)?;
    let layers: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "name": r.name, "learned_bits": r.bits_stored, "stored_bits": r.bits_in_file, "type": r.type_in_file,
                "arithmetic": r.arithmetic,
            })
        })
        .collect();
    let opset = (args.to == Format::Onnx).then_some(opset);
    context.out.result(&json!({ "file": path, "bytes": size, "opset": opset, "layers": layers }), || {
        let mut text = String::new();
        if !rows.is_empty() {
            let mut table =
                Table::new(&["layer", ">bits learned", ">bits in this file", "type", "arithmetic of ONNX Runtime"]);
            for r in &rows {
                let learned = r.bits_stored.map_or_else(|| "float".to_owned(), |bits| bits.to_string());
                let (stored, kind, arithmetic) =
                    (r.bits_in_file.to_string(), r.type_in_file.to_owned(), r.arithmetic.to_owned());
                table.row([r.name.clone(), learned, stored, kind, arithmetic]);
            }
            text = table.render() + "\n";
        }
        text + &format!("{} ({})\n", path.display(), bytes(size))
    })?;
    Ok(Outcome::Done)
}
