//! Frames: the bytes that routers exchange, whatever connection carries them.
//!
//! ```text
//! 0 major | 1 minor | 2 kind | 3 flags | 4..12 cluster | 12..16 length | 16..20 checksum | payload
//! ```
//!
//! Numbers are little-endian. The checksum is the low half of XXH3-64 over the first sixteen bytes and the payload.
//!
//! A frame of another major version is refused. A minor version may add kinds, which older routers skip, and fields at
//! the end of a payload, which they leave unread; it must not change anything else. The payload is bincode (version 2,
//! variable-length integers). It is never decoded without a byte limit, so that a length prefix can't allocate memory
//! for bytes that were not sent.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// The protocol version of this router: major, minor.
pub const VERSION: (u8, u8) = (1, 0);

/// Length of the header in bytes.
pub const HEADER_BYTES: usize = 20;

/// Longest frame in bytes, header included. Whatever is larger is sent in parts.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// The id of a cluster in frames: the hash of `--mesh-cluster-id`. Frames of another cluster are refused, so that an
/// address that is reused never merges two clusters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

impl ClusterId {
    /// The id of the cluster called `name`.
    #[must_use]
    pub fn of(name: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(name.as_bytes()))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// The kind of message that a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// A packet of SWIM.
    Swim = 1,
    /// A join probe: a node asks to be let in, and for the list of members.
    Hello = 2,
    /// The answer to a join probe: the list of members.
    Welcome = 3,
    /// The answer to a join probe that is refused, with the reason.
    Refusal = 4,
    /// A question to the holder of a name that another process claims: does it still run?
    Challenge = 5,
    /// The answer to a challenge: the holder still runs.
    StillHere = 6,
    /// A node is about to leave, or leaves.
    Goodbye = 7,
    /// A notice to a suspected member, so that it can refute.
    Suspicion = 8,
    /// A message of replication.
    State = 32,
    /// A message about a lease.
    Lease = 33,
}

impl Kind {
    /// All kinds of this version.
    pub const ALL: [Self; 10] = [
        Self::Swim,
        Self::Hello,
        Self::Welcome,
        Self::Refusal,
        Self::Challenge,
        Self::StillHere,
        Self::Goodbye,
        Self::Suspicion,
        Self::State,
        Self::Lease,
    ];

    /// The name of the kind, for metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Swim => "swim",
            Self::Hello => "hello",
            Self::Welcome => "welcome",
            Self::Refusal => "refusal",
            Self::Challenge => "challenge",
            Self::StillHere => "still_here",
            Self::Goodbye => "goodbye",
            Self::Suspicion => "suspicion",
            Self::State => "state",
            Self::Lease => "lease",
        }
    }

    fn from_byte(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// Why a frame was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// It is shorter than its header.
    #[error("frame of {0} bytes is shorter than its header")]
    TooShort(usize),
    /// It is longer than [`MAX_FRAME_BYTES`].
    #[error("frame of {0} bytes is longer than {MAX_FRAME_BYTES}")]
    TooLong(usize),
    /// It has another major version.
    #[error("frame has protocol version {major}.{minor}, this router speaks {ours}", ours = VERSION.0)]
    Version {
        /// The sender's major version.
        major: u8,
        /// The sender's minor version.
        minor: u8,
    },
    /// Its header promises another length.
    #[error("frame promises {promised} bytes of payload and has {found}")]
    Length {
        /// Bytes of payload, according to the header.
        promised: u32,
        /// Bytes of payload that follow the header.
        found: usize,
    },
    /// Its bytes are not those that were sent.
    #[error("frame is corrupted: its checksum does not fit")]
    Checksum,
    /// It has a kind of a later minor version.
    #[error("frame has the unknown kind {0}")]
    UnknownKind(u8),
    /// It has flags of a later minor version, which may change the meaning of the payload.
    #[error("frame has the unknown flags {0:#04x}")]
    UnknownFlags(u8),
}

/// A frame whose header was checked and whose payload was not decoded yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The minor version of the sender.
    pub minor: u8,
    /// The kind of message in the payload.
    pub kind: Kind,
    /// The cluster of the sender.
    pub cluster: ClusterId,
    /// The message, in bincode.
    pub payload: &'a [u8],
}

impl<'a> Frame<'a> {
    /// Checks the header of a frame, without copying the payload.
    ///
    /// # Errors
    ///
    /// An error names the fault of the frame. Another cluster is no error here: a newcomer of another cluster gets an answer.
    pub fn read(bytes: &'a [u8]) -> Result<Self, FrameError> {
        if bytes.len() > MAX_FRAME_BYTES {
            return Err(FrameError::TooLong(bytes.len()));
        }
        let Some((header, payload)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
            return Err(FrameError::TooShort(bytes.len()));
        };
        let [major, minor, kind, flags, c0, c1, c2, c3, c4, c5, c6, c7, l0, l1, l2, l3, check @ ..] =
            *header;
        if major != VERSION.0 {
            return Err(FrameError::Version { major, minor });
        }
        let promised = u32::from_le_bytes([l0, l1, l2, l3]);
        if usize::try_from(promised) != Ok(payload.len()) {
            return Err(FrameError::Length { promised, found: payload.len() });
        }
        if checksum(&header[..HEADER_BYTES - 4], payload) != check {
            return Err(FrameError::Checksum);
        }
        if flags != 0 {
            return Err(FrameError::UnknownFlags(flags));
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        let cluster = ClusterId(u64::from_le_bytes([c0, c1, c2, c3, c4, c5, c6, c7]));
        Ok(Self { minor, kind, cluster, payload })
    }

    /// Decodes the payload.
    ///
    /// # Errors
    ///
    /// The payload is not a `T`.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, PayloadError> {
        decode(self.payload)
    }
}

/// The kind that a frame claims to have; nothing else is checked. `None` if this version does not know it.
#[must_use]
pub fn kind_of(bytes: &[u8]) -> Option<Kind> {
    bytes.get(2).and_then(|kind| Kind::from_byte(*kind))
}

/// The frame with this payload.
#[must_use]
pub fn frame(kind: Kind, cluster: ClusterId, payload: &[u8]) -> Vec<u8> {
    frame_of_version(VERSION, kind as u8, cluster, payload)
}

/// The frame as a router of another version would send it: for tests of mixed versions.
#[must_use]
pub fn frame_of_version(
    version: (u8, u8),
    kind: u8,
    cluster: ClusterId,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER_BYTES + payload.len());
    bytes.extend([version.0, version.1, kind, 0]);
    bytes.extend(cluster.0.to_le_bytes());
    let length = u32::try_from(payload.len()).expect("payloads are bounded far below 4 GiB");
    bytes.extend(length.to_le_bytes());
    let check = checksum(&bytes, payload);
    bytes.extend(check);
    bytes.extend(payload);
    bytes
}

/// A payload that can't be decoded as what its kind says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("payload can't be decoded: {0}")]
pub struct PayloadError(String);

/// Decodes a `T` from the beginning of `payload`. What a later minor version has appended is left unread.
///
/// # Errors
///
/// The bytes are not a `T`, or claim to hold more than a frame may.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<T, PayloadError> {
    let config = bincode::config::standard().with_limit::<MAX_FRAME_BYTES>();
    match bincode::serde::decode_from_slice(payload, config) {
        Ok((value, _used)) => Ok(value),
        Err(error) => Err(PayloadError(error.to_string())),
    }
}

/// Encodes `value` as a payload.
#[must_use]
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    bincode::serde::encode_to_vec(value, bincode::config::standard())
        .expect("our own messages have only types that bincode can write")
}

/// Decodes a list of at most `N` items. It allocates only for items that have arrived.
pub(crate) fn at_most<'de, D, T, const N: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct List<T, const N: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const N: usize> Visitor<'de> for List<T, N> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {N}")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
            let mut list = Vec::with_capacity(seq.size_hint().unwrap_or(0).min(64));
            while let Some(item) = seq.next_element()? {
                if list.len() == N {
                    return Err(A::Error::custom(format_args!("a list of more than {N}")));
                }
                list.push(item);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(List::<T, N>(PhantomData))
}

fn checksum(header: &[u8], payload: &[u8]) -> [u8; 4] {
    let mut hash = Xxh3::new();
    hash.update(header);
    hash.update(payload);
    let [a, b, c, d, ..] = hash.digest().to_le_bytes();
    [a, b, c, d]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CLUSTER: ClusterId = ClusterId(7);

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let payload = encode(&("hello", 42_u64));
        let bytes = frame(Kind::Hello, CLUSTER, &payload);
        let read = Frame::read(&bytes).unwrap();
        assert_eq!((read.kind, read.cluster, read.minor), (Kind::Hello, CLUSTER, VERSION.1));
        assert_eq!(read.decode::<(String, u64)>().unwrap(), ("hello".to_owned(), 42));
    }

    #[test]
    fn a_refused_frame_says_what_is_wrong() {
        let good = frame(Kind::Swim, CLUSTER, b"abc");
        assert_eq!(Frame::read(&good[..5]), Err(FrameError::TooShort(5)));
        assert_eq!(Frame::read(&good[..22]), Err(FrameError::Length { promised: 3, found: 2 }));
        let long = vec![0; MAX_FRAME_BYTES + 1];
        assert_eq!(Frame::read(&long), Err(FrameError::TooLong(MAX_FRAME_BYTES + 1)));
        let later = frame_of_version((VERSION.0 + 1, 0), 1, CLUSTER, b"abc");
        assert_eq!(
            Frame::read(&later),
            Err(FrameError::Version { major: VERSION.0 + 1, minor: 0 })
        );
        let minor = frame_of_version((VERSION.0, VERSION.1 + 1), 200, CLUSTER, b"abc");
        assert_eq!(Frame::read(&minor), Err(FrameError::UnknownKind(200)));
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let good = frame(Kind::Welcome, CLUSTER, b"some payload");
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::read(&bad).is_err(), "bit {bit} flipped unnoticed");
        }
    }

    #[test]
    fn fields_that_a_later_version_appended_are_left_unread() {
        let later = encode(&(1_u8, "two", 3_u64, "four"));
        assert_eq!(decode::<(u8, String)>(&later).unwrap(), (1, "two".to_owned()));
    }

    #[test]
    fn a_length_prefix_can_not_allocate_memory() {
        // 0xfd announces a u64, which is the length of a vector here.
        let mut bytes = vec![0xfd];
        bytes.extend(u64::MAX.to_le_bytes());
        assert!(decode::<Vec<u64>>(&bytes).is_err());
        assert!(decode::<String>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(frame) = Frame::read(&bytes) {
                drop(frame.decode::<Vec<String>>());
            }
        }
    }
}
