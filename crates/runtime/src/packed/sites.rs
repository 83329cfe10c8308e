//! The listing of sites: a line per place where rounding happens.

use bitsmith_graph::{Granularity, Grid, QParams, QuantSpec, Role};

use super::text::{joined, number};
use crate::error::Error;

/// `value role grid bits axis [zero points]`, for instance `3 weight planes:5 3 0` or `0 input unsigned 8 - 128`.
pub(super) fn print(index: usize, role: Role, params: &QParams) -> String {
    let role = match role {
        Role::Weight => "weight",
        Role::Bias => "bias",
        Role::Activation => "activation",
        Role::Input => "input",
    };
    let grid = match params.spec.grid {
        Grid::Affine { signed: true, symmetric: false } => "signed".to_owned(),
        Grid::Affine { signed: true, symmetric: true } => "signed-symmetric".to_owned(),
        Grid::Affine { signed: false, symmetric: false } => "unsigned".to_owned(),
        Grid::Affine { signed: false, symmetric: true } => "unsigned-symmetric".to_owned(),
        Grid::Planes { mask } => format!("planes:{mask}"),
        Grid::Codebook => "codebook".to_owned(),
    };
    let axis = match params.spec.per {
        Granularity::PerTensor => "-".to_owned(),
        Granularity::PerChannel { axis } => axis.to_string(),
    };
    let zero_points = match params.zero_point.as_slice() {
        [] => String::new(),
        points => format!(" {}", joined(points, i32::to_string)),
    };
    let rows = match params.rows.as_slice() {
        [] => String::new(),
        // An element a channel: runs of channels.
        rows => format!(" rows:{}", joined(&params.runs(rows.len()), |(spec, rows)| format!("{}x{rows}", spec.bits))),
    };
    format!("{index} {role} {grid} {} {axis}{zero_points}{rows}\n", params.spec.bits)
}

/// Widths of channels from the listing of their runs; no more than `most` channels.
fn parse_runs(text: &str, most: usize) -> Result<Vec<u8>, Error> {
    let mut rows = vec![];
    for run in text.split(',') {
        let (bits, count) =
            run.split_once('x').ok_or_else(|| Error::corrupt("widths of channels are written BITSxCHANNELS"))?;
        let (bits, count): (u8, usize) = (number(bits)?, number(count)?);
        if bits == 1 || bits > 8 {
            return Err(Error::corrupt(format!("channels of {bits} bits: they have 0 or 2 to 8")));
        }
        if count == 0 || count > most - rows.len() {
            return Err(Error::corrupt(format!("widths for more than its {most} channels")));
        }
        rows.extend(std::iter::repeat_n(bits, count));
    }
    Ok(rows)
}

/// The inverse of [`print`], but for scales and levels.
pub(super) fn parse(
    line: &str,
    channels_of: impl Fn(usize, Granularity) -> Result<usize, Error>,
) -> Result<(usize, Role, QParams), Error> {
    let mut tokens: Vec<_> = line.split(' ').collect();
    let rows = tokens.pop_if(|last| last.starts_with("rows:"));
    let (&[index, role, grid, bits, axis], zero_points) = tokens
        .split_first_chunk::<5>()
        .ok_or_else(|| Error::corrupt("a site needs a value, a role, a grid, bits and an axis"))?;
    let role = match role {
        "weight" => Role::Weight,
        "bias" => Role::Bias,
        "activation" => Role::Activation,
        "input" => Role::Input,
        other => return Err(Error::corrupt(format!("the role `{other}` is not known"))),
    };
    let grid = match (grid, grid.strip_prefix("planes:")) {
        (_, Some(mask)) => Grid::Planes { mask: number(mask)? },
        ("signed", _) => Grid::Affine { signed: true, symmetric: false },
        ("signed-symmetric", _) => Grid::Affine { signed: true, symmetric: true },
        ("unsigned", _) => Grid::Affine { signed: false, symmetric: false },
        ("unsigned-symmetric", _) => Grid::Affine { signed: false, symmetric: true },
        ("codebook", _) => Grid::Codebook,
        (other, _) => return Err(Error::corrupt(format!("the grid `{other}` is not known"))),
    };
    let bits: u8 = number(bits)?;
    let least = if matches!(grid, Grid::Affine { .. }) { 1 } else { 0 };
    if !(least..=8).contains(&bits) {
        return Err(Error::corrupt(format!("{bits} bits: this grid has {least} to 8")));
    }
    let per = if axis == "-" { Granularity::PerTensor } else { Granularity::PerChannel { axis: number(axis)? } };
    let zero_point = match zero_points {
        [] => vec![],
        [points] => points.split(',').map(number).collect::<Result<_, _>>()?,
        _ => return Err(Error::corrupt("too many words")),
    };
    let spec = QuantSpec { grid, bits, per };
    let index = number(index)?;
    let rows = match rows.and_then(|rows| rows.strip_prefix("rows:")) {
        Some(text) => parse_runs(text, channels_of(index, per)?)?,
        None => vec![],
    };
    Ok((index, role, QParams { spec, scale: vec![], zero_point, levels: vec![], rows }))
}
