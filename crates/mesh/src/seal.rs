//! The shared key: who holds it is one of us, and who listens on the wire reads nothing.
//!
//! A ring holds up to eight keys of 32 bytes; the first seals, all open, so that keys rotate without a moment in which
//! two routers don't understand each other: install the new one everywhere, use it, remove the old one. Each stream
//! derives keys of its own from the ring's and from 32 random bytes of each side (HKDF with SHA-256, RFC 5869), so a
//! recorded stream can't be played again, and seals with AES-256-GCM (NIST SP 800-38D) under nonces that count, so that
//! no frame can be repeated, left out, exchanged or changed.
//!
//! Not guaranteed: that it is secret who talks to whom, how much, or the names and addresses in an opening. For that there
//! is TLS.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use smg_cluster::Lane;

/// Bytes of a key.
pub(super) const KEY_BYTES: usize = 32;

/// Bytes by chance that each side of a stream adds.
pub(super) const SALT_BYTES: usize = 32;

/// Keys in a ring at most.
pub(super) const MAX_KEYS: usize = 8;

/// What names a key without telling it: 64 bits of its SHA-256.
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

/// A text that is no key. It does not show the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("is not 32 bytes in base64 (44 characters: `head -c 32 /dev/urandom | base64` makes one)")]
pub struct ParseKeyError;

/// A key that routers share.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedKey([u8; KEY_BYTES]);

impl SharedKey {
    /// The key itself.
    #[must_use]
    pub const fn new(bytes: [u8; KEY_BYTES]) -> Self {
        Self(bytes)
    }

    /// The key itself, for its way to another router.
    pub(super) const fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }

    /// What names it.
    #[must_use]
    pub fn id(&self) -> KeyId {
        let hash = digest::digest(&digest::SHA256, &self.0);
        let first = hash.as_ref().first_chunk().expect("SHA-256 has 32 bytes");
        KeyId(u64::from_be_bytes(*first))
    }

    /// The key that this stream seals with.
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

/// How many bytes HKDF shall make.
struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

/// Whether frames are sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// Nothing is sealed.
    #[default]
    Off,
    /// Sealed where the other side can open it; plain frames are taken: for the time of a change.
    Permissive,
    /// Sealed frames only.
    Required,
}

/// The keys of this router: the first seals, all open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ring {
    keys: Vec<SharedKey>,
}

/// Why a ring does not change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// No such key.
    #[error("there is no key {0}")]
    Unknown(KeyId),
    /// The key that seals can't go.
    #[error("key {0} is the one in use: use another one first")]
    InUse(KeyId),
    /// No room.
    #[error("there are {MAX_KEYS} keys already: remove one first")]
    Full,
}

impl Ring {
    /// These keys, the first of which seals.
    ///
    /// # Errors
    /// If they are too many.
    pub fn new(keys: impl IntoIterator<Item = SharedKey>) -> Result<Self, RingError> {
        let mut ring = Self::default();
        for key in keys {
            ring.install(key)?;
        }
        Ok(ring)
    }

    /// Adds a key that opens. The first key seals at once.
    ///
    /// # Errors
    /// If there is no room. A key that is there already is no error.
    pub fn install(&mut self, key: SharedKey) -> Result<(), RingError> {
        if self.key(key.id()).is_none() {
            if self.keys.len() == MAX_KEYS {
                return Err(RingError::Full);
            }
            self.keys.push(key);
        }
        Ok(())
    }

    /// Seals with this key from now on.
    ///
    /// # Errors
    /// If there is no such key.
    pub fn use_key(&mut self, id: KeyId) -> Result<(), RingError> {
        let at = self.position(id)?;
        self.keys[..=at].rotate_right(1);
        Ok(())
    }

    /// Forgets a key: what is sealed with it is not opened any more.
    ///
    /// # Errors
    /// If there is no such key, or it is the one that seals.
    pub fn remove(&mut self, id: KeyId) -> Result<(), RingError> {
        match self.position(id)? {
            0 => Err(RingError::InUse(id)),
            at => {
                self.keys.remove(at);
                Ok(())
            }
        }
    }

    /// Their names, the one that seals first.
    pub fn ids(&self) -> impl Iterator<Item = KeyId> {
        self.keys.iter().map(SharedKey::id)
    }

    /// Whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Whether it can open what is sealed with this key.
    #[must_use]
    pub fn has(&self, id: KeyId) -> bool {
        self.key(id).is_some()
    }

    fn key(&self, id: KeyId) -> Option<&SharedKey> {
        self.keys.iter().find(|key| key.id() == id)
    }

    fn position(&self, id: KeyId) -> Result<usize, RingError> {
        self.keys.iter().position(|key| key.id() == id).ok_or(RingError::Unknown(id))
    }
}

/// What the two ends of a stream have agreed on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stream {
    /// The caller's random bytes, then the called one's.
    salts: [u8; 2 * SALT_BYTES],
    purpose: Purpose,
}

/// What a stream is for, and in which direction: the same salts never give two streams the same key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Frames of a lane, from the caller.
    Lane(Lane),
    /// A change of the ring, from the caller.
    Keys,
    /// The answer to it.
    KeysAnswer,
}

impl Purpose {
    const fn name(self) -> &'static str {
        match self {
            Self::Lane(Lane::Swim) => "swim",
            Self::Lane(Lane::State) => "sync",
            Self::Keys => "keys",
            Self::KeysAnswer => "keys answer",
        }
    }
}

impl Stream {
    /// `None` if one of the two has not sent as many bytes as it should.
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

/// Random bytes for an opening.
pub(super) fn salt() -> [u8; SALT_BYTES] {
    let mut salt = [0; SALT_BYTES];
    rand::fill(&mut salt).expect("the system has random bytes");
    salt
}

/// A key of one stream, and how many frames it has seen.
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

/// Seals the frames of one stream. Only the caller sends frames, so the derived key seals one way only.
pub(super) struct Sealer {
    stream: Stream,
    derived: Option<Derived>,
}

impl Sealer {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, derived: None }
    }

    /// Seals a frame with the ring's first key; `None` if there is none.
    pub(super) fn seal(&mut self, ring: &Ring, frame: &[u8]) -> Option<(KeyId, Vec<u8>)> {
        let key = ring.keys.first()?;
        let id = key.id();
        if self.derived.as_ref().is_none_or(|derived| derived.id != id) {
            // A key that comes back into use would begin its nonces again: it is derived from other salts then.
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

/// Salts for the time after a change of keys: both sides see the same changes in the same order.
fn mix(salts: &[u8; 2 * SALT_BYTES], next: KeyId) -> [u8; 2 * SALT_BYTES] {
    let mut hash = digest::Context::new(&digest::SHA512);
    hash.update(salts);
    hash.update(&next.0.to_be_bytes());
    let mut mixed = [0; 2 * SALT_BYTES];
    mixed.copy_from_slice(hash.finish().as_ref());
    mixed
}

/// Why a frame can't be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpenError {
    #[error("it is sealed with key {0}, which this router does not have")]
    UnknownKey(KeyId),
    #[error("it is not what was sealed: another key, another stream, or changed on its way")]
    Broken,
}

/// Opens the frames of one stream.
pub(super) struct Opener {
    stream: Stream,
    derived: Option<Derived>,
}

impl Opener {
    pub(super) const fn new(stream: Stream) -> Self {
        Self { stream, derived: None }
    }

    /// Opens the next frame.
    pub(super) fn open(
        &mut self,
        ring: &Ring,
        id: KeyId,
        sealed: &[u8],
    ) -> Result<Vec<u8>, OpenError> {
        // Looked up each time: a key that was removed opens nothing from that moment on.
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
    fn a_frame_comes_through_and_can_not_be_read_on_the_way() {
        let (mut sealer, mut opener) = ends(Lane::State);
        for frame in [&b"http://worker-1:8000"[..], b"", b"http://worker-1:8000"] {
            let (id, sealed) = sealer.seal(&ring(&[1]), frame).unwrap();
            assert!(frame.is_empty() || !sealed.windows(8).any(|w| w == b"worker-1"));
            assert_eq!(opener.open(&ring(&[1]), id, &sealed).unwrap(), frame);
        }
    }

    #[test]
    fn nothing_can_be_repeated_left_out_or_exchanged() {
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
    fn keys_rotate_on_a_stream_that_goes_on() {
        let (mut sealer, mut opener) = ends(Lane::State);
        let mut through = |sealing: &Ring, opening: &Ring| {
            let (id, sealed) = sealer.seal(sealing, b"row").unwrap();
            opener.open(opening, id, &sealed)
        };
        assert!(through(&ring(&[1]), &ring(&[1, 2])).is_ok());
        assert!(through(&ring(&[2, 1]), &ring(&[1, 2])).is_ok());
        // Back again: with other nonces under another key than the first time.
        assert!(through(&ring(&[1, 2]), &ring(&[1, 2])).is_ok());
        assert!(through(&ring(&[2]), &ring(&[2])).is_ok());
        assert_eq!(
            through(&ring(&[1]), &ring(&[2])),
            Err(OpenError::UnknownKey(key(1).id())),
            "a removed key opens nothing"
        );
    }

    #[test]
    fn a_ring_keeps_the_key_that_seals() {
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
    fn a_key_is_32_bytes_of_base64_and_never_shown() {
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
        fn a_changed_byte_anywhere_is_noticed(
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
        fn without_the_key_nothing_opens(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let (_, mut opener) = ends(Lane::State);
            prop_assert!(opener.open(&ring(&[1]), key(1).id(), &bytes).is_err());
            prop_assert!(opener.open(&ring(&[1]), key(2).id(), &bytes).is_err());
        }
    }
}
