//! What is known of a member's part in a write.

use crate::state::table::NotAppliedReason;

/// What is known of a member's part in a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledgement {
    /// It has applied the write.
    Applied,
    /// It has not acknowledged the write yet.
    Pending,
    /// It has received the write, but the write has no effect there.
    NotApplied(NotAppliedReason),
}
