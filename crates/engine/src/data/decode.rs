//! Image files to interleaved bytes, with limits on what a file may claim.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, GrayImage, ImageDecoder, ImageReader, Limits, RgbImage};
use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::transform::{Colour, MAX_SIDE};

/// The most memory one image may take while it is decoded.
const MAX_DECODE_BYTES: u64 = 1 << 30;
/// The most pixels an image may have, twice what the largest photo of ImageNet has; a progressive JPEG takes nine bytes
/// for each while it is decoded.
const MAX_PIXELS: usize = 1 << 27;
/// The most bytes an image file may have.
pub(super) const MAX_FILE_BYTES: u64 = 256 << 20;
/// What counts as an image file, lower case.
pub(super) const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "webp", "bmp", "gif"];

/// Interleaved pixels of `[height, width, channels]`.
pub(super) struct Decoded {
    pub shape: [usize; 3],
    pub bytes: Vec<u8>,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Whether a file's name says that it is an image.
pub(super) fn is_image(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, end)| EXTENSIONS.iter().any(|e| end.eq_ignore_ascii_case(e)))
}

/// Decodes a JPEG, PNG, WebP, BMP or the first frame of a GIF; the contents decide which, not the name. Orientation
/// tags are not applied (as in torchvision, whose accuracies are compared with).
pub(super) fn decode(file: &[u8], colour: Colour) -> Result<Decoded, Cause> {
    guarded(|| {
        let image = if is_jpeg(file) { decode_jpeg(file, colour)? } else { decode_other(file)? };
        let (width, height) = (image.width() as usize, image.height() as usize);
        let bytes = match colour {
            Colour::Rgb => image.into_rgb8().into_raw(),
            Colour::Grey => image.into_luma8().into_raw(),
        };
        if height == 0 || width == 0 {
            return Err("the image has no pixels".into());
        }
        Ok(Decoded { shape: [height, width, colour.channels()], bytes })
    })
}

/// Height and width from the header alone.
pub(super) fn dimensions(file: &[u8]) -> Result<(usize, usize), Cause> {
    guarded(|| {
        if is_jpeg(file) {
            let (width, height) = jpeg(file)?.dimensions().ok_or("the JPEG header has no size")?;
            return Ok((height, width));
        }
        let (width, height) = reader(file)?.into_decoder()?.dimensions();
        Ok((height as usize, width as usize))
    })
}

fn is_jpeg(file: &[u8]) -> bool {
    file.starts_with(&[0xff, 0xd8, 0xff])
}

/// A JPEG decoder that has read the headers. Strict: what the `image` crate's wrapper would fill with grey (a file that
/// was cut short, codes that do not exist) is an error.
fn jpeg(file: &[u8]) -> Result<JpegDecoder<ZCursor<&[u8]>>, Cause> {
    let options = DecoderOptions::default().set_strict_mode(true).set_max_width(MAX_SIDE).set_max_height(MAX_SIDE);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(file), options);
    decoder.decode_headers()?;
    let (width, height) = decoder.dimensions().ok_or("the JPEG header has no size")?;
    check_pixels(width, height)?;
    Ok(decoder)
}

fn check_pixels(width: usize, height: usize) -> Result<(), Cause> {
    if width.saturating_mul(height) > MAX_PIXELS {
        return Err(format!("{width} x {height} pixels are more than the limit of {MAX_PIXELS}").into());
    }
    Ok(())
}

fn decode_other(file: &[u8]) -> Result<DynamicImage, Cause> {
    let (width, height) = reader(file)?.into_dimensions()?;
    check_pixels(width as usize, height as usize)?;
    Ok(reader(file)?.decode()?)
}

fn decode_jpeg(file: &[u8], colour: Colour) -> Result<DynamicImage, Cause> {
    let mut decoder = jpeg(file)?;
    let (width, height) = decoder.dimensions().ok_or("the JPEG header has no size")?;
    let has_luma = matches!(decoder.input_colorspace(), Some(ColorSpace::YCbCr | ColorSpace::Luma));
    let target = if colour == Colour::Grey && has_luma { ColorSpace::Luma } else { ColorSpace::RGB };
    decoder.set_options(decoder.options().jpeg_set_out_colorspace(target));
    let bytes = decoder.decode()?;
    let (width, height) = (width as u32, height as u32);
    let image = match target {
        ColorSpace::Luma => GrayImage::from_raw(width, height, bytes).map(DynamicImage::from),
        _ => RgbImage::from_raw(width, height, bytes).map(DynamicImage::from),
    };
    image.ok_or_else(|| "the JPEG decoder returned too few pixels".into())
}

fn reader(file: &[u8]) -> Result<ImageReader<Cursor<&[u8]>>, Cause> {
    let mut reader = ImageReader::new(Cursor::new(file)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE as u32);
    limits.max_image_height = Some(MAX_SIDE as u32);
    limits.max_alloc = Some(MAX_DECODE_BYTES);
    reader.limits(limits);
    Ok(reader)
}

/// A decoder that panics on a hostile file has met a broken image, nothing worse.
fn guarded<T>(decode: impl FnOnce() -> Result<T, Cause>) -> Result<T, Cause> {
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| Err("the decoder panicked".into()))
}

#[cfg(test)]
mod tests {
    use image::{ImageFormat, Rgb};

    use super::*;

    fn encoded(format: ImageFormat) -> Vec<u8> {
        let image = RgbImage::from_fn(9, 6, |x, y| Rgb([x as u8 * 20, y as u8 * 30, 100]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(image).write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn formats_are_recognised_by_contents() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif] {
            let file = encoded(format);
            assert_eq!(dimensions(&file).unwrap(), (6, 9));
            let decoded = decode(&file, Colour::Rgb).unwrap();
            assert_eq!((decoded.shape, decoded.bytes.len()), ([6, 9, 3], 162));
            assert_eq!(decode(&file, Colour::Grey).unwrap().bytes.len(), 54);
        }
        assert_eq!(decode(&encoded(ImageFormat::Png), Colour::Rgb).unwrap().bytes[3..6], [20, 0, 100]);
    }

    #[test]
    fn damaged_files_are_errors() {
        for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif] {
            let file = encoded(format);
            for cut in [file.len() / 3, file.len() - file.len() / 16 - 4] {
                assert!(decode(&file[..cut], Colour::Rgb).is_err(), "{format:?} cut at {cut} of {}", file.len());
            }
            for i in 0..file.len() {
                let mut damaged = file.clone();
                damaged[i] ^= 0xff;
                let _ = decode(&damaged, Colour::Rgb);
            }
        }
        assert!(decode(b"", Colour::Rgb).is_err() && decode(b"not an image", Colour::Rgb).is_err());
    }

    #[test]
    fn grey_jpegs_are_repeated_and_colour_ones_lose_colour() {
        let grey = GrayImage::from_fn(16, 16, |x, y| image::Luma([(x * 8 + y * 8) as u8]));
        let mut bytes = Cursor::new(Vec::new());
        DynamicImage::from(grey.clone()).write_to(&mut bytes, ImageFormat::Jpeg).unwrap();
        let rgb = decode(bytes.get_ref(), Colour::Rgb).unwrap();
        assert!(
            rgb.bytes.chunks(3).zip(grey.iter()).all(|(p, g)| p[0] == p[1] && p[1] == p[2] && p[0].abs_diff(*g) < 8)
        );
        let luma = decode(&encoded(ImageFormat::Jpeg), Colour::Grey).unwrap();
        assert_eq!(luma.shape, [6, 9, 1]);
    }

    #[test]
    fn absurd_sizes_are_refused_before_memory_is_taken() {
        let mut file = encoded(ImageFormat::Bmp);
        file[18..22].copy_from_slice(&0x7fff_ffffi32.to_le_bytes());
        file[22..26].copy_from_slice(&0x7fff_ffffi32.to_le_bytes());
        assert!(decode(&file, Colour::Rgb).is_err());
        // The size in a JPEG's frame header: 0xffff x 0xffff is over the side limit, 0x3fff x 0x3fff over that of pixels.
        let jpeg = encoded(ImageFormat::Jpeg);
        let frame = jpeg.windows(2).position(|w| w == [0xff, 0xc0]).unwrap();
        for side in [0xffff_u16, 0x3fff] {
            let mut file = jpeg.clone();
            file[frame + 5..frame + 7].copy_from_slice(&side.to_be_bytes());
            file[frame + 7..frame + 9].copy_from_slice(&side.to_be_bytes());
            assert!(decode(&file, Colour::Rgb).is_err() && dimensions(&file).is_err(), "{side}");
        }
    }
}
