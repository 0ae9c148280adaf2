//! The work that comes due with time: digests, audits and hints when they are due, and four times a second a round of what is less
//! urgent.

use std::time::Duration;

use rand::Rng;
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::plausible::latest_generation;
use crate::replication::changes::Changes;
use crate::replication::message::Message;
use crate::replication::peer::Peer;
use crate::replication::schedule::Schedule;
use crate::replication::{Replication, audit, collection, retirement};
use crate::state::StoreId;
use crate::state::writers::{Writer, Writers};

/// Hints that a round checks for expiry.
const HINTS_PER_ROUND: usize = 4096;

impl Replication {
    /// Does what is due. Call it when [`Replication::next_deadline`] has come.
    pub fn handle_tick(&mut self, now: Now, rng: &mut dyn Rng) -> Changes {
        self.state.writers.set_latest(latest_generation(now));
        let mut changes = Changes::default();
        let before = self.own_versions();
        if self.schedule.is_round_due(now.mono) {
            changes = self.round(now);
        }
        if !self.peers.has_reachable() {
            self.schedule.pause_exchanges();
        } else {
            if self.schedule.is_digest_due(now.mono, self.config.digest_interval, rng)
                && let Some(name) = self.peers.pick_reachable(rng)
            {
                let digest = self.digest(now, true);
                self.queue_digest(&name, digest);
            }
            let interval = self.config.audit_interval / self.peers.count_reachable().max(1);
            if self.schedule.is_audit_due(now.mono, interval, rng) {
                self.audit_next_peer();
                changes = changes.and(self.release_quarantine(now));
            }
        }
        if self.coalescing.take_due_hints(now.mono) {
            self.send_hints(now);
        }
        self.plan_push_of_moved(now, before);
        changes
    }

    /// When [`Replication::handle_tick`] or [`Replication::poll_transmit`] has something to do next, by the monotonic
    /// clock. `None`: not before another call changes something.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        let acks = self.peers.iter().filter_map(|peer| peer.acks.due_at());
        let scheduled = self.schedule.next_deadline(!self.is_at_rest());
        acks.chain(self.coalescing.next_deadline()).chain(scheduled).min()
    }

    /// A round: it takes time proportional to the streams that moved, not to the rows.
    fn round(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        self.settling.advance(now.mono);
        for store in StoreId::ALL {
            let (table, _) = self.state.replica_mut(store, now);
            let expired = table.expire(now);
            changes.touch(store, expired);
        }
        self.state.prefixes.expire(now, HINTS_PER_ROUND);
        self.retry(now);
        self.pull_missing_rows(now);
        self.replace_silent_donors(now);
        changes = changes.and(self.settle_ended_writers(now));
        self.abandon_lost_rows(now);
        self.forget_unused_writers(now);
        self.collect_tombstones(now);
        self.run_extra_audits(now);
        let refill = self.config.repair_bytes_per_second / Schedule::ROUNDS_PER_SECOND;
        self.peers.iter_mut().for_each(|peer| peer.refill_repair_credit(refill));
        if !self.is_warm {
            self.is_warm = self.peers.reachable().any(|peer| self.has_all_of(peer));
        }
        changes
    }

    /// Sends again what was not acknowledged in time (R18).
    fn retry(&mut self, now: Now) {
        for peer in self.peers.reachable_mut() {
            for stream in peer.window.take_overdue(now.mono, self.config.retry) {
                self.counters.retries += 1;
                let known = peer.known(stream);
                peer.window.rewind(stream, known);
            }
        }
    }

    /// Pulls what peers have had, and this node has lacked, for a while (R16).
    fn pull_missing_rows(&mut self, now: Now) {
        let (state, peers) = (&self.state, &self.peers);
        let due = self.pulls.due(now.mono, |(store, writer), version, peer| {
            let is_claimed = peers.get(peer).is_some_and(|p| p.known((store, writer)) >= version);
            let is_missing = state.replica(store).applied(writer) < version;
            is_claimed && is_missing && !state.writers.is_retired(writer)
        });
        for (from, streams) in due {
            if self.peers.get(&from).is_some_and(Peer::is_reachable) {
                self.pull(now, &from, &streams);
            } else {
                self.pulls.drop_claims(&streams);
            }
        }
        self.pulls.expire(now.mono);
    }

    /// Goes on with another donor where one does not answer (R27).
    fn replace_silent_donors(&mut self, now: Now) {
        let names: Vec<NodeName> =
            self.peers.reachable().map(|peer| peer.id().name.clone()).collect();
        let requests = self.loads.switch_silent_donors(now.mono, 2 * self.config.retry, &names);
        for (donor, request) in requests {
            self.queue(&donor, Message::SnapshotRequest(request));
        }
    }

    /// Drops the measurements of writers that have ended, adopts what they decided, and retires those that are not
    /// needed any more.
    fn settle_ended_writers(&mut self, now: Now) -> Changes {
        let mut changes = Changes::default();
        for writer in retirement::ended_writers(&self.state) {
            changes = changes.and(retirement::drop_measurements(&mut self.state, writer, now));
            let ended_at = self.adoptions.note_ended(writer, now.mono);
            if self.is_adopter(now, writer) {
                let with_sums = self.may_adopt_sums(ended_at);
                let adopted = self.adoptions.adopt(&mut self.state, writer, with_sums, now);
                self.counters.adopted += adopted.rows as u64;
                changes = changes.and(adopted);
            }
            if retirement::may_retire(&self.state, &self.peers, writer) {
                self.retire(now, writer);
            }
        }
        let is_crowded = self.state.writers.len() > Writers::MAX / 2;
        let fence = if is_crowded { Duration::ZERO } else { self.config.fence };
        self.state.forget_retired(now.mono.saturating_sub(fence), now);
        changes
    }

    /// Whether rows that are summed up may be adopted from a writer whose end this node noticed at `ended_at` (R31).
    ///
    /// An adopted sum says that it includes all that the earlier generations have counted. A member that can't be reached may
    /// know of a generation that is unknown here, and a peer that noticed the end later may have received more of the writer's
    /// rows. Readers add up the rows that are not adopted too, so waiting delays nothing but the retirement of the writer: by
    /// about N ln N seconds with N nodes, because each sends a digest to one peer per second.
    fn may_adopt_sums(&self, ended_at: Duration) -> bool {
        let since = ended_at + 3 * self.config.digest_interval;
        self.peers.are_all_reachable()
            && self.peers.reachable().all(|peer| peer.has_sent_a_digest_since(since))
    }

    /// Whether it is this node that adopts what `writer`, which has ended, has decided (R30).
    fn is_adopter(&self, now: Now, writer: Writer) -> bool {
        let Some(id) = self.state.writers.id(writer) else { return false };
        if !self.is_level_with_all(now) {
            return false;
        }
        if id.name == self.me.name {
            return id.generation < self.me.generation;
        }
        self.peers.is_forgotten(&id.name) && self.peers.is_own_name_lowest()
    }

    /// Whether this node has had peers for a while and has applied all that they have: what they have removed need not
    /// be adopted.
    pub(super) fn is_level_with_all(&self, now: Now) -> bool {
        (self.peers.has_reachable() || self.peers.are_none_expected(now))
            && self.loads.is_empty()
            && self.peers.are_settled_for(3 * self.config.digest_interval, now)
            && self.peers.reachable().all(|peer| self.has_all_of(peer))
    }

    /// Whether this node has applied all that `peer` claims, as far as that still means something.
    fn has_all_of(&self, peer: &Peer) -> bool {
        let writers = &self.state.writers;
        peer.has_greeted()
            && peer.all_known().all(|((store, writer), known)| {
                writer == self.state.me
                    || (store.ends_with_writer() && writers.has_ended(writer))
                    || self.state.replica(store).applied(writer) >= known
            })
    }

    fn retire(&mut self, now: Now, writer: Writer) {
        retirement::retire(&mut self.state, writer, now);
        self.peers.iter_mut().for_each(|peer| peer.forget_writer(writer));
        self.pulls.forget_writer(writer);
        self.adoptions.forget_writer(writer);
        self.counters.retired += 1;
    }

    /// Drops the tombstones that every member has applied (R22).
    pub(super) fn collect_tombstones(&mut self, now: Now) {
        let collected = collection::collect_tombstones(&mut self.state, &self.peers, now);
        self.counters.collected += collected as u64;
    }

    /// Audits the next peer in turn.
    pub(super) fn audit_next_peer(&mut self) {
        if let Some(name) = self.peers.next_to_audit() {
            self.audit(&name);
        }
    }

    /// Audits the peers whose extra audit is due (R39).
    fn run_extra_audits(&mut self, now: Now) {
        let interval = self.config.audit_interval;
        let due = self.peers.iter_mut().filter_map(|peer| {
            peer.is_extra_audit_due(now, interval).then(|| peer.id().name.clone())
        });
        for name in due.collect::<Vec<_>>() {
            self.audit(&name);
        }
    }

    fn audit(&mut self, name: &NodeName) {
        let is_authority = |writer| self.is_authority(writer);
        for audit in audit::fingerprints(&self.state, &self.loads, is_authority) {
            self.queue(name, Message::Audit(audit));
        }
    }

    /// Whether this node knows which rows of `writer` are right (R37).
    pub(super) fn is_authority(&self, writer: Writer) -> bool {
        if writer == self.state.me {
            return true;
        }
        let Some(name) = self.state.writers.id(writer).map(|id| &id.name) else { return false };
        if *name == self.me().name {
            return true;
        }
        let runs = self.peers.reachable().any(|peer| peer.id().name == *name);
        !runs && self.peers.is_own_name_lowest()
    }

    /// Decodes again what is in quarantine.
    pub(super) fn release_quarantine(&mut self, now: Now) -> Changes {
        let released = audit::release_quarantine(&mut self.state, now);
        self.counters.released_rows += released.rows as u64;
        released
    }

    fn send_hints(&mut self, now: Now) {
        let runs = self.state.prefixes.flush();
        if self.state.prefixes.has_waiting() {
            self.coalescing.plan_hints(now.mono);
        }
        if runs.is_empty() {
            return;
        }
        for peer in self.peers.reachable_mut() {
            self.counters.dropped_messages += peer.queue(Message::Hints(runs.clone()));
        }
    }
}
