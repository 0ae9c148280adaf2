//! Hostile input at the cluster's doors: never a panic, never much more memory than the bytes that came, and no bad row or
//! frame stops what is good. The doors are those of the fuzz targets (`fuzz/`).
//!
//! Bytes are counted by an allocator that counts, so everything is one test: another thread would count along.

#![expect(clippy::unwrap_used, reason = "a test")]
#![expect(clippy::print_stdout, reason = "figures for people")]

#[path = "../../../fuzz/src/lib.rs"]
#[expect(unreachable_pub, reason = "a library of its own elsewhere")]
mod doors;

use std::alloc::System;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use smg_cluster::Node;
use smg_cluster::codec::{self, Frame, Kind, MAX_FRAME_BYTES};
use smg_cluster::replication::message::{Claim, Claims, Delta, Message, StoreNumber};
use smg_cluster::state::load::{Load, LoadWrite};
use smg_cluster::state::operations::Draw;
use smg_cluster::state::prefixes::HintRun;
use smg_cluster::state::row::{Blob, RawRow};
use smg_cluster::state::{StoreId, Write};
use smg_types::ids::{Generation, NodeId, WorkerId};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static COUNTING: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// All bytes that decoding may ask for, released ones included, beyond twice the input: a message has bounds besides that
/// of its frame, for what is smallest on the wire may be twenty times as large in memory.
const CAP: usize = 4 << 20;
/// The same for what fits a few packets.
const SMALL_CAP: usize = 1 << 20;

/// Decodes a message as a node does; how many bytes were asked for.
fn decode(message: &[u8]) -> usize {
    let region = Region::new(COUNTING);
    drop(codec::decode::<Message>(message));
    drop(codec::decode::<smg_lease::Message>(message));
    let change = region.change();
    change.bytes_allocated + usize::try_from(change.bytes_reallocated.max(0)).unwrap()
}

fn check_decoding(what: &str, message: &[u8]) -> usize {
    let asked = decode(message);
    let cap = if message.len() < 1 << 14 { SMALL_CAP } else { CAP };
    let limit = 2 * message.len() + cap;
    assert!(
        asked <= limit,
        "{what}: {asked} bytes for {} of input, {limit} allowed",
        message.len()
    );
    asked
}

/// Messages that are as large in memory as can be for what they are on the wire.
fn bloated() -> Vec<(&'static str, Message)> {
    let id = NodeId { name: "n".parse().unwrap(), generation: Generation(0) };
    let claim = Claim { writer: 0, store: StoreNumber(0), version: 0, floor: 0 };
    let claims = |count| Claims { writers: vec![id.clone(); 8_000], claims: vec![claim; count] };
    let row = |n: usize| RawRow {
        version: n as u64,
        key: Blob::from(Vec::new()),
        content: Blob::from(Vec::new()),
    };
    let delta = |count| Delta {
        store: StoreNumber(0),
        writer: id.clone(),
        from: 0,
        to: 1,
        upto: 1,
        floor: 0,
        rows: (0..count).map(row).collect(),
    };
    let run = || HintRun {
        parent: 0,
        blocks: vec![0; 120],
        worker: WorkerId::from_u64(0).into(),
        touched_ms: 0,
    };
    vec![
        ("claims", Message::Ack(claims(60_000))),
        ("too many claims", Message::Ack(claims(200_000))),
        ("rows", Message::Delta(delta(32_000))),
        ("too many rows", Message::Delta(delta(100_000))),
        ("hints", Message::Hints((0..8_000).map(|_| run()).collect())),
    ]
}

/// Something of everything, said by honest nodes.
fn honest_frames(rng: &mut StdRng, nodes: &mut [Node; 2]) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for n in 0..20 {
        let now = doors::at(n * 200);
        for (writer, node) in nodes.iter_mut().enumerate() {
            for store in StoreId::ALL {
                let mut draw = Draw {
                    number: rng.random_range(0..1000),
                    worker: WorkerId::from_u64(n % 4),
                    is_put: n % 4 > 0,
                    other: Some(NodeId { name: "c".parse().unwrap(), generation: Generation(3) }),
                    wall_ms: u64::try_from(now.wall.as_millis()).unwrap(),
                    rng,
                };
                let write = Write::sample(store, &mut draw).unwrap();
                let written = node.update(now, write);
                assert!(written.is_ok(), "{writer} writes to {store}: {written:?}");
            }
        }
        for node in nodes.iter_mut() {
            node.handle_timeout(doors::at(n * 200 + 100));
        }
        frames.extend(doors::exchange(nodes, n * 200 + 100));
    }
    frames
}

fn mutate(rng: &mut StdRng, bytes: &mut Vec<u8>) {
    for _ in 0..rng.random_range(1..6) {
        if bytes.is_empty() {
            return;
        }
        let at = rng.random_range(0..bytes.len());
        match rng.random_range(0..5) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes[at] = rng.random(),
            // A length that promises too much: the prefixes of 2, 4 and 8 byte numbers.
            2 => bytes[at] = rng.random_range(0xfb..=0xfd),
            3 => bytes.truncate(at),
            _ => bytes.insert(at, rng.random()),
        }
    }
}

#[test]
fn nothing_hostile_panics_or_costs_memory() {
    let seed = std::env::var("SMG_SEED").map_or(1, |text| text.parse().unwrap());
    println!("SMG_SEED={seed} cargo test --test hostile");
    let mut rng = StdRng::seed_from_u64(seed);

    for (what, message) in bloated() {
        let bytes = codec::encode(&message);
        assert!(bytes.len() <= MAX_FRAME_BYTES, "{what}: {} bytes", bytes.len());
        let asked = check_decoding(what, &bytes);
        println!("{what}: {} bytes in, {asked} asked for", bytes.len());
    }
    // A few bytes that promise a lot.
    for variant in 0..16u8 {
        let mut bytes = vec![variant];
        bytes.extend([0xfd; 64]);
        check_decoding("a promise", &bytes);
    }

    let (mut nodes, mut frames) = doors::pair();
    frames.extend(honest_frames(&mut rng, &mut nodes));
    assert!(frames.len() > 100);
    for kind in [Kind::Swim, Kind::State, Kind::Lease] {
        assert!(frames.iter().any(|frame| Frame::read(frame).unwrap().kind == kind), "{kind:?}");
    }
    let before = Region::new(COUNTING);
    let mut fed = 0;
    for round in 0..6_000 {
        let mut bytes = frames[rng.random_range(0..frames.len())].clone();
        match round % 4 {
            0 => mutate(&mut rng, &mut bytes),
            1 => {
                // A good frame around what is mutated.
                let frame = Frame::read(&bytes).unwrap();
                let (kind, mut payload) = (frame.kind, frame.payload.to_vec());
                mutate(&mut rng, &mut payload);
                check_decoding("a mutated message", &payload);
                doors::feed_message(&mut nodes, &payload);
                bytes = codec::frame(kind, doors::CLUSTER, &payload);
            }
            2 => {
                let length = rng.random_range(0..300);
                bytes = (0..length).map(|_| rng.random()).collect();
                check_decoding("random bytes", &bytes);
                doors::feed_message(&mut nodes, &bytes);
                doors::feed_frame(&mut nodes[0], &bytes);
            }
            _ => {
                let length = rng.random_range(0..40);
                let key: Vec<u8> = (0..rng.random_range(0..12)).map(|_| rng.random()).collect();
                let mut content: Vec<u8> = (0..length).map(|_| rng.random()).collect();
                if let Some(version) = content.first_mut() {
                    *version = 1;
                }
                doors::feed_row(&mut nodes, 1_000 + round, &key, &content);
            }
        }
        fed += bytes.len();
        nodes[0].handle_frame(doors::at(5_000), doors::address(2), &bytes);
        while nodes[0].poll_transmit().is_some() {}
        while nodes[0].poll_event().is_some() {}
    }
    let change = before.change();
    let kept = change.bytes_allocated.saturating_sub(change.bytes_deallocated);
    println!("{fed} bytes fed, {kept} kept");
    assert!(kept < 2 * fed + CAP, "{kept} bytes kept of {fed}");

    // Good nodes go on: what b writes is seen at a, and what is bad is counted.
    let counters = *nodes[0].replication().counters();
    assert!(counters.refused_rows + counters.quarantined_rows > 0, "{counters:?}");
    let frames = nodes[0].frames();
    assert!(frames.corrupted > 0 && frames.undecodable > 0, "{frames:?}");
    let (mut fresh, _) = doors::pair();
    doors::feed_row(&mut fresh, 1, b"no key", b"no content");
    let key = codec::encode(&WorkerId::from_u64(7));
    doors::feed_row(&mut fresh, 2, &key, &[9, 9]);
    let counters = *fresh[0].replication().counters();
    assert!(counters.refused_rows > 0 && counters.quarantined_rows > 0, "{counters:?}");
    // Somebody has written in b's name, so it begins another life; what it writes then is seen.
    doors::settle(&mut fresh);
    let (worker, load) = (WorkerId::from_u64(5), Load { requests: 5, tokens: 0 });
    fresh[1].update(doors::at(3_000), LoadWrite { worker, load: Some(load) }).unwrap();
    doors::exchange(&mut fresh, 3_000);
    let seen: Vec<_> = fresh[0].state().loads(worker).map(|(_, load)| load.requests).collect();
    assert_eq!(seen, [5], "{:?}", fresh[0].replication().counters());
    assert_eq!(Kind::ALL.len(), 10, "a new kind needs a function in fuzz/src/lib.rs");
}
