//! The other members of the cluster, as membership reports them.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rand::Rng;
use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::replication::message::Message;
use crate::replication::peer::Peer;
use crate::replication::stream::Stream;
use crate::state::writers::Writer;

/// A node without any peer for this long takes itself to be alone, rather than not found yet.
const ALONE_AFTER: Duration = Duration::from_secs(10);

/// Names of forgotten nodes that are remembered: as many as there can be writers.
const MAX_FORGOTTEN: usize = 4096;

/// The change when membership reported a peer as reachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Connected {
    /// Nothing: a later generation of that name is known.
    Outdated,
    /// Nothing: it was reachable already.
    Already,
    /// It can be reached, as the only one.
    First,
    /// It can be reached, as others can.
    Another,
}

/// All members but this node that are not forgotten, by name.
#[derive(Debug)]
pub(super) struct Peers {
    me: NodeName,
    by_name: BTreeMap<NodeName, Peer>,
    /// Names of nodes that membership has forgotten and that have not come back.
    forgotten: BTreeSet<NodeName>,
    /// The peer that was sent a message last, so that peers take turns.
    last_served: Option<NodeName>,
    /// The peer that was audited last.
    last_audited: Option<NodeName>,
    started_at: Duration,
    /// When a peer became reachable last.
    last_connected_at: Duration,
}

impl Peers {
    pub(super) fn new(me: NodeName, now: Now) -> Self {
        Self {
            me,
            by_name: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            last_served: None,
            last_audited: None,
            started_at: now.mono,
            last_connected_at: now.mono,
        }
    }

    /// A peer can be reached, perhaps as a later generation of its name.
    pub(super) fn connect(&mut self, now: Now, id: &NodeId, writer: Writer) -> Connected {
        let known = self.by_name.get(&id.name).map(Peer::id);
        if known.is_some_and(|known| known.generation > id.generation) {
            return Connected::Outdated;
        }
        self.forgotten.remove(&id.name);
        if known != Some(id) {
            self.by_name.insert(id.name.clone(), Peer::new(id.clone(), writer));
        }
        let is_first = !self.has_reachable();
        let peer = self.by_name.get_mut(&id.name).expect("just inserted");
        if peer.is_reachable() {
            return Connected::Already;
        }
        peer.connect(now);
        self.last_connected_at = now.mono;
        if is_first { Connected::First } else { Connected::Another }
    }

    /// Lists a member that this node has never met, so that its acknowledgements are waited for like those of other members
    /// (R22): whatever this node collected without them, the others would collect too.
    pub(super) fn list_unreachable(&mut self, id: &NodeId, writer: Writer) {
        self.by_name.entry(id.name.clone()).or_insert_with(|| Peer::new(id.clone(), writer));
    }

    /// A peer can't be reached any more.
    pub(super) fn disconnect(&mut self, id: &NodeId) {
        if let Some(peer) = self.by_name.get_mut(&id.name)
            && peer.id() == id
        {
            peer.disconnect();
        }
    }

    /// No link is left, because this node goes on as another writer.
    pub(super) fn disconnect_all(&mut self) {
        self.by_name.values_mut().for_each(Peer::disconnect);
    }

    /// A peer is gone for good, or a node that was never one here: its acknowledgements are not waited for any more.
    pub(super) fn forget(&mut self, id: &NodeId) {
        if self.by_name.get(&id.name).is_none_or(|peer| peer.id() == id) {
            self.by_name.remove(&id.name);
            if self.forgotten.len() == MAX_FORGOTTEN {
                self.forgotten.pop_first();
            }
            self.forgotten.insert(id.name.clone());
        }
    }

    pub(super) fn get(&self, name: &NodeName) -> Option<&Peer> {
        self.by_name.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &NodeName) -> Option<&mut Peer> {
        self.by_name.get_mut(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Peer> {
        self.by_name.values()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.by_name.values_mut()
    }

    pub(super) fn reachable(&self) -> impl Iterator<Item = &Peer> {
        self.iter().filter(|peer| peer.is_reachable())
    }

    pub(super) fn reachable_mut(&mut self) -> impl Iterator<Item = &mut Peer> {
        self.iter_mut().filter(|peer| peer.is_reachable())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub(super) fn has_reachable(&self) -> bool {
        self.reachable().next().is_some()
    }

    pub(super) fn are_all_reachable(&self) -> bool {
        self.iter().all(Peer::is_reachable)
    }

    /// Whether this very generation of a peer can be reached.
    pub(super) fn is_reachable(&self, id: &NodeId) -> bool {
        self.get(&id.name).is_some_and(|peer| peer.id() == id && peer.is_reachable())
    }

    pub(super) fn is_forgotten(&self, name: &NodeName) -> bool {
        self.forgotten.contains(name)
    }

    /// Whether there is no peer and has not been one for so long that none is to be expected.
    pub(super) fn are_none_expected(&self, now: Now) -> bool {
        self.by_name.is_empty() && now.mono >= self.started_at + ALONE_AFTER
    }

    /// Whether there is no peer, but one may not have been found yet.
    pub(super) fn may_be_unknown(&self, now: Now) -> bool {
        self.by_name.is_empty() && !self.are_none_expected(now)
    }

    /// Whether no peer became reachable within `time`.
    pub(super) fn are_settled_for(&self, time: Duration, now: Now) -> bool {
        now.mono >= self.last_connected_at + time
    }

    /// Whether this node has the lowest name of all nodes that it can reach.
    pub(super) fn is_own_name_lowest(&self) -> bool {
        !self.by_name.iter().any(|(name, peer)| peer.is_reachable() && *name < self.me)
    }

    /// The lowest version of `stream` that any member has applied, reachable or not; `None` without peers.
    pub(super) fn lowest_known(&self, stream: Stream) -> Option<u64> {
        self.iter().map(|peer| peer.known(stream)).min()
    }

    /// The same among those that can be reached.
    pub(super) fn lowest_known_of_reachable(&self, stream: Stream) -> Option<u64> {
        self.reachable().map(|peer| peer.known(stream)).min()
    }

    /// The reachable peer that is to be audited next: each in turn. `None` if there is none.
    pub(super) fn next_to_audit(&mut self) -> Option<NodeName> {
        let last = self.last_audited.take();
        let names = || self.reachable().map(|peer| &peer.id().name);
        let next = last.and_then(|last| names().find(|name| **name > last));
        let next = next.or_else(|| names().next()).cloned();
        self.last_audited.clone_from(&next);
        next
    }

    /// The number of peers that can be reached.
    pub(super) fn count_reachable(&self) -> u32 {
        u32::try_from(self.reachable().count()).unwrap_or(u32::MAX)
    }

    /// A reachable peer by chance; `None` if there is none.
    pub(super) fn pick_reachable(&self, rng: &mut dyn Rng) -> Option<NodeName> {
        let reachable: Vec<&NodeName> = self.reachable().map(|peer| &peer.id().name).collect();
        let count = u64::try_from(reachable.len()).unwrap_or(u64::MAX);
        let at = usize::try_from(rng.next_u64().checked_rem(count)?).ok()?;
        reachable.get(at).map(|name| (*name).clone())
    }

    /// Queues a small message for a peer that can be reached. Returns how many were dropped for it.
    pub(super) fn queue(&mut self, to: &NodeName, message: Message) -> u64 {
        let peer = self.get_mut(to).filter(|peer| peer.is_reachable());
        peer.map_or(0, |peer| peer.queue(message))
    }

    /// The names of all reachable peers in the order in which they are served: beginning after the one that was served last,
    /// so that a peer that lacks much does not hold up the others.
    pub(super) fn in_turn(&self) -> Vec<NodeName> {
        let names = self.reachable().map(|peer| peer.id().name.clone());
        let last = self.last_served.as_ref();
        let (mut later, earlier): (Vec<_>, Vec<_>) =
            names.partition(|name| last.is_none_or(|last| name > last));
        later.extend(earlier);
        later
    }

    pub(super) fn note_served(&mut self, name: NodeName) {
        self.last_served = Some(name);
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::Generation;

    use super::*;
    use crate::state::StoreId;
    use crate::state::writers::Writers;

    fn id(name: &str, generation: u64) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
    }

    fn at(seconds: u64) -> Now {
        Now::at(Duration::from_secs(seconds))
    }

    /// Peers of the node `m`, and writers to name them.
    fn peers() -> (Peers, Writers) {
        (Peers::new("m".parse().unwrap(), at(0)), Writers::default())
    }

    fn connect(peers: &mut Peers, writers: &mut Writers, id: &NodeId) -> Connected {
        let writer = writers.intern(id).unwrap();
        peers.connect(at(1), id, writer)
    }

    #[test]
    fn a_later_generation_replaces_an_earlier_one_and_never_the_reverse() {
        let (mut peers, mut writers) = peers();
        assert_eq!(connect(&mut peers, &mut writers, &id("a", 2)), Connected::First);
        assert_eq!(connect(&mut peers, &mut writers, &id("a", 2)), Connected::Already);
        assert_eq!(connect(&mut peers, &mut writers, &id("a", 1)), Connected::Outdated);
        assert_eq!(connect(&mut peers, &mut writers, &id("b", 1)), Connected::Another);
        connect(&mut peers, &mut writers, &id("a", 3));
        assert!(peers.is_reachable(&id("a", 3)) && !peers.is_reachable(&id("a", 2)));
    }

    #[test]
    fn peers_take_turns() {
        let (mut peers, mut writers) = peers();
        for name in ["a", "b", "c"] {
            connect(&mut peers, &mut writers, &id(name, 1));
        }
        peers.note_served("b".parse().unwrap());
        let turns: Vec<String> = peers.in_turn().iter().map(ToString::to_string).collect();
        assert_eq!(turns, ["c", "a", "b"]);
    }

    #[test]
    fn only_reachable_peers_decide_whose_name_is_lowest() {
        let (mut peers, mut writers) = peers();
        connect(&mut peers, &mut writers, &id("a", 1));
        connect(&mut peers, &mut writers, &id("z", 1));
        assert!(!peers.is_own_name_lowest());
        peers.disconnect(&id("a", 1));
        assert!(peers.is_own_name_lowest());
    }

    #[test]
    fn a_member_that_was_never_met_holds_up_the_lowest_version() {
        let (mut peers, mut writers) = peers();
        connect(&mut peers, &mut writers, &id("a", 1));
        let stream = (StoreId::Workers, writers.intern(&id("m", 1)).unwrap());
        peers.get_mut(&id("a", 1).name).unwrap().note_version(stream, 7);
        assert_eq!(peers.lowest_known(stream), Some(7));
        let unknown = id("b", 1);
        peers.list_unreachable(&unknown, writers.intern(&unknown).unwrap());
        assert_eq!(peers.lowest_known(stream), Some(0));
        assert_eq!(peers.lowest_known_of_reachable(stream), Some(7));
        peers.forget(&unknown);
        assert_eq!(peers.lowest_known(stream), Some(7));
    }

    #[test]
    fn a_node_without_peers_takes_itself_to_be_alone_after_10_seconds() {
        let (peers, _) = peers();
        assert!(peers.may_be_unknown(at(9)) && !peers.are_none_expected(at(9)));
        assert!(!peers.may_be_unknown(at(10)) && peers.are_none_expected(at(10)));
    }
}
