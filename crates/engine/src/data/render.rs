//! From pixels to floats in one pass: crop, pad, flip and normalise together, through a table of 256 floats per channel.
//!
//! Sources are interleaved (`[h, w, c]`), bytes or floats; outputs are `[c, h, w]` or `[h, w, c]` floats. One CIFAR image
//! takes about 4 µs, so that one core feeds far more than any training step eats.

use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::rng::{below, unit};
use super::transform::{Augment, RandomResizedCrop, Scale, Transform};

/// The order of the axes of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// Batch, channel, height, width: ONNX's order.
    #[default]
    Nchw,
    /// Batch, height, width, channel: channels last.
    Nhwc,
}

/// Interleaved pixels, borrowed.
#[derive(Clone, Copy)]
pub(super) enum Pixels<'a> {
    Bytes(&'a [u8]),
    Floats(&'a [f32]),
}

/// Where the output window lies in the source, and what happens to it. A window may reach outside: black is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Geometry {
    pub top: isize,
    pub left: isize,
    pub flip: bool,
    /// Rows and columns (half-open) of the output that are set to 0: top, bottom, left, right.
    pub cutout: Option<[usize; 4]>,
}

/// Range and normalisation, tabulated.
#[derive(Debug)]
pub(super) struct Normaliser {
    /// One table if all channels share it, else one per channel.
    tables: Vec<[f32; 256]>,
    mean_std: Vec<(f32, f32)>,
}

impl Normaliser {
    pub(super) fn new(transform: &Transform, channels: usize, white: f32) -> Self {
        let shared = transform.mean.len() <= 1 && transform.std.len() <= 1;
        let distinct = if shared { 1 } else { channels };
        let mean_std: Vec<(f32, f32)> = (0..distinct).map(|c| transform.mean_std(c)).collect();
        let tables = mean_std.iter().map(|&(mean, std)| {
            std::array::from_fn(|byte| {
                let value = match transform.scale {
                    Scale::ZeroOne => byte as f32 / white,
                    Scale::Raw => byte as f32,
                };
                (value - mean) / std
            })
        });
        Normaliser { tables: tables.collect(), mean_std }
    }

    /// Writes the `height` x `width` window of a `[h, w, c]` source that `geometry` describes.
    pub(super) fn render(
        &self,
        pixels: Pixels<'_>,
        source: [usize; 3],
        (height, width): (usize, usize),
        geometry: Geometry,
        layout: Layout,
        out: &mut [f32],
    ) {
        let c = source[2];
        let view = View { source, height, width, geometry };
        match pixels {
            Pixels::Bytes(bytes) => match (layout, self.tables.as_slice()) {
                // The common case: three channels interleaved both sides, the tables held as three references.
                (Layout::Nhwc, [r, g, b]) => view.interleaved(bytes, out, |pixel: &[u8], out: &mut [f32]| {
                    if let ([pr, pg, pb], [or, og, ob]) = (pixel, out) {
                        (*or, *og, *ob) = (r[usize::from(*pr)], g[usize::from(*pg)], b[usize::from(*pb)]);
                    }
                }),
                (Layout::Nhwc, tables) => view.interleaved(bytes, out, |pixel, out| {
                    for (i, (p, o)) in pixel.iter().zip(out).enumerate() {
                        *o = pick(tables, i)[usize::from(*p)];
                    }
                }),
                (Layout::Nchw, tables) => {
                    for (i, plane) in out.chunks_exact_mut(height * width).enumerate().take(c) {
                        let table = pick(tables, i);
                        view.plane(bytes, i, plane, |p| table[usize::from(p)]);
                    }
                }
            },
            Pixels::Floats(floats) => match layout {
                Layout::Nhwc => view.interleaved(floats, out, |pixel, out| {
                    for (i, (p, o)) in pixel.iter().zip(out).enumerate() {
                        let (mean, std) = *pick(&self.mean_std, i);
                        *o = (p - mean) / std;
                    }
                }),
                Layout::Nchw => {
                    for (i, plane) in out.chunks_exact_mut(height * width).enumerate().take(c) {
                        let (mean, std) = *pick(&self.mean_std, i);
                        view.plane(floats, i, plane, |p| (p - mean) / std);
                    }
                }
            },
        }
        if let Some(square) = geometry.cutout {
            view.cut_out(square, layout, out);
        }
    }
}

/// Entry `i`, or the only one.
fn pick<T>(entries: &[T], i: usize) -> &T {
    &entries[if entries.len() == 1 { 0 } else { i }]
}

struct View {
    source: [usize; 3],
    height: usize,
    width: usize,
    geometry: Geometry,
}

impl View {
    /// The source row of output row `y`, and the output columns `inner` whose pixels exist with the first source column.
    /// With a flip, output columns run backwards over the same window.
    fn row(&self, y: usize) -> Option<(usize, std::ops::Range<usize>, usize)> {
        let [h, w, _] = self.source;
        let row = y as isize + self.geometry.top;
        if row < 0 || row >= h as isize {
            return None;
        }
        // Window column x (before flipping) shows source column x + left.
        let left = self.geometry.left;
        let begin = (-left).clamp(0, self.width as isize);
        let end = (w as isize - left).clamp(begin, self.width as isize);
        let first = (begin + left).clamp(0, w as isize) as usize;
        Some((row as usize, begin as usize..end as usize, first))
    }

    /// Channels last: `convert` maps one source pixel to one output pixel.
    fn interleaved<T: Copy + Default>(&self, src: &[T], out: &mut [f32], convert: impl Fn(&[T], &mut [f32])) {
        let [_, w, c] = self.source;
        let black = vec![T::default(); c];
        for (y, line) in out.chunks_exact_mut(self.width * c).enumerate().take(self.height) {
            let Some((row, inner, first)) = self.row(y) else {
                line.chunks_exact_mut(c).for_each(|o| convert(&black, o));
                continue;
            };
            let start = (row * w + first) * c;
            let pixels = src[start..start + inner.len() * c].chunks_exact(c);
            let outer = [0..inner.start, inner.end..self.width];
            if self.geometry.flip {
                for x in outer.into_iter().flatten() {
                    let x = self.width - 1 - x;
                    convert(&black, &mut line[x * c..(x + 1) * c]);
                }
                let target = &mut line[(self.width - inner.end) * c..(self.width - inner.start) * c];
                pixels.zip(target.chunks_exact_mut(c).rev()).for_each(|(p, o)| convert(p, o));
            } else {
                for x in outer.into_iter().flatten() {
                    convert(&black, &mut line[x * c..(x + 1) * c]);
                }
                let target = &mut line[inner.start * c..inner.end * c];
                pixels.zip(target.chunks_exact_mut(c)).for_each(|(p, o)| convert(p, o));
            }
        }
    }

    /// One channel into one plane.
    fn plane<T: Copy + Default>(&self, src: &[T], channel: usize, out: &mut [f32], convert: impl Fn(T) -> f32) {
        let [_, w, c] = self.source;
        let black = convert(T::default());
        for (y, line) in out.chunks_exact_mut(self.width).enumerate() {
            let Some((row, inner, first)) = self.row(y) else {
                line.fill(black);
                continue;
            };
            let start = (row * w + first) * c;
            let pixels = &src[start..start + inner.len() * c];
            // Only pixels outside the source are filled; the rest is written once.
            let target = if self.geometry.flip { self.width - inner.end..self.width - inner.start } else { inner };
            line[..target.start].fill(black);
            line[target.end..].fill(black);
            let line = &mut line[target];
            if self.geometry.flip {
                for (p, o) in pixels.chunks_exact(c).zip(line.iter_mut().rev()) {
                    *o = convert(p[channel]);
                }
            } else {
                for (p, o) in pixels.chunks_exact(c).zip(line) {
                    *o = convert(p[channel]);
                }
            }
        }
    }

    fn cut_out(&self, [top, bottom, left, right]: [usize; 4], layout: Layout, out: &mut [f32]) {
        let (rows, row, planes) = match layout {
            Layout::Nhwc => (self.height, self.source[2], 1),
            Layout::Nchw => (self.height, 1, self.source[2]),
        };
        for plane in 0..planes {
            for y in top..bottom {
                let start = (plane * rows + y) * self.width * row;
                out[start + left * row..start + right * row].fill(0.0);
            }
        }
    }
}

/// Draws the geometry of one sample. Numbers are drawn in a fixed order (flip, crop, cutout), and only for what is on.
pub(super) fn draw(augment: &Augment, height: usize, width: usize, rng: &mut ChaCha8Rng) -> Geometry {
    let mut geometry = Geometry::default();
    if augment.flip {
        geometry.flip = below(rng, 2) == 1;
    }
    if let Some(pad) = augment.pad_crop {
        let span = 2 * pad as u32 + 1;
        geometry.top = below(rng, span) as isize - pad as isize;
        geometry.left = below(rng, span) as isize - pad as isize;
    }
    if let Some(side) = augment.cutout {
        let centre = (below(rng, height as u32) as usize, below(rng, width as u32) as usize);
        let reach = |centre: usize, n: usize| {
            let start = centre.saturating_sub(side / 2).min(n);
            let end = centre.saturating_add(side - side / 2).min(n);
            (start, end)
        };
        let (top, bottom) = reach(centre.0, height);
        let (left, right) = reach(centre.1, width);
        geometry.cutout = Some([top, bottom, left, right]);
    }
    geometry
}

/// Draws the part of an `h` x `w` image that a random resized crop keeps: (top, left, height, width). Ten tries, then
/// the largest centred part whose proportions are allowed, as in torchvision.
pub(super) fn draw_crop(crop: RandomResizedCrop, h: usize, w: usize, rng: &mut ChaCha8Rng) -> [usize; 4] {
    let area = (h * w) as f64;
    let [low, high] = crop.ratio;
    for _ in 0..10 {
        let target = area * (crop.area[0] + (crop.area[1] - crop.area[0]) * unit(rng));
        let ratio = (low.ln() + (high.ln() - low.ln()) * unit(rng)).exp();
        let width = (target * ratio).sqrt().round_ties_even() as usize;
        let height = (target / ratio).sqrt().round_ties_even() as usize;
        if (1..=w).contains(&width) && (1..=h).contains(&height) {
            let top = below(rng, (h - height + 1) as u32) as usize;
            let left = below(rng, (w - width + 1) as u32) as usize;
            return [top, left, height, width];
        }
    }
    let actual = w as f64 / h as f64;
    let (height, width) = if actual < low {
        (((w as f64 / low).round_ties_even() as usize).clamp(1, h), w)
    } else if actual > high {
        (h, ((h as f64 * high).round_ties_even() as usize).clamp(1, w))
    } else {
        (h, w)
    };
    [(h - height) / 2, (w - width) / 2, height, width]
}

#[cfg(test)]
mod tests {
    use super::super::rng::stream;
    use super::*;

    /// The obvious version: pad, shift, flip, normalise, transpose, cut, one element at a time.
    fn reference(
        at: impl Fn(isize, isize, usize) -> f32,
        [h, w, c]: [usize; 3],
        (oh, ow): (usize, usize),
        g: Geometry,
        layout: Layout,
        transform: &Transform,
    ) -> Vec<f32> {
        let mut out = vec![f32::NAN; oh * ow * c];
        for y in 0..oh {
            for x in 0..ow {
                for ch in 0..c {
                    let sx = if g.flip { ow - 1 - x } else { x } as isize + g.left;
                    let sy = y as isize + g.top;
                    let inside = (0..h as isize).contains(&sy) && (0..w as isize).contains(&sx);
                    let p = if inside { at(sy, sx, ch) } else { 0.0 };
                    let (mean, std) = transform.mean_std(ch);
                    let mut v = (p - mean) / std;
                    if let Some([t, b, l, r]) = g.cutout
                        && (t..b).contains(&y)
                        && (l..r).contains(&x)
                    {
                        v = 0.0;
                    }
                    let i = match layout {
                        Layout::Nchw => (ch * oh + y) * ow + x,
                        Layout::Nhwc => (y * ow + x) * c + ch,
                    };
                    out[i] = v;
                }
            }
        }
        out
    }

    #[test]
    fn the_fused_pass_equals_the_reference() {
        for c in [1usize, 2, 3, 5] {
            let transform = Transform {
                mean: (0..c).map(|i| 0.3 + 0.1 * i as f32).collect(),
                std: (0..c).map(|i| 0.2 + 0.05 * i as f32).collect(),
                ..Transform::default()
            };
            for (h, w, oh, ow) in [(5, 7, 5, 7), (1, 1, 1, 1), (8, 8, 8, 8), (4, 6, 3, 9)] {
                let bytes: Vec<u8> = (0..h * w * c).map(|i| (i * 53 % 251) as u8).collect();
                let floats: Vec<f32> = bytes.iter().map(|&b| f32::from(b) / 7.0 - 3.0).collect();
                let normaliser = Normaliser::new(&transform, c, 255.0);
                for (top, left) in [(0, 0), (-2, 1), (3, -4), (-20, 0), (0, 20), (1, 1)] {
                    for flip in [false, true] {
                        for cutout in [None, Some([0, oh.min(2), ow / 2, ow])] {
                            for layout in [Layout::Nchw, Layout::Nhwc] {
                                let g = Geometry { top, left, flip, cutout };
                                let mut out = vec![f32::NAN; oh * ow * c];
                                let index = |y: isize, x: isize, ch: usize| (y as usize * w + x as usize) * c + ch;
                                normaliser.render(Pixels::Bytes(&bytes), [h, w, c], (oh, ow), g, layout, &mut out);
                                let at = |y, x, ch| f32::from(bytes[index(y, x, ch)]) / 255.0;
                                assert_eq!(out, reference(at, [h, w, c], (oh, ow), g, layout, &transform), "{g:?}");
                                normaliser.render(Pixels::Floats(&floats), [h, w, c], (oh, ow), g, layout, &mut out);
                                let at = |y, x, ch| floats[index(y, x, ch)];
                                assert_eq!(out, reference(at, [h, w, c], (oh, ow), g, layout, &transform), "{g:?}");
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn normalisation_is_torchvisions() {
        // ToTensor then Normalize of byte 200 in PyTorch: (200 / 255 - 0.485) / 0.229, all in f32.
        let n = Normaliser::new(&Transform::cifar(), 3, 255.0);
        let mut out = [0.0; 3];
        n.render(Pixels::Bytes(&[200; 3]), [1, 1, 3], (1, 1), Geometry::default(), Layout::Nchw, &mut out);
        assert_eq!(out[0], (200f32 / 255.0 - 0.485) / 0.229);
        let raw = Normaliser::new(&Transform::raw_255(), 3, 255.0);
        raw.render(Pixels::Bytes(&[7, 0, 255]), [1, 1, 3], (1, 1), Geometry::default(), Layout::Nhwc, &mut out);
        assert_eq!(out, [7.0, 0.0, 255.0]);
    }

    #[test]
    fn drawn_geometry_covers_its_range_and_no_more() {
        let augment = Augment { cutout: Some(3), ..Augment::cifar() };
        let (mut tops, mut flips) = (std::collections::BTreeSet::new(), 0);
        for i in 0..4000 {
            let g = draw(&augment, 32, 32, &mut stream(1, 0, b"augment_", i));
            tops.insert(g.top);
            assert!((-4..=4).contains(&g.left));
            flips += usize::from(g.flip);
            let [t, b, l, r] = g.cutout.unwrap();
            assert!(b <= 32 && r <= 32 && (2..=3).contains(&(b - t)) && (2..=3).contains(&(r - l)));
        }
        assert_eq!(tops.len(), 9);
        assert!((1800..2200).contains(&flips));
        assert_eq!(draw(&Augment::none(), 8, 8, &mut stream(1, 0, b"augment_", 0)), Geometry::default());
    }

    #[test]
    fn random_crops_stay_inside() {
        for (h, w) in [(1, 1), (1, 300), (300, 1), (224, 224), (37, 51)] {
            for i in 0..200 {
                let [top, left, height, width] =
                    draw_crop(RandomResizedCrop::default(), h, w, &mut stream(3, 0, b"augment_", i));
                assert!(height >= 1 && width >= 1 && top + height <= h && left + width <= w);
            }
        }
    }
}
