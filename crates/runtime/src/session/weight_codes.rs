//! Codes of a weight less their zero points, or a codebook's integer levels: what products of integers multiply with.

use std::borrow::Cow;

use bitsmith_graph::quant::for_each_channel;
use bitsmith_graph::{Data, Grid, QuantTensor};
use bitsmith_kernels::layout;

/// Elements in the weight's order, within ±255.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum WeightCodes<'a> {
    /// All fit.
    Bytes(Cow<'a, [i8]>),
    Words(Vec<i16>),
}

impl<'a> WeightCodes<'a> {
    /// Those of a weight whose levels, if it has some, are integers within ±255. Codes that are their own values are not copied.
    pub fn of(weight: &QuantTensor<'a>) -> Self {
        let params = weight.params;
        if let (Grid::Affine { .. } | Grid::Planes { .. }, Data::I8(codes)) = (params.spec.grid, weight.codes)
            && params.zero_point.iter().all(|&zero| zero == 0)
        {
            return Self::Bytes(codes[..].into());
        }
        let level = |code: i32| params.levels.get(usize::try_from(code).unwrap_or(0)).copied().unwrap_or(0.0);
        let mut words = vec![0i16; weight.codes.len()];
        for_each_channel(params.spec.per, weight.shape, |i, channel| {
            let code = weight.code(i);
            words[i] = match params.spec.grid {
                Grid::Codebook => level(code) as i16,
                // Planes have no zero points.
                Grid::Planes { .. } | Grid::Affine { .. } => (code - params.zero_point(channel)) as i16,
            };
        });
        Self::from(words)
    }

    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(codes) => codes.len(),
            Self::Words(codes) => codes.len(),
        }
    }

    /// A matrix of so many rows and columns with its axes exchanged.
    pub fn transposed(&self, rows: usize, columns: usize) -> WeightCodes<'static> {
        fn of<T: Copy + Default + Send + Sync>(rows: usize, columns: usize, codes: &[T]) -> Vec<T> {
            let mut out = vec![T::default(); codes.len()];
            layout::transpose(rows, columns, codes, &mut out);
            out
        }
        match self {
            Self::Bytes(codes) => WeightCodes::Bytes(of(rows, columns, codes).into()),
            Self::Words(codes) => WeightCodes::Words(of(rows, columns, codes)),
        }
    }

    /// The largest sum of magnitudes in a run of `len` elements.
    pub fn largest_sum(&self, len: usize) -> u64 {
        fn of<T: Copy + Into<i64>>(codes: &[T], len: usize) -> u64 {
            let sum = |codes: &[T]| codes.iter().map(|&c| c.into().unsigned_abs()).sum();
            codes.chunks(len.max(1)).map(sum).max().unwrap_or(0)
        }
        match self {
            Self::Bytes(codes) => of(codes, len),
            Self::Words(codes) => of(codes, len),
        }
    }

    /// As words, whether they need them or not.
    pub fn into_words(self) -> Vec<i16> {
        match self {
            Self::Bytes(codes) => codes.iter().map(|&c| c.into()).collect(),
            Self::Words(codes) => codes,
        }
    }
}

impl From<Vec<i16>> for WeightCodes<'_> {
    /// As bytes, if all fit.
    fn from(words: Vec<i16>) -> Self {
        match words.iter().map(|&c| i8::try_from(c).ok()).collect::<Option<Vec<i8>>>() {
            Some(bytes) => Self::Bytes(bytes.into()),
            None => Self::Words(words),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitsmith_graph::{Granularity, QParams, QuantSpec};

    fn params(grid: Grid, zero_point: Vec<i32>, levels: Vec<f32>) -> QParams {
        let per = if zero_point.len() > 1 { Granularity::PerChannel { axis: 0 } } else { Granularity::PerTensor };
        let scale = vec![0.5; zero_point.len().max(1)];
        QParams { spec: QuantSpec { grid, bits: 8, per }, scale, zero_point, levels, rows: vec![] }
    }

    #[test]
    fn codes_are_as_narrow_as_they_fit() {
        let signed = Grid::Affine { signed: true, symmetric: false };
        let unsigned = Grid::Affine { signed: false, symmetric: false };
        let of = |codes: Data, params: QParams| {
            WeightCodes::of(&QuantTensor { shape: &[2, 2], codes: &codes, params: &params }).into_owned()
        };
        let bytes = |codes: [i8; 4]| WeightCodes::Bytes(codes.to_vec().into());
        assert_eq!(of(Data::I8(vec![-128, 3, 0, 127]), params(signed, vec![], vec![])), bytes([-128, 3, 0, 127]));
        assert_eq!(of(Data::U8(vec![0, 3, 9, 20]), params(unsigned, vec![3, 10], vec![])), bytes([-3, 0, -1, 10]));
        assert_eq!(
            of(Data::U8(vec![0, 255, 9, 20]), params(unsigned, vec![3, 10], vec![])),
            WeightCodes::Words(vec![-3, 252, -1, 10])
        );
        assert_eq!(
            of(Data::I8(vec![0, 1, 2, 1]), params(Grid::Codebook, vec![], vec![-1.0, 0.0, 7.0, 0.0])),
            bytes([-1, 0, 7, 0])
        );
        assert_eq!(
            of(Data::I8(vec![1, 2, 3, 4]), params(signed, vec![], vec![])).transposed(2, 2),
            bytes([1, 3, 2, 4])
        );
        assert_eq!(WeightCodes::Words(vec![-3, 252, -1, 10]).largest_sum(2), 255);
    }

    impl WeightCodes<'_> {
        fn into_owned(self) -> WeightCodes<'static> {
            match self {
                Self::Bytes(codes) => WeightCodes::Bytes(codes.into_owned().into()),
                Self::Words(codes) => WeightCodes::Words(codes),
            }
        }
    }
}
