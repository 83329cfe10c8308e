//! Element-wise functions of two inputs, broadcast as in NumPy.

use crate::attrs::Attrs;
use crate::error::Error;
use crate::op::{InputShapes, Operator};
use crate::tensor::Shape;

macro_rules! binary {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct $name;

        impl Operator for $name {
            const NAME: &'static str = stringify!($name);
            fn from_attrs(_attrs: &Attrs, _opset: u32) -> Result<Self, Error> { Ok(Self) }
            fn attrs(&self) -> Attrs { Attrs::new() }
            fn infer(&self, inputs: InputShapes<'_>) -> Result<Vec<Shape>, Error> {
                Ok(vec![broadcast(inputs.get(0)?, inputs.get(1)?)?])
            }
        }
    )*};
}

binary! {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`; integers truncate.
    Div,
}

/// The shape that two shapes broadcast to.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Shape, Error> {
    let rank = a.len().max(b.len());
    let dim = |s: &[usize], axis: usize| (axis + s.len()).checked_sub(rank).map_or(1, |i| s[i]);
    (0..rank)
        .map(|axis| match (dim(a, axis), dim(b, axis)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(Error::shape(format!("shapes {a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasting() {
        assert_eq!(broadcast(&[2, 3, 4], &[3, 1]), Ok(vec![2, 3, 4]));
        assert_eq!(broadcast(&[], &[5]), Ok(vec![5]));
        assert!(broadcast(&[2], &[3]).is_err());
    }
}
