//! The state of the first half of a campaign.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::NodeName;

use crate::name::Term;
/// The first half of a campaign: the requests for promises.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Round {
    pub(crate) term: Term,
    pub(crate) since: Duration,
    pub(crate) promised: BTreeSet<NodeName>,
    pub(crate) refused: BTreeSet<NodeName>,
    /// The shortest time after which one that has refused may promise; `None`: at once, in a later term.
    pub(crate) wait: Option<Duration>,
}
