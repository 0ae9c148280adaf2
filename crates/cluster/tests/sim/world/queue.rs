//! The queue of a world: everything that will happen, by time and then by the order in which it was planned.

use std::net::SocketAddr;
use std::time::Duration;

#[derive(Debug)]
pub(super) enum Action {
    Deliver { from: SocketAddr, to: SocketAddr, bytes: Vec<u8> },
    Wake { slot: usize, run: u32 },
    Resume { slot: usize, run: u32 },
    Resolve { slot: usize, run: u32 },
    Depart { slot: usize, run: u32 },
    Stop { slot: usize, run: u32 },
}

#[derive(Debug)]
pub(super) struct Item {
    pub(super) at: Duration,
    pub(super) sequence: u64,
    pub(super) what: Action,
}

impl PartialEq for Item {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Item {}
impl PartialOrd for Item {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Item {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}
