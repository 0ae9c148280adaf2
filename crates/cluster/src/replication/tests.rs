//! Replication between a few replicas whose messages the test carries by hand. `worlds` plays random histories.

mod audits;
mod by_hand;
mod ended;
mod receipts;
mod snapshots;
mod streams;
mod world;
mod worlds;

use std::time::Duration;

use smg_types::ids::{Generation, NodeId, WorkerId};
use smg_types::now::Now;

use crate::replication::{CHUNK_BYTES, Config, Message, Replication, message};
use crate::state::StoreId;
use crate::state::load::{Load, LoadWrite};
use crate::state::row::{Blob, RawRow};
use crate::state::worker::WorkerWrite;

fn id(name: &str, generation: u64) -> NodeId {
    NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
}

fn at(ms: u64) -> Now {
    Now::at(Duration::from_millis(1_000_000 + ms))
}

/// Delivers all messages until no replica has one to send.
fn exchange(now: Now, replicas: &mut [Replication]) {
    loop {
        let mut sent = Vec::new();
        for replica in replicas.iter_mut() {
            while let Some((to, message, _)) = replica.poll_transmit(now) {
                sent.push((replica.me().clone(), to, message));
            }
        }
        if sent.is_empty() {
            return;
        }
        for (from, to, message) in sent {
            if let Some(replica) = replicas.iter_mut().find(|replica| *replica.me() == to) {
                replica.handle_message(now, &from, message);
            }
        }
    }
}

fn pair() -> (Replication, Replication) {
    let (a, b) = (id("a", 1), id("b", 1));
    let mut one = Replication::new(a.clone(), Config::default(), at(0));
    let mut two = Replication::new(b.clone(), Config::default(), at(0));
    one.peer_up(at(0), &b);
    two.peer_up(at(0), &a);
    (one, two)
}

fn load(requests: u32) -> Option<Load> {
    Some(Load { requests, tokens: 0 })
}

#[test]
fn a_bad_row_is_refused_or_quarantined_and_the_stream_goes_on() {
    use crate::replication::message::Delta;
    let (mut here, there) = pair();
    let row = |version, key: &[u8], content: &[u8]| RawRow {
        version,
        key: Blob::from(key.to_vec()),
        content: Blob::from(content.to_vec()),
    };
    let key = |n: u64| crate::state::row::encode_key(&WorkerId::from_u64(n));
    let good = crate::state::row::ContentRef {
        add: Some(&Load { requests: 5, tokens: 0 }),
        carried: &[],
        kills: &[],
    };
    let good = good.encode().unwrap();
    let rows = vec![
        row(1, &key(1), &good),
        row(2, b"no key", &good),
        row(3, &key(3), &[9, 9, 9]),
        row(4, &key(4), &vec![1; 100_000]),
        row(5, &key(5), &good),
    ];
    let delta = Delta {
        store: StoreId::Load.into(),
        writer: there.me().clone(),
        from: 0,
        to: 5,
        upto: 5,
        floor: 0,
        rows,
    };
    here.handle_message(at(0), there.me(), Message::Delta(delta));
    let requests = |here: &Replication, n| {
        here.state().loads(WorkerId::from_u64(n)).next().map(|(_, load)| load.requests)
    };
    assert_eq!((requests(&here, 1), requests(&here, 5)), (Some(5), Some(5)));
    assert_eq!(requests(&here, 3), None, "in quarantine");
    let counters = here.counters();
    assert_eq!((counters.refused_rows, counters.quarantined_rows), (2, 1));
    let sizes = here.state().sizes(StoreId::Load);
    assert_eq!((sizes.entries, sizes.quarantined), (3, 1));
}

#[test]
fn a_row_too_large_is_refused_to_its_author() {
    let (mut here, _) = pair();
    let mut spec = smg_types::spec::WorkerSpec::new("http://a:1".parse().unwrap());
    spec.labels.insert("k".to_owned(), "v".repeat(70_000));
    let error = here.update(at(0), WorkerWrite::Put((&spec).into())).unwrap_err();
    assert!(error.to_string().contains("workers"), "{error}");
    assert_eq!(here.state().sizes(StoreId::Workers).entries, 0);
}

#[test]
fn a_delta_after_a_gap_is_not_applied_and_the_gap_is_pulled() {
    let (mut a, mut b) = pair();
    let mut both = [a, b];
    exchange(at(0), &mut both);
    [a, b] = both;
    let worker = WorkerId::from_u64(1);
    a.update(at(500), LoadWrite { worker, load: load(1) }).unwrap();
    let lost = a.poll_transmit(at(500));
    assert!(matches!(lost, Some((_, Message::Delta(_), _))));
    a.update(at(900), LoadWrite { worker: WorkerId::from_u64(2), load: load(2) }).unwrap();
    let (_, second, _) = a.poll_transmit(at(900)).unwrap();
    b.handle_message(at(900), a.me(), second);
    assert_eq!(b.counters().gaps, 1);
    assert_eq!(b.state().versions(StoreId::Load).count(), 0, "nothing was claimed");
    let mut both = [a, b];
    exchange(at(901), &mut both);
    assert_eq!(both[1].state().loads(worker).count(), 1);
    assert_eq!(
        both[0].state().fingerprint(StoreId::Load),
        both[1].state().fingerprint(StoreId::Load)
    );
}

#[test]
fn a_slow_peer_costs_no_memory_and_receives_the_newest_rows() {
    let (mut a, b) = pair();
    let digest = Message::Digest(b.digest(at(0), true));
    a.handle_message(at(0), b.me(), digest);
    let mut sent = 0;
    for round in 0..2000u64 {
        for n in 0..50 {
            let load = load(u32::try_from(round).unwrap());
            a.update(at(round * 10), LoadWrite { worker: WorkerId::from_u64(n), load }).unwrap();
        }
        while a.poll_transmit(at(round * 10)).is_some() {
            sent += 1;
        }
    }
    assert_eq!(a.state().sizes(StoreId::Load).entries, 50);
    assert!(a.counters().sent_bytes[StoreId::Load.index()] <= (2 << 20), "the window closes");
    assert!(sent > 0);
}

#[test]
fn a_peer_that_acknowledges_nothing_is_sent_less_and_less() {
    let (mut a, b) = pair();
    let digest = Message::Digest(b.digest(at(0), true));
    a.handle_message(at(0), b.me(), digest.clone());
    for n in 0..2_000 {
        a.update(at(0), WorkerWrite::Put((&spec(n)).into())).unwrap();
    }
    let sent_until = |a: &mut Replication, from: u64, to: u64| {
        let before = a.counters().sent_bytes[StoreId::Workers.index()];
        for ms in (from..to).step_by(50) {
            a.handle_tick(at(ms), &mut world::rng(ms));
            while a.poll_transmit(at(ms)).is_some() {}
            if ms % 1000 == 0 {
                // Its digests still arrive; they do not show that it reads what it is sent.
                a.handle_message(at(ms), b.me(), digest.clone());
            }
        }
        a.counters().sent_bytes[StoreId::Workers.index()] - before
    };
    let first = sent_until(&mut a, 0, 1_000);
    sent_until(&mut a, 1_000, 10_000);
    let later = sent_until(&mut a, 10_000, 70_000);
    assert!(
        first > 150_000 && later < 16 * 2 * 17 * 1024,
        "{first} at once, then {later} a minute"
    );
    // After one acknowledgement the window is open again.
    let claims = message::ClaimsBuilder::default().build();
    a.handle_message(at(70_000), b.me(), Message::Ack(claims));
    let again = sent_until(&mut a, 70_000, 75_000);
    assert!(again >= first, "{again} after an ack");
}

#[test]
fn a_snapshot_goes_on_where_it_was_broken_off() {
    let config = Config::default();
    let mut donors: Vec<Replication> =
        ["a", "b"].iter().map(|n| Replication::new(id(n, 1), config.clone(), at(0))).collect();
    let spec = |n: u64| {
        let mut spec = smg_types::spec::WorkerSpec::new(format!("http://w{n}:1").parse().unwrap());
        spec.labels.insert("pad".to_owned(), "x".repeat(500));
        spec
    };
    for n in 0..2000 {
        donors[0].update(at(0), WorkerWrite::Put((&spec(n)).into())).unwrap();
    }
    // A collected tombstone: a node that joins later must load a snapshot.
    donors[0].update(at(0), WorkerWrite::Remove(spec(0).id())).unwrap();
    donors[0].handle_tick(at(1), &mut world::rng(1));
    donors[0].collect_tombstones(at(20_000));
    let (a, b) = (donors[0].me().clone(), donors[1].me().clone());
    donors[0].peer_up(at(2), &b);
    donors[1].peer_up(at(2), &a);
    for ms in (2..5000).step_by(50) {
        for donor in &mut donors {
            donor.handle_tick(at(ms), &mut world::rng(ms));
        }
        exchange(at(ms), &mut donors);
    }
    assert_eq!(donors[1].state().workers().count(), 1999);
    assert_eq!(donors[1].counters().snapshots_joined, 1);
    // A third node asks a, loses it half way, and goes on with b.
    let mut joiner = Replication::new(id("c", 1), config, at(5000));
    let c = joiner.me().clone();
    joiner.peer_up(at(5000), &a);
    donors[0].peer_up(at(5000), &c);
    let mut chunks = 0;
    let mut switched = false;
    for ms in (5000..15_000).step_by(20) {
        joiner.handle_tick(at(ms), &mut world::rng(ms));
        while let Some((to, message, _)) = joiner.poll_transmit(at(ms)) {
            let donor = donors.iter_mut().find(|donor| *donor.me() == to).unwrap();
            donor.handle_message(at(ms), &c, message);
        }
        let donor = usize::from(switched);
        donors[donor].handle_tick(at(ms), &mut world::rng(ms));
        while let Some((to, message, _)) = donors[donor].poll_transmit(at(ms)) {
            if to != c {
                continue;
            }
            chunks += u32::from(matches!(message, Message::Snapshot(_)));
            let from = donors[donor].me().clone();
            joiner.handle_message(at(ms), &from, message);
        }
        if chunks == 2 && !switched {
            switched = true;
            joiner.peer_down(at(ms), &a);
            donors[1].peer_up(at(ms), &c);
            joiner.peer_up(at(ms), &b);
        }
    }
    assert!(switched);
    assert_eq!(joiner.state().workers().count(), 1999);
    assert!(joiner.is_warm());
    let bytes = joiner.counters().received_bytes[StoreId::Workers.index()];
    let whole = donors[0].state().sizes(StoreId::Workers).bytes as u64;
    assert!(bytes < whole + 2 * CHUNK_BYTES as u64, "{bytes} received of {whole}: nothing twice");
    let fingerprints = [&joiner, &donors[1]].map(|r| r.state().fingerprint(StoreId::Workers));
    assert_eq!(fingerprints[0], fingerprints[1]);
}

#[test]
fn an_audit_repairs_what_version_vectors_can_not_show() {
    let (a, b) = pair();
    let mut both = [a, b];
    for n in 0..100 {
        both[0].update(at(0), LoadWrite { worker: WorkerId::from_u64(n), load: load(1) }).unwrap();
    }
    exchange(at(200), &mut both);
    let writer = both[1].state().writers().number(&id("a", 1)).unwrap();
    both[1].state.tables.load.lose(&WorkerId::from_u64(7), writer);
    assert_eq!(both[1].state().loads(WorkerId::from_u64(7)).count(), 0);
    both[0].audit_next_peer();
    exchange(at(300), &mut both);
    assert_eq!(both[1].state().loads(WorkerId::from_u64(7)).count(), 1);
    assert_eq!(both[1].counters().repaired, 1);
}

#[test]
fn peers_are_audited_soon_after_a_member_comes_or_goes() {
    let (a, b) = pair();
    let mut both = [a, b];
    both[0].update(at(0), LoadWrite { worker: WorkerId::from_u64(7), load: load(1) }).unwrap();
    run(&mut both, 0, 25_000);
    let writer = both[1].state().writers().number(&id("a", 1)).unwrap();
    both[1].state.tables.load.lose(&WorkerId::from_u64(7), writer);
    for replica in &mut both {
        replica.peer_up(at(25_000), &id("c", 1));
        replica.peer_down(at(25_000), &id("c", 1));
    }
    run(&mut both, 25_000, 27_500);
    assert_eq!(both[1].state().loads(WorkerId::from_u64(7)).count(), 1);
}

#[test]
fn a_million_puts_and_deletes_leave_less_than_a_megabyte() {
    // Without a peer, and with one that never acknowledges anything.
    for with_peer in [false, true] {
        let (mut a, b) = pair();
        if with_peer {
            let digest = Message::Digest(b.digest(at(0), true));
            a.handle_message(at(0), b.me(), digest);
        } else {
            a.peer_forgotten(at(0), b.me());
        }
        // Every 100th key is new; debug builds do a tenth.
        let cycles: u64 = if cfg!(debug_assertions) { 100_000 } else { 1_000_000 };
        for n in 0..cycles {
            let key = WorkerId::from_u64(n / 100 * 100 + n % 3);
            a.update(at(n / 100), LoadWrite { worker: key, load: load(1) }).unwrap();
            a.update(at(n / 100), LoadWrite { worker: key, load: None }).unwrap();
        }
        let sizes = a.state().sizes(StoreId::Load);
        assert_eq!(sizes.entries, 0);
        assert!(
            sizes.tombstones <= 2048 && sizes.bytes + 250 * sizes.tombstones < 1 << 20,
            "{sizes:?}"
        );
    }
}

#[test]
fn hints_reach_all_peers_and_a_joiner_receives_the_hot_set() {
    let (a, b) = pair();
    let mut both = [a, b];
    exchange(at(0), &mut both);
    both[0].served(at(10), WorkerId::from_u64(1), &[1, 2, 3]);
    for replica in &mut both {
        replica.handle_tick(at(70), &mut world::rng(1));
    }
    exchange(at(70), &mut both);
    assert_eq!(both[1].state().prefixes().len(), 3);
    let c = id("c", 1);
    let mut joiner = Replication::new(c.clone(), Config::default(), at(100));
    joiner.peer_up(at(100), both[1].me());
    both[1].peer_up(at(100), &c);
    let [_, b] = both;
    let mut pair = [b, joiner];
    exchange(at(100), &mut pair);
    assert_eq!(pair[1].state().prefixes().len(), 3);
}

#[test]
fn a_forgotten_node_goes_on_as_a_later_generation_and_loses_nothing() {
    let (a, b) = pair();
    let mut both = [a, b];
    exchange(at(0), &mut both);
    both[1].update(at(10), WorkerWrite::Put((&spec(1)).into())).unwrap();
    exchange(at(10), &mut both);
    // b is cut off and forgotten; meanwhile both nodes write.
    both[0].peer_forgotten(at(100), &id("b", 1));
    both[1].peer_down(at(100), &id("a", 1));
    both[1].update(at(110), WorkerWrite::Put((&spec(2)).into())).unwrap();
    run(&mut both, 150, 13_000);
    assert_eq!(both[0].counters().retired, 1, "a has no peer that would have to agree");
    both[0].update(at(13_000), WorkerWrite::Remove(spec(1).id())).unwrap();
    // b returns as it was, is notified that it was retired, and goes on as a later generation.
    both[0].peer_up(at(13_100), &id("b", 1));
    both[1].peer_up(at(13_100), &id("a", 1));
    run(&mut both, 13_100, 16_000);
    assert!(both[1].is_fenced());
    both[1].begin_generation(at(16_000), id("b", 2));
    both[0].peer_up(at(16_000), &id("b", 2));
    both[1].peer_down(at(16_000), &id("a", 1));
    both[1].peer_up(at(16_000), &id("a", 1));
    run(&mut both, 16_000, 24_000);
    for replica in &both {
        let workers: Vec<_> = replica.state().workers().map(|(id, _)| id).collect();
        assert_eq!(workers, [spec(2).id()], "{}: one removed, one kept", replica.me());
    }
}

/// Lets time pass for two replicas that exchange messages.
fn run(both: &mut [Replication; 2], from: u64, to: u64) {
    for ms in (from..to).step_by(50) {
        for replica in both.iter_mut() {
            replica.handle_tick(at(ms), &mut world::rng(ms));
        }
        exchange(at(ms), both);
    }
}

fn spec(n: u64) -> smg_types::spec::WorkerSpec {
    smg_types::spec::WorkerSpec::new(format!("http://w{n}:1").parse().unwrap())
}

#[test]
fn a_removal_reaches_a_row_that_is_adopted_at_the_same_time() {
    let (a, b) = pair();
    let mut both = [a, b];
    run(&mut both, 0, 1000);
    for n in 1..=2 {
        both[1].update(at(1000), WorkerWrite::Put((&spec(n)).into())).unwrap();
    }
    run(&mut both, 1000, 2000);
    // b restarts, and receives the rows of its earlier generation from a.
    let restarted = id("b", 2);
    both[1] = Replication::new(restarted.clone(), Config::default(), at(2000));
    both[0].peer_down(at(2000), &id("b", 1));
    both[0].peer_up(at(2000), &restarted);
    both[1].peer_up(at(2000), &id("a", 1));
    run(&mut both, 2000, 4000);
    assert_eq!(both[1].state().workers().count(), 2);
    assert_eq!(both[1].counters().adopted, 0, "not before it has had all rows for a while");
    // While they are cut off from each other for a moment, b adopts and a removes.
    let mut ms = 4000;
    while both[1].counters().adopted == 0 {
        ms += 50;
        assert!(ms < 10_000, "it never adopts");
        both[1].handle_tick(at(ms), &mut world::rng(ms));
    }
    both[0].update(at(ms), WorkerWrite::Remove(spec(1).id())).unwrap();
    run(&mut both, ms, ms + 5000);
    for replica in &both {
        let workers: Vec<_> = replica.state().workers().map(|(id, _)| id).collect();
        assert_eq!(workers, [spec(2).id()], "{}", replica.me());
        let generations = replica.state().writers().current().count();
        assert_eq!(generations, 2, "{}: the earlier generation is retired", replica.me());
    }
}
