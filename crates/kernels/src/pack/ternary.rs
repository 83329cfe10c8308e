//! Codes −1, 0 and 1 in base 3, five to a byte: 1.6 bits each, where log2 3 = 1.585 is the least that three equally
//! frequent values can take, and a sign and a magnitude bit take 2.
//!
//! ```text
//! byte = d0 + 3·d1 + 9·d2 + 27·d3 + 81·d4      digit of code 0: 0, of 1: 1, of −1: 2 (the code modulo 3)
//! ```
//!
//! Value i is digit i % 5 of byte i / 5; the digits left over in the last byte are 0. Bytes above 242 stand for nothing.

use super::{Error, check_length, check_window};

/// Values in a byte.
const PER_BYTE: usize = 5;

/// The five codes of every byte; those above 242 are refused before they are looked up.
const CODES: [[i8; PER_BYTE]; 256] = {
    let mut table = [[0; PER_BYTE]; 256];
    let mut byte = 0;
    while byte < 243 {
        let (mut rest, mut i) = (byte, 0);
        while i < PER_BYTE {
            let digit = rest % 3;
            table[byte][i] = if digit == 2 { -1 } else { digit as i8 };
            rest /= 3;
            i += 1;
        }
        byte += 1;
    }
    table
};

/// Bytes that `n` ternary codes take.
pub const fn ternary_len(n: usize) -> usize {
    n.div_ceil(PER_BYTE)
}

/// Packs codes −1, 0 and 1, five to a byte.
///
/// ```
/// use bitsmith_kernels::pack::{pack_ternary, unpack_ternary};
/// let bytes = pack_ternary(&[1, -1, 0, 0, 1, -1])?;
/// assert_eq!(bytes, [1 + 2 * 3 + 81, 2]);
/// let mut codes = [0; 2];
/// unpack_ternary(&bytes, 6, 4, &mut codes)?; // of 6 values, those from 4 on
/// assert_eq!(codes, [1, -1]);
/// # Ok::<(), bitsmith_kernels::pack::Error>(())
/// ```
pub fn pack_ternary(codes: &[i8]) -> Result<Vec<u8>, Error> {
    if let Some(index) = codes.iter().position(|c| !(-1..=1).contains(c)) {
        return Err(Error::Code { index, code: codes[index].into() });
    }
    let byte = |group: &[i8]| group.iter().rev().fold(0, |byte, &code| byte * 3 + code.rem_euclid(3) as u8);
    Ok(codes.chunks(PER_BYTE).map(byte).collect())
}

/// Unpacks values `first .. first + out.len()` of `n` codes packed by [`pack_ternary`].
///
/// `bytes` must be exactly their [`ternary_len`].
pub fn unpack_ternary(bytes: &[u8], n: usize, first: usize, out: &mut [i8]) -> Result<(), Error> {
    check_length(bytes, ternary_len(n))?;
    check_window(n, first, out.len())?;
    let used = &bytes[first / PER_BYTE..ternary_len(first + out.len()).max(first / PER_BYTE)];
    if let Some(at) = used.iter().position(|&byte| byte > 242) {
        return Err(Error::Code { index: (first / PER_BYTE + at) * PER_BYTE, code: used[at].into() });
    }
    let codes = used.iter().flat_map(|&byte| CODES[usize::from(byte)]).skip(first % PER_BYTE);
    out.iter_mut().zip(codes).for_each(|(out, code)| *out = code);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::pack as naive;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn codes_round_trip_and_windows_equal_the_whole(
            codes in proptest::collection::vec(-1i8..=1, 0..200), a in 0usize..200, b in 0usize..200,
        ) {
            let n = codes.len();
            let bytes = pack_ternary(&codes).unwrap();
            prop_assert_eq!(bytes.len(), ternary_len(n));
            prop_assert_eq!(&bytes, &naive::pack_ternary(&codes));
            let mut back = vec![9; n];
            naive::unpack_ternary(&bytes, &mut back);
            prop_assert_eq!(&back, &codes);
            let (first, end) = (a.min(b).min(n), a.max(b).min(n));
            let mut window = vec![9; end - first];
            unpack_ternary(&bytes, n, first, &mut window).unwrap();
            prop_assert_eq!(&window, &codes[first..end]);
        }

        #[test]
        fn hostile_arguments_are_errors(
            bytes in proptest::collection::vec(any::<u8>(), 0..40), n: usize, first: usize, wanted in 0usize..40,
        ) {
            let mut out = vec![0i8; wanted];
            let _ = unpack_ternary(&bytes, n, first, &mut out);
            let _ = unpack_ternary(&bytes, n % 200, first % 200, &mut out);
        }
    }

    #[test]
    fn refusals_name_their_reason() {
        let mut out = [0; 6];
        assert_eq!(pack_ternary(&[0, 2]), Err(Error::Code { index: 1, code: 2 }));
        assert_eq!(unpack_ternary(&[0, 243], 6, 0, &mut out), Err(Error::Code { index: 5, code: 243 }));
        assert_eq!(unpack_ternary(&[0], 6, 0, &mut out), Err(Error::Length { expected: 2, found: 1 }));
        assert_eq!(unpack_ternary(&[0, 0], 6, 1, &mut out), Err(Error::OutOfRange { end: 7, len: 6 }));
    }
}
