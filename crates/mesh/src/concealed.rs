//! Encrypted openings: without a shared key nobody can read who a router is.
//!
//! The key of an opening is derived from a shared key and from the random bytes that stand beside the opening. It does not
//! depend on the other side, because both sides send their openings at once. A recorded opening can therefore be sent
//! again; that gains nothing, because the frames after it need keys that depend on the random bytes of both sides.

use crate::seal::{Opener, Purpose, Ring, SALT_BYTES, Sealer, Side, Stream};

/// The length of an encrypted opening is a multiple of this, in bytes, so that it does not show how long the names are.
const BLOCK: usize = 512;

/// The parameters of the opening that `side` sends beside `salt`; `None` if the salt has the wrong length.
fn stream(salt: &[u8], side: Side) -> Option<Stream> {
    Stream::new(salt, &[0; SALT_BYTES], Purpose::Opening(side))
}

/// Encrypts the opening that `side` sends beside `salt`; `None` if the ring has no key or the opening is too long.
pub(super) fn conceal(ring: &Ring, salt: &[u8], side: Side, opening: &[u8]) -> Option<Vec<u8>> {
    let mut padded = u16::try_from(opening.len()).ok()?.to_be_bytes().to_vec();
    padded.extend_from_slice(opening);
    padded.resize(padded.len().next_multiple_of(BLOCK), 0);
    Sealer::new(stream(salt, side)?).seal(ring, &padded).map(|(_id, sealed)| sealed)
}

/// Decrypts the opening that `side` sent beside `salt`, with whichever key of the ring fits.
pub(super) fn reveal(ring: &Ring, salt: &[u8], side: Side, sealed: &[u8]) -> Option<Vec<u8>> {
    let stream = stream(salt, side)?;
    let mut fitting =
        ring.ids().filter_map(|id| Opener::new(stream.clone()).open(ring, id, sealed).ok());
    let padded = fitting.next()?;
    let (length, rest) = padded.split_first_chunk()?;
    rest.get(..usize::from(u16::from_be_bytes(*length))).map(<[u8]>::to_vec)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seal::{KEY_BYTES, SharedKey};

    fn ring(bytes: &[u8]) -> Ring {
        Ring::new(bytes.iter().map(|byte| SharedKey::new([*byte; KEY_BYTES]))).unwrap()
    }

    #[test]
    fn an_opening_is_read_with_any_of_the_keys_and_by_the_other_side_only() {
        let salt = [7; SALT_BYTES];
        for opening in [&b""[..], b"node-of-the-first-rack", &[b'x'; 3000]] {
            let sealed = conceal(&ring(&[2, 1]), &salt, Side::Caller, opening).unwrap();
            assert!(!sealed.windows(8).any(|bytes| opening.windows(8).any(|part| part == bytes)));
            let open = |keys: &[u8], salt: u8, side| {
                reveal(&ring(keys), &[salt; SALT_BYTES], side, &sealed)
            };
            assert_eq!(open(&[1, 3, 2], 7, Side::Caller).as_deref(), Some(opening));
            assert_eq!(open(&[1, 3], 7, Side::Caller), None);
            assert_eq!(open(&[], 7, Side::Caller), None);
            assert_eq!(open(&[2], 7, Side::Called), None);
            assert_eq!(open(&[2], 8, Side::Caller), None);
        }
        let length = |name: &[u8]| conceal(&ring(&[1]), &salt, Side::Called, name).unwrap().len();
        assert_eq!(length(b"a"), length(b"a-much-longer-name"));
        assert_eq!(conceal(&ring(&[1]), &salt, Side::Called, &[0; 1 << 16]), None);
        assert_eq!(conceal(&ring(&[]), &salt, Side::Called, b"a"), None);
        assert_eq!(reveal(&ring(&[1]), &[0; 3], Side::Called, b""), None);
    }
}
