//! The leases of a node: carries the messages of `smg_lease` in frames, and gives it the members.
//!
//! Leases count by a clock that goes on while the machine is suspended: the monotonic clock of [`Now`] and the time for which
//! the machine has been suspended, of which the driver informs the node ([`Node::set_suspended`]).

use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_lease::{Event, LeaseName, Leases, Member, Message, Outgoing, Term, Times, Votes};
use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::codec::{self, Frame, Kind, PayloadError};
use crate::membership::MemberState;
use crate::node::lease_part::{LeasePart, NodeLeases};
use crate::node::{Lane, Node, Transmit};

/// A message of one router to another. It names both, because an address may have passed to another router (L8).
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    from: NodeId,
    to: NodeId,
    message: Message,
}

impl Node {
    /// Starts the leases: this node votes from now on, and may hold the leases `names`.
    pub fn start_leases(
        &mut self,
        now: Now,
        names: impl IntoIterator<Item = LeaseName>,
        votes: Box<dyn Votes>,
    ) {
        let floor = Term(u64::try_from(now.wall.as_millis()).unwrap_or(0));
        let (at, me) = (self.lease_time(now), self.membership.me().node);
        let leases = Leases::new(at, me, names, Times::DEFAULT, floor, votes);
        self.leases = Some(LeasePart { leases, members: None, version: 1 });
        self.follow_members(now);
    }

    /// Takes the time for which the machine has been suspended since the start of the process.
    pub fn set_suspended(&mut self, total: Duration) {
        self.suspended = self.suspended.max(total);
    }

    /// The clock of the leases.
    #[must_use]
    pub fn lease_time(&self, now: Now) -> Duration {
        now.mono + self.suspended
    }

    /// The leases, if they were started, for reading.
    #[must_use]
    pub fn leases(&self) -> Option<&NodeLeases> {
        self.leases.as_ref().map(|part| &part.leases)
    }

    /// Grows when something about the leases may have changed.
    #[must_use]
    pub fn leases_version(&self) -> u64 {
        self.leases.as_ref().map_or(0, |part| part.version)
    }

    /// Does something with the leases at the time of their clock; `None`: they were not started.
    pub fn update_leases<T>(
        &mut self,
        now: Now,
        act: impl FnOnce(&mut NodeLeases, Duration) -> T,
    ) -> Option<T> {
        self.now = now;
        let at = self.lease_time(now);
        let part = self.leases.as_mut()?;
        part.version += 1;
        Some(act(&mut part.leases, at))
    }

    /// The next event of a lease.
    pub fn poll_lease_event(&mut self) -> Option<Event> {
        self.leases.as_mut()?.leases.poll_event()
    }

    pub(super) fn handle_lease_message(
        &mut self,
        now: Now,
        frame: &Frame<'_>,
    ) -> Result<(), PayloadError> {
        let Envelope { from, to, message } = frame.decode()?;
        let is_member = self.membership.address_of(&from).is_some();
        if !is_member || to != self.membership.me().node || !self.exchanges_state() {
            self.frames.misdirected += 1;
            return Ok(());
        }
        *self.received.entry(Kind::Lease.name()).or_default() += 1;
        self.update_leases(now, |leases, at| leases.handle_message(at, &from, message));
        Ok(())
    }

    pub(super) fn handle_lease_timeout(&mut self, now: Now) {
        if self.lease_deadline().is_some_and(|due| due <= now.mono) {
            self.update_leases(now, NodeLeases::handle_timeout);
        }
    }

    /// When something of the leases is due, by the monotonic clock.
    pub(super) fn lease_deadline(&self) -> Option<Duration> {
        let leases = self.leases().filter(|_| self.exchanges_state())?;
        let due = leases.next_deadline(self.lease_time(self.now))?;
        Some(due.saturating_sub(self.suspended))
    }

    /// Hands the leases over, because this node leaves.
    pub(super) fn leave_leases(&mut self, now: Now) {
        self.update_leases(now, NodeLeases::leave);
    }

    /// Gives the leases the members, if they have changed.
    pub(super) fn follow_members(&mut self, now: Now) {
        let version = self.membership.version();
        let Some(part) = self.leases.as_mut().filter(|part| part.members != Some(version)) else {
            return;
        };
        part.members = Some(version);
        let me = self.membership.me().node;
        let members = self.membership.members().map(|member| Member {
            node: member.node,
            is_present: member.state.is_present(),
            is_leaving: member.state == MemberState::Leaving,
        });
        let members: Vec<Member> = members.collect();
        self.update_leases(now, |leases, at| {
            leases.set_me(at, me);
            leases.set_members(at, members);
        });
    }

    pub(super) fn poll_lease_transmit(&mut self) -> Option<Transmit> {
        let is_member = self.exchanges_state();
        let part = self.leases.as_mut()?;
        while let Some(Outgoing { to, message }) = part.leases.poll_transmit() {
            let Some(address) = self.membership.address_of(&to).filter(|_| is_member) else {
                continue;
            };
            let peer = Some(to.name.clone());
            let from = self.membership.me().node;
            let payload = codec::encode(&Envelope { from, to, message });
            let bytes = codec::frame(Kind::Lease, self.cluster, &payload);
            let kind = Kind::Lease.name();
            return Some(Transmit { to: address, peer, lane: Lane::Swim, kind, bytes });
        }
        None
    }
}
