//! What may be left behind by a member that lied, until `healing` is sure of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::state::writers::Writer;

/// Which logs can't be completed, and which writers seem never to have been.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Ended writers of whose logs rows are missing that no member has, and since when.
    pub(super) incomplete: BTreeMap<Writer, Duration>,
    /// Writers of which nothing was known at the last look.
    pub(super) unused: BTreeSet<Writer>,
    /// When to look next.
    pub(super) look_at: Duration,
}
