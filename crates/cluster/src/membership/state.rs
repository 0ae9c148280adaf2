//! The five states of a member, and which may follow which.

use std::fmt;

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;

/// The state of a member, as a node believes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// It has sent a join probe and is not a member yet.
    Init,
    /// It is in the cluster.
    Alive,
    /// It did not answer a probe and may still refute. This is information: it removes nothing.
    Suspected,
    /// It did not refute in time. It stays listed until it is forgotten.
    Down,
    /// It has announced that it is leaving.
    Leaving,
}

impl MemberState {
    /// Every state, in the order of the specification.
    pub const ALL: [Self; 5] =
        [Self::Init, Self::Alive, Self::Suspected, Self::Down, Self::Leaving];

    /// The name of the state in the specification.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Init => "INIT",
            Self::Alive => "ALIVE",
            Self::Suspected => "SUSPECTED",
            Self::Down => "DOWN",
            Self::Leaving => "LEAVING",
        }
    }

    /// Whether requests, rows and rights of such a member count.
    #[must_use]
    pub const fn is_present(self) -> bool {
        match self {
            Self::Alive | Self::Suspected | Self::Leaving => true,
            Self::Init | Self::Down => false,
        }
    }

    /// Whether one generation of a member may go from `from` to `to`; `None` means that it is not listed.
    #[must_use]
    pub const fn is_legal(from: Option<Self>, to: Option<Self>) -> bool {
        match (from, to) {
            // A member may become known in any state. One that has left is not listed, so nothing follows.
            (None, Some(_)) => true,
            (None, None) => false,
            // A newcomer becomes a member, or gives up.
            (
                Some(Self::Init),
                Some(Self::Alive | Self::Suspected | Self::Down | Self::Leaving) | None,
            ) => true,
            (Some(Self::Init), Some(Self::Init)) => false,
            (Some(Self::Alive), Some(Self::Suspected | Self::Down | Self::Leaving)) => true,
            (Some(Self::Suspected), Some(Self::Alive | Self::Down | Self::Leaving)) => true,
            // It returns with a renewed claim, or it is forgotten.
            (Some(Self::Down), Some(Self::Alive | Self::Suspected | Self::Leaving) | None) => true,
            (Some(Self::Down), Some(Self::Init | Self::Down)) => false,
            // A generation never takes back its goodbye, but one that is not repeated was not its own.
            (Some(Self::Leaving), Some(Self::Alive | Self::Suspected) | None) => true,
            (Some(Self::Leaving), Some(Self::Init | Self::Down | Self::Leaving)) => false,
            (Some(Self::Alive), Some(Self::Init | Self::Alive)) => false,
            (Some(Self::Suspected), Some(Self::Init | Self::Suspected)) => false,
            // A later generation takes its place, or the table is full.
            (Some(Self::Alive | Self::Suspected), None) => true,
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One generation of a member has changed its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The name and the generation of the member.
    pub node: NodeId,
    /// The state before; `None` if it was not listed.
    pub from: Option<MemberState>,
    /// The state after; `None` if it is not listed any more: it left, was forgotten, or a later generation took its
    /// place.
    pub to: Option<MemberState>,
}

#[cfg(test)]
mod tests {
    use super::MemberState::{Alive, Down, Init, Leaving, Suspected};
    use super::*;

    #[test]
    fn a_suspected_member_is_present_and_a_down_one_is_not() {
        assert!(Suspected.is_present());
        assert!(!Down.is_present());
    }

    #[test]
    fn a_member_that_leaves_is_gone_or_was_not_leaving_and_is_never_down() {
        for state in [Init, Down, Leaving] {
            assert!(!MemberState::is_legal(Some(Leaving), Some(state)), "LEAVING to {state}");
        }
        for state in [Some(Alive), Some(Suspected), None] {
            assert!(MemberState::is_legal(Some(Leaving), state), "LEAVING to {state:?}");
        }
    }

    #[test]
    fn the_usual_transitions_are_legal() {
        for (from, to) in [
            (None, Some(Init)),
            (Some(Init), Some(Alive)),
            (Some(Alive), Some(Suspected)),
            (Some(Suspected), Some(Alive)),
            (Some(Suspected), Some(Down)),
            (Some(Down), Some(Alive)),
            (Some(Down), None),
        ] {
            assert!(MemberState::is_legal(from, to), "{from:?} to {to:?}");
        }
    }

    #[test]
    fn no_state_follows_itself_and_init_follows_none() {
        for state in MemberState::ALL {
            assert!(!MemberState::is_legal(Some(state), Some(state)), "{state} to itself");
            assert!(!MemberState::is_legal(Some(state), Some(Init)), "{state} to INIT");
        }
    }
}
