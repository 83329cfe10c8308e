//! Codes of quantized constants as bytes of the file.

use bitsmith_graph::{Data, Grid, QParams, QuantTensor};
use bitsmith_kernels::pack::{
    Error as LengthError, fields_len, pack_fields, pack_planes, pack_ternary, planes_len, ternary_len, unpack_fields,
    unpack_planes, unpack_ternary,
};

use crate::error::Error;

/// Neighbouring channels of equal width: bits and how many.
pub(super) fn runs(rows: &[u8]) -> Vec<(u8, usize)> {
    rows.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// Codes as the file stores them: base 3 where there are three, planes for sign and magnitude, fields of b bits for all else.
pub(super) fn pack(tensor: QuantTensor<'_>) -> Result<Vec<u8>, Error> {
    let bits = tensor.params.spec.bits;
    let signed = tensor.params.code_range().0 < 0;
    if !tensor.params.rows.is_empty() {
        return pack_rows(tensor);
    }
    // Freezing keeps codes below 128 as I8 whatever their sign; fields want the type that the range says.
    let narrow = |codes: &[i8]| -> Vec<u8> { codes.iter().map(|&c| c.unsigned_abs()).collect() };
    Ok(match (tensor.params.spec.grid, tensor.codes) {
        _ if bits == 0 => vec![],
        (_, Data::I8(codes)) if tensor.params.spec.is_ternary() => pack_ternary(codes)?,
        (Grid::Planes { mask }, Data::I8(codes)) => pack_planes(codes, mask)?,
        (Grid::Planes { mask }, Data::U8(codes)) => pack_planes(codes, mask)?,
        (_, Data::I8(codes)) if signed => pack_fields(codes, bits)?,
        (_, Data::I8(codes)) => pack_fields(&narrow(codes), bits)?,
        (_, Data::U8(codes)) if !signed => pack_fields(codes, bits)?,
        (_, Data::U8(codes)) => pack_fields(&codes.iter().map(|&c| c as i8).collect::<Vec<_>>(), bits)?,
        // `QuantModel` admits no other type.
        _ => return Err(Error::corrupt("codes must be bytes")),
    })
}

/// Codes whose channels differ in width: neighbours of equal width together, each such run in whole bytes.
fn pack_rows(tensor: QuantTensor<'_>) -> Result<Vec<u8>, Error> {
    let rows = &tensor.params.rows;
    let Data::I8(codes) = tensor.codes else { return Err(Error::corrupt("codes must be signed bytes")) };
    let (mut out, mut codes, row_len) = (vec![], &codes[..], codes.len() / rows.len().max(1));
    for (bits, rows) in runs(rows) {
        let (run, rest) = codes.split_at(rows * row_len);
        codes = rest;
        match bits {
            0 => {}
            2 => out.extend(pack_ternary(run)?),
            _ => out.extend(pack_fields(run, bits)?),
        }
    }
    Ok(out)
}

/// The inverse of [`pack_rows`].
fn unpack_rows(rows: &[u8], n: usize, bytes: &[u8]) -> Result<Vec<i8>, Error> {
    let row_len = n / rows.len().max(1);
    // Sizes come from a file, which may claim anything.
    let length = |(bits, rows): (u8, usize)| match (bits, rows.checked_mul(row_len)) {
        (_, None) => usize::MAX,
        (0, _) => 0,
        (2, Some(n)) => ternary_len(n),
        (_, Some(n)) => fields_len(n, bits),
    };
    let expected = runs(rows).into_iter().map(length).fold(0, usize::saturating_add);
    if bytes.len() != expected {
        return Err(LengthError::Length { expected, found: bytes.len() }.into());
    }
    let (mut codes, mut left, mut at) = (vec![0i8; n], bytes, 0);
    for run in runs(rows) {
        let (bits, elements) = (run.0, run.1 * row_len);
        let (packed, rest) = left.split_at(length(run));
        let to = &mut codes[at..at + elements];
        match bits {
            0 => {}
            2 => unpack_ternary(packed, elements, 0, to)?,
            _ => unpack_fields(packed, bits, elements, 0, to)?,
        }
        (left, at) = (rest, at + elements);
    }
    Ok(codes)
}

/// The inverse of [`pack`], in the type that freezing uses.
pub(super) fn unpack(params: &QParams, n: usize, bytes: &[u8]) -> Result<Data, Error> {
    if !params.rows.is_empty() {
        return Ok(Data::I8(unpack_rows(&params.rows, n, bytes)?));
    }
    let bits = params.spec.bits;
    // The length is checked before anything of that length is allocated.
    let expected = match params.spec.grid {
        _ if params.spec.is_ternary() => ternary_len(n),
        Grid::Planes { mask } => planes_len(n, mask),
        _ => fields_len(n, bits),
    };
    if bits > 0 && bytes.len() != expected {
        return Err(LengthError::Length { expected, found: bytes.len() }.into());
    }
    let (low, high) = params.code_range();
    Ok(match params.spec.grid {
        _ if bits == 0 => Data::I8(vec![0; n]),
        _ if params.spec.is_ternary() => {
            let mut codes = vec![0i8; n];
            unpack_ternary(bytes, n, 0, &mut codes)?;
            Data::I8(codes)
        }
        Grid::Planes { mask } if mask > 127 || mask == 0 => {
            return Err(Error::corrupt(format!("planes {mask} do not make {bits} bits")));
        }
        Grid::Planes { mask } => {
            let mut codes = vec![0i8; n];
            unpack_planes(bytes, mask, n, 0, &mut codes)?;
            Data::I8(codes)
        }
        _ if low < 0 => {
            let mut codes = vec![0i8; n];
            unpack_fields(bytes, bits, n, 0, &mut codes)?;
            Data::I8(codes)
        }
        _ => {
            let mut codes = vec![0u8; n];
            unpack_fields(bytes, bits, n, 0, &mut codes)?;
            match high > 127 {
                true => Data::U8(codes),
                // The range ends below 128, so the sign bit is free.
                false => Data::I8(codes.into_iter().map(|c| c as i8).collect()),
            }
        }
    })
}
