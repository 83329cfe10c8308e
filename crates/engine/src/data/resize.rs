//! Bilinear resampling of byte images with a triangle filter that widens when shrinking: Pillow's `BILINEAR` (and so
//! torchvision's default for images), reproduced to the last bit because published accuracies were measured with it.
//!
//! Each output pixel is a weighted sum of input pixels, horizontally first, then vertically, rounded to a byte after
//! each. Weights are fixed-point with 22 bits: 255 * 2^22 < 2^31, so sums stay within an i32. Only the wanted window of
//! the output is computed.

/// A rectangle of whole pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rect {
    pub top: usize,
    pub left: usize,
    pub height: usize,
    pub width: usize,
}

/// Fraction bits of a weight: 32 bits less 8 for the pixel and 2 for sign and overshoot.
const PRECISION_BITS: u32 = 22;

/// Taps of one output position: weights for `first..first + weights.len()`.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Resamples the part `from` of an interleaved `[h, w, c]` image to `full` = (height, width), and returns the window
/// `want` of the result, interleaved. `from` must lie inside the image and `want` inside `full`; all sides at least 1.
pub(super) fn resample(src: &[u8], [_, w, c]: [usize; 3], from: Rect, full: (usize, usize), want: Rect) -> Vec<u8> {
    let columns: Vec<Taps> = (0..want.width).map(|x| taps(from.width, full.1, want.left + x)).collect();
    let rows: Vec<Taps> = (0..want.height).map(|y| taps(from.height, full.0, want.top + y)).collect();
    let first_row = rows.first().map_or(0, |t| t.first);
    let last_row = rows.last().map_or(0, |t| t.first + t.weights.len());

    // Horizontal pass, over the input rows that the vertical pass will read.
    let stride = want.width * c;
    let mut middle = vec![0u8; (last_row - first_row) * stride];
    for (y, out) in (first_row..last_row).zip(middle.chunks_exact_mut(stride)) {
        let start = ((from.top + y) * w + from.left) * c;
        let line = &src[start..start + from.width * c];
        for (taps, out) in columns.iter().zip(out.chunks_exact_mut(c)) {
            for (channel, out) in out.iter_mut().enumerate() {
                let mut sum = 1i32 << (PRECISION_BITS - 1);
                let pixels = line[taps.first * c + channel..].iter().step_by(c);
                for (&weight, &pixel) in taps.weights.iter().zip(pixels) {
                    sum += weight * i32::from(pixel);
                }
                *out = to_byte(sum);
            }
        }
    }

    // Vertical pass: whole rows at a time.
    let mut result = vec![0u8; want.height * stride];
    let mut sums = vec![0i32; stride];
    for (taps, out) in rows.iter().zip(result.chunks_exact_mut(stride)) {
        sums.fill(1 << (PRECISION_BITS - 1));
        let lines = middle[(taps.first - first_row) * stride..].chunks_exact(stride);
        for (&weight, line) in taps.weights.iter().zip(lines) {
            for (sum, &pixel) in sums.iter_mut().zip(line) {
                *sum += weight * i32::from(pixel);
            }
        }
        for (out, &sum) in out.iter_mut().zip(&sums) {
            *out = to_byte(sum);
        }
    }
    result
}

fn to_byte(sum: i32) -> u8 {
    (sum >> PRECISION_BITS).clamp(0, 255) as u8
}

/// The weights of output position `at` when `n_in` pixels become `n_out`.
fn taps(n_in: usize, n_out: usize, at: usize) -> Taps {
    if n_in == n_out {
        return Taps { first: at, weights: vec![1 << PRECISION_BITS] };
    }
    let scale = n_in as f64 / n_out as f64;
    let support = scale.max(1.0);
    let centre = (at as f64 + 0.5) * scale;
    let inv_support = 1.0 / support;
    // Truncation toward zero, then clamping, as in Pillow's C.
    let first = (centre - support + 0.5).max(0.0) as usize;
    let end = ((centre + support + 0.5) as usize).min(n_in);
    let weights: Vec<f64> =
        (first..end).map(|i| (1.0 - ((i as f64 - centre + 0.5) * inv_support).abs()).max(0.0)).collect();
    let total: f64 = weights.iter().sum();
    let one = f64::from(1u32 << PRECISION_BITS);
    let weights = weights.iter().map(|w| (w / total * one + 0.5) as i32).collect();
    Taps { first, weights }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pattern(h: usize, w: usize, c: usize) -> Vec<u8> {
        (0..h * w * c).map(|i| ((i * 37 + i / 7 * 11) % 256) as u8).collect()
    }

    fn whole(height: usize, width: usize) -> Rect {
        Rect { top: 0, left: 0, height, width }
    }

    #[test]
    fn equals_pillow() {
        // Expected values from Pillow 13: Image.frombytes("RGB", (7, 5), pattern).resize((w, h), Image.BILINEAR).
        let src = pattern(5, 7, 3);
        for (h, w, expected) in PILLOW {
            let out = resample(&src, [5, 7, 3], whole(5, 7), (*h, *w), whole(*h, *w));
            assert_eq!(out, *expected, "to {h}x{w}");
        }
    }

    #[test]
    fn a_window_is_a_part_of_the_whole() {
        let src = pattern(31, 23, 3);
        let full = resample(&src, [31, 23, 3], whole(31, 23), (17, 40), whole(17, 40));
        let want = Rect { top: 3, left: 11, height: 9, width: 20 };
        let part = resample(&src, [31, 23, 3], whole(31, 23), (17, 40), want);
        for y in 0..9 {
            let row = ((y + 3) * 40 + 11) * 3;
            assert_eq!(part[y * 60..(y + 1) * 60], full[row..row + 60]);
        }
    }

    #[test]
    fn a_rectangle_is_resampled_as_if_it_were_the_image() {
        let src = pattern(12, 9, 1);
        let from = Rect { top: 2, left: 3, height: 7, width: 5 };
        let cut: Vec<u8> = (2..9).flat_map(|y| src[y * 9 + 3..y * 9 + 8].to_vec()).collect();
        let a = resample(&src, [12, 9, 1], from, (4, 4), whole(4, 4));
        let b = resample(&cut, [7, 5, 1], whole(7, 5), (4, 4), whole(4, 4));
        assert_eq!(a, b);
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let src = pattern(6, 5, 3);
        assert_eq!(resample(&src, [6, 5, 3], whole(6, 5), (6, 5), whole(6, 5)), src);
    }

    const PILLOW: &[(usize, usize, &[u8])] = &[
        (
            3,
            4,
            &[
                71, 101, 138, 123, 90, 127, 159, 139, 106, 148, 179, 153, 130, 143, 119, 113, 145, 137, 122, 129, 145,
                100, 134, 118, 133, 124, 161, 109, 130, 136, 117, 125, 115, 133, 108, 98,
            ],
        ),
        (
            8,
            11,
            &[
                0, 37, 74, 50, 87, 124, 121, 136, 173, 192, 51, 88, 173, 54, 91, 88, 125, 162, 159, 196, 77, 162, 199,
                58, 77, 114, 129, 126, 163, 200, 176, 213, 250, 18, 55, 92, 68, 105, 142, 129, 154, 191, 129, 69, 106,
                120, 72, 109, 106, 143, 180, 177, 143, 95, 180, 136, 76, 95, 122, 147, 144, 181, 157, 194, 231, 156,
                45, 82, 119, 95, 132, 161, 143, 181, 203, 51, 96, 128, 55, 99, 136, 133, 170, 207, 193, 78, 122, 195,
                58, 103, 120, 136, 174, 162, 199, 105, 205, 242, 39, 71, 108, 145, 121, 158, 115, 169, 207, 84, 77,
                122, 111, 81, 125, 162, 159, 196, 233, 118, 104, 148, 105, 84, 129, 132, 162, 200, 101, 138, 131, 71,
                108, 65, 97, 134, 171, 147, 148, 105, 195, 160, 37, 103, 126, 115, 107, 151, 159, 185, 222, 179, 93,
                130, 145, 73, 110, 133, 151, 188, 153, 83, 120, 121, 17, 54, 91, 123, 160, 197, 173, 102, 131, 221, 41,
                63, 129, 109, 141, 133, 177, 127, 211, 248, 45, 119, 156, 113, 99, 136, 116, 177, 214, 34, 109, 146,
                75, 43, 80, 117, 150, 187, 224, 134, 121, 158, 117, 53, 90, 116, 131, 168, 107, 151, 148, 94, 131, 56,
                93, 130, 134, 126, 123, 138, 204, 110, 46, 136, 107, 94, 70, 107, 144, 168, 205, 242, 102, 139, 176,
                33, 71, 108, 104, 149, 186, 85, 129, 166, 0, 37, 74, 71, 108, 152, 144, 111, 156, 222, 26, 64, 154, 75,
                112, 88, 125, 162,
            ],
        ),
        (
            5,
            3,
            &[
                95, 80, 117, 146, 125, 104, 133, 170, 155, 82, 122, 159, 127, 107, 146, 175, 158, 105, 124, 164, 91,
                109, 149, 173, 71, 108, 147, 166, 96, 133, 151, 176, 95, 113, 150, 80, 99, 138, 175, 73, 97, 137, 155,
                82, 122,
            ],
        ),
        (
            2,
            7,
            &[
                42, 79, 116, 153, 178, 157, 89, 56, 93, 130, 167, 192, 171, 103, 70, 107, 144, 169, 148, 185, 117, 126,
                163, 200, 156, 88, 67, 92, 140, 177, 133, 170, 102, 81, 106, 154, 191, 147, 79, 58, 95, 120,
            ],
        ),
        (1, 1, &[120, 131, 131]),
    ];
}
