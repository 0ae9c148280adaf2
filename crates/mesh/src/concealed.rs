//! Encrypted openings: without a shared key nobody can read who a router is.
//!
//! The key of an opening is derived from a shared key and from the random bytes that stand beside the opening. It does not
//! depend on the other side, because both sides send their openings at once. Nor does the sender know which of its keys the
//! other side has, while keys are rotated: it encrypts the opening with each. A recorded opening can therefore be sent
//! again; that gains nothing, because the frames after it need keys that depend on the random bytes of both sides.

use bytes::Bytes;

use crate::purpose::{Purpose, Side};
use crate::seal::{MAX_KEYS, Opener, Ring, SALT_BYTES, Sealer, Stream};

/// The length of an encrypted opening is a multiple of this, in bytes, so that it does not show how long the names are.
const BLOCK: usize = 512;

/// The longest encrypted opening, in bytes. An opening has four texts of at most 512 bytes.
const MAX_BYTES: usize = 4096;

/// The parameters of the opening that `side` sends beside `salt`; `None` if the salt has the wrong length.
fn stream(salt: &[u8], side: Side) -> Option<Stream> {
    Stream::new(salt, &[0; SALT_BYTES], Purpose::Opening(side))
}

/// Encrypts the opening that `side` sends beside `salt`, with each key of the ring; nothing if the opening is too long.
pub(super) fn conceal(ring: &Ring, salt: &[u8], side: Side, opening: &[u8]) -> Vec<Vec<u8>> {
    let (Some(stream), Ok(length)) = (stream(salt, side), u16::try_from(opening.len())) else {
        return Vec::new();
    };
    let mut padded = length.to_be_bytes().to_vec();
    padded.extend_from_slice(opening);
    padded.resize(padded.len().next_multiple_of(BLOCK), 0);
    // Each key has a sealer of its own, so that no key is used twice.
    let sealed = |key| Sealer::new(stream.clone()).seal(&key, &padded).map(|(_id, sealed)| sealed);
    ring.each().filter_map(sealed).collect()
}

/// Decrypts the opening that `side` sent beside `salt`, with whichever key of the ring fits to one of `sealed`.
pub(super) fn reveal(ring: &Ring, salt: &[u8], side: Side, sealed: &[Bytes]) -> Option<Vec<u8>> {
    let stream = stream(salt, side)?;
    // A stranger makes this router try no more than an opening may contain.
    let sealed = || sealed.iter().take(MAX_KEYS).filter(|sealed| sealed.len() <= MAX_BYTES);
    let mut fitting = ring.ids().flat_map(|id| {
        let opened = |sealed: &Bytes| Opener::new(stream.clone()).open(ring, id, sealed).ok();
        sealed().filter_map(opened).collect::<Vec<_>>()
    });
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

    fn bytes(sealed: Vec<Vec<u8>>) -> Vec<Bytes> {
        sealed.into_iter().map(Bytes::from).collect()
    }

    #[test]
    fn an_opening_is_read_with_any_of_the_keys_and_by_the_other_side_only() {
        let salt = [7; SALT_BYTES];
        for opening in [&b""[..], b"node-of-the-first-rack", &[b'x'; 3000]] {
            let sealed = bytes(conceal(&ring(&[2, 1]), &salt, Side::Caller, opening));
            assert_eq!(sealed.len(), 2);
            for sealed in &sealed {
                assert!(
                    !sealed.windows(8).any(|shown| opening.windows(8).any(|part| part == shown))
                );
            }
            let open = |keys: &[u8], salt: u8, side| {
                reveal(&ring(keys), &[salt; SALT_BYTES], side, &sealed)
            };
            for keys in [&[1][..], &[2], &[1, 3, 2]] {
                assert_eq!(open(keys, 7, Side::Caller).as_deref(), Some(opening), "{keys:?}");
            }
            assert_eq!(open(&[3], 7, Side::Caller), None);
            assert_eq!(open(&[], 7, Side::Caller), None);
            assert_eq!(open(&[2], 7, Side::Called), None);
            assert_eq!(open(&[2], 8, Side::Caller), None);
        }
    }

    #[test]
    fn the_length_does_not_show_the_name_and_is_bounded() {
        let salt = [7; SALT_BYTES];
        let sealed = |name: &[u8]| bytes(conceal(&ring(&[1]), &salt, Side::Called, name));
        assert_eq!(sealed(b"a")[0].len(), sealed(b"a-much-longer-name")[0].len());
        assert!(sealed(&[0; 1 << 16]).is_empty() && sealed(b"a").len() == 1);
        assert!(conceal(&ring(&[]), &salt, Side::Called, b"a").is_empty());
        let read = |sealed: &[Bytes]| reveal(&ring(&[1]), &salt, Side::Called, sealed);
        assert!(read(&sealed(&[1; 3000])).is_some());
        assert_eq!(read(&sealed(&[1; 5000])), None, "it is too long");
        let late = [vec![Bytes::new(); MAX_KEYS], sealed(b"a")].concat();
        assert_eq!(read(&late), None, "there are too many");
        assert_eq!(reveal(&ring(&[1]), &[0; 3], Side::Called, &sealed(b"a")), None);
    }
}
