//! One peer: the versions that it is known to have applied, and the messages that it is to be sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::replication::acks::PendingAcks;
use crate::replication::cluster_time::Epoch;
use crate::replication::message::{Message, SnapshotRequest};
use crate::replication::send_window::SendWindow;
use crate::replication::stream::{CHUNK_BYTES, Stream};
use crate::state::table::NotAppliedReason;
use crate::state::writers::Writer;
use crate::state::{StoreId, Version};

/// Small messages that wait for the link; beyond, the oldest is dropped and counted.
pub(super) const MAX_OUTBOX: usize = 64;
/// After a member came or went, peers are audited this soon.
const FIRST_AUDIT: Duration = Duration::from_secs(2);
/// Most requests for audited rows that are remembered. Beyond, all are forgotten, and the next audit asks again.
const MAX_AUDIT_PULLS: usize = 4096;
/// A peer is given the hot set of hints at most once in this time.
const HOT_SET_INTERVAL: Duration = Duration::from_secs(60);

/// A version that a peer has claimed and does not repeat in a digest is doubted for this long before it is withdrawn: digests and
/// acknowledgements may overtake each other.
const DOUBTED_FOR: Duration = Duration::from_secs(5);

/// Another member of the cluster, reachable or not.
#[derive(Debug)]
pub(super) struct Peer {
    id: NodeId,
    writer: Writer,
    is_reachable: bool,
    /// When its last digest arrived, by the monotonic clock. `None`: it has sent none since it became reachable, so its
    /// versions are not known.
    last_digest_at: Option<Duration>,
    /// The highest version of each stream that it has claimed, or proved by sending it.
    known: BTreeMap<Stream, u64>,
    /// Versions in `known` that its last digest did not confirm, and since when.
    doubted: BTreeMap<Stream, (u64, Duration)>,
    /// Stores in which this node's target for the peer's own log exceeds the version in the peer's last digest: the target,
    /// and since when.
    overshot: BTreeMap<StoreId, (u64, Duration)>,
    /// Whether the list of rows without effect has come since its last digest.
    has_listed_not_applied: bool,
    /// Rows of this node that have no effect there, as it has reported.
    not_applied: BTreeMap<Version, NotAppliedReason>,
    /// How many rows of its own were reported to it as not applied here.
    pub(super) reported_not_applied: usize,
    /// Writers that it has retired.
    retired: BTreeSet<Writer>,
    pub(super) window: SendWindow,
    pub(super) acks: PendingAcks,
    outbox: VecDeque<Message>,
    /// The part of a snapshot that it asked for, at most one per store.
    snapshot_requests: BTreeMap<StoreId, SnapshotRequest>,
    /// Bytes of relayed rows and snapshots that may be sent to it now.
    repair_credit: usize,
    /// Its wall clock, as its last digest showed it; `None`: it has sent none.
    clock: Option<Epoch>,
    hot_set_sent_at: Option<Duration>,
    /// Rows that it was asked for because its fingerprints differed from those here, with the version of their log.
    audit_pulls: BTreeSet<(Stream, u64)>,
    /// When it is audited out of turn, and how long after that again.
    extra_audit: Option<(Duration, Duration)>,
}

impl Peer {
    /// A peer that can't be reached yet, and of which nothing is known.
    pub(super) fn new(id: NodeId, writer: Writer) -> Self {
        Self {
            id,
            writer,
            is_reachable: false,
            last_digest_at: None,
            known: BTreeMap::new(),
            doubted: BTreeMap::new(),
            overshot: BTreeMap::new(),
            has_listed_not_applied: false,
            not_applied: BTreeMap::new(),
            reported_not_applied: 0,
            retired: BTreeSet::new(),
            window: SendWindow::default(),
            acks: PendingAcks::default(),
            outbox: VecDeque::new(),
            snapshot_requests: BTreeMap::new(),
            repair_credit: 0,
            clock: None,
            hot_set_sent_at: None,
            audit_pulls: BTreeSet::new(),
            extra_audit: None,
        }
    }

    pub(super) fn id(&self) -> &NodeId {
        &self.id
    }

    pub(super) fn writer(&self) -> Writer {
        self.writer
    }

    pub(super) fn is_reachable(&self) -> bool {
        self.is_reachable
    }

    /// Whether it has sent a digest since it became reachable.
    pub(super) fn has_greeted(&self) -> bool {
        self.last_digest_at.is_some()
    }

    /// It can be reached from now on.
    pub(super) fn connect(&mut self, now: Now) {
        self.is_reachable = true;
        self.repair_credit = CHUNK_BYTES;
        self.audit_soon(now);
    }

    /// It can't be reached any more: whatever was on its way to it is lost.
    pub(super) fn disconnect(&mut self) {
        self.is_reachable = false;
        self.last_digest_at = None;
        self.doubted.clear();
        self.overshot.clear();
        self.not_applied.clear();
        self.reported_not_applied = 0;
        self.window.clear();
        self.acks.clear();
        self.outbox.clear();
        self.snapshot_requests.clear();
        self.audit_pulls.clear();
        self.extra_audit = None;
    }

    /// It has sent a digest, which shows its wall clock. Returns whether that was its first one since it became reachable.
    pub(super) fn note_digest(&mut self, clock: Epoch, now: Duration) -> bool {
        self.clock = Some(clock);
        // While it has such rows, it lists them before each digest.
        if !std::mem::take(&mut self.has_listed_not_applied) {
            self.not_applied.clear();
        }
        self.last_digest_at.replace(now).is_none()
    }

    /// Whether a digest of it has arrived at `time` or later, and it has been reachable since.
    pub(super) fn has_sent_a_digest_since(&self, time: Duration) -> bool {
        self.last_digest_at.is_some_and(|at| at >= time)
    }

    /// Its wall clock, as its last digest showed it; `None`: it has sent none.
    pub(super) fn clock(&self) -> Option<Epoch> {
        self.clock
    }
}

/// The versions that the peer has applied.
impl Peer {
    /// The version up to which it is known to have applied `stream`.
    pub(super) fn known(&self, stream: Stream) -> u64 {
        self.known.get(&stream).copied().unwrap_or(0)
    }

    /// All streams of which it is known to have applied something, each with the version.
    pub(super) fn all_known(&self) -> impl Iterator<Item = (Stream, u64)> {
        self.known.iter().map(|(stream, version)| (*stream, *version))
    }

    /// It has claimed, or proved by sending it, that it has applied `stream` up to `version`.
    pub(super) fn note_version(&mut self, stream: Stream, version: u64) {
        let known = self.known.entry(stream).or_default();
        *known = version.max(*known);
        self.window.acknowledge(stream, *known);
    }

    /// Compares what is known of it with the claims of its digest, which names all streams but those of writers that it has
    /// retired. Withdraws versions that it did not confirm for a while. `mine`: the version of a stream here. Returns how many
    /// were withdrawn.
    pub(super) fn withdraw_unconfirmed(
        &mut self,
        claimed: &BTreeMap<Stream, u64>,
        mine: impl Fn(Stream) -> u64,
        now: Duration,
    ) -> u64 {
        let before = std::mem::take(&mut self.doubted);
        let mut withdrawn = Vec::new();
        for (stream, known) in &self.known {
            let is_doubtful = match claimed.get(stream) {
                Some(version) => version < known,
                // It may have retired the writer. But it can't have more of it than there is.
                None => !self.retired.contains(&stream.1) && *known > mine(*stream),
            };
            if !is_doubtful {
                continue;
            }
            match before.get(stream) {
                Some((version, since)) if version == known => {
                    if now >= *since + DOUBTED_FOR {
                        withdrawn.push(*stream);
                    } else {
                        self.doubted.insert(*stream, (*known, *since));
                    }
                }
                Some(_) | None => {
                    self.doubted.insert(*stream, (*known, now));
                }
            }
        }
        for stream in &withdrawn {
            match claimed.get(stream) {
                Some(version) => self.known.insert(*stream, *version),
                None => self.known.remove(stream),
            };
        }
        withdrawn.len() as u64
    }

    /// Whether the target of the peer's own log of `store` has exceeded `stated`, the version in the peer's digest, for 5 s.
    pub(super) fn is_overshot(
        &mut self,
        store: StoreId,
        stated: u64,
        target: u64,
        now: Duration,
    ) -> bool {
        if target <= stated {
            self.overshot.remove(&store);
            return false;
        }
        let (last, since) = self.overshot.get(&store).copied().unwrap_or((target, now));
        let since = if last == target { since } else { now };
        self.overshot.insert(store, (target, since));
        now >= since + DOUBTED_FOR
    }

    /// Why a write of this node has no effect there; `None`: it has reported no reason.
    pub(super) fn not_applied(&self, version: Version) -> Option<NotAppliedReason> {
        self.not_applied.get(&version).copied()
    }

    /// All rows of this node that have no effect there.
    pub(super) fn all_not_applied(&self) -> impl Iterator<Item = (Version, NotAppliedReason)> {
        self.not_applied.iter().map(|(version, reason)| (*version, *reason))
    }

    /// It has reported which rows of this node have no effect there.
    pub(super) fn set_not_applied(
        &mut self,
        rows: impl Iterator<Item = (Version, NotAppliedReason)>,
    ) {
        self.not_applied = rows.collect();
        self.has_listed_not_applied = true;
    }

    /// Whether it has retired `writer`, so that its digests don't name it any more.
    pub(super) fn has_retired(&self, writer: Writer) -> bool {
        self.retired.contains(&writer)
    }

    pub(super) fn note_retired(&mut self, writer: Writer) {
        self.retired.insert(writer);
    }

    /// It claims a version of `writer`, so it has not retired it, or not any more.
    pub(super) fn note_not_retired(&mut self, writer: Writer) {
        self.retired.remove(&writer);
    }

    /// This node retires `writer`: nothing of it is sent, and its versions are not compared any more.
    pub(super) fn forget_writer(&mut self, writer: Writer) {
        for store in StoreId::ALL {
            self.window.cancel((store, writer));
            self.known.remove(&(store, writer));
            self.doubted.remove(&(store, writer));
        }
        self.retired.remove(&writer);
    }
}

/// The messages besides deltas that the peer is to be sent.
impl Peer {
    /// Queues a small message. Returns how many had to be dropped for it.
    pub(super) fn queue(&mut self, message: Message) -> u64 {
        let mut dropped = 0;
        while self.outbox.len() >= MAX_OUTBOX {
            self.outbox.pop_front();
            dropped += 1;
        }
        self.outbox.push_back(message);
        dropped
    }

    pub(super) fn next_message(&mut self) -> Option<Message> {
        self.outbox.pop_front()
    }

    /// It asks for a part of a snapshot. An older request for the same store is void.
    pub(super) fn request_snapshot(&mut self, store: StoreId, request: SnapshotRequest) {
        self.snapshot_requests.insert(store, request);
    }

    /// The part of a snapshot that it waits for, most important store first, if there is credit for it.
    pub(super) fn next_snapshot_request(&mut self) -> Option<(StoreId, SnapshotRequest)> {
        if self.has_repair_credit() { self.snapshot_requests.pop_first() } else { None }
    }

    pub(super) fn has_repair_credit(&self) -> bool {
        self.repair_credit > 0
    }

    pub(super) fn spend_repair_credit(&mut self, bytes: usize) {
        self.repair_credit = self.repair_credit.saturating_sub(bytes);
    }

    /// Adds `bytes` of credit, up to as much again or one chunk.
    pub(super) fn refill_repair_credit(&mut self, bytes: usize) {
        self.repair_credit = (self.repair_credit + bytes).min(bytes.max(CHUNK_BYTES));
    }

    /// Plans an audit of it in 2 s, and a few more, each after twice as long (R39).
    pub(super) fn audit_soon(&mut self, now: Now) {
        self.extra_audit = Some((now.mono + FIRST_AUDIT, FIRST_AUDIT));
    }

    /// Whether an audit out of turn is due. The next one is planned, unless the regular ones come sooner.
    pub(super) fn is_extra_audit_due(&mut self, now: Now, audit_interval: Duration) -> bool {
        let Some((_, gap)) = self.extra_audit.filter(|(at, _)| now.mono >= *at) else {
            return false;
        };
        let goes_on = gap * 2 < audit_interval;
        self.extra_audit = goes_on.then_some((now.mono + gap, gap * 2));
        true
    }

    /// It is asked for rows of `stream` at `version`, because its fingerprints differ from those here.
    pub(super) fn note_audit_pull(&mut self, stream: Stream, version: u64) {
        if self.audit_pulls.len() == MAX_AUDIT_PULLS {
            self.audit_pulls.clear();
        }
        self.audit_pulls.insert((stream, version));
    }

    /// Whether it was asked for rows of `stream` at `version`; each time is answered once.
    pub(super) fn take_audit_pull(&mut self, stream: Stream, version: u64) -> bool {
        self.audit_pulls.remove(&(stream, version))
    }

    /// Whether it may be sent the hot set of hints now; if so, it counts as sent (R40).
    pub(super) fn take_hot_set_turn(&mut self, now: Now) -> bool {
        let is_recent = self.hot_set_sent_at.is_some_and(|at| now.mono < at + HOT_SET_INTERVAL);
        if !is_recent {
            self.hot_set_sent_at = Some(now.mono);
        }
        !is_recent
    }

    #[cfg(test)]
    pub(super) fn outbox_len(&self) -> usize {
        self.outbox.len()
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::Generation;

    use super::*;
    use crate::state::writers::Writers;

    fn peer() -> Peer {
        let id = NodeId { name: "a".parse().unwrap(), generation: Generation(1) };
        let writer = Writers::default().intern(&id).unwrap();
        Peer::new(id, writer)
    }

    fn at(seconds: u64) -> Now {
        Now::at(Duration::from_secs(seconds))
    }

    #[test]
    fn a_full_outbox_drops_its_oldest_message_and_counts_it() {
        let mut peer = peer();
        let dropped: u64 = (0..MAX_OUTBOX + 3).map(|_| peer.queue(Message::HotSetRequest)).sum();
        assert_eq!((dropped, peer.outbox_len()), (3, MAX_OUTBOX));
    }

    #[test]
    fn a_peer_whose_link_is_gone_keeps_what_it_has_applied_and_nothing_that_was_on_its_way() {
        let mut peer = peer();
        let stream = (StoreId::Workers, peer.writer());
        peer.connect(at(0));
        peer.note_digest(Epoch::default(), Duration::ZERO);
        peer.note_version(stream, 4);
        peer.window.extend(stream, 4, 9);
        peer.queue(Message::HotSetRequest);
        peer.disconnect();
        assert!(!peer.is_reachable() && !peer.has_greeted() && peer.next_message().is_none());
        assert_eq!(peer.window.next(1000, |_| true), None);
        assert_eq!(peer.known(stream), 4);
    }

    #[test]
    fn extra_audits_come_at_2_4_8_and_16_seconds_and_then_the_regular_ones_do() {
        let mut peer = peer();
        peer.connect(at(0));
        let interval = Duration::from_secs(30);
        let due: Vec<u64> =
            (0..100).filter(|s| peer.is_extra_audit_due(at(*s), interval)).collect();
        assert_eq!(due, [2, 4, 8, 16]);
    }

    #[test]
    fn repair_credit_is_spent_and_refilled_up_to_its_bound() {
        let mut peer = peer();
        peer.connect(at(0));
        peer.spend_repair_credit(2 * CHUNK_BYTES);
        assert!(!peer.has_repair_credit());
        for _ in 0..3 {
            peer.refill_repair_credit(10);
        }
        assert_eq!(peer.repair_credit, 30);
        peer.refill_repair_credit(4 * CHUNK_BYTES);
        assert_eq!(peer.repair_credit, 4 * CHUNK_BYTES);
    }
}
