//! What makes routers agree, without a socket: who is in the cluster, and what they know together.
//!
//! Everything here is a state machine: frames, time and commands in (`handle_*`), frames and events out (`poll_*`).
//! [`Node`] puts them together; `mesh` owns the sockets and the clock, `tests/sim` plays both.
//!
//! A driver's loop is: feed one input, then drain `poll_transmit` and `poll_event`, then wait until `next_deadline`.

pub mod codec;
pub mod membership;
pub mod timers;

use std::net::SocketAddr;
use std::time::Duration;

use rand::Rng;

use crate::cluster::codec::{ClusterId, Frame, FrameError};
use crate::cluster::membership::{ConfigError, Event, Identity, MemberView, Membership};
use crate::ids::{Generation, NodeName};
use crate::now::Now;

/// How a node behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Frames of other clusters are refused.
    pub cluster: ClusterId,
    /// Probing, suspicion, knocking.
    pub membership: membership::Config,
}

/// Which connection a frame travels on: state must never delay a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Small and urgent: the membership's.
    Swim,
    /// Bulk.
    State,
}

/// A frame to send. It may be lost: whatever matters is repeated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transmit {
    /// Where to.
    pub to: SocketAddr,
    /// To whom; unknown while knocking at a join address.
    pub peer: Option<NodeName>,
    /// On which connection.
    pub lane: Lane,
    /// The frame.
    pub bytes: Vec<u8>,
}

/// What was refused at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameCounters {
    /// Frames that were taken.
    pub taken: u64,
    /// Frames of a later minor version's kind: skipped.
    pub unknown_kind: u64,
    /// Frames of another major version: refused.
    pub unknown_version: u64,
    /// Frames that are not what was sent, or not frames at all.
    pub corrupted: u64,
    /// Frames whose payload is not what their kind says.
    pub undecodable: u64,
}

/// One router's part in the cluster.
#[derive(Debug)]
pub struct Node {
    membership: Membership,
    frames: FrameCounters,
}

impl Node {
    /// A node called `name`, reached at `address`, in the life `generation`, which must be larger than that of any of
    /// its earlier lives: see [`membership::generation_at`].
    ///
    /// # Errors
    ///
    /// All that is wrong with the configuration.
    pub fn try_new(
        config: Config,
        name: NodeName,
        generation: Generation,
        address: SocketAddr,
        now: Now,
        rng: &mut dyn Rng,
    ) -> Result<Self, Vec<ConfigError>> {
        let identity = Identity { name, generation, renewal: 0, address };
        let membership =
            Membership::try_new(config.membership, config.cluster, identity, now, rng)?;
        Ok(Self { membership, frames: FrameCounters::default() })
    }

    /// Feeds a frame that came from `from`. Whatever is wrong with it is counted; nothing foreign stops a node.
    pub fn handle_frame(&mut self, now: Now, from: SocketAddr, bytes: &[u8]) {
        let frame = match Frame::read(bytes) {
            Ok(frame) => frame,
            Err(error) => return self.count(error),
        };
        match self.membership.handle_frame(now, from, &frame) {
            Ok(()) => self.frames.taken += 1,
            Err(error) => {
                self.frames.undecodable += 1;
                tracing::debug!(%error, kind = ?frame.kind, %from, "frame refused");
            }
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, now: Now) {
        self.membership.handle_timeout(now);
    }

    /// When to call `handle_timeout` next, by the monotonic clock.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.membership.next_deadline()
    }

    /// The next frame to send.
    pub fn poll_transmit(&mut self) -> Option<Transmit> {
        let outgoing = self.membership.poll_transmit()?;
        Some(Transmit {
            to: outgoing.to,
            peer: outgoing.peer,
            lane: Lane::Swim,
            bytes: outgoing.bytes,
        })
    }

    /// The next thing that happened.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.membership.poll_event()
    }

    /// Tells where others may be, each time that was found out; see [`Membership::join`].
    pub fn join(&mut self, now: Now, addresses: &[SocketAddr]) {
        self.membership.join(now, addresses);
    }

    /// Tells everybody that this node will go. It goes on as a member until `depart`.
    pub fn leave(&mut self, now: Now) {
        self.membership.leave(now);
    }

    /// Leaves and falls silent; what is to be sent is still to be sent.
    pub fn depart(&mut self, now: Now) {
        self.membership.depart(now);
    }

    /// Goes on at another address.
    pub fn readdress(&mut self, now: Now, address: SocketAddr) {
        self.membership.readdress(now, address);
    }

    /// This node as a member.
    #[must_use]
    pub fn me(&self) -> MemberView {
        self.membership.me()
    }

    /// The other members that are listed, by name.
    pub fn members(&self) -> impl Iterator<Item = MemberView> {
        self.membership.members()
    }

    /// The membership, to look at.
    #[must_use]
    pub const fn membership(&self) -> &Membership {
        &self.membership
    }

    /// What was refused at the door.
    #[must_use]
    pub const fn frames(&self) -> FrameCounters {
        self.frames
    }

    fn count(&mut self, error: FrameError) {
        match error {
            FrameError::UnknownKind(_) | FrameError::UnknownFlags(_) => {
                self.frames.unknown_kind += 1;
            }
            FrameError::Version { .. } => self.frames.unknown_version += 1,
            FrameError::TooShort(_)
            | FrameError::TooLong(_)
            | FrameError::Length { .. }
            | FrameError::Checksum => self.frames.corrupted += 1,
        }
    }
}
