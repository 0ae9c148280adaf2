//! Encoded rows. The writer encodes key and content, so that a node can relay a row that it can't decode.
//!
//! A content begins with a version byte. If a node can't decode a content, because its version is newer or its bytes are
//! damaged, the node keeps the row in quarantine: it counts as the writer's row and is relayed, but has no value on this
//! node. One bad row therefore neither stops the rows after it nor makes a version vector claim too much.

use std::sync::Arc;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use smg_types::ids::NodeId;

/// Longest encoded key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Longest encoded content of any store, in bytes. Each store has a limit of its own, at most this.
pub const MAX_CONTENT_BYTES: usize = 64 * 1024;
/// Most kills in a row, and most writes of others.
pub const MAX_KILLS: usize = 1024;

/// The version byte of contents that this router writes, and the only one that it reads.
const CONTENT_VERSION: u8 = 1;
const CONFIG: bincode::config::Configuration<
    bincode::config::LittleEndian,
    bincode::config::Varint,
    bincode::config::Limit<{ 2 * MAX_CONTENT_BYTES }>,
> = bincode::config::standard().with_limit::<{ 2 * MAX_CONTENT_BYTES }>();

/// Bytes that clones share.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blob(Arc<[u8]>);

impl Blob {
    /// The bytes.
    #[must_use]
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// The number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
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

/// An encoded row.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawRow {
    /// The version of the writer's write that made the row.
    pub version: u64,
    /// The encoded key.
    pub key: Blob,
    /// The encoded content.
    pub content: Blob,
}

impl RawRow {
    /// About how many bytes the row takes on the wire.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        self.key.len() + self.content.len() + 14
    }
}

/// A decoded content: the writer's own write, writes of others that the row carries, and kills.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Content<V> {
    /// The writer's own write. Its dot is the row's writer and version.
    pub(crate) add: Option<V>,
    /// Writes that the row carries, each with its dot: the writer and version of its first row.
    pub(crate) carried: Vec<(NodeId, u64, V)>,
    /// A kill names all writes of a writer up to a version under the row's key. They are dead.
    pub(crate) kills: Vec<(NodeId, u64)>,
}

/// A content to be encoded.
#[derive(Serialize)]
pub(crate) struct ContentRef<'a, V> {
    pub(crate) add: Option<&'a V>,
    pub(crate) carried: &'a [(&'a NodeId, u64, &'a V)],
    pub(crate) kills: &'a [(&'a NodeId, u64)],
}

impl<V: Serialize> ContentRef<'_, V> {
    /// The encoded content; `None` if it would be longer than any row may be.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(64);
        bytes.push(CONTENT_VERSION);
        bincode::serde::encode_into_std_write(self, &mut bytes, CONFIG).ok()?;
        Some(bytes)
    }
}

/// Bytes are not an encoded key or content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeRowError {
    /// A newer router has written the content.
    #[error("row content has version {0}, this router reads {CONTENT_VERSION}")]
    Version(u8),
    /// The bytes do not decode.
    #[error("row does not decode: {0}")]
    Malformed(String),
    /// The row has more kills, or more writes of others, than it may.
    #[error("row has {0} kills or writes of others, the limit is {MAX_KILLS}")]
    TooManyKills(usize),
}

/// Encodes a key. `Store::validate` has bounded its length.
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
            Err(DecodeRowError::Malformed(format!("{} surplus bytes", bytes.len() - used)))
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
    fn a_newer_version_is_told_apart_from_damage_and_surplus_bytes_are_refused() {
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
