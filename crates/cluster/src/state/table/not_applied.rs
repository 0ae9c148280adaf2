//! Why rows that other nodes have written have no effect here.

/// Most rows of a writer that a node lists as not applied.
pub(super) const MAX_NOT_APPLIED: usize = 64;

/// Why a row that another node has written has no effect on this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NotAppliedReason {
    /// Its content can't be decoded: a newer release has written it, or its bytes are damaged.
    Undecodable,
    /// Its value is outside of the bounds of the store.
    OutOfBounds,
    /// Its stamp is so late that it would leave no room for later ones.
    StampTooLate,
    /// It names more writers than this node can remember.
    TooManyWriters,
    /// Its key or its content is too long.
    TooLong,
    /// Its key can't be decoded.
    UndecodableKey,
    /// Its writer has more rows in the store than it may have.
    TooManyRows,
}

impl NotAppliedReason {
    /// All reasons, each at the place of its number on the wire.
    const ALL: [Self; 7] = [
        Self::Undecodable,
        Self::OutOfBounds,
        Self::StampTooLate,
        Self::TooManyWriters,
        Self::TooLong,
        Self::UndecodableKey,
        Self::TooManyRows,
    ];

    /// Its number on the wire. Routers of different versions share a cluster, so numbers never change.
    pub(crate) fn wire_id(self) -> u8 {
        Self::ALL.iter().position(|reason| *reason == self).map_or(0, |at| at as u8)
    }

    /// The reason with this number. A reason of a later release counts as one that says the least.
    pub(crate) fn from_wire_id(id: u8) -> Self {
        Self::ALL.get(usize::from(id)).copied().unwrap_or(Self::Undecodable)
    }

    /// Its name in metrics and answers.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::OutOfBounds => "out_of_bounds",
            Self::StampTooLate => "stamp_too_late",
            Self::TooManyWriters => "too_many_writers",
            Self::TooLong => "too_long",
            Self::UndecodableKey => "undecodable_key",
            Self::TooManyRows => "too_many_rows",
        }
    }
}

impl std::fmt::Display for NotAppliedReason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Undecodable => {
                "it can't decode the row: a newer release wrote it, or it is damaged"
            }
            Self::OutOfBounds => "the row's value is outside of the bounds of its release",
            Self::StampTooLate => "the row's stamp is after the year 10,000",
            Self::TooManyWriters => "the row names more writers than it can remember",
            Self::TooLong => "the row is too long",
            Self::UndecodableKey => {
                "it can't decode the row's key: a newer release wrote it, or it is damaged"
            }
            Self::TooManyRows => "the writer has more rows in the store than it may have",
        })
    }
}
