//! The embedded data set: 1,797 handwritten digits of 8 x 8 pixels, 0..=16, ten classes. It makes the demo and the
//! tests independent of downloads.
//!
//! "Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), UCI Machine Learning Repository,
//! <https://doi.org/10.24432/C50P49>, licensed under CC BY 4.0 (<https://creativecommons.org/licenses/by/4.0/>). This is
//! its test set in the order of scikit-learn's `load_digits`; pixels and labels are unchanged, only repacked:
//! `digits.bin` is a zlib stream of 1,797 label bytes followed by 1,797 images of 64 bytes.
//!
//! Every fifth sample of each class is the test split (355 samples), the others are the training split (1,442).

use std::io::Read;

use flate2::read::ZlibDecoder;

use super::error::Error;
use super::open::{Content, Found, Loaded, Sets};
use super::transform::Transform;

const COUNT: usize = 1797;
const PIXELS: usize = 64;
static PACKED: &[u8] = include_bytes!("digits.bin");

/// The digits, as one set that the hold-out of [`Options`](super::Options) divides.
pub(super) fn found() -> Found {
    Found {
        name: "digits",
        classes: (0..10).map(|c| c.to_string()).collect(),
        labelled: true,
        transform: Transform::digits(),
        sets: Sets::Whole(Box::new(|_, _| load())),
    }
}

fn load() -> Result<Loaded, Error> {
    let mut bytes = Vec::with_capacity(COUNT * (PIXELS + 1));
    let result = ZlibDecoder::new(PACKED).read_to_end(&mut bytes);
    if result.is_err() || bytes.len() != COUNT * (PIXELS + 1) {
        return Err(Error::malformed("digits", "the embedded data are damaged; build again from a clean checkout"));
    }
    let pixels = bytes.split_off(COUNT);
    Ok(Loaded {
        samples: Content::Bytes { shape: [8, 8, 1], white: 16.0, bytes: pixels },
        labels: bytes.into_iter().map(u32::from).collect(),
        missing: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Layout, Options, Split, open};

    #[test]
    fn the_digits_are_scikit_learns() {
        let all = open("digits", &Options::default()).unwrap();
        assert_eq!((all.len(), all.shape(), all.split()), (1797, [1, 8, 8], Split::All));
        let mut counts = [0; 10];
        all.labels().iter().for_each(|&l| counts[l as usize] += 1);
        assert_eq!(counts, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]);
        let first = all.images(&[0], Layout::Nchw).unwrap();
        let row: Vec<f32> = [0, 0, 13, 15, 10, 15, 5, 0].iter().map(|&v| v as f32 / 16.0).collect();
        assert_eq!(first[8..16], row);
    }

    #[test]
    fn the_split_is_stratified_disjoint_and_fixed() {
        let train = open("digits", &Options::train()).unwrap();
        let test = open("digits", &Options::test()).unwrap();
        assert_eq!((train.len(), test.len()), (1442, 355));
        for digit in 0..10 {
            let count = test.labels().iter().filter(|&&l| l == digit).count();
            assert!((34..=36).contains(&count), "{digit}: {count}");
        }
        // The zeros of the source are its samples 0, 10, 20, 30, 36, ….
        let zero = (0..test.len()).find(|&i| test.labels()[i] == 0).unwrap();
        assert_eq!(test.sample_name(zero).unwrap(), "digits #36");
        let limited = open("digits", &Options { limit: Some(40), ..Options::train() }).unwrap();
        assert!((0..10).all(|d| limited.labels().iter().filter(|&&l| l == d).count() == 4));
    }
}
