//! Identifiers of workers, models and nodes. Each kind has its own type, so the compiler refuses one in place of another.

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The id of a worker: the hash of its normalised URL. Routers that are given the same URL compute the same id without exchanging
/// messages. Printed as `w-` and 16 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(u64);

impl WorkerId {
    /// The id of the worker with this normalised URL (see [`WorkerUrl`](crate::spec::WorkerUrl)). The hash is XXH3-64 without a
    /// seed. The algorithm's specification fixes its value, so it is equal on all routers and in all versions.
    #[must_use]
    pub fn of_url(normalised_url: &str) -> Self {
        Self(xxhash_rust::xxh3::xxh3_64(normalised_url.as_bytes()))
    }

    /// The id as a number.
    #[must_use]
    pub const fn as_u64(self) -> u64 {
        self.0
    }

    /// The id with this number, for tests and for decoding.
    #[must_use]
    pub const fn from_u64(id: u64) -> Self {
        Self(id)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "w-{:016x}", self.0)
    }
}

impl fmt::Debug for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text is not a worker id; it holds the first 64 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("worker id {0:?} is not `w-` and 16 hexadecimal digits")]
pub struct ParseWorkerIdError(String);

impl FromStr for WorkerId {
    type Err = ParseWorkerIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refuse = || ParseWorkerIdError(text.chars().take(64).collect());
        let digits = text.strip_prefix("w-").ok_or_else(refuse)?;
        if digits.len() != 16 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(refuse());
        }
        u64::from_str_radix(digits, 16).map(Self).map_err(|_| refuse())
    }
}

impl Serialize for WorkerId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for WorkerId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// The name of a model, as clients and workers write it. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ModelId(Arc<str>);

impl ModelId {
    /// The model called `name`, exactly as written.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for ModelId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for ModelId {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl fmt::Display for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ModelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

/// The name of a node in its cluster (`--mesh-server-name`). It stays the same across restarts. Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeName(Arc<str>);

impl NodeName {
    /// Longest name in bytes: the limit of a DNS name.
    pub const MAX_BYTES: usize = 253;

    /// The name that sorts before all others, for the start of a range.
    #[must_use]
    pub fn least() -> Self {
        Self("!".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The reason why a text is not a node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseNodeNameError {
    /// The text is empty.
    #[error("node name is empty")]
    Empty,
    /// The text is longer than [`NodeName::MAX_BYTES`].
    #[error("node name is {0} bytes long, the limit is 253")]
    TooLong(usize),
    /// The text contains a blank, a control character, or a character that is not ASCII.
    #[error("node name {0:?} has a character that is not a visible ASCII one")]
    BadCharacter(String),
}

impl FromStr for NodeName {
    type Err = ParseNodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.is_empty() {
            return Err(ParseNodeNameError::Empty);
        }
        if text.len() > Self::MAX_BYTES {
            return Err(ParseNodeNameError::TooLong(text.len()));
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(ParseNodeNameError::BadCharacter(text.to_owned()));
        }
        Ok(Self(text.into()))
    }
}

impl<'de> Deserialize<'de> for NodeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Borrow<str> for NodeName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A number that increases with each start of a node's process. So a restarted node is a new writer, and its counters never run
/// backward. The number says nothing about time.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// A node between two restarts of its process: the writer of rows and the recipient of messages. Ordered by name, then by
/// generation; printed as `name@generation`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NodeId {
    /// The node's name, which stays the same across restarts.
    pub name: NodeName,
    /// The generation of the node's process.
    pub generation: Generation,
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.name, self.generation)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_id_prints_and_parses() {
        let id = WorkerId::of_url("http://a:8000");
        assert_eq!(id.to_string().parse(), Ok(id));
        for wrong in
            ["", "w-", "w-12", "x-0123456789abcdef", "w-0123456789ABCDEF", "w-+123456789abcde"]
        {
            assert!(wrong.parse::<WorkerId>().is_err(), "{wrong:?} was parsed as an id");
        }
    }

    #[test]
    fn a_worker_id_is_the_same_in_every_version() {
        assert_eq!(WorkerId::of_url("http://10.0.0.1:8000").to_string(), "w-f6bcaf4e2b6877e3");
    }

    #[test]
    fn a_node_name_is_visible_ascii_of_bounded_length() {
        let name: NodeName = "smg-0".parse().unwrap();
        let id = NodeId { name, generation: Generation(7) };
        assert_eq!(id.to_string(), "smg-0@7");
        assert!("".parse::<NodeName>().is_err());
        assert!("a b".parse::<NodeName>().is_err());
        assert!("a\u{e9}".parse::<NodeName>().is_err());
        assert!("x".repeat(253).parse::<NodeName>().is_ok());
        assert_eq!("x".repeat(254).parse::<NodeName>(), Err(ParseNodeNameError::TooLong(254)));
        assert!(serde_json::from_str::<NodeName>("\"a\\n\"").is_err());
    }
}
