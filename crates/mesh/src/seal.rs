//! Encryption with the shared keys: only routers with a key are accepted, and an eavesdropper can't read frames.
//!
//! A ring holds up to eight keys of 32 bytes. The first one encrypts and all decrypt, so that keys can be rotated while
//! all routers understand each other: install the new key everywhere, use it, remove the old one. Each stream derives
//! its own keys from those of the ring and from 32 random bytes of each side (HKDF with SHA-256, RFC 5869), so that a
//! recorded stream can't be replayed. It encrypts with AES-256-GCM (NIST SP 800-38D) and counting nonces, so that no
//! frame can be repeated, left out, exchanged or changed.
//!
//! Where all messages must be encrypted, the openings are as well, with keys derived from the sender's random bytes alone. So
//! a stranger sees only the version of the protocol. Not hidden: which routers communicate, and how much.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::purpose::Purpose;

/// The length of a key, in bytes.
pub(super) const KEY_BYTES: usize = 32;

/// The number of random bytes that each side of a stream contributes.
pub(super) const SALT_BYTES: usize = 32;

/// The most keys in a ring.
pub(super) const MAX_KEYS: usize = 8;

/// The id of a key: 64 bits of its SHA-256, which do not reveal the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId(pub u64);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a key. The error does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not 32 bytes in base64 (44 characters: `head -c 32 /dev/urandom | base64` makes one)")]
pub struct ParseKeyError;

/// A key that all routers share.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey([u8; KEY_BYTES]);

impl SharedKey {
    /// A key from its bytes.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The bytes of the key, to send them to another router.
    pub(super) const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// The id of the key.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let first = hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        KeyId(u64::from_be_bytes(*first))
    }

    /// Derives the key that encrypts the frames of a stream.
    fn derive(&self, stream: &Stream) -> LessSafeKey {
        let salt = Salt::new(HKDF_SHA256, &stream.salts);
        let info: [&[u8]; 2] = [b"smg mesh v1 ", stream.purpose.name().as_bytes()];
        let mut bytes = [0; KEY_BYTES];
        salt.extract(&self.0)
            .expand(&info, Length)
            .and_then(|derived| derived.fill(&mut bytes))
            .expect("32 bytes are within HKDF's bound");
        let key = UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes");
        LessSafeKey::new(key)
    }
}

impl std::str::FromStr for SharedKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = STANDARD.decode(text.trim()).map_err(|_| ParseKeyError)?;
        bytes.try_into().map(Self).map_err(|_| ParseKeyError)
    }
}

impl fmt::Debug for SharedKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SharedKey({})", self.id())
    }
}

/// The number of bytes that HKDF makes.
struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// Whether messages are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Messages are not encrypted.
    #[default]
    Off,
    /// Messages are encrypted if the receiver has the key; plain ones are accepted. Meant for a migration.
    Permissive,
    /// Only encrypted messages are sent and accepted.
    Required,
}

/// The keys of this router: the first one encrypts, all decrypt.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ring {
    keys: Vec<SharedKey>,
}

/// Why a ring rejects a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// The ring does not have this key.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// The encrypting key can't be removed.
    #[error("key {0} is the one in use: use another one first")]
    InUse(KeyId),
    /// The ring is full.
    #[error("there are {MAX_KEYS} keys already: remove one first")]
    Full,
}

impl Ring {
    /// A ring of these keys, the first of which encrypts.
    ///
    /// # Errors
    /// If there are more than 8.
    pub fn new(keys: impl IntoIterator<Item = SharedKey>) -> Result<Self, RingError> {
        let mut ring = Self::default();
        for key in keys {
            ring.install(key)?;
        }
        Ok(ring)
    }

    /// Adds a key for decryption. The first key of a ring also encrypts.
    ///
    /// # Errors
    /// If the ring is full. Adding a known key again is no error.
    pub fn install(&mut self, key: SharedKey) -> Result<(), RingError> {
        if self.key(key.id()).is_none() {
            if self.keys.len() == MAX_KEYS {
                return Err(RingError::Full);
            }
            self.keys.push(key);
        }
        Ok(())
    }

    /// Makes this key the encrypting one.
    ///
    /// # Errors
    /// If the ring does not have the key.
    pub fn use_key(&mut self, id: KeyId) -> Result<(), RingError> {
        let at = self.position(id)?;
        self.keys[..=at].rotate_right(1);
        Ok(())
    }

    /// Removes a key: messages encrypted with it are no longer accepted.
    ///
    /// # Errors
    /// If the ring does not have the key, or it is the encrypting one.
    pub fn remove(&mut self, id: KeyId) -> Result<(), RingError> {
        match self.position(id)? {
            0 => Err(RingError::InUse(id)),
            at => {
                self.keys.remove(at);
                Ok(())
            }
        }
    }

    /// The ids of the keys, that of the encrypting one first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(SharedKey::id)
    }

    /// A ring of each key alone.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.keys.iter().map(|key| Self { keys: vec![key.clone()] })
    }

    /// Whether the ring has no keys.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether the ring has this key, and so can decrypt its messages.
    #[must_use]
    pub fn has(&self, id: KeyId) -> bool {
        self.key(id).is_some()
    }

    /// The keys, the encrypting one first.
    pub(super) fn keys(&self) -> impl Iterator<Item = &SharedKey> {
        self.keys.iter()
    }

    fn key(&self, id: KeyId) -> Option<&SharedKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    fn position(&self, id: KeyId) -> Result<usize, RingError> {
        self.keys.iter().position(|key| key.id() == id).ok_or(RingError::Unknown(id))
    }
}

/// The parameters of a stream, on which its two ends have agreed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    /// The random bytes of the calling side, followed by those of the called side.
    salts: [u8; 2 * SALT_BYTES],
    purpose: Purpose,
}

impl Stream {
    /// The parameters of a stream; `None` if one of the salts has the wrong length.
    pub(super) fn new(caller: &[u8], called: &[u8], purpose: Purpose) -> Option<Self> {
        let mut salts = [0; 2 * SALT_BYTES];
        let (first, second) = salts.split_at_mut(SALT_BYTES);
        if caller.len() != SALT_BYTES || called.len() != SALT_BYTES {
            return None;
        }
        first.copy_from_slice(caller);
        second.copy_from_slice(called);
        Some(Self { salts, purpose })
    }
}

/// Makes random bytes for an opening.
pub(super) fn salt() -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    rand::fill(&mut salt).expect("the system has random bytes");
    salt
}

/// A key of one stream, and the number of frames that used it.
struct Derived {
    id: KeyId,
    key: LessSafeKey,
    frames: u64,
}

impl Derived {
    fn next_nonce(&mut self) -> Nonce {
        let mut nonce = [0; NONCE_LEN];
        nonce[NONCE_LEN - 8..].copy_from_slice(&self.frames.to_be_bytes());
        self.frames += 1;
        Nonce::assume_unique_for_key(nonce)
    }
}

/// Encrypts the frames of one stream. Only the calling side sends frames, so the derived key is used in one direction.
pub(super) struct Sealer {
    stream: Stream,
    derived: Option<Derived>,
}

impl Sealer {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, derived: None }
    }

    /// Encrypts a frame with the ring's first key; `None` if the ring is empty.
    pub(super) fn seal(&mut self, ring: &Ring, frame: &[u8]) -> Option<(KeyId, Vec<u8>)> {
        let key = ring.keys.first()?;
        let id = key.id();
        if self.derived.as_ref().is_none_or(|derived| derived.id != id) {
            // The nonces of a key that is used again would start again, so the key is then derived from other salts.
            if self.derived.is_some() {
                self.stream.salts = mix(&self.stream.salts, id);
            }
            self.derived = Some(Derived { id, key: key.derive(&self.stream), frames: 0 });
        }
        let derived = self.derived.as_mut()?;
        let mut sealed = frame.to_vec();
        let nonce = derived.next_nonce();
        derived.key.seal_in_place_append_tag(nonce, Aad::empty(), &mut sealed).ok()?;
        Some((id, sealed))
    }
}

/// The salts after a change of the encrypting key. Both sides see the same changes in the same order.
fn mix(salts: &[u8; 2 * SALT_BYTES], next: KeyId) -> [u8; 2 * SALT_BYTES] {
    let mut hash = digest::Context::new(&digest::SHA512);
    hash.update(salts);
    hash.update(&next.0.to_be_bytes());
    let mut mixed = [0; 2 * SALT_BYTES];
    mixed.copy_from_slice(hash.finish().as_ref());
    mixed
}

/// Why a frame can't be decrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    #[error("the message is encrypted with key {0}, which this router does not have")]
    UnknownKey(KeyId),
    #[error(
        "the message can't be decrypted: it has another key, belongs to another stream, or was changed"
    )]
    Broken,
}

/// Decrypts the frames of one stream.
pub(super) struct Opener {
    stream: Stream,
    derived: Option<Derived>,
}

impl Opener {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, derived: None }
    }

    /// Decrypts the next frame.
    pub(super) fn open(
        &mut self,
        ring: &Ring,
        id: KeyId,
        sealed: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        // The key is looked up each time, so that a removed key decrypts nothing from then on.
        let key = ring.key(id).ok_or(OpenError::UnknownKey(id))?;
        if self.derived.as_ref().is_none_or(|derived| derived.id != id) {
            if self.derived.is_some() {
                self.stream.salts = mix(&self.stream.salts, id);
            }
            self.derived = Some(Derived { id, key: key.derive(&self.stream), frames: 0 });
        }
        let derived = self.derived.as_mut().ok_or(OpenError::Broken)?;
        let mut frame = sealed.to_vec();
        let nonce = derived.next_nonce();
        let length = derived
            .key
            .open_in_place(nonce, Aad::empty(), &mut frame)
            .map_err(|_| OpenError::Broken)?
            .len();
        frame.truncate(length);
        Ok(frame)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smg_cluster::Lane;

    use super::*;

    fn key(byte: u8) -> SharedKey {
        SharedKey([byte; KEY_BYTES])
    }

    fn ring(bytes: &[u8]) -> Ring {
        Ring::new(bytes.iter().copied().map(key)).unwrap()
    }

    fn ends(lane: Lane) -> (Sealer, Opener) {
        let stream = Stream::new(&[1; SALT_BYTES], &[2; SALT_BYTES], Purpose::Lane(lane)).unwrap();
        (Sealer::new(stream.clone()), Opener::new(stream))
    }

    #[test]
    fn a_frame_is_decrypted_and_its_ciphertext_hides_it() {
        let (mut sealer, mut opener) = ends(Lane::State);
        for frame in [&b"http://worker-1:8000"[..], b"", b"http://worker-1:8000"] {
            let (id, sealed) = sealer.seal(&ring(&[1]), frame).unwrap();
            assert!(frame.is_empty() || !sealed.windows(8).any(|w| w == b"worker-1"));
            assert_eq!(opener.open(&ring(&[1]), id, &sealed).unwrap(), frame);
        }
    }

    #[test]
    fn frames_can_not_be_repeated_left_out_or_exchanged() {
        let sealed: Vec<_> = {
            let (mut sealer, _) = ends(Lane::Swim);
            (0..3u8).map(|n| sealer.seal(&ring(&[1]), &[n]).unwrap()).collect()
        };
        for order in [&[0, 0][..], &[1], &[1, 0], &[0, 2]] {
            let (_, mut opener) = ends(Lane::Swim);
            let all_open = order.iter().all(|at: &usize| {
                let (id, bytes) = &sealed[*at];
                opener.open(&ring(&[1]), *id, bytes).is_ok()
            });
            assert!(!all_open, "{order:?}");
        }
        let (_, mut other_lane) = ends(Lane::State);
        assert_eq!(other_lane.open(&ring(&[1]), sealed[0].0, &sealed[0].1), Err(OpenError::Broken));
        let later =
            Stream::new(&[1; SALT_BYTES], &[3; SALT_BYTES], Purpose::Lane(Lane::Swim)).unwrap();
        let mut later = Opener::new(later);
        assert_eq!(later.open(&ring(&[1]), sealed[0].0, &sealed[0].1), Err(OpenError::Broken));
    }

    #[test]
    fn keys_rotate_during_a_stream() {
        let (mut sealer, mut opener) = ends(Lane::State);
        let mut through = |sealing: &Ring, opening: &Ring| {
            let (id, sealed) = sealer.seal(sealing, b"row").unwrap();
            opener.open(opening, id, &sealed)
        };
        assert!(through(&ring(&[1]), &ring(&[1, 2])).is_ok());
        assert!(through(&ring(&[2, 1]), &ring(&[1, 2])).is_ok());
        // The first key is used again, with another derived key than before.
        assert!(through(&ring(&[1, 2]), &ring(&[1, 2])).is_ok());
        assert!(through(&ring(&[2]), &ring(&[2])).is_ok());
        assert_eq!(
            through(&ring(&[1]), &ring(&[2])),
            Err(OpenError::UnknownKey(key(1).id())),
            "a removed key opens nothing"
        );
    }

    #[test]
    fn the_encrypting_key_can_not_be_removed() {
        let mut ring = ring(&[1, 2]);
        assert_eq!(ring.remove(key(1).id()), Err(RingError::InUse(key(1).id())));
        ring.use_key(key(2).id()).unwrap();
        assert_eq!(ring.ids().collect::<Vec<_>>(), [key(2).id(), key(1).id()]);
        ring.remove(key(1).id()).unwrap();
        assert_eq!(ring.use_key(key(1).id()), Err(RingError::Unknown(key(1).id())));
        for byte in 3..10 {
            ring.install(key(byte)).unwrap();
        }
        assert_eq!(ring.install(key(99)), Err(RingError::Full));
        ring.install(key(2)).unwrap();
    }

    #[test]
    fn a_key_is_32_bytes_of_base64_and_is_never_shown() {
        let text = STANDARD.encode([7; KEY_BYTES]);
        assert_eq!(format!("{text}\n").parse(), Ok(key(7)));
        assert!(!format!("{:?}", key(7)).contains(&text));
        for wrong in ["", "c2hvcnQ=", "not base64 at all", &STANDARD.encode([7; 33])] {
            let error = wrong.parse::<SharedKey>().unwrap_err().to_string();
            assert!(!error.contains("c2hvcnQ"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn a_change_of_any_byte_is_detected(
            frame in proptest::collection::vec(any::<u8>(), 0..200),
            at in any::<proptest::sample::Index>(),
            change in 1..=255u8,
        ) {
            let (mut sealer, mut opener) = ends(Lane::State);
            let (id, mut sealed) = sealer.seal(&ring(&[1]), &frame).unwrap();
            *at.get_mut(&mut sealed) ^= change;
            prop_assert_eq!(opener.open(&ring(&[1]), id, &sealed), Err(OpenError::Broken));
        }

        #[test]
        fn without_the_key_nothing_is_decrypted(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut opener) = ends(Lane::State);
            prop_assert!(opener.open(&ring(&[1]), key(1).id(), &bytes).is_err());
            prop_assert!(opener.open(&ring(&[1]), key(2).id(), &bytes).is_err());
        }
    }
}
