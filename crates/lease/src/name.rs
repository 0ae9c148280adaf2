//! Names of leases, and terms.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize};

/// The name of a lease: of the job that only its holder may do. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct LeaseName(Arc<str>);

impl LeaseName {
    /// Longest name in bytes.
    pub const MAX_BYTES: usize = 32;

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The reason why a text is no name of a lease.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("lease name {0:?} is not 1 to 32 lower-case letters, digits or hyphens")]
pub struct ParseLeaseNameError(String);

impl FromStr for LeaseName {
    type Err = ParseLeaseNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        match (1..=Self::MAX_BYTES).contains(&text.len()) && text.chars().all(is_allowed) {
            true => Ok(Self(text.into())),
            false => Err(ParseLeaseNameError(text.chars().take(64).collect())),
        }
    }
}

impl<'de> Deserialize<'de> for LeaseName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for LeaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The number of a period in which one router holds a lease. Two holders never have the same one, and a later holder has a
/// larger one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Term(pub u64);

impl Term {
    /// The next term.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
