//! Rows as they travel: a key and a content, each encoded by the writer, so that a relay hands on what it can't read.
//!
//! A content begins with a version byte. One that this node can't read (a newer version, or damage) is kept as it is, in
//! quarantine: it counts as the writer's row, it is served to others, and it has no value here. So one bad row neither
//! stops a stream nor makes a version vector lie.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smg_types::ids::NodeId;

/// Longest encoded key.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest encoded content of any store; each store sets its own limit at or below it.
pub const MAX_CONTENT_BYTES: usize = 64 * 1024;
/// Removals that one row may carry, and writes of others.
pub const MAX_KILLS: usize = 1024;

/// The version byte of contents written by this build.
const CONTENT_VERSION: u8 = 1;
const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ 2 * MAX_CONTENT_BYTES }>,
> = bincode::config::standard().with_limit::<{ 2 * MAX_CONTENT_BYTES }>();

/// Bytes that are shared, not copied.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(Arc<[u8]>);

impl Blob {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl From<Vec<u8>> for Blob {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl std::fmt::Debug for Blob {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl Serialize for Blob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Blob {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Blob;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }

            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Blob, E> {
                Ok(Blob(bytes.into()))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// A row as it travels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRow {
    /// The writer's version that made it.
    pub version: u64,
    /// The encoded key.
    pub key: Blob,
    /// The encoded content.
    pub content: Blob,
}

impl RawRow {
    /// What it takes on the wire, about.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.key.len() + self.content.len() + 14
    }
}

/// What a row says: its writer's own write, writes that it carries for others, and which writes it removes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Content<V> {
    /// Its dot is the row's writer and version.
    pub(crate) add: Option<V>,
    /// Each with the dot under which it was first written.
    pub(crate) carried: Vec<(NodeId, u64, V)>,
    /// All writes of a writer up to a version.
    pub(crate) kills: Vec<(NodeId, u64)>,
}

/// The same, borrowed for encoding.
#[derive(Serialize)]
pub(crate) struct ContentRef<'a, V> {
    pub(crate) add: Option<&'a V>,
    pub(crate) carried: &'a [(&'a NodeId, u64, &'a V)],
    pub(crate) kills: &'a [(&'a NodeId, u64)],
}

impl<V: Serialize> ContentRef<'_, V> {
    /// The bytes; `None` when they would exceed what any row may have.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(CONTENT_VERSION);
        bincode::serde::encode_into_std_write(self, &mut bytes, CONFIG).ok()?;
        Some(bytes)
    }
}

/// Why bytes are no key or content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeRowError {
    /// Written by a newer router.
    #[error("row content has version {0}, this router reads {CONTENT_VERSION}")]
    Version(u8),
    /// Not an encoding of what it should be.
    #[error("row does not decode: {0}")]
    Malformed(String),
    /// More than a row may carry.
    #[error("row carries {0} removals or writes of others, the limit is {MAX_KILLS}")]
    TooManyKills(usize),
}

/// Encodes a key; keys are bounded by their types.
pub(crate) fn encode_key<K: Serialize>(key: &K) -> Vec<u8> {
    bincode::serde::encode_to_vec(key, CONFIG).expect("a validated key is shorter than any limit")
}

pub(crate) fn decode_key<K: DeserializeOwned>(bytes: &[u8]) -> Result<K, DecodeRowError> {
    decode_all(bytes)
}

pub(crate) fn decode_content<V: DeserializeOwned>(
    bytes: &[u8],
) -> Result<Content<V>, DecodeRowError> {
    let Some((&version, body)) = bytes.split_first() else {
        return Err(DecodeRowError::Malformed("no bytes".to_owned()));
    };
    if version != CONTENT_VERSION {
        return Err(DecodeRowError::Version(version));
    }
    let content: Content<V> = decode_all(body)?;
    let carried = content.kills.len().max(content.carried.len());
    if carried > MAX_KILLS {
        return Err(DecodeRowError::TooManyKills(carried));
    }
    Ok(content)
}

fn decode_all<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeRowError> {
    match bincode::serde::decode_from_slice(bytes, CONFIG) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        Ok((_, used)) => {
            Err(DecodeRowError::Malformed(format!("{} bytes left over", bytes.len() - used)))
        }
        Err(error) => Err(DecodeRowError::Malformed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smg_types::ids::Generation;

    use super::*;

    #[test]
    fn a_content_decodes_to_what_was_encoded() {
        let node = NodeId { name: "a".parse().unwrap(), generation: Generation(3) };
        let bytes = ContentRef { add: Some(&7u64), carried: &[], kills: &[(&node, 9)] }.encode();
        let content = decode_content::<u64>(&bytes.unwrap()).unwrap();
        assert_eq!(content, Content { add: Some(7), carried: vec![], kills: vec![(node, 9)] });
    }

    /// Routers of different versions share a cluster, so these bytes must not change.
    #[test]
    fn a_content_has_the_bytes_that_other_routers_expect() {
        let node = |name: &str| NodeId { name: name.parse().unwrap(), generation: Generation(300) };
        let (a, b) = (node("a"), node("b"));
        let all = ContentRef { add: Some(&7u64), carried: &[(&a, 2, &8)], kills: &[(&b, 70_000)] };
        let mut all_bytes = vec![1, 1, 7];
        all_bytes.extend([1, 1, b'a', 0xfb, 44, 1, 2, 8]);
        all_bytes.extend([1, 1, b'b', 0xfb, 44, 1, 0xfc, 112, 17, 1, 0]);
        assert_eq!(all.encode(), Some(all_bytes));
        let tombstone = ContentRef::<u64> { add: None, carried: &[], kills: &[] };
        assert_eq!(tombstone.encode(), Some(vec![1, 0, 0, 0]));
    }

    #[test]
    fn another_version_and_leftovers_are_told_apart_from_damage() {
        assert_eq!(decode_content::<u64>(&[9, 0]), Err(DecodeRowError::Version(9)));
        assert!(matches!(decode_content::<u64>(&[]), Err(DecodeRowError::Malformed(_))));
        let mut bytes = ContentRef { add: Some(&7u64), carried: &[], kills: &[] }.encode().unwrap();
        bytes.push(0);
        assert!(decode_content::<u64>(&bytes).is_err());
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
            let mut versioned = bytes.clone();
            versioned.insert(0, CONTENT_VERSION);
            drop(decode_content::<Vec<String>>(&versioned));
            drop(decode_content::<Vec<String>>(&bytes));
            drop(decode_key::<String>(&bytes));
        }
    }
}
