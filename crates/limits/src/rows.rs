//! What routers write for each other. Each row has one writer and only ever moves forward, so that rows may be repeated,
//! delayed and reordered; only the latest of each writer and key counts.

use serde::{Deserialize, Serialize};
use smg_types::ids::{NodeId, NodeName};

use crate::roster::{Roster, RosterId};

/// What is counted: the requests or the tokens of one rule. A hash of the rule's id and the kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct MeterId(pub u64);

/// For whom it is counted: a hash of the values that the rule's match tells apart, such as the name of a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SubjectId(pub u64);

/// One window of a meter for one subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct WindowKey {
    /// What is counted.
    pub meter: MeterId,
    /// For whom.
    pub subject: SubjectId,
    /// Start of the window, in milliseconds of the cluster's time; a multiple of `length_ms`.
    pub start_ms: u64,
    /// Length of the window, in milliseconds.
    pub length_ms: u32,
}

impl WindowKey {
    /// The end of the window, in milliseconds of the cluster's time.
    #[must_use]
    pub const fn end_ms(&self) -> u64 {
        self.start_ms.saturating_add(self.length_ms as u64)
    }
}

/// What a router has counted in a window, and how much more it could use there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Report {
    /// Units taken when requests were admitted; only grows.
    pub taken: u64,
    /// Units returned because requests used fewer; only grows.
    pub returned: u64,
    /// Units for which the router expects demand beyond its own rights.
    pub wanted: u64,
}

impl Report {
    /// Units that were used.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.taken.saturating_sub(self.returned)
    }
}

/// A router's regular message to all others about itself: what it has heard, and what it promises.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Beat {
    /// The writer's monotonic clock when it wrote this, in milliseconds.
    pub at_ms: u64,
    /// The number of routers that the writer's configuration expects.
    pub expected: Option<u32>,
    /// The roster that the writer goes by.
    pub roster: Option<RosterId>,
    /// Whether the writer knows that all of the roster's routers go by it.
    pub is_settled: bool,
    /// The latest beats that the writer has received.
    pub heard: Vec<Heard>,
    /// The routers whose shares the writer asks to inherit.
    pub claims: Vec<NodeName>,
    /// What the writer has promised to others.
    pub promises: Vec<Promised>,
}

/// A beat that was received.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Heard {
    /// Who wrote it.
    pub of: NodeId,
    /// Its time, by the clock of its writer.
    pub at_ms: u64,
}

/// A promise not to acknowledge the beats of one router for a while, so that another one can use its share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Promised {
    /// The router whose share is inherited.
    pub absent: NodeName,
    /// The router that may use it.
    pub heir: NodeId,
    /// The beat with which the heir asked, by the heir's clock.
    pub heir_at_ms: u64,
}

/// A row that a router writes for the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// A new roster; of several with one version, the one with the greatest id counts.
    Roster(Roster),
    /// The writer's regular message.
    Beat(Beat),
    /// What the writer counted in a window.
    Report(WindowKey, Report),
    /// All rights of a window that the writer has granted to another router; only grows.
    Grant {
        /// The window.
        key: WindowKey,
        /// The receiver. A later generation of the same router must not use them.
        to: NodeId,
        /// The units.
        units: u64,
    },
    /// What the writer's next life must know of this one.
    Life {
        /// When it was written, in milliseconds of the cluster's time.
        at_ms: u64,
        /// The writer has left, and uses and grants nothing in windows that start at this time or later. `None`: it has begun.
        until_ms: Option<u64>,
    },
}

/// How long the others keep a row about a life, in milliseconds.
pub const LIFE_MS: u32 = 120_000;
