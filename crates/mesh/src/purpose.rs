//! What the keys of a stream are for.

use smg_cluster::Lane;

/// The purpose and direction of a stream, which prevent that two streams with equal salts have equal keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Frames of a lane, from the calling side.
    Lane(Lane),
    /// A change of the keys, from the calling side.
    Keys,
    /// The answer to a change of the keys.
    KeysAnswer,
    /// The opening of one side. The other side contributes no random bytes.
    Opening(Side),
}

/// The two sides of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    /// The router that made the connection.
    Caller,
    /// The router that accepted it.
    Called,
}

impl Purpose {
    /// The name from which the key of the stream is derived.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Lane(Lane::Swim) => "swim",
            Self::Lane(Lane::State) => "sync",
            Self::Keys => "keys",
            Self::KeysAnswer => "keys answer",
            Self::Opening(Side::Caller) => "opening of the caller",
            Self::Opening(Side::Called) => "opening of the called",
        }
    }
}
