//! Lies: frames that no honest node sends, about members, generations, versions and rows.
//!
//! The liar has no process. It knows all that an attacker can learn, the present generation and address of each node
//! included, writes any frame in any node's name, and sends it from any address.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Header, Member, Message as Gossip, State};
use rand::RngExt;
use serde::Serialize;
use smg_cluster::codec::{self, ClusterId, Kind};
use smg_cluster::membership::Identity;
use smg_cluster::replication::message::{
    Audit, AuditPull, AuditRows, Claim, Claims, Delta, Digest, Message, NotAppliedRow, Offer,
    RetiredWriter, SnapshotChunk, SnapshotRequest, StoreNumber,
};
use smg_cluster::state::StoreId;
use smg_cluster::state::prefixes::HintRun;
use smg_types::ids::{Generation, NodeId, WorkerId};

use crate::world::{World, address_number, any_of};

/// The address from which the liar sends.
const LIAR: u16 = 50_000;

/// The content of `Listed` on the wire.
#[derive(Serialize)]
struct Listed(Identity, u16, ListedState);

#[derive(Serialize, Clone, Copy)]
pub(crate) enum ListedState {
    Alive,
    Suspected,
    Leaving,
    Gone,
    Down(Duration),
}

#[derive(Serialize)]
enum Reason {
    DuplicateName(Identity),
    ForeignCluster(SocketAddr),
}

/// Sends a frame to the process of `slot`.
pub(crate) fn send(world: &mut World, slot: usize, kind: Kind, payload: &[u8]) {
    let bytes = codec::frame(kind, ClusterId::of("test"), payload);
    let to = world.slots[slot].address;
    world.transmit(slot, address_number(LIAR), to, bytes);
}

/// Sends a message of membership.
fn send_message(world: &mut World, slot: usize, kind: Kind, message: &impl Serialize) {
    send(world, slot, kind, &codec::encode(message));
}

/// Sends a message of replication in the name of `from`.
pub(crate) fn replicate(world: &mut World, slot: usize, from: &NodeId, message: Message) {
    let Some(to) = world.node(slot).map(|node| node.me().node) else { return };
    send(world, slot, Kind::State, &codec::encode(&(from, to, message)));
}

fn item(value: &impl Serialize) -> Vec<u8> {
    let bytes = codec::encode(value);
    let length = u16::try_from(bytes.len()).expect("items are short");
    [&length.to_be_bytes()[..], &bytes].concat()
}

/// Sends a packet of foca from `src` with reports of `members`.
pub(crate) fn gossip(
    world: &mut World,
    slot: usize,
    src: &Identity,
    message: Gossip<Identity>,
    members: &[Member<Identity>],
) {
    let Some(dst) = identity_of(world, slot) else { return };
    let header = Header { src: src.clone(), src_incarnation: 0, dst, message };
    let mut payload = item(&header);
    if !members.is_empty() {
        let count = u16::try_from(members.len()).expect("a packet of few members");
        payload.extend(count.to_be_bytes());
        members.iter().for_each(|member| payload.extend(item(member)));
    }
    send(world, slot, Kind::Swim, &payload);
}

/// Sends a welcome, the answer to a join probe, from `host` with a list of members.
pub(crate) fn welcome(
    world: &mut World,
    slot: usize,
    host: &Identity,
    known: Option<Identity>,
    members: Vec<(Identity, u16, ListedState)>,
) {
    let Some(me) = identity_of(world, slot) else { return };
    let members: Vec<_> = members.into_iter().map(|(id, n, state)| Listed(id, n, state)).collect();
    send_message(world, slot, Kind::Welcome, &(me.generation, host, me.address, known, members));
}

/// Sends a goodbye of `identity`.
pub(crate) fn goodbye(world: &mut World, slot: usize, identity: &Identity, is_gone: bool) {
    send_message(world, slot, Kind::Goodbye, &(identity, is_gone));
}

/// The identity of the process in a slot.
pub(crate) fn identity_of(world: &World, slot: usize) -> Option<Identity> {
    Some(world.node(slot)?.membership().identity().clone())
}

/// A member that never was.
pub(crate) fn made_up(number: usize) -> Identity {
    let [_, b, c, d] = u32::try_from(number).expect("few enough").to_be_bytes();
    Identity {
        name: format!("ghost-{number}").parse().expect("a name"),
        generation: Generation(1_800_000_000_000 << 20),
        renewal: 0,
        address: SocketAddr::from(([10, 100 + b, c, d], 39527)),
    }
}

/// A running slot by chance.
fn any_slot(world: &mut World) -> Option<usize> {
    let slots: Vec<usize> = world.running().map(|(slot, _)| slot).collect();
    (!slots.is_empty()).then(|| slots[world.rng.random_range(0..slots.len())])
}

/// A number that is a little, or far, or absurdly far beyond `true_value`.
fn beyond(world: &mut World, true_value: u64) -> u64 {
    let rng = &mut world.rng;
    match rng.random_range(0..6) {
        0 => true_value.saturating_add(rng.random_range(0..4)),
        1 => true_value.saturating_add(rng.random_range(4..1000)),
        2 => true_value.saturating_add(1 << 40),
        3 => u64::MAX - rng.random_range(0..2),
        4 => rng.random(),
        _ => true_value.saturating_sub(rng.random_range(0..4)),
    }
}

/// An identity that is wrong in some way: that of a node with another generation, renewal or address, or one of a node that
/// never was.
fn false_identity(world: &mut World) -> Option<Identity> {
    let slot = any_slot(world)?;
    let honest = identity_of(world, slot)?;
    if world.rng.random_bool(0.3) {
        return Some(made_up(world.rng.random_range(0..200)));
    }
    let mut identity = honest;
    match world.rng.random_range(0..7) {
        0 => identity.generation.0 = Identity::MAX_CLAIM - world.rng.random_range(1..3),
        1 => identity.generation.0 += world.rng.random_range(1..1 << 40),
        2 => identity.generation.0 += 86_400_000 << 20,
        3 => identity.renewal = Identity::MAX_CLAIM - identity.generation.0 - 1,
        4 => identity.renewal += world.rng.random_range(1..1000),
        5 => identity.generation.0 -= world.rng.random_range(1..1000),
        _ => {}
    }
    if world.rng.random_bool(0.5) {
        identity.address = address_number(50_001);
    }
    Some(identity)
}

/// A stream of an honest node, or of a writer that never was, with the version of its log at its writer.
fn any_stream(world: &mut World) -> Option<(StoreId, NodeId, u64)> {
    let slot = any_slot(world)?;
    let store = any_of(&mut world.rng, &StoreId::ALL);
    if world.rng.random_bool(0.2) {
        return Some((store, false_identity(world)?.node(), 0));
    }
    let node = world.node(slot)?;
    let writer = node.me().node;
    let version = node.state().versions(store).find(|(id, _)| **id == writer);
    let version = version.map_or(0, |(_, version)| version);
    Some((store, writer, version))
}

/// Claims about a few streams.
fn false_claims(world: &mut World) -> Option<Claims> {
    let mut claims = Claims::default();
    for writer in 0..world.rng.random_range(1..5) {
        let (store, id, version) = any_stream(world)?;
        claims.writers.push(id);
        let version = beyond(world, version);
        let floor = if world.rng.random_bool(0.3) { beyond(world, version) } else { 0 };
        claims.claims.push(Claim { writer, store: StoreNumber::from(store), version, floor });
    }
    Some(claims)
}

/// Sends one random lie to one random node.
pub(crate) fn lie(world: &mut World) -> Option<()> {
    let slot = any_slot(world)?;
    if world.rng.random_bool(0.5) {
        lie_about_members(world, slot)
    } else {
        lie_about_rows(world, slot)
    }
}

fn lie_about_members(world: &mut World, slot: usize) -> Option<()> {
    let me = identity_of(world, slot)?;
    let (one, other) = (false_identity(world)?, false_identity(world)?);
    let incarnation = any_of(&mut world.rng, &[0, 1, u16::MAX]);
    let flag = world.rng.random_bool(0.5);
    let states = [State::Alive, State::Suspect, State::Down];
    match world.rng.random_range(0..10) {
        0 | 1 => {
            let state = any_of(&mut world.rng, &states);
            let members = [Member::new(one, incarnation, state)];
            gossip(world, slot, &other, Gossip::Gossip, &members);
        }
        2 => {
            let message = match world.rng.random_range(0..5) {
                0 => Gossip::TurnUndead,
                1 => Gossip::Ping(world.rng.random()),
                2 => Gossip::Ack(world.rng.random()),
                3 => Gossip::Announce,
                _ => Gossip::Feed,
            };
            gossip(world, slot, &one, message, &[]);
        }
        3 => {
            let dialled =
                any_of(&mut world.rng, &[me.address, address_number(0), address_number(1)]);
            let identity = if flag { me } else { one };
            send_message(world, slot, Kind::Hello, &(identity, dialled, flag));
        }
        4 | 5 => {
            let mut members = Vec::new();
            for _ in 0..world.rng.random_range(1..300) {
                let day = Duration::from_secs(86_000);
                let state = match world.rng.random_range(0..6) {
                    0 => ListedState::Alive,
                    1 => ListedState::Suspected,
                    2 => ListedState::Leaving,
                    3 => ListedState::Gone,
                    4 => ListedState::Down(Duration::ZERO),
                    _ => ListedState::Down(day),
                };
                members.push((false_identity(world)?, incarnation, state));
            }
            let mut known = one;
            known.name = me.name;
            welcome(world, slot, &other, flag.then_some(known), members);
        }
        6 => {
            let reason = if flag {
                Reason::DuplicateName(Identity { name: me.name, ..one })
            } else {
                Reason::ForeignCluster(one.address)
            };
            send_message(world, slot, Kind::Refusal, &(me.generation, reason, flag));
        }
        7 => {
            let namesake = Identity { name: me.name.clone(), ..one };
            if flag {
                send_message(world, slot, Kind::Challenge, &(me, namesake, other.address, true));
            } else {
                send_message(world, slot, Kind::StillHere, &(namesake, me, true));
            }
        }
        8 => {
            let about = any_slot(world)?;
            let honest = identity_of(world, about)?;
            let identity = if flag { honest } else { one };
            let is_gone = world.rng.random_bool(0.5);
            goodbye(world, slot, &identity, is_gone);
        }
        _ => send_message(world, slot, Kind::Suspicion, &(me, incarnation)),
    }
    Some(())
}

fn lie_about_rows(world: &mut World, slot: usize) -> Option<()> {
    let speaker = any_slot(world)?;
    let from = world.node(speaker)?.me().node;
    let (store, writer, version) = any_stream(world)?;
    let number = StoreNumber::from(store);
    let at = beyond(world, version);
    let message = match world.rng.random_range(0..15) {
        0 | 1 => {
            let wall_ms = any_of(&mut world.rng, &[0, 1_800_000_000_000, u64::MAX]);
            let relay = world.rng.random_bool(0.5);
            Message::Digest(Digest { wall_ms, relay, claims: false_claims(world)? })
        }
        2..=4 => {
            let upto = at.saturating_add(world.rng.random_range(0..3));
            let floor = if world.rng.random_bool(0.3) { at } else { 0 };
            let from = if world.rng.random_bool(0.5) { 0 } else { version };
            let rows = Vec::new();
            Message::Delta(Delta { store: number, writer, from, to: at, upto, floor, rows })
        }
        5 => Message::Ack(false_claims(world)?),
        6 => Message::Pull(false_claims(world)?),
        7 => Message::Offer(Offer { store: number, writer, floor: at }),
        8 | 9 => {
            let closed = world.rng.random_bool(0.5);
            let versions = vec![at; StoreId::ALL.len()];
            Message::Retired(vec![RetiredWriter { writer, closed, versions }])
        }
        10 => Message::Snapshot(SnapshotChunk {
            store: number,
            session: world.rng.random_range(1..6),
            after: None,
            end: None,
            claims: false_claims(world)?,
            rows: Vec::new(),
            pending: Vec::new(),
        }),
        11 => Message::Audit(Audit {
            store: number,
            writer,
            version,
            vector: world.rng.random(),
            fingerprints: vec![world.rng.random(); 64],
        }),
        12 => Message::AuditRows(AuditRows {
            store: number,
            writer,
            version,
            vector: 0,
            mask: u64::MAX,
            rows: Vec::new(),
        }),
        13 => Message::NotApplied(vec![NotAppliedRow { store: number, version, reason: 1 }]),
        _ => match world.rng.random_range(0..3) {
            0 => Message::AuditPull(AuditPull { store: number, writer, version, mask: u64::MAX }),
            1 => Message::SnapshotRequest(SnapshotRequest {
                store: number,
                session: u64::MAX,
                after: None,
            }),
            _ => Message::Hints(vec![HintRun {
                parent: 0,
                blocks: vec![1, 2],
                worker: WorkerId::from_u64(1).into(),
                touched_ms: u64::MAX,
            }]),
        },
    };
    replicate(world, slot, &from, message);
    Some(())
}
