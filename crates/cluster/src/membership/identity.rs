//! The identity of a member in SWIM: a name, a generation, and an address.
//!
//! foca's address is the *name*, so that a pod that returns with another IP replaces itself and leaves no trace of its
//! old address. The cluster id belongs to an identity too, but is sent once per frame instead of once per member.
//!
//! Two identities of one name are ordered by their *claim*: the generation, which grows at each start of a process,
//! plus renewals, which grow each time a live node is declared down. State is keyed by name and generation alone, so
//! that a false DOWN costs a renewal and never resets anything.

use std::fmt;
use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

use crate::plausible::{RANDOM_BITS, latest_generation};

/// A member, as it presents itself at one moment.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// The name of the router.
    pub name: NodeName,
    /// Its generation.
    pub generation: Generation,
    /// How much it has raised its claim within this generation.
    pub renewal: u64,
    /// The address at which others reach it.
    pub address: SocketAddr,
}

impl Identity {
    /// Claims at or above this are refused in every case: no honest node gets there before the year 2100, and the
    /// rightful owner of a name could not claim more.
    pub const MAX_CLAIM: u64 = 1 << 62;

    /// A node raises its claim above another one only if this much is left below [`Self::MAX_CLAIM`] for later raises.
    pub(super) const CLAIM_ROOM: u64 = 1 << 40;

    /// The name and the generation, without renewals and address.
    #[must_use]
    pub fn node(&self) -> NodeId {
        NodeId { name: self.name.clone(), generation: self.generation }
    }

    /// The claim decides between two identities of one name: the higher one wins.
    #[must_use]
    pub const fn claim(&self) -> u64 {
        self.generation.0.saturating_add(self.renewal)
    }

    /// The same generation with a claim above `claim`; unchanged if its claim is higher already.
    #[must_use]
    pub fn raised_above(&self, claim: u64) -> Self {
        let needed = claim.saturating_add(1).max(self.claim());
        Self { renewal: needed.saturating_sub(self.generation.0), ..self.clone() }
    }

    /// Whether an honest node can have this claim.
    #[must_use]
    pub const fn is_plausible(&self) -> bool {
        self.claim() < Self::MAX_CLAIM
    }

    /// Whether the claim is beyond what a process can have whose clock is right or ahead by days. Such a claim counts only
    /// if the process itself makes it, and only while that can be reached (see `screening`).
    pub(super) fn is_absurd(&self, now: Now) -> bool {
        self.claim() > latest_generation(now).0
    }
}

/// The generation of a process that starts at the wall-clock time `wall`: milliseconds since 1970 above twenty random
/// bits. The random bits distinguish two processes that start with the same reading, as after a clock was set back.
#[must_use]
pub fn generation_at(wall: std::time::Duration, chance: u32) -> Generation {
    let millis = u64::try_from(wall.as_millis())
        .unwrap_or(u64::MAX)
        .min((Identity::MAX_CLAIM >> RANDOM_BITS) - 1);
    Generation((millis << RANDOM_BITS) | u64::from(chance & ((1 << RANDOM_BITS) - 1)))
}

impl foca::Identity for Identity {
    type Addr = NodeName;

    /// foca never renews: whether to renew, and how far to raise the claim, is decided in `Membership`, which knows
    /// whether the node is leaving, was refused, or has renewed a moment ago.
    fn renew(&self) -> Option<Self> {
        None
    }

    fn addr(&self) -> NodeName {
        self.name.clone()
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        let rank = |identity: &Self| (identity.claim(), identity.generation, identity.address);
        rank(self) > rank(adversary)
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}+{} at {}", self.name, self.generation, self.renewal, self.address)
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use foca::Identity as _;

    use super::*;

    fn identity(generation: u64, renewal: u64) -> Identity {
        Identity {
            name: "a".parse().unwrap(),
            generation: Generation(generation),
            renewal,
            address: "10.0.0.1:39527".parse().unwrap(),
        }
    }

    #[test]
    fn a_later_generation_and_a_renewal_both_win() {
        assert!(identity(2, 0).win_addr_conflict(&identity(1, 0)));
        assert!(identity(1, 1).win_addr_conflict(&identity(1, 0)));
        assert!(!identity(1, 0).win_addr_conflict(&identity(1, 0)));
    }

    #[test]
    fn of_two_identities_exactly_one_wins() {
        let moved = Identity { address: "10.0.0.2:39527".parse().unwrap(), ..identity(1, 1) };
        for (a, b) in [
            (identity(2, 0), identity(1, 1)),
            (identity(1, 1), moved),
            (identity(9, 0), identity(1, 3)),
        ] {
            assert!(a.win_addr_conflict(&b) != b.win_addr_conflict(&a), "{a} and {b}");
        }
    }

    #[test]
    fn a_raised_claim_keeps_the_generation() {
        let raised = identity(5, 0).raised_above(100);
        assert_eq!((raised.claim(), raised.generation), (101, Generation(5)));
        assert_eq!(identity(5, 7).raised_above(3), identity(5, 7));
    }

    #[test]
    fn generations_follow_the_calendar_and_stay_below_the_largest_claim() {
        let early = generation_at(Duration::from_secs(1_700_000_000), u32::MAX);
        let late = generation_at(Duration::from_millis(1_700_000_000_001), 0);
        assert!(early < late);
        assert!(generation_at(Duration::MAX, u32::MAX).0 < Identity::MAX_CLAIM);
    }
}
