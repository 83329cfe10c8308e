//! ONNX tensors to tensors: element types, where the elements are kept, and the conversion of other floats to f32.

use bitsmith_graph::{Data, Tensor};
use bitsmith_kernels::pack;

use super::external::External;
use super::proto::{TensorProto, data_type};
use crate::error::Error;

/// Reads a tensor of the file, or says what is wrong with it. Messages do not name it: the caller knows where it is.
pub fn decode(proto: &TensorProto, external: &mut External<'_>) -> Result<Tensor, Error> {
    let kind = proto.data_type.unwrap_or(0);
    let shape = proto
        .dims
        .iter()
        .map(|&d| {
            usize::try_from(d).map_err(|_| Error::malformed(format!("dimensions {:?} are impossible", proto.dims)))
        })
        .collect::<Result<Vec<_>, _>>()?;
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).filter(|&n| n <= 1 << 40);
    let count = count.ok_or_else(|| Error::malformed(format!("{shape:?} has more elements than any machine holds")))?;
    if proto.segment.is_some() {
        return Err(Error::unsupported("is stored in segments, which are not supported"));
    }
    let data = match (proto.data_location.unwrap_or(0), &proto.raw_data) {
        (1, _) => from_bytes(kind, &external.read(&proto.external_data)?, count)?,
        (0, Some(bytes)) => from_bytes(kind, bytes, count)?,
        (0, None) => from_fields(kind, proto, count)?,
        (other, _) => return Err(Error::malformed(format!("data location {other} does not exist"))),
    };
    if data.len() != count {
        return Err(Error::malformed(format!("shape {shape:?} needs {count} elements but {} are stored", data.len())));
    }
    Ok(Tensor::new(shape, data)?)
}

fn unsupported(kind: i32) -> Error {
    Error::unsupported(format!("element type {} is not supported", data_type::name(kind)))
}

/// Bits per element of the types that share bytes.
pub fn narrow_bits(kind: i32) -> Option<u8> {
    match kind {
        data_type::INT4 | data_type::UINT4 => Some(4),
        data_type::INT2 | data_type::UINT2 => Some(2),
        _ => None,
    }
}

/// Elements of 2 or 4 bits, which fill bytes from the low end.
fn from_fields_of(bits: u8, signed: bool, bytes: &[u8], count: usize) -> Result<Data, Error> {
    let misfit = |e: pack::Error| Error::malformed(e.to_string());
    if pack::fields_len(count, bits) != bytes.len() {
        return Err(misfit(pack::Error::Length { expected: pack::fields_len(count, bits), found: bytes.len() }));
    }
    if signed {
        let mut out = vec![0i8; count];
        pack::unpack_fields(bytes, bits, count, 0, &mut out).map_err(misfit)?;
        return Ok(Data::I8(out));
    }
    let mut out = vec![0u8; count];
    pack::unpack_fields(bytes, bits, count, 0, &mut out).map_err(misfit)?;
    Ok(Data::U8(out))
}

/// Elements from little-endian bytes.
fn from_bytes(kind: i32, bytes: &[u8], count: usize) -> Result<Data, Error> {
    if let Some(bits) = narrow_bits(kind) {
        return from_fields_of(bits, matches!(kind, data_type::INT4 | data_type::INT2), bytes, count);
    }
    let width = match kind {
        data_type::BOOL | data_type::UINT8 | data_type::INT8 => 1,
        data_type::FLOAT16 | data_type::BFLOAT16 | data_type::UINT16 | data_type::INT16 => 2,
        data_type::FLOAT | data_type::INT32 | data_type::UINT32 => 4,
        data_type::DOUBLE | data_type::INT64 | data_type::UINT64 => 8,
        _ => return Err(unsupported(kind)),
    };
    if count.checked_mul(width) != Some(bytes.len()) {
        return Err(Error::malformed(format!(
            "{count} elements of {} need {} bytes but {} are stored",
            data_type::name(kind),
            count.saturating_mul(width),
            bytes.len()
        )));
    }
    let b2 = || bytes.as_chunks::<2>().0.iter().copied();
    let b4 = || bytes.as_chunks::<4>().0.iter().copied();
    let b8 = || bytes.as_chunks::<8>().0.iter().copied();
    Ok(match kind {
        data_type::FLOAT => Data::F32(b4().map(f32::from_le_bytes).collect()),
        data_type::DOUBLE => Data::F32(b8().map(|b| f64::from_le_bytes(b) as f32).collect()),
        data_type::FLOAT16 => Data::F32(b2().map(|b| f16_to_f32(u16::from_le_bytes(b))).collect()),
        data_type::BFLOAT16 => Data::F32(b2().map(|b| bf16_to_f32(u16::from_le_bytes(b))).collect()),
        data_type::INT64 => Data::I64(b8().map(i64::from_le_bytes).collect()),
        data_type::UINT64 => Data::I64(b8().map(|b| signed(u64::from_le_bytes(b))).collect::<Result<_, _>>()?),
        data_type::UINT32 => Data::I64(b4().map(|b| u32::from_le_bytes(b).into()).collect()),
        data_type::INT32 => Data::I32(b4().map(i32::from_le_bytes).collect()),
        data_type::INT16 => Data::I32(b2().map(|b| i16::from_le_bytes(b).into()).collect()),
        data_type::UINT16 => Data::I32(b2().map(|b| u16::from_le_bytes(b).into()).collect()),
        data_type::INT8 => Data::I8(bytes.iter().map(|&b| b.cast_signed()).collect()),
        data_type::UINT8 => Data::U8(bytes.to_vec()),
        data_type::BOOL => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
        _ => return Err(unsupported(kind)),
    })
}

/// Elements from the fields for each type.
fn from_fields(kind: i32, proto: &TensorProto, count: usize) -> Result<Data, Error> {
    fn narrow<T: TryFrom<i32>>(values: &[i32]) -> Result<Vec<T>, Error> {
        let fits =
            |&v: &i32| T::try_from(v).map_err(|_| Error::malformed(format!("{v} does not fit the element type")));
        values.iter().map(fits).collect()
    }
    let ints = &proto.int32_data;
    Ok(match kind {
        data_type::FLOAT => Data::F32(proto.float_data.clone()),
        data_type::DOUBLE => Data::F32(proto.double_data.iter().map(|&v| v as f32).collect()),
        data_type::FLOAT16 => Data::F32(narrow::<u16>(ints)?.into_iter().map(f16_to_f32).collect()),
        data_type::BFLOAT16 => Data::F32(narrow::<u16>(ints)?.into_iter().map(bf16_to_f32).collect()),
        data_type::INT64 => Data::I64(proto.int64_data.clone()),
        data_type::UINT64 | data_type::UINT32 => {
            Data::I64(proto.uint64_data.iter().map(|&v| signed(v)).collect::<Result<_, _>>()?)
        }
        data_type::INT32 | data_type::INT16 | data_type::UINT16 => Data::I32(ints.clone()),
        data_type::INT8 => Data::I8(narrow(ints)?),
        data_type::UINT8 => Data::U8(narrow(ints)?),
        // Each entry holds one byte.
        _ if narrow_bits(kind).is_some() => from_bytes(kind, &narrow::<u8>(ints)?, count)?,
        data_type::BOOL => Data::Bool(ints.iter().map(|&v| v != 0).collect()),
        _ => return Err(unsupported(kind)),
    })
}

fn signed(v: u64) -> Result<i64, Error> {
    i64::try_from(v).map_err(|_| Error::unsupported(format!("holds {v}, more than 2^63")))
}

/// A half-precision number, exactly.
pub fn f16_to_f32(bits: u16) -> f32 {
    let sign = if bits & 0x8000 != 0 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 0x1f), f32::from(bits & 0x3ff));
    sign * match exponent {
        0 => fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => f32::INFINITY,
        31 => f32::NAN,
        _ => (1024.0 + fraction) * 2f32.powi(exponent - 25),
    }
}

/// A bfloat16 number, exactly: the upper half of an f32.
pub fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::bytes::Bytes;
    use std::path::Path;

    fn read(proto: &TensorProto) -> Result<Tensor, String> {
        decode(proto, &mut External::new(Path::new("/nowhere"))).map_err(|e| e.to_string())
    }

    fn raw(kind: i32, dims: &[i64], bytes: &[u8]) -> TensorProto {
        TensorProto {
            dims: dims.to_vec(),
            data_type: Some(kind),
            raw_data: Some(Bytes::copy_from_slice(bytes)),
            ..TensorProto::default()
        }
    }

    #[test]
    fn every_type_from_bytes() {
        let cases: [(i32, &[u8], Data); 13] = [
            (data_type::FLOAT, &1.5f32.to_le_bytes(), Data::F32(vec![1.5])),
            (data_type::DOUBLE, &(-2.5f64).to_le_bytes(), Data::F32(vec![-2.5])),
            (data_type::FLOAT16, &[0x00, 0xc1], Data::F32(vec![-2.5])),
            (data_type::BFLOAT16, &[0x20, 0xc0], Data::F32(vec![-2.5])),
            (data_type::INT64, &(-3i64).to_le_bytes(), Data::I64(vec![-3])),
            (data_type::UINT64, &3u64.to_le_bytes(), Data::I64(vec![3])),
            (data_type::UINT32, &u32::MAX.to_le_bytes(), Data::I64(vec![4294967295])),
            (data_type::INT32, &(-3i32).to_le_bytes(), Data::I32(vec![-3])),
            (data_type::INT16, &(-3i16).to_le_bytes(), Data::I32(vec![-3])),
            (data_type::UINT16, &[0xff, 0xff], Data::I32(vec![65535])),
            (data_type::INT8, &[0xff], Data::I8(vec![-1])),
            (data_type::UINT8, &[0xff], Data::U8(vec![255])),
            (data_type::BOOL, &[2], Data::Bool(vec![true])),
        ];
        for (kind, bytes, data) in cases {
            assert_eq!(read(&raw(kind, &[1], bytes)).unwrap().data(), &data, "{}", data_type::name(kind));
        }
    }

    #[test]
    fn every_type_from_fields() {
        let with = |kind, f: &dyn Fn(&mut TensorProto)| {
            let mut proto = TensorProto { dims: vec![1], data_type: Some(kind), ..TensorProto::default() };
            f(&mut proto);
            read(&proto).unwrap().into_parts().1
        };
        assert_eq!(with(data_type::FLOAT, &|p| p.float_data = vec![1.5]), Data::F32(vec![1.5]));
        assert_eq!(with(data_type::DOUBLE, &|p| p.double_data = vec![1.5]), Data::F32(vec![1.5]));
        assert_eq!(with(data_type::FLOAT16, &|p| p.int32_data = vec![0x3c00]), Data::F32(vec![1.0]));
        assert_eq!(with(data_type::BFLOAT16, &|p| p.int32_data = vec![0x3f80]), Data::F32(vec![1.0]));
        assert_eq!(with(data_type::INT64, &|p| p.int64_data = vec![-1]), Data::I64(vec![-1]));
        assert_eq!(with(data_type::UINT64, &|p| p.uint64_data = vec![1]), Data::I64(vec![1]));
        assert_eq!(with(data_type::INT8, &|p| p.int32_data = vec![-1]), Data::I8(vec![-1]));
        assert_eq!(with(data_type::UINT8, &|p| p.int32_data = vec![255]), Data::U8(vec![255]));
        assert_eq!(with(data_type::BOOL, &|p| p.int32_data = vec![1]), Data::Bool(vec![true]));
    }

    #[test]
    fn several_elements_in_a_byte() {
        let cases = [
            (data_type::INT4, &[0x8f_u8, 0x07][..], Data::I8(vec![-1, -8, 7])),
            (data_type::UINT4, &[0x8f, 0x07], Data::U8(vec![15, 8, 7])),
            (data_type::INT2, &[0b01_10_11], Data::I8(vec![-1, -2, 1])),
            (data_type::UINT2, &[0b01_10_11], Data::U8(vec![3, 2, 1])),
        ];
        for (kind, bytes, data) in cases {
            assert_eq!(read(&raw(kind, &[3], bytes)).unwrap().data(), &data, "{}", data_type::name(kind));
            assert!(read(&raw(kind, &[9], bytes)).is_err());
        }
    }

    #[test]
    fn halves() {
        let cases = [(0x0001, 5.9604645e-8), (0x7bff, 65504.0), (0x3c00, 1.0), (0xbc00, -1.0), (0x7c00, f32::INFINITY)];
        for (bits, value) in cases {
            assert_eq!(f16_to_f32(bits), value);
        }
        assert!(f16_to_f32(0x7e00).is_nan());
        assert!(f16_to_f32(0x8000).is_sign_negative());
    }

    #[test]
    fn sizes_are_checked_before_anything_is_allocated() {
        let short = read(&raw(data_type::FLOAT, &[1 << 30], &[0; 8])).unwrap_err();
        assert_eq!(short, "1073741824 elements of float need 4294967296 bytes but 8 are stored");
        assert!(read(&raw(data_type::FLOAT, &[i64::MAX, i64::MAX], &[])).unwrap_err().contains("any machine"));
        assert!(read(&raw(data_type::FLOAT, &[-1], &[])).unwrap_err().contains("impossible"));
        assert!(read(&raw(8, &[1], &[0])).unwrap_err().contains("element type string is not supported"));
    }
}
