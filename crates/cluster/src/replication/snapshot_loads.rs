//! Snapshots on their way in: which range of keys of which store comes next, and from which peer.
//!
//! The node that lacks rows drives. It asks for one range of keys after the other and, at the end, claims the lowest
//! version of each writer that its donors claimed along the way (R26). Ranges may come from different donors, so a transfer
//! goes on where it was broken off (R27). A donor keeps nothing between requests.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::NodeName;

use crate::replication::message::{SnapshotChunk, SnapshotRequest};
use crate::state::StoreId;
use crate::state::row::Blob;
use crate::state::table::Mark;
use crate::state::writers::Writer;

/// The versions that the donors of a snapshot have covered: for each writer the lowest.
pub(super) type Claim = BTreeMap<Writer, u64>;

/// A snapshot of one store on its way in.
#[derive(Debug)]
struct SnapshotLoad {
    donor: NodeName,
    /// Number of this attempt: a part that answers an earlier attempt is of no use.
    session: u64,
    /// The last key of the range that was merged last; `None`: the first range is to come.
    after: Option<Blob>,
    claim: LeastClaim,
    asked_at: Duration,
}

impl SnapshotLoad {
    fn request(&self, store: StoreId) -> (NodeName, SnapshotRequest) {
        let (session, after) = (self.session, self.after.clone());
        (self.donor.clone(), SnapshotRequest { store: store.into(), session, after })
    }
}

/// The step that follows a part of a snapshot.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum AfterChunk {
    /// The next part is to be asked for.
    Ask(NodeName, SnapshotRequest),
    /// That was the last part: this much may be claimed.
    Done(Claim),
}

/// All snapshots on their way in, at most one per store.
#[derive(Debug)]
pub(super) struct SnapshotLoads {
    by_store: BTreeMap<StoreId, SnapshotLoad>,
    last_session: u64,
}

impl Default for SnapshotLoads {
    fn default() -> Self {
        Self { by_store: BTreeMap::new(), last_session: 1 }
    }
}

impl SnapshotLoads {
    pub(super) fn is_empty(&self) -> bool {
        self.by_store.is_empty()
    }

    /// Whether a snapshot of `store` is on its way in.
    pub(super) fn has(&self, store: StoreId) -> bool {
        self.by_store.contains_key(&store)
    }

    /// Begins to load `store` from `donor`, unless it is being loaded. Returns the request to send, and to whom.
    pub(super) fn begin(
        &mut self,
        store: StoreId,
        donor: &NodeName,
        now: Duration,
    ) -> Option<(NodeName, SnapshotRequest)> {
        if self.has(store) {
            return None;
        }
        let (donor, session) = (donor.clone(), self.next_session());
        let claim = LeastClaim::default();
        let load = SnapshotLoad { donor, session, after: None, claim, asked_at: now };
        let request = load.request(store);
        self.by_store.insert(store, load);
        Some(request)
    }

    /// Whether `chunk`, sent by `from`, is the part that was asked for. A part of an attempt that was given up is not: its
    /// range may have been merged since, and rows may have changed (R25).
    pub(super) fn expects(&self, store: StoreId, from: &NodeName, chunk: &SnapshotChunk) -> bool {
        self.by_store.get(&store).is_some_and(|load| {
            load.donor == *from && load.session == chunk.session && load.after == chunk.after
        })
    }

    /// A part was merged: its donor covered `marks`, and `end` was its last key, `None` at the end of the snapshot.
    pub(super) fn advance(
        &mut self,
        store: StoreId,
        marks: &[Mark],
        end: Option<Blob>,
        now: Duration,
    ) -> Option<AfterChunk> {
        let load = self.by_store.get_mut(&store)?;
        load.claim.narrow(marks);
        if end.is_some() {
            load.after = end;
            load.asked_at = now;
            let (donor, request) = load.request(store);
            return Some(AfterChunk::Ask(donor, request));
        }
        let load = self.by_store.remove(&store)?;
        Some(AfterChunk::Done(load.claim.into_claim()))
    }

    /// Gives up the snapshot of `store`, because a part of it contradicts itself.
    pub(super) fn abandon(&mut self, store: StoreId) {
        self.by_store.remove(&store);
    }

    /// Turns to the next of the `reachable` peers, in their order, where a donor has not answered for `patience` (R27).
    /// Returns the requests to send, each with its donor.
    pub(super) fn switch_silent_donors(
        &mut self,
        now: Duration,
        patience: Duration,
        reachable: &[NodeName],
    ) -> Vec<(NodeName, SnapshotRequest)> {
        let is_silent = |load: &SnapshotLoad| now >= load.asked_at + patience;
        let silent = self.by_store.iter().filter(|(_, load)| is_silent(load));
        let silent: Vec<StoreId> = silent.map(|(store, _)| *store).collect();
        let mut requests = Vec::new();
        for store in silent {
            let session = self.next_session();
            let Some(load) = self.by_store.get_mut(&store) else { continue };
            let later = reachable.iter().find(|name| **name > load.donor);
            if let Some(next) = later.or_else(|| reachable.first()) {
                load.donor = next.clone();
                load.session = session;
                load.asked_at = now;
                requests.push(load.request(store));
            }
        }
        requests
    }

    fn next_session(&mut self) -> u64 {
        self.last_session += 1;
        self.last_session
    }
}

/// The lowest version of each writer that all parts of a snapshot have claimed.
#[derive(Debug, Default)]
pub(super) struct LeastClaim(Option<Claim>);

impl LeastClaim {
    /// Lowers the claim to what `marks` claim too; the first marks are taken as they are.
    pub(super) fn narrow(&mut self, marks: &[Mark]) {
        let theirs: Claim = marks.iter().map(|mark| (mark.writer, mark.version)).collect();
        match &mut self.0 {
            None => self.0 = Some(theirs),
            Some(claim) => {
                claim.retain(|writer, _| theirs.contains_key(writer));
                for (writer, version) in claim {
                    *version = (*version).min(theirs[writer]);
                }
            }
        }
    }

    pub(super) fn into_claim(self) -> Claim {
        self.0.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;
    use crate::replication::message::Claims;
    use crate::state::writers::Writers;

    const STORE: StoreId = StoreId::Workers;

    fn writers<const N: usize>() -> [Writer; N] {
        let mut writers = Writers::default();
        std::array::from_fn(|n| {
            let name = format!("w{n}").parse().unwrap();
            writers.intern(&NodeId { name, generation: Generation(1) }).unwrap()
        })
    }

    fn mark(writer: Writer, version: u64) -> Mark {
        Mark { writer, version, floor: 0 }
    }

    fn name(name: &str) -> NodeName {
        name.parse().unwrap()
    }

    fn key(n: u8) -> Option<Blob> {
        Some(vec![n].into())
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn chunk(session: u64, after: Option<Blob>) -> SnapshotChunk {
        let (end, claims) = (None, Claims::default());
        let (rows, pending) = (Vec::new(), Vec::new());
        SnapshotChunk { store: STORE.into(), session, after, end, claims, rows, pending }
    }

    #[test]
    fn at_the_end_only_what_all_donors_covered_is_claimed() {
        let [a, b, c] = writers();
        let mut loads = SnapshotLoads::default();
        assert!(loads.begin(STORE, &name("x"), seconds(0)).is_some());
        assert!(loads.begin(STORE, &name("y"), seconds(0)).is_none(), "one at a time");
        loads.advance(STORE, &[mark(a, 5), mark(b, 9)], key(1), seconds(0));
        let done = loads.advance(STORE, &[mark(a, 7), mark(b, 4), mark(c, 3)], None, seconds(0));
        assert_eq!(done, Some(AfterChunk::Done([(a, 5), (b, 4)].into())));
        assert!(loads.is_empty());
    }

    #[test]
    fn a_silent_donor_is_replaced_and_the_transfer_goes_on_where_it_was() {
        let mut loads = SnapshotLoads::default();
        loads.begin(STORE, &name("x"), seconds(0));
        loads.advance(STORE, &[], key(1), seconds(0));
        let reachable = [name("a"), name("y")];
        assert_eq!(loads.switch_silent_donors(seconds(1), seconds(2), &reachable), []);
        let requests = loads.switch_silent_donors(seconds(2), seconds(2), &reachable);
        let [(donor, request)] = &requests[..] else { panic!("one request, not {requests:?}") };
        assert_eq!((donor, &request.after), (&name("y"), &key(1)));
        let late = chunk(request.session - 1, key(1));
        assert!(!loads.expects(STORE, &name("x"), &late), "the first donor answers too late");
        assert!(loads.expects(STORE, &name("y"), &chunk(request.session, key(1))));
        assert!(!loads.expects(STORE, &name("y"), &chunk(request.session, None)), "another range");
        let late = chunk(request.session - 1, key(1));
        assert!(!loads.expects(STORE, &name("y"), &late), "an earlier attempt");
        let answer = chunk(request.session, key(1));
        assert!(!loads.expects(STORE, &name("x"), &answer), "another donor");
    }
}
