//! One replica whose peers a test plays: the messages that they send are written by hand, and what the replica sends is
//! looked at one message at a time.

use smg_types::ids::{NodeId, WorkerId};
use smg_types::now::Now;

use crate::replication::message::{
    Claims, ClaimsBuilder, Delta, Digest, Message, Offer, SnapshotChunk, StoreNumber,
};
use crate::replication::tests::{at, id, world};
use crate::replication::{Changes, Config, Replication};
use crate::state::load::Load;
use crate::state::row::{ContentRef, RawRow, encode_key};
use crate::state::{StoreId, Write};

/// The node `name`, in its first generation, to which `peers` are reachable.
pub(super) fn node(name: &str, peers: &[&NodeId]) -> Replication {
    let mut node = Replication::new(id(name, 1), Config::default(), at(0));
    for peer in peers {
        node.peer_up(at(0), peer);
    }
    node
}

/// A claim of each stream: its writer, its store, the version and the floor.
pub(super) fn claims(streams: &[(&NodeId, StoreId, u64, u64)]) -> Claims {
    let mut claims = ClaimsBuilder::default();
    for (writer, store, version, floor) in streams {
        claims.push(writer, *store, *version, *floor);
    }
    claims.build()
}

pub(super) fn digest(relay: bool, streams: &[(&NodeId, StoreId, u64, u64)]) -> Message {
    Message::Digest(Digest { wall_ms: 0, relay, claims: claims(streams) })
}

pub(super) fn ack(streams: &[(&NodeId, StoreId, u64, u64)]) -> Message {
    Message::Ack(claims(streams))
}

/// A row in which a writer says that it has `requests` in flight at the worker with this number.
pub(super) fn load_row(version: u64, worker: u64, requests: u32) -> RawRow {
    let load = Load { requests, tokens: 0 };
    let content = ContentRef { add: Some(&load), carried: &[], kills: &[] }.encode().unwrap();
    let key = encode_key(&WorkerId::from_u64(worker));
    RawRow { version, key: key.into(), content: content.into() }
}

/// A delta of loads. `versions`: those of the rows, each about the worker with that number.
pub(super) fn load_delta(writer: &NodeId, (from, to): (u64, u64), versions: &[u64]) -> Delta {
    let (store, writer) = (StoreId::Load.into(), writer.clone());
    let rows = versions.iter().map(|version| load_row(*version, *version, 1)).collect();
    Delta { store, writer, from, to, upto: to, floor: 0, rows }
}

/// Hands `message` of `from` to the node.
pub(super) fn hand(node: &mut Replication, now: Now, from: &NodeId, message: Message) -> Changes {
    node.handle_message(now, from, message)
}

/// Takes all messages that the node has for anyone.
pub(super) fn sent(node: &mut Replication, now: Now) -> Vec<(NodeId, Message)> {
    std::iter::from_fn(|| node.poll_transmit(now)).map(|(to, message, _)| (to, message)).collect()
}

/// The deltas that are among the messages to `to`, each with its store and its writer.
pub(super) fn deltas(sent: &[(NodeId, Message)], to: &NodeId) -> Vec<(StoreNumber, NodeId)> {
    let to = sent.iter().filter(|(receiver, _)| receiver == to);
    to.filter_map(|(_, message)| match message {
        Message::Delta(delta) => Some((delta.store, delta.writer.clone())),
        _ => None,
    })
    .collect()
}

/// Lets time pass for the node, in milliseconds. Returns what it sends meanwhile.
pub(super) fn pass(node: &mut Replication, from: u64, to: u64) -> Vec<(NodeId, Message)> {
    let mut all = Vec::new();
    for ms in (from..to).step_by(50) {
        node.handle_tick(at(ms), &mut world::rng(ms));
        all.extend(sent(node, at(ms)));
    }
    all
}

/// The deltas in which `writer` sends its log to a node that has nothing of it.
fn written_by(writer: &NodeId, writes: Vec<Write>) -> Vec<Message> {
    let reader = id("reader", 1);
    let mut author = Replication::new(writer.clone(), Config::default(), at(0));
    author.peer_up(at(0), &reader);
    for write in writes {
        author.update(at(0), write).unwrap();
    }
    sent(&mut author, at(0));
    hand(&mut author, at(0), &reader, digest(false, &[]));
    let sent = sent(&mut author, at(0)).into_iter().map(|(_, message)| message);
    sent.filter(|message| matches!(message, Message::Delta(_))).collect()
}

/// Hands the node the log of `writer`, from the beginning, as `from` relays it.
pub(super) fn receive(
    node: &mut Replication,
    now: Now,
    (from, writer): (&NodeId, &NodeId),
    writes: Vec<Write>,
) {
    for delta in written_by(writer, writes) {
        hand(node, now, from, delta);
    }
}

/// Has the node begin to load a snapshot of `store` from `from`. Returns the number of the attempt.
pub(super) fn begin_load(node: &mut Replication, now: Now, from: &NodeId, store: StoreId) -> u64 {
    sent(node, now);
    let offer = Offer { store: store.into(), writer: id("unknown", 1), floor: 1 };
    hand(node, now, from, Message::Offer(offer));
    let sessions = sent(node, now).into_iter().filter_map(|(_, message)| match message {
        Message::SnapshotRequest(request) => Some(request.session),
        _ => None,
    });
    let sessions: Vec<u64> = sessions.collect();
    let [session] = sessions[..] else { panic!("one request, not {sessions:?}") };
    session
}

/// The only range of a snapshot, without rows, whose donor covers `claims`.
pub(super) fn empty_snapshot(store: StoreId, session: u64, claims: Claims) -> Message {
    let (store, after, end) = (store.into(), None, None);
    let (rows, pending) = (Vec::new(), Vec::new());
    Message::Snapshot(SnapshotChunk { store, session, after, end, claims, rows, pending })
}

/// How far the node has applied the stream.
pub(super) fn applied(node: &Replication, store: StoreId, writer: &NodeId) -> u64 {
    let number = node.state().writers().number(writer);
    number.map_or(0, |writer| node.state.replica(store).applied(writer))
}

/// The floor of the stream at the node.
pub(super) fn floor(node: &Replication, store: StoreId, writer: &NodeId) -> u64 {
    let number = node.state().writers().number(writer);
    number.map_or(0, |writer| node.state.replica(store).floor(writer))
}
