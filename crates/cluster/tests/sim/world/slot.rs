//! The places where routers run, and the processes that run there.

use std::net::SocketAddr;
use std::time::Duration;

use smg_cluster::codec::ClusterId;
use smg_cluster::{Node, membership, replication};
use smg_types::ids::{Generation, NodeName};
use smg_types::now::Now;

/// A place where a router can run: a name, a disk, a clock, and the process if there is one.
#[derive(Debug)]
pub(crate) struct Slot {
    pub name: NodeName,
    pub address: SocketAddr,
    pub cluster: ClusterId,
    /// The protocol version that it speaks.
    pub version: (u8, u8),
    /// Slots whose present addresses are its join addresses.
    pub seeds: Vec<usize>,
    pub config: membership::Config,
    pub replication: replication::Config,
    /// The error of its wall clock, in milliseconds.
    pub clock_error: i64,
    /// The highest generation on its disk; `None`: it has no disk.
    pub disk: Option<Generation>,
    pub process: Option<Process>,
    /// Frames that were dropped because its inbox was full.
    pub lost: u64,
}

impl Slot {
    /// The reading of its clocks at the true time `now`.
    pub(super) fn reading(&self, now: Now) -> Now {
        let error = Duration::from_millis(self.clock_error.unsigned_abs());
        let wall = if self.clock_error < 0 { now.wall - error } else { now.wall + error };
        Now { wall, ..now }
    }
}

#[derive(Debug)]
pub(crate) struct Process {
    pub node: Node,
    /// The number of this process, over all slots: each start has its own.
    pub run: u32,
    pub stalled: bool,
    pub(super) inbox: Vec<(SocketAddr, Vec<u8>)>,
    /// The deadline that is in the queue.
    pub(super) wake: Option<Duration>,
    pub leaving: bool,
}
