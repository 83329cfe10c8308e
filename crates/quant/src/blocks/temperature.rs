//! The steepness of soft gates over training: σ(β x) goes from a gentle curve to a step as β grows exponentially.

/// An exponential schedule `β(t) = start · (end / start)^(t / reach)` for t from 0 to 1, constant after `reach`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature {
    /// β at t = 0.
    pub start: f64,
    /// β from t = `reach` on.
    pub end: f64,
    /// Fraction of the phase after which β stays.
    pub reach: f64,
}

impl Temperature {
    /// β at fraction `t` of the phase.
    pub fn at(&self, t: f64) -> f64 {
        let t = if self.reach > 0.0 { (t / self.reach).clamp(0.0, 1.0) } else { 1.0 };
        self.start * (self.end / self.start).powf(t)
    }

    /// The published CIFAR schedule: `final_temperature^(epoch / ticket)`, epochs counted from 1.
    pub fn published(final_temperature: f64, epoch: f64, ticket: f64) -> f64 {
        final_temperature.powf(epoch / ticket)
    }
}

/// The published learning-rate schedule relative to its start: five warm-up epochs at e/5, then a cosine of period
/// `epochs` stepped from epoch 6 on.
pub fn published_rate(epoch: f64, epochs: f64) -> f64 {
    if epoch <= 5.0 { epoch / 5.0 } else { 0.5 * (1.0 + (std::f64::consts::PI * (epoch - 5.0) / epochs).cos()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_table() {
        // Epoch, temperature, learning rate over its start: 600 epochs, masks fixed at 595, final temperature 200.
        let table = [
            (1.0, 1.009, 0.2),
            (50.0, 1.561, 0.986),
            (100.0, 2.436, 0.939),
            (200.0, 5.935, 0.761),
            (300.0, 14.46, 0.513),
            (400.0, 35.23, 0.261),
            (500.0, 85.83, 0.0737),
            (595.0, 200.0, 6.9e-4),
            (599.0, 207.3, 2.5e-4),
        ];
        for (epoch, temperature, rate) in table {
            let close = |got: f64, want: f64, digits: f64| (got / want - 1.0).abs() < digits;
            let got = (Temperature::published(200.0, epoch, 595.0), published_rate(epoch, 600.0));
            // The table has four digits of the temperature and two or three of the rate.
            assert!(close(got.0, temperature, 5e-4), "epoch {epoch}: {got:?}");
            assert!(close(got.1, rate, 2e-2), "epoch {epoch}: {got:?}");
        }
    }

    #[test]
    fn ours_starts_ends_and_stays() {
        let t = Temperature { start: 2.0, end: 200.0, reach: 0.8 };
        assert_eq!((t.at(0.0), t.at(0.8), t.at(1.0)), (2.0, 200.0, 200.0));
        assert!((t.at(0.4) - 20.0).abs() < 1e-9);
    }
}
