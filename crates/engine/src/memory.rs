//! The way between buffers and burn's CPU tensors.
//!
//! Buffers come with whatever numbers are in them ([`take`]): operators write all of what they make. They are dropped as soon as nobody reads
//! them any more; the allocator of the program keeps them for the next ([`bitsmith_kernels::heap`]).

use burn_backend::{DType, Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;

pub(crate) use bitsmith_kernels::heap::buffer as take;

/// A tensor that owns the buffer, without a copy.
pub(crate) fn tensor(buffer: Vec<f32>, shape: Shape) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(buffer, shape))
}

/// The same elements, row-major without gaps.
pub(crate) fn dense(x: FlexTensor) -> FlexTensor {
    if x.is_contiguous() { x } else { x.to_contiguous() }
}

/// The elements of a tensor that [`dense`] made.
pub(crate) fn floats(x: &FlexTensor) -> &[f32] {
    x.as_slice::<f32>().expect("operators make their inputs dense, and every tensor of a plan is f32")
}

/// The elements of a tensor that [`dense`] made, to be changed: in its buffer if nobody else holds that, else in a copy.
pub(crate) fn into_own(x: FlexTensor) -> Vec<f32> {
    into_buffer(x).unwrap_or_else(|shared| floats(&shared).to_vec())
}

/// The buffer of a tensor that nobody else holds; else the tensor.
pub(crate) fn into_buffer(x: FlexTensor) -> Result<Vec<f32>, FlexTensor> {
    if TensorMetadata::dtype(&x) != DType::F32 || !x.is_unique() || !x.is_contiguous() {
        return Err(x);
    }
    let (bytes, shape, dtype) = x.into_data().into_parts();
    bytes.try_into_vec::<f32>().map_err(|bytes| FlexTensor::from_data(TensorData::from_bytes(bytes, shape, dtype)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_neither_copy_nor_share_their_buffer() {
        let buffer = vec![1.0; 100];
        let address = buffer.as_ptr();
        let x = tensor(buffer, Shape::new([4, 25]));
        let shared = x.clone();
        assert!(into_buffer(x).is_err(), "a shared tensor keeps its buffer");
        let buffer = into_buffer(shared).unwrap();
        assert_eq!((buffer.as_ptr(), buffer.len()), (address, 100));
    }
}
