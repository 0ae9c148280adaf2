//! Records of suspected false messages, kept until `healing` resolves them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::state::writers::Writer;

/// The logs that can't be completed, and the writers that seem never to have existed.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    /// Ended writers of whose logs rows are missing that no member has, and since when.
    pub(super) incomplete: BTreeMap<Writer, Duration>,
    /// Writers that were unused at the last check.
    pub(super) unused: BTreeSet<Writer>,
    /// Time of the next check.
    pub(super) next_check_at: Duration,
}
