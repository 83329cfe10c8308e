//! Tensors as plain data: a shape and a row-major vector of one of six element types.

use std::sync::Arc;

use crate::error::Error;

/// Dimensions, outermost first. A scalar has none.
pub type Shape = Vec<usize>;

/// The elements of a [`Tensor`], row-major.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)]
pub enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
    I32(Vec<i32>),
    I8(Vec<i8>),
    U8(Vec<u8>),
    Bool(Vec<bool>),
}

impl Data {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Data::F32(v) => v.len(),
            Data::I64(v) => v.len(),
            Data::I32(v) => v.len(),
            Data::I8(v) => v.len(),
            Data::U8(v) => v.len(),
            Data::Bool(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes per element.
    pub fn element_bytes(&self) -> usize {
        match self {
            Data::F32(_) | Data::I32(_) => 4,
            Data::I64(_) => 8,
            Data::I8(_) | Data::U8(_) | Data::Bool(_) => 1,
        }
    }

    /// The element type's name, as safetensors and people write it.
    pub fn dtype(&self) -> &'static str {
        match self {
            Data::F32(_) => "F32",
            Data::I64(_) => "I64",
            Data::I32(_) => "I32",
            Data::I8(_) => "I8",
            Data::U8(_) => "U8",
            Data::Bool(_) => "BOOL",
        }
    }
}

/// A dense tensor on the host. The data always fills the shape exactly. Clones share it until one of them is written to: a model of many
/// weights is passed around in several places.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    shape: Shape,
    data: Arc<Data>,
}

impl Tensor {
    /// Checks that `data` has as many elements as `shape` asks for.
    pub fn new(shape: impl Into<Shape>, data: Data) -> Result<Self, Error> {
        Self::sharing(shape.into(), Arc::new(data))
    }

    fn sharing(shape: Shape, data: Arc<Data>) -> Result<Self, Error> {
        match element_count(&shape) {
            Some(n) if n == data.len() => Ok(Self { shape, data }),
            Some(n) => Err(Error::shape(format!("shape {shape:?} needs {n} elements but the data has {}", data.len()))),
            None => Err(Error::shape(format!("shape {shape:?} has more elements than this machine can address"))),
        }
    }

    /// A float tensor; see [`Tensor::new`].
    pub fn f32(shape: impl Into<Shape>, data: Vec<f32>) -> Result<Self, Error> {
        Self::new(shape, Data::F32(data))
    }

    /// A vector of 64-bit integers (rank 1).
    pub fn ints(data: Vec<i64>) -> Self {
        Self { shape: vec![data.len()], data: Arc::new(Data::I64(data)) }
    }

    /// A rank-0 integer.
    pub fn int(value: i64) -> Self {
        Self { shape: vec![], data: Arc::new(Data::I64(vec![value])) }
    }

    /// A vector of floats (rank 1).
    pub fn floats(data: Vec<f32>) -> Self {
        Self { shape: vec![data.len()], data: Arc::new(Data::F32(data)) }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The elements.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.data.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.data.is_empty()
    }

    /// Bytes of the elements as stored in memory.
    pub fn bytes(&self) -> usize {
        self.len() * self.data.element_bytes()
    }

    /// The elements, if they are floats.
    pub fn as_f32(&self) -> Option<&[f32]> {
        match &*self.data {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements for writing, if they are floats.
    pub fn as_f32_mut(&mut self) -> Option<&mut [f32]> {
        // Nothing is copied for nothing.
        self.as_f32()?;
        match Arc::make_mut(&mut self.data) {
            Data::F32(v) => Some(v),
            _ => None,
        }
    }

    /// The elements as 64-bit integers, if they are integers or booleans of any width.
    pub fn to_ints(&self) -> Option<Vec<i64>> {
        Some(match &*self.data {
            Data::I64(v) => v.clone(),
            Data::I32(v) => v.iter().map(|&x| x.into()).collect(),
            Data::I8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::U8(v) => v.iter().map(|&x| x.into()).collect(),
            Data::Bool(v) => v.iter().map(|&x| x.into()).collect(),
            Data::F32(_) => return None,
        })
    }

    /// The same elements under another shape.
    pub fn reshape(self, shape: impl Into<Shape>) -> Result<Self, Error> {
        Self::sharing(shape.into(), self.data)
    }

    /// Shape and elements, taken apart.
    pub fn into_parts(self) -> (Shape, Data) {
        (self.shape, Arc::unwrap_or_clone(self.data))
    }
}

/// Number of elements of a shape; `None` where the product overflows.
pub fn element_count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_must_fill_the_shape() {
        assert!(Tensor::f32([2, 3], vec![0.0; 6]).is_ok());
        let error = Tensor::f32([2, 3], vec![0.0; 5]).unwrap_err();
        assert_eq!(error.to_string(), "shape [2, 3] needs 6 elements but the data has 5");
        assert!(Tensor::f32([usize::MAX, 2], vec![]).is_err());
        assert_eq!(Tensor::int(7).len(), 1, "a scalar has one element");
        assert!(Tensor::f32([0, 9], vec![]).is_ok());
    }

    #[test]
    fn clones_share_their_data_until_one_is_written_to() {
        let mut tensor = Tensor::floats(vec![1.0, 2.0]);
        let clone = tensor.clone().reshape([2, 1]).unwrap();
        assert_eq!(tensor.as_f32().unwrap().as_ptr(), clone.as_f32().unwrap().as_ptr());
        tensor.as_f32_mut().unwrap()[0] = 5.0;
        assert_eq!((tensor.as_f32().unwrap()[0], clone.as_f32().unwrap()[0]), (5.0, 1.0));
        assert!(Tensor::int(1).as_f32_mut().is_none());
    }
}
