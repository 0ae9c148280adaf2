//! The parts of a node's state that the operations of a table need besides the table.

use smg_types::now::Now;

use crate::crdt::stamp::HybridClock;
use crate::state::writers::{Writer, Writers};

/// The parts of a node's state that the operations of a table need besides the table.
#[derive(Debug)]
pub struct NodeParts<'a> {
    pub(crate) writers: &'a mut Writers,
    pub(crate) clock: &'a mut HybridClock,
    pub(crate) me: Writer,
    pub(crate) now: Now,
}
