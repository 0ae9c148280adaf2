//! The five states of a member, and which may follow which.

use std::fmt;

use serde::{Deserialize, Serialize};
use smg_types::ids::NodeId;

/// What a node believes of a member, itself included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// Has knocked, is not in yet.
    Init,
    /// In the cluster.
    Alive,
    /// Did not answer a probe and may still refute. Information only: it removes nothing.
    Suspected,
    /// Did not refute in time. Stays listed until it is forgotten.
    Down,
    /// Said that it will go.
    Leaving,
}

impl MemberState {
    /// Every state, in the document's order.
    pub const ALL: [Self; 5] =
        [Self::Init, Self::Alive, Self::Suspected, Self::Down, Self::Leaving];

    /// The document's word for it.
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

    /// Whether one life of a member may go from `from` to `to`; `None` is not listed.
    #[must_use]
    pub const fn is_legal(from: Option<Self>, to: Option<Self>) -> bool {
        match (from, to) {
            // News may arrive in any state; a member that left is not listed, so nothing follows.
            (None, Some(_)) => true,
            (None, None) => false,
            // A newcomer comes in, or gives up.
            (
                Some(Self::Init),
                Some(Self::Alive | Self::Suspected | Self::Down | Self::Leaving) | None,
            ) => true,
            (Some(Self::Init), Some(Self::Init)) => false,
            (Some(Self::Alive), Some(Self::Suspected | Self::Down | Self::Leaving)) => true,
            (Some(Self::Suspected), Some(Self::Alive | Self::Down | Self::Leaving)) => true,
            // Back with a renewed claim, or forgotten.
            (Some(Self::Down), Some(Self::Alive | Self::Suspected | Self::Leaving) | None) => true,
            (Some(Self::Down), Some(Self::Init | Self::Down)) => false,
            // A goodbye is never taken back within a life: such a member goes.
            (Some(Self::Leaving), None) => true,
            (Some(Self::Leaving), Some(_)) => false,
            (Some(Self::Alive), Some(Self::Init | Self::Alive)) => false,
            (Some(Self::Suspected), Some(Self::Init | Self::Suspected)) => false,
            // Only by the start of another life, or by a table that is full.
            (Some(Self::Alive | Self::Suspected), None) => true,
        }
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One life of a member went from one state to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// Which life of which member.
    pub node: NodeId,
    /// The state before; `None` if it was not listed.
    pub from: Option<MemberState>,
    /// The state after; `None` if it is not listed any more: it left, was forgotten, or lives on as another life.
    pub to: Option<MemberState>,
}

#[cfg(test)]
mod tests {
    use super::MemberState::{Alive, Down, Init, Leaving, Suspected};
    use super::*;

    #[test]
    fn suspicion_is_not_absence() {
        assert!(Suspected.is_present());
        assert!(!Down.is_present());
    }

    #[test]
    fn a_goodbye_is_not_taken_back() {
        for state in MemberState::ALL {
            assert!(!MemberState::is_legal(Some(Leaving), Some(state)), "LEAVING to {state}");
        }
        assert!(MemberState::is_legal(Some(Leaving), None));
    }

    #[test]
    fn what_must_be_possible_is() {
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
    fn nothing_stays_where_it_is_or_becomes_new() {
        for state in MemberState::ALL {
            assert!(!MemberState::is_legal(Some(state), Some(state)), "{state} to itself");
            assert!(!MemberState::is_legal(Some(state), Some(Init)), "{state} to INIT");
        }
    }
}
