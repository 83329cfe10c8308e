//! Convolution by its definition.

use crate::conv::ConvShape;

/// Calls `visit(input offset, weight offset, output offset)` for every product of the convolution, where the offsets
/// index channels-last input, OIHW weight and channels-last output. Taps that fall into the padding are left out.
pub fn for_each_product(shape: &ConvShape, mut visit: impl FnMut(usize, usize, usize)) {
    let s = shape;
    let (out_h, out_w) = (s.out_h(), s.out_w());
    let (group_in, group_out) = (s.c_in / s.groups, s.c_out / s.groups);
    for n in 0..s.batch {
        for oh in 0..out_h {
            for ow in 0..out_w {
                for kh in 0..s.kernel[0] {
                    let Some(ih) = source(oh, kh, s.stride[0], s.dilation[0], s.pads[0], s.in_h) else {
                        continue;
                    };
                    for kw in 0..s.kernel[1] {
                        let Some(iw) = source(ow, kw, s.stride[1], s.dilation[1], s.pads[1], s.in_w) else {
                            continue;
                        };
                        for co in 0..s.c_out {
                            let first_ci = co / group_out * group_in;
                            for i in 0..group_in {
                                visit(
                                    ((n * s.in_h + ih) * s.in_w + iw) * s.c_in + first_ci + i,
                                    ((co * group_in + i) * s.kernel[0] + kh) * s.kernel[1] + kw,
                                    ((n * out_h + oh) * out_w + ow) * s.c_out + co,
                                );
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The input coordinate that tap `tap` of output coordinate `out` reads, or `None` where it reads padding.
fn source(out: usize, tap: usize, stride: usize, dilation: usize, pad: usize, size: usize) -> Option<usize> {
    (out * stride + tap * dilation).checked_sub(pad).filter(|&i| i < size)
}

/// See [`crate::conv::forward`].
pub fn forward(shape: &ConvShape, x: &[f32], w: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    let mut sums = vec![0.0_f64; y.len()];
    for_each_product(shape, |xi, wi, yi| sums[yi] += f64::from(x[xi]) * f64::from(w[wi]));
    for (i, (y, sum)) in y.iter_mut().zip(sums).enumerate() {
        *y = (sum + bias.map_or(0.0, |b| f64::from(b[i % shape.c_out]))) as f32;
    }
}

/// See [`crate::conv::backward_input`].
pub fn backward_input(shape: &ConvShape, dy: &[f32], w: &[f32], dx: &mut [f32]) {
    let mut sums = vec![0.0_f64; dx.len()];
    for_each_product(shape, |xi, wi, yi| sums[xi] += f64::from(dy[yi]) * f64::from(w[wi]));
    dx.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
}

/// See [`crate::conv::backward_weight`].
pub fn backward_weight(shape: &ConvShape, x: &[f32], dy: &[f32], dw: &mut [f32]) {
    let mut sums = vec![0.0_f64; dw.len()];
    for_each_product(shape, |xi, wi, yi| sums[wi] += f64::from(x[xi]) * f64::from(dy[yi]));
    dw.iter_mut().zip(sums).for_each(|(d, sum)| *d = sum as f32);
}

#[cfg(test)]
mod tests {
    use super::{backward_input, backward_weight, forward};
    use crate::conv::ConvShape;

    /// A 1x3 row, kernel 1x2, left pad 1: small enough to do by hand.
    #[test]
    fn by_hand() {
        let shape = ConvShape {
            batch: 1,
            in_h: 1,
            in_w: 3,
            c_in: 1,
            c_out: 1,
            kernel: [1, 2],
            stride: [1, 1],
            pads: [0, 1, 0, 0],
            dilation: [1, 1],
            groups: 1,
        };
        let (x, w) = ([1.0, 2.0, 3.0], [10.0, 1.0]);
        let mut y = [0.0; 3];
        forward(&shape, &x, &w, Some(&[0.5]), &mut y);
        assert_eq!(y, [1.5, 12.5, 23.5]);
        let (mut dx, mut dw) = ([0.0; 3], [0.0; 2]);
        backward_input(&shape, &[1.0, 1.0, 2.0], &w, &mut dx);
        assert_eq!(dx, [11.0, 21.0, 2.0]);
        backward_weight(&shape, &x, &[1.0, 1.0, 2.0], &mut dw);
        assert_eq!(dw, [5.0, 9.0]);
    }
}
