//! Codes of quantized constants as bytes of the file.

use bitsmith_graph::{Data, Grid, QParams, QuantSpec, QuantTensor};
use bitsmith_kernels::pack::{
    Error as LengthError, fields_len, pack_fields, pack_planes, pack_ternary, planes_len, ternary_len, unpack_fields,
    unpack_planes, unpack_ternary,
};

use crate::error::Error;

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

/// Codes whose channels differ in width: each run of equal width in whole bytes.
fn pack_rows(tensor: QuantTensor<'_>) -> Result<Vec<u8>, Error> {
    let Data::I8(codes) = tensor.codes else { return Err(Error::corrupt("codes must be signed bytes")) };
    let (mut out, mut codes) = (vec![], &codes[..]);
    for (spec, n) in tensor.params.runs(codes.len()) {
        let (run, rest) = codes.split_at(n);
        codes = rest;
        match spec.bits {
            0 => {}
            _ if spec.is_ternary() => out.extend(pack_ternary(run)?),
            bits => out.extend(pack_fields(run, bits)?),
        }
    }
    Ok(out)
}

/// The inverse of [`pack_rows`].
fn unpack_rows(params: &QParams, n: usize, bytes: &[u8]) -> Result<Vec<i8>, Error> {
    let (mut codes, mut left, mut at) = (vec![0i8; n], bytes, 0);
    for (spec, n) in params.runs(n) {
        let (packed, rest) = left.split_at(packed_len(&spec, n));
        let to = &mut codes[at..at + n];
        match spec.bits {
            0 => {}
            _ if spec.is_ternary() => unpack_ternary(packed, n, 0, to)?,
            bits => unpack_fields(packed, bits, n, 0, to)?,
        }
        (left, at) = (rest, at + n);
    }
    Ok(codes)
}

/// Bytes of `n` codes.
fn packed_len(spec: &QuantSpec, n: usize) -> usize {
    match spec.grid {
        _ if spec.bits == 0 => 0,
        _ if spec.is_ternary() => ternary_len(n),
        Grid::Planes { mask } => planes_len(n, mask),
        _ => fields_len(n, spec.bits),
    }
}

/// The inverse of [`pack`], in the type that freezing uses.
pub(super) fn unpack(params: &QParams, n: usize, bytes: &[u8]) -> Result<Data, Error> {
    // The length is checked before anything of that length is allocated; a file may claim any.
    let expected = params.runs(n).iter().map(|(spec, n)| packed_len(spec, *n)).fold(0, usize::saturating_add);
    if bytes.len() != expected {
        return Err(LengthError::Length { expected, found: bytes.len() }.into());
    }
    if !params.rows.is_empty() {
        return Ok(Data::I8(unpack_rows(params, n, bytes)?));
    }
    let bits = params.spec.bits;
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
