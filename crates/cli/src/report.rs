//! One self-contained HTML page about a run: no network, no script, light and dark.
//!
//! [`ReportData`] is everything the page shows, gathered from a run's event log; [`render`] turns it into text and does
//! nothing else, so a page can be made again at any time and compared with a stored one.

mod chart;
pub mod page;
pub mod scatter;

use crate::events::{Epoch, Event, LayerRow, Start, Variant, Verify};

pub use page::render;

/// The page's file name inside a run folder.
pub const FILE_NAME: &str = "report.html";

/// Everything a report shows. Parts that a run did not have are empty, and their sections are left out.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ReportData {
    /// What the run was about.
    pub start: Start,
    /// Its epochs.
    pub epochs: Vec<Epoch>,
    /// What it had to say.
    pub notes: Vec<String>,
    /// Versions of the model, float first.
    pub variants: Vec<Variant>,
    /// The layers of the final model.
    pub layers: Vec<LayerRow>,
    /// The comparison of engines.
    pub verify: Option<Verify>,
    /// How long it took.
    pub seconds: Option<f64>,
}

impl ReportData {
    /// Gathers a run's events. Later events of a kind that happens once replace earlier ones.
    pub fn from_events(events: &[Event]) -> Self {
        let mut data = Self::default();
        for event in events.iter().cloned() {
            match event {
                Event::Start(start) => data.start = start,
                Event::Epoch(epoch) => data.epochs.push(epoch),
                Event::Note { text } => data.notes.push(text),
                Event::Variant(variant) => match data.variants.iter_mut().find(|v| v.name == variant.name) {
                    Some(old) => *old = variant,
                    None => data.variants.push(variant),
                },
                Event::Layers { layers } => data.layers = layers,
                Event::Verify(verify) => data.verify = Some(verify),
                Event::Finish { seconds, .. } => data.seconds = Some(seconds),
            }
        }
        data
    }

    /// Mean stored bits per weight over the final layers.
    pub fn mean_stored_bits(&self) -> Option<f64> {
        self.mean(|l| l.stored_bits)
    }

    /// Mean bits per weight as papers count them.
    pub fn mean_paper_bits(&self) -> Option<f64> {
        self.mean(|l| l.weight_bits)
    }

    fn mean(&self, bits: impl Fn(&LayerRow) -> f64) -> Option<f64> {
        let weights: u64 = self.layers.iter().map(|l| l.weights).sum();
        let total: f64 = self.layers.iter().map(|l| bits(l) * l.weights as f64).sum();
        (weights > 0).then(|| total / weights as f64)
    }

    /// The version called `float`.
    pub fn float(&self) -> Option<&Variant> {
        self.variants.iter().find(|v| v.name == "float")
    }

    /// The version that the run made: the last one.
    pub fn result(&self) -> Option<&Variant> {
        self.variants.last().filter(|v| v.name != "float")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A run of made-up but plausible figures that has every section.
    pub(crate) fn sample() -> ReportData {
        let names = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.conv2", "linear"];
        let sizes = [432u64, 2304, 2304, 4608, 9216, 640];
        let bits = [6.0, 4.0, 3.0, 3.0, 2.0, 5.0];
        let layer = |i: usize| LayerRow {
            name: names[i].to_owned(),
            op: if i == 5 { "Gemm" } else { "Conv" }.to_owned(),
            shape: if i == 5 { vec![10, 64] } else { vec![16, sizes[i] as usize / 144, 3, 3] },
            weights: sizes[i],
            weight_bits: bits[i] - 1.0,
            stored_bits: bits[i],
            activation_bits: if i == 0 { 8.0 } else { 4.0 },
            bytes: sizes[i] * bits[i] as u64 / 8,
            macs: sizes[i] * 256,
            arithmetic: "i32 += u8*i8".to_owned(),
        };
        let epoch = |n: usize| {
            let t = n as f64 / 24.0;
            let search = n <= 16;
            Epoch {
                epoch: n,
                phase: if search { "search" } else { "finetune" }.to_owned(),
                train_loss: 0.15 + 0.5 * (-3.0 * t).exp(),
                train_accuracy: 0.97 - 0.12 * (-4.0 * t).exp(),
                accuracy: Some(0.915 - 0.06 * (-5.0 * t).exp()),
                soft_accuracy: search.then_some(0.92 - 0.03 * (-5.0 * t).exp()),
                loss: Some(0.3 + 0.3 * (-4.0 * t).exp()),
                learning_rate: 0.05 * (1.0 - t),
                mean_bits: Some(2.9 + 5.0 * (-6.0 * t).exp()),
                layer_bits: bits.iter().map(|b| (b + (8.0 - b) * (-6.0 * t).exp()).round() as f32).collect(),
                images_per_s: 1100.0,
            }
        };
        let variant =
            |name: &str, accuracy, bytes, mean_bits| Variant { name: name.to_owned(), accuracy, bytes, mean_bits };
        ReportData {
            start: Start {
                name: "cifar10-resnet20-csq3".to_owned(),
                model: "resnet20".to_owned(),
                method: "csq".to_owned(),
                data: "CIFAR-10 <test & train>".to_owned(),
                samples: (50_000, 10_000),
                seed: 1,
                threads: 2,
                device: None,
                target_bits: Some(3.0),
                weights: sizes.iter().sum(),
                macs: 40_551_424,
                layers: names.iter().map(|n| (*n).to_owned()).collect(),
                recipe: "name = \"cifar10-resnet20-csq3\"\nseed = 1\n".to_owned(),
                version: "0.0.0".to_owned(),
            },
            epochs: (1..=24).map(epoch).collect(),
            notes: vec!["search ended at 3.04 bits: closed 1 plane of layer2.0.conv2 (+0.0003 loss)".to_owned()],
            variants: vec![
                variant("float", 0.9173, 1_090_000, 32.0),
                variant("uniform 3 bits", 0.9021, 108_000, 3.0),
                variant("learned", 0.9142, 104_000, 2.9),
            ],
            layers: (0..6).map(layer).collect(),
            verify: Some(Verify {
                agree: true,
                max_abs_diff: 1.9e-6,
                top1_agreement: 1.0,
                samples: 10_000,
                reference_samples: 100,
                accuracies: ["simulator", "reference", "fast"].map(|n| (n.to_owned(), 0.9142)).to_vec(),
            }),
            seconds: Some(3120.0),
        }
    }

    /// Compares with the stored page, or stores it where `BITSMITH_UPDATE_GOLDENS` is set.
    fn check_golden(name: &str, text: &str) {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
        if std::env::var_os("BITSMITH_UPDATE_GOLDENS").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        let stored = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(stored == text, "{name} differs from the stored file: look, then run with BITSMITH_UPDATE_GOLDENS=1");
    }

    #[test]
    fn the_page_is_as_stored() {
        check_golden("report.html", &render(&sample()));
    }

    #[test]
    fn the_page_stands_alone() {
        let page = render(&sample());
        for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
            assert!(!page.contains(outside), "the page reaches for {outside}");
        }
        assert!(page.contains("CIFAR-10 &lt;test &amp; train&gt;"), "names are escaped");
    }

    #[test]
    fn a_run_without_anything_still_has_a_page() {
        let page = render(&ReportData::default());
        assert!(page.ends_with("</html>\n") && !page.contains("NaN"));
        // Figures that training can produce but a chart cannot place.
        let epochs =
            vec![Epoch { train_loss: f64::NAN, ..Epoch::default() }, Epoch { train_loss: 1e300, ..Epoch::default() }];
        let page = render(&ReportData { epochs, ..ReportData::default() });
        assert!(!page.contains("NaN") && !page.contains("inf"));
    }

    #[test]
    fn events_become_a_report() {
        let sample = sample();
        let mut events = vec![Event::Start(sample.start.clone())];
        events.extend(sample.epochs.iter().cloned().map(Event::Epoch));
        events.extend(sample.notes.iter().cloned().map(|text| Event::Note { text }));
        events.extend(sample.variants.iter().cloned().map(Event::Variant));
        events.push(Event::Layers { layers: sample.layers.clone() });
        events.extend(sample.verify.clone().map(Event::Verify));
        events.extend(sample.seconds.map(|seconds| Event::Finish { seconds, peak_rss_mb: None }));
        assert_eq!(ReportData::from_events(&events), sample);
    }
}
