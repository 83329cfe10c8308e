//! Activations one element at a time: the scalar functions are the specification, bit for bit.

use crate::activation::Activation;

/// See [`crate::activation::forward`].
pub fn forward(act: Activation, x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = act.apply(x));
}

/// See [`crate::activation::backward`].
pub fn backward(act: Activation, saved: &[f32], dy: &[f32], dx: &mut [f32]) {
    dx.iter_mut().zip(saved).zip(dy).for_each(|((dx, &saved), &dy)| *dx = dy * act.slope(saved));
}

/// σ in double precision, rounded once; see [`crate::sigmoid::sigmoid_slice`].
pub fn sigmoid(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = (1.0 / (1.0 + (-f64::from(x)).exp())) as f32);
}

/// `e^(x − max) / Σ` of each row of `n`; see [`crate::softmax::forward`].
pub fn softmax(n: usize, x: &[f32], y: &mut [f32]) {
    for (x, y) in x.chunks(n).zip(y.chunks_mut(n)) {
        let max = f64::from(x.iter().fold(f32::NEG_INFINITY, |max, &x| max.max(x)));
        let sum: f64 = x.iter().map(|&x| (f64::from(x) - max).exp()).sum();
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = ((f64::from(x) - max).exp() / sum) as f32);
    }
}
