//! Whether a member has applied a write of this node.

use crate::state::table::NotAppliedReason;

/// Whether a member has applied a write of this node, as far as this node knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// It has applied the write.
    Applied,
    /// It has not acknowledged the write yet.
    Pending,
    /// It has received the write, but the write has no effect there.
    NotApplied(NotAppliedReason),
}
