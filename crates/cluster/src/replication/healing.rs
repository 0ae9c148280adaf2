//! Recovery from false messages: limits on versions, withdrawal of claims, abandoning incomplete logs, and forgetting writers
//! that never existed.
//!
//! No message can be trusted to come from the node that it names, so a number that only its owner can know may be wrong here.
//! A node compares each such number with its owner's later messages and adopts the owner's value within seconds. It drops
//! numbers that have no owner.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::plausible::latest_version;
use crate::replication::Replication;
use crate::replication::message::{Claims, ClaimsBuilder, Message};
use crate::replication::peer::Peer;
use crate::replication::retirement;
use crate::replication::stream::Stream;
use crate::state::StoreId;
use crate::state::writers::Writer;

/// The log of an ended writer that can't be completed is given up after this time.
const ABANDONED_AFTER: Duration = Duration::from_secs(10);

/// Time between two searches for unused writers. A writer that two consecutive searches find is forgotten.
const UNUSED_INTERVAL: Duration = Duration::from_secs(10);

impl Replication {
    /// Whether `writer` can have reached `version` by now. If not, that is counted.
    pub(super) fn is_reachable_version(&mut self, now: Now, writer: &NodeId, version: u64) -> bool {
        let is_reachable = version <= latest_version(writer.generation, now);
        self.counters.absurd_versions += u64::from(!is_reachable);
        is_reachable
    }

    /// Whether each writer that `claims` names can have reached its versions by now. What can't be is counted.
    pub(super) fn are_reachable_versions(&mut self, now: Now, claims: &Claims) -> bool {
        claims.claims.iter().all(|claim| {
            let writer = claims.writers.get(usize::from(claim.writer));
            writer.is_none_or(|writer| {
                self.is_reachable_version(now, writer, claim.version.max(claim.floor))
            })
        })
    }

    /// Compares what is known of the peer `from` with its digest, whose claims are `claimed`: withdraws what it does not
    /// confirm (R46), and asks it to begin a later generation if this node has received a version that the peer has not reached
    /// (R45).
    pub(super) fn compare_with_digest(
        &mut self,
        now: Now,
        from: &NodeName,
        claimed: &BTreeMap<Stream, u64>,
    ) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        let state = &self.state;
        let mine = |(store, writer): Stream| state.replica(store).applied(writer);
        self.counters.withdrawn_claims += peer.withdraw_unconfirmed(claimed, mine, now.mono);
        let writer = peer.writer();
        let mut beyond = ClaimsBuilder::default();
        for store in StoreId::ALL {
            let stated = claimed.get(&(store, writer)).copied().unwrap_or(0);
            let positions = state.replica(store).log_positions();
            let position = positions.iter().find(|(of, _)| *of == writer);
            let target = position.map_or(0, |(_, position)| position.target.max(position.floor));
            if peer.is_overshot(store, stated, target, now.mono)
                && let Some(id) = state.writers.id(writer)
            {
                beyond.push(id, store, target, 0);
            }
        }
        if !beyond.is_empty() {
            self.queue(from, Message::Pull(beyond.build()));
        }
    }

    /// Whether a row of another node kills writes that this node has yet to make (R45).
    pub(super) fn is_killed_in_advance(&self) -> bool {
        StoreId::ALL.iter().any(|store| self.state.replica(*store).has_pending_kills(self.state.me))
    }

    /// Gives up the rest of the logs of ended writers that no member has (R47): the writer could never be retired.
    pub(super) fn abandon_lost_rows(&mut self, now: Now) {
        if !self.peers.are_all_reachable() || !self.is_level_with_all(now) {
            self.leftovers.incomplete.clear();
            return;
        }
        let mut incomplete = BTreeMap::new();
        for writer in retirement::ended_writers(&self.state) {
            let missing = self.missing_at_end(writer);
            if missing.is_empty() {
                continue;
            }
            let since = self.leftovers.incomplete.get(&writer).copied().unwrap_or(now.mono);
            if now.mono < since + ABANDONED_AFTER {
                incomplete.insert(writer, since);
                continue;
            }
            for (store, end) in missing {
                let stood = self.state.replica(store).applied(writer);
                let (table, _) = self.state.replica_mut(store, now);
                if table.claim(writer, end) {
                    self.note_move((store, writer), stood);
                }
                self.counters.abandoned_logs += 1;
            }
        }
        self.leftovers.incomplete = incomplete;
    }

    /// The stores in which this node has not all of the log of `writer`, with the end of the log as far as it is known.
    fn missing_at_end(&self, writer: Writer) -> Vec<(StoreId, u64)> {
        let lasting = StoreId::ALL.into_iter().filter(|store| !store.ends_with_writer());
        let ends = lasting.filter_map(|store| {
            let positions = self.state.replica(store).log_positions();
            let (_, position) = positions.into_iter().find(|(of, _)| *of == writer)?;
            let end = position.target.max(position.floor);
            (end > position.applied).then_some((store, end))
        });
        ends.collect()
    }

    /// Forgets writers that some message has named, and of which nothing has arrived since.
    pub(super) fn forget_unused_writers(&mut self, now: Now) {
        if now.mono < self.leftovers.next_check_at {
            return;
        }
        self.leftovers.next_check_at = now.mono + UNUSED_INTERVAL;
        let listed: BTreeSet<Writer> = self.peers.iter().map(Peer::writer).collect();
        let writers = self.state.writers.all().map(|(writer, _)| writer);
        let unused: BTreeSet<Writer> = writers
            .filter(|writer| {
                *writer != self.state.me
                    && !listed.contains(writer)
                    && !self.state.writers.is_retired(*writer)
                    && self.state.is_unused(*writer)
            })
            .collect();
        for writer in unused.intersection(&self.leftovers.unused) {
            self.state.forget_writer(*writer, now);
            self.peers.iter_mut().for_each(|peer| peer.forget_writer(*writer));
            self.pulls.forget_writer(*writer);
            self.adoptions.forget_writer(*writer);
        }
        self.leftovers.unused = unused;
    }
}
