//! The network of a world: what it does to a frame between two processes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use rand::RngExt;
use smg_cluster::codec::{self, Frame, Kind};
use smg_cluster::{Lane, Transmit};

use crate::world::World;
use crate::world::queue::Action;

/// The faults of the network at present.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Net {
    pub latency: (Duration, Duration),
    pub drop: f64,
    pub duplicate: f64,
    /// Chance that a frame is held back, by up to `late`.
    pub reorder: f64,
    pub late: Duration,
    pub corrupt: f64,
    /// Ordered pairs of slots between which no frame gets through.
    pub cut: BTreeSet<(usize, usize)>,
    /// Ordered pairs of slots whose frames take this much longer.
    pub slow: BTreeMap<(usize, usize), Duration>,
}

impl Net {
    pub(crate) fn clean() -> Self {
        Self {
            latency: (Duration::from_micros(200), Duration::from_millis(1)),
            drop: 0.0,
            duplicate: 0.0,
            reorder: 0.0,
            late: Duration::ZERO,
            corrupt: 0.0,
            cut: BTreeSet::new(),
            slow: BTreeMap::new(),
        }
    }
}

/// Frames that were handed to the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub frames: u64,
    pub bytes: u64,
    pub state_frames: u64,
}

impl World {
    pub(super) fn send(&mut self, slot: usize, transmit: Transmit) {
        let place = &self.slots[slot];
        let from = place.address;
        let Transmit { to, lane, mut bytes, .. } = transmit;
        self.traffic.state_frames += u64::from(lane == Lane::State);
        self.traffic.frames += 1;
        self.traffic.bytes += bytes.len() as u64;
        if place.version != codec::VERSION {
            bytes = self.as_of_version(slot, &bytes);
            if self.chance(0.1) {
                // A kind that only later versions have.
                let (version, cluster) = (self.slots[slot].version, self.slots[slot].cluster);
                let novelty = codec::frame_of_version(version, 200, cluster, b"from the future");
                self.transmit(slot, from, to, novelty);
            }
        }
        self.transmit(slot, from, to, bytes);
    }

    /// Hands bytes to the network.
    pub(crate) fn transmit(
        &mut self,
        slot: usize,
        from: SocketAddr,
        to: SocketAddr,
        mut bytes: Vec<u8>,
    ) {
        let receiver = self.slots.iter().rposition(|s| s.address == to && s.process.is_some());
        let pair = receiver.map(|receiver| (slot, receiver));
        if pair.is_some_and(|pair| self.net.cut.contains(&pair)) || self.chance(self.net.drop) {
            return;
        }
        if self.chance(self.net.corrupt) && !bytes.is_empty() {
            let at = self.rng.random_range(0..bytes.len());
            bytes[at] ^= 1 << self.rng.random_range(0..8);
        }
        let copies = if self.chance(self.net.duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let (least, most) = self.net.latency;
            let mut after = self.rng.random_range(least..=most);
            if self.chance(self.net.reorder) {
                after += self.net.late.mul_f64(self.rng.random());
            }
            if let Some(extra) = pair.and_then(|pair| self.net.slow.get(&pair)) {
                after += *extra;
            }
            let bytes = bytes.clone();
            self.push(self.now + after, Action::Deliver { from, to, bytes });
        }
    }

    /// The bytes that a router of another version sends instead: a later minor version appends fields.
    fn as_of_version(&self, slot: usize, bytes: &[u8]) -> Vec<u8> {
        let version = self.slots[slot].version;
        let Ok(frame) = Frame::read(bytes) else { return bytes.to_vec() };
        let mut payload = frame.payload.to_vec();
        if frame.kind != Kind::Swim {
            payload.extend(b"appended");
        }
        codec::frame_of_version(version, frame.kind as u8, frame.cluster, &payload)
    }

    fn chance(&mut self, p: f64) -> bool {
        p > 0.0 && self.rng.random_bool(p)
    }
}
