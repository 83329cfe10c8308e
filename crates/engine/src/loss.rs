//! The loss of a classifier and its gradient, on the host.
//!
//! Logits are a few thousand numbers where activations are millions, so they are brought to the host once, and loss
//! and gradient are computed there in `f64`, the same on every device.
//!
//! ```text
//! CE      = -Σ_c t_c log p_c           t = (1 - s)·onehot + s / classes      (label smoothing s)
//! KD      = T² · KL(softmax(z_teacher / T) ‖ softmax(z / T))                 (arXiv 1503.02531)
//! FO      = -Σ_c p_c log r_c           r = softmax(z of the same network, rounded)     (arXiv 2210.15623)
//! loss    = mean over the batch of (1 - w)·CE + w·KD + λ·FO
//! ∂/∂z    = ((1 - w)·(p - t) + w·T·(p_T - q_T) - λ·p·(log r + FO)) / batch
//! ```

use crate::error::Error;

/// What a training step minimises.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Loss {
    /// Share of the target that is spread over all classes.
    pub label_smoothing: f32,
    /// Imitation of a teacher.
    pub distill: Option<Distill>,
    /// Staying close to what rounding makes of the network.
    pub follow: Option<Follow>,
}

/// A pull towards the answers of the same network, rounded, which are constants here.
#[derive(Debug, Clone, PartialEq)]
pub struct Follow {
    /// The rounded network's logits for this batch, `[batch, classes]`.
    pub logits: Vec<f32>,
    /// λ, at least 0.
    pub weight: f32,
}

/// Imitation of a teacher's softened answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Distill {
    /// The teacher's logits for this batch, `[batch, classes]`.
    pub teacher_logits: Vec<f32>,
    /// T: the higher, the more the teacher's small probabilities count.
    pub temperature: f32,
    /// Share of the loss that imitation makes up; 1 needs no labels.
    pub weight: f32,
}

/// A loss and where it comes from.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Evaluated {
    /// Mean over the batch.
    pub loss: f32,
    /// Of each sample.
    pub losses: Vec<f64>,
    /// Samples whose largest logit is the label's; 0 without labels.
    pub correct: usize,
    /// `∂loss/∂logits`, row-major.
    pub gradient: Vec<f32>,
}

impl Loss {
    /// Checks sizes, labels and ranges before anything expensive runs.
    pub(crate) fn check(&self, batch: usize, classes: usize, labels: &[u32]) -> Result<(), Error> {
        if labels.len() != batch && !(labels.is_empty() && self.needs_no_labels()) {
            let hint = if labels.is_empty() { ": only distillation of weight 1 works without labels" } else { "" };
            return Err(Error::input(format!("{} labels for a batch of {batch}{hint}", labels.len())));
        }
        if let Some(label) = labels.iter().find(|&&l| l as usize >= classes) {
            return Err(Error::input(format!("label {label} is outside the {classes} classes of the network")));
        }
        if !(0.0..1.0).contains(&self.label_smoothing) {
            return Err(Error::input(format!("label smoothing is {} but must be in 0..1", self.label_smoothing)));
        }
        if let Some(distill) = &self.distill {
            let (found, wanted) = (distill.teacher_logits.len(), batch * classes);
            if found != wanted {
                return Err(Error::input(format!(
                    "the teacher gave {found} logits but a batch of {batch} with {classes} classes needs {wanted}"
                )));
            }
            if !(distill.temperature > 0.0 && distill.temperature.is_finite()) {
                return Err(Error::input(format!("temperature is {} but must be positive", distill.temperature)));
            }
            if !(0.0..=1.0).contains(&distill.weight) {
                return Err(Error::input(format!("distillation weight is {} but must be in 0..=1", distill.weight)));
            }
        }
        if let Some(follow) = &self.follow {
            let (found, wanted) = (follow.logits.len(), batch * classes);
            if found != wanted || !(follow.weight >= 0.0 && follow.weight.is_finite()) {
                let weight = follow.weight;
                return Err(Error::input(format!(
                    "{found} logits to follow with weight {weight}: {wanted} are needed, and a weight of at least 0"
                )));
            }
        }
        Ok(())
    }

    fn needs_no_labels(&self) -> bool {
        self.distill.as_ref().is_some_and(|d| d.weight == 1.0)
    }

    /// Loss and gradient; the arguments were checked.
    pub(crate) fn evaluate(&self, logits: &[f32], classes: usize, labels: &[u32]) -> Evaluated {
        let batch = logits.len() / classes.max(1);
        let mut correct = 0;
        let mut losses = vec![0.0_f64; batch];
        let mut gradient = vec![0.0_f32; logits.len()];
        let imitation = self.distill.as_ref().map_or(0.0, |d| f64::from(d.weight));
        let smoothing = f64::from(self.label_smoothing);
        let (spread, peak) = (smoothing / classes as f64, 1.0 - smoothing);
        let mut row = vec![0.0_f64; classes];
        for (sample, total) in losses.iter_mut().enumerate() {
            let range = sample * classes..(sample + 1) * classes;
            let z = &logits[range.clone()];
            if let Some(&label) = labels.get(sample) {
                let label = label as usize;
                correct += usize::from(argmax(z) == label);
                log_softmax(z, 1.0, &mut row);
                for (c, (g, &log_p)) in gradient[range.clone()].iter_mut().zip(&row).enumerate() {
                    let target = spread + if c == label { peak } else { 0.0 };
                    if target > 0.0 {
                        *total -= (1.0 - imitation) * target * log_p;
                    }
                    *g = ((1.0 - imitation) * (log_p.exp() - target) / batch as f64) as f32;
                }
            }
            if let Some(distill) = &self.distill {
                let temperature = f64::from(distill.temperature);
                log_softmax(z, temperature, &mut row);
                let mut teacher = vec![0.0_f64; classes];
                log_softmax(&distill.teacher_logits[range.clone()], temperature, &mut teacher);
                for ((g, &log_p), &log_q) in gradient[range.clone()].iter_mut().zip(&row).zip(&teacher) {
                    let q = log_q.exp();
                    if q > 0.0 {
                        *total += imitation * temperature * temperature * q * (log_q - log_p);
                    }
                    *g += (imitation * temperature * (log_p.exp() - q) / batch as f64) as f32;
                }
            }
            if let Some(follow) = &self.follow {
                let weight = f64::from(follow.weight);
                log_softmax(z, 1.0, &mut row);
                let mut rounded = vec![0.0_f64; classes];
                log_softmax(&follow.logits[range.clone()], 1.0, &mut rounded);
                let cross = cross_entropy(&row, &rounded);
                *total += weight * cross;
                for ((g, &log_p), &log_r) in gradient[range].iter_mut().zip(&row).zip(&rounded) {
                    *g -= (weight * log_p.exp() * (log_r + cross) / batch as f64) as f32;
                }
            }
        }
        let total: f64 = losses.iter().sum();
        Evaluated { loss: (total / batch.max(1) as f64) as f32, losses, correct, gradient }
    }

    /// The loss of each sample for these logits, `[batch, classes]`; labels and teacher must belong to them.
    pub fn per_sample(&self, logits: &[f32], classes: usize, labels: &[u32]) -> Vec<f64> {
        self.evaluate(logits, classes, labels).losses
    }
}

/// The mean over a batch of `-Σ_c softmax(z)_c · log softmax(other)_c`.
pub fn mean_cross_entropy(z: &[f32], other: &[f32], classes: usize) -> f64 {
    let (mut p, mut q) = (vec![0.0; classes], vec![0.0; classes]);
    let rows = z.chunks_exact(classes.max(1)).zip(other.chunks_exact(classes.max(1)));
    let batch = rows.len().max(1);
    let of_row = |(z, other): (&[f32], &[f32])| {
        log_softmax(z, 1.0, &mut p);
        log_softmax(other, 1.0, &mut q);
        cross_entropy(&p, &q)
    };
    rows.map(of_row).sum::<f64>() / batch as f64
}

/// `-Σ p log q`, both as logarithms. What has no probability counts nothing.
fn cross_entropy(log_p: &[f64], log_q: &[f64]) -> f64 {
    let term = |(log_p, log_q): (&f64, &f64)| match log_p.exp() {
        0.0 => 0.0,
        p => -p * log_q,
    };
    log_p.iter().zip(log_q).map(term).sum()
}

/// Writes `log softmax(z / temperature)`.
fn log_softmax(z: &[f32], temperature: f64, out: &mut [f64]) {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let shifted = |z: f32| (f64::from(z) - f64::from(max)) / temperature;
    let log_sum = z.iter().map(|&z| shifted(z).exp()).sum::<f64>().ln();
    out.iter_mut().zip(z).for_each(|(o, &z)| *o = shifted(z) - log_sum);
}

/// The index of the largest number; the first of equals.
pub fn argmax(z: &[f32]) -> usize {
    let mut best = 0;
    for (c, value) in z.iter().enumerate() {
        if *value > z[best] {
            best = c;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn losses() -> Vec<Loss> {
        let distill = |weight, temperature| {
            Some(Distill { teacher_logits: vec![0.5, 0.1, -2.0, 1.0, 3.0, 0.2], temperature, weight })
        };
        vec![
            Loss::default(),
            Loss { label_smoothing: 0.1, ..Loss::default() },
            Loss { distill: distill(0.3, 4.0), ..Loss::default() },
            Loss { label_smoothing: 0.2, distill: distill(1.0, 1.0), ..Loss::default() },
            Loss {
                follow: Some(Follow { logits: vec![0.5, 0.1, -2.0, 1.0, 3.0, 0.2], weight: 0.7 }),
                ..Loss::default()
            },
        ]
    }

    #[test]
    fn gradients_match_finite_differences() {
        let z = [0.2, -1.0, 2.0, 0.0, 0.7, -0.3];
        for loss in losses() {
            let labels: &[u32] = &[2, 0];
            loss.check(2, 3, labels).unwrap();
            let gradient = loss.evaluate(&z, 3, labels).gradient;
            for i in 0..z.len() {
                let at = |h: f32| {
                    let mut z = z;
                    z[i] += h;
                    f64::from(loss.evaluate(&z, 3, labels).loss)
                };
                let expected = (at(1e-2) - at(-1e-2)) / 2e-2;
                // Truncation h²/6·|f'''| and the loss's rounding to f32 over 2h: both below 1e-4.
                assert!((f64::from(gradient[i]) - expected).abs() < 1e-4, "{loss:?} {i}: {} {expected}", gradient[i]);
            }
        }
    }

    #[test]
    fn by_hand_and_correct() {
        let out = Loss::default().evaluate(&[0.0, 0.0, 5.0, 1.0], 2, &[1, 0]);
        let expected = (2.0_f32.ln() + (1.0 + (-4.0_f32).exp()).ln()) / 2.0;
        assert!((out.loss - expected).abs() < 1e-6);
        assert_eq!(out.correct, 1, "the first of equal logits is the answer");
    }

    #[test]
    fn nonsense_is_refused() {
        let all = losses();
        assert_eq!(
            all[0].check(2, 3, &[0, 3]).unwrap_err().to_string(),
            "label 3 is outside the 3 classes of the network"
        );
        assert!(all[0].check(2, 3, &[0]).is_err());
        assert!(all[0].check(2, 3, &[]).is_err());
        assert!(all[3].check(2, 3, &[]).is_ok(), "pure distillation needs no labels");
        assert!(all[2].check(3, 3, &[0, 1, 2]).is_err(), "teacher of another batch size");
    }

    #[test]
    fn not_a_number_reaches_the_loss() {
        assert!(Loss::default().evaluate(&[f32::NAN, 0.0], 2, &[1]).loss.is_nan());
    }
}
