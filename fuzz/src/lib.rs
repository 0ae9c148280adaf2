//! What a stranger can send to a node, one function per door.
//!
//! ```text
//! cargo +nightly fuzz run frames        (or messages, or rows)
//! ```
//!
//! `tests/hostile.rs` compiles this file too and feeds it random and mutated bytes in CI.

use std::net::SocketAddr;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use smg_cluster::codec::{self, ClusterId, Kind};
use smg_cluster::replication::message::{Delta, Message, StoreNumber};
use smg_cluster::state::StoreId;
use smg_cluster::state::row::{Blob, RawRow};
use smg_cluster::{Config, Node, membership, replication};
use smg_lease::{LeaseName, NotStored, Quorum, Remembered, StoredVote, Voters, Votes};
use smg_types::ids::{Generation, NodeId};
use smg_types::now::Now;

/// The cluster that the nodes belong to.
pub const CLUSTER: ClusterId = ClusterId(7);

/// A moment.
pub fn at(ms: u64) -> Now {
    Now::at(Duration::from_secs(1_000_000) + Duration::from_millis(ms))
}

/// Where a node is.
pub fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 39527))
}

fn node(name: &str, host: u8) -> Node {
    let config = Config {
        cluster: CLUSTER,
        membership: membership::Config::lan(),
        replication: replication::Config::default(),
    };
    let mut rng = StdRng::seed_from_u64(u64::from(host));
    let name = name.parse().expect("a name");
    let generation = Generation(u64::from(host));
    let node = Node::try_new(config, name, generation, address(host), at(0), &mut rng);
    let mut node = node.expect("a good config");
    node.start_leases(at(0), ["leader".parse().expect("a name of a lease")], Box::new(FirstStart));
    let names = ["a", "b"].map(|name| name.parse().expect("a name")).to_vec();
    let quorum = Quorum(vec![Voters { size: 2, names }]);
    node.update_leases(at(0), |leases, now| leases.set_quorum(now, quorum));
    node
}

/// The votes of a router that has never voted, so that it need not abstain.
#[derive(Debug)]
struct FirstStart;

impl Votes for FirstStart {
    fn load(&mut self) -> Option<Remembered> {
        Some(Remembered::default())
    }

    fn store(&mut self, _: &LeaseName, _: &StoredVote) -> Result<(), NotStored> {
        Ok(())
    }
}

/// Two nodes that know each other, and all frames that they said meanwhile.
pub fn pair() -> ([Node; 2], Vec<Vec<u8>>) {
    let mut nodes = [node("a", 1), node("b", 2)];
    nodes[0].join(at(0), &[]);
    nodes[1].join(at(0), &[address(1)]);
    let frames = exchange(&mut nodes, 0);
    (nodes, frames)
}

/// Lets both talk until they fall silent.
pub fn exchange(nodes: &mut [Node; 2], ms: u64) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let before = frames.len();
        for (from, to) in [(0, 1), (1, 0)] {
            while let Some(transmit) = nodes[from].poll_transmit() {
                let host = if from == 0 { 1 } else { 2 };
                nodes[to].handle_frame(at(ms), address(host), &transmit.bytes);
                frames.push(transmit.bytes);
            }
        }
        if frames.len() == before {
            return frames;
        }
    }
}

/// Any bytes, as a frame and as the payload of a good frame of each kind.
pub fn feed_frame(node: &mut Node, bytes: &[u8]) {
    node.handle_frame(at(1), address(2), bytes);
    for kind in Kind::ALL {
        if bytes.len() < codec::MAX_FRAME_BYTES - codec::HEADER_BYTES {
            node.handle_frame(at(1), address(2), &codec::frame(kind, CLUSTER, bytes));
        }
    }
}

/// The frame in which `from` sends `to` a message about state or about a lease, as bytes of which only the message may be bad.
pub fn letter(kind: Kind, from: &NodeId, to: &NodeId, message: &[u8]) -> Vec<u8> {
    let mut payload = codec::encode(&(from, to));
    payload.extend(message);
    codec::frame(kind, CLUSTER, &payload)
}

/// Any bytes as the message of one member to another: about state, and about a lease.
pub fn feed_message(nodes: &mut [Node; 2], bytes: &[u8]) {
    let [to, from] = [&nodes[0], &nodes[1]].map(|node| node.me().node);
    for kind in [Kind::State, Kind::Lease] {
        nodes[0].handle_frame(at(1), address(2), &letter(kind, &from, &to, bytes));
    }
}

/// Any bytes as key and content of a row that a member writes to each store.
pub fn feed_row(nodes: &mut [Node; 2], version: u64, key: &[u8], content: &[u8]) {
    for store in StoreId::ALL {
        let row = RawRow {
            version,
            key: Blob::from(key.to_vec()),
            content: Blob::from(content.to_vec()),
        };
        let delta = Delta {
            store: StoreNumber::from(store),
            writer: nodes[1].me().node,
            from: 0,
            to: version,
            upto: version,
            floor: 0,
            rows: vec![row],
        };
        feed_message(nodes, &codec::encode(&Message::Delta(delta)));
    }
}

/// Time goes by, and what was taken in is handed on.
pub fn settle(nodes: &mut [Node; 2]) {
    for ms in (2..2_000).step_by(250) {
        for node in nodes.iter_mut() {
            node.handle_timeout(at(ms));
        }
        exchange(nodes, ms);
    }
}
