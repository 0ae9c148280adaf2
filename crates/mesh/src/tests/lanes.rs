//! Tests of single connections: one of two dies, or its reader is slow.

use super::*;

const THREE: [&str; 3] = ["a", "b", "c"];

fn other(lane: Lane) -> Lane {
    match lane {
        Lane::Swim => Lane::State,
        Lane::State => Lane::Swim,
    }
}

/// The status of one connection from a to b.
fn lane(world: &World, lane: Lane) -> LaneStatus {
    let b = SocketAddr::new(world.sim.lookup("b"), DEFAULT_PORT);
    world.handle("a").links()[&b].lane(lane).expect("a connection was attempted").clone()
}

#[test]
fn half_a_connection_is_reported_on_its_lane_and_replaced() {
    let mut world = World::formed(&THREE, &Plan::default());
    let [a, b] = ["a", "b"].map(|name| world.sim.lookup(name));
    world.write("a", 0..10);
    world.run_for(SECOND * 2);
    world.transitions();
    let mut written = 10;
    for (cut, is_out) in
        [(Lane::Swim, true), (Lane::Swim, false), (Lane::State, true), (Lane::State, false)]
    {
        assert!(lane(&world, cut).up && lane(&world, other(cut)).up);
        let wire = {
            let wires = world.wires.all.lock();
            let is_it = |wire: &&Arc<Wire>| {
                wire.from == a && wire.to == b && wire.state.lock().lane == Some(cut)
            };
            // The newest one; earlier ones are closed.
            Arc::clone(wires.iter().rev().find(is_it).expect("a connection was made"))
        };
        // Further connections receive nothing either, for a while.
        world.wires.walls.lock().insert((a, b));
        {
            let mut state = wire.state.lock();
            (state.cut_out, state.cut_back) = (is_out, !is_out);
        }
        let failures = world.failed_links("a", cut);
        world.until(SECOND * 5, "the lane is reported", |w| {
            let status = lane(w, cut);
            !status.up && status.error.is_some() && w.failed_links("a", cut) > failures
        });
        assert!(lane(&world, other(cut)).up, "only {cut:?} is affected");
        let health = world.ask("a", |handle| async move { handle.health().await }).unwrap();
        let reason = format!("no {} connection to b", metrics::lane_name(cut));
        assert_eq!(health.status, "degraded");
        assert!(health.reasons.iter().any(|r| r.starts_with(&reason)), "{:?}", health.reasons);
        // Frames that can't be sent directly take other routes, so that no write is lost meanwhile.
        world.write("a", written..written + 10);
        written += 10;
        world.run_for(SECOND * 2);
        world.wires.walls.lock().clear();
        world.until(SECOND * 5, "the connection is replaced", |w| lane(w, cut).up);
        world.until(SECOND * 3, "nothing is missing", |w| w.workers("b") == written && w.agrees());
    }
    let down: Vec<_> =
        world.transitions().into_iter().filter(|(_, to)| *to == MemberState::Down).collect();
    assert_eq!(down, [], "one connection is not a router");
}

#[test]
fn hosts_recover_after_packets_were_held_back_between_them() {
    let mut world = World::formed(&THREE, &Plan::default());
    // In one direction only, for all existing connections: b receives nothing of what a sends.
    world.sim.partition_oneway("a", "b");
    world.until(SECOND * 5, "both lanes are reported", |w| {
        [Lane::Swim, Lane::State].into_iter().all(|of| !lane(w, of).up)
    });
    world.write("a", 0..10);
    world.run_for(SECOND * 10);
    world.sim.repair_oneway("a", "b");
    world.until(SECOND * 10, "healed", |w| w.is_whole() && w.agrees() && w.workers("b") == 10);
    // The bytes are held back and delivered late, not lost.
    world.sim.hold("a", "b");
    world.run_for(SECOND * 6);
    world.write("a", 10..20);
    world.sim.release("a", "b");
    world.until(SECOND * 10, "healed", |w| w.is_whole() && w.agrees() && w.workers("b") == 20);
}

#[test]
fn a_slow_reader_delays_no_other_and_costs_bounded_memory() {
    let mut world = World::of(&["a", "b", "c", "slow"]);
    for name in ["a", "b", "c"] {
        world.start(name, &Plan::default());
    }
    // It takes part in the membership and accepts streams of state, but does not read from them.
    let kept = Rc::new(RefCell::new(Vec::new()));
    let alter = {
        let kept = Rc::clone(&kept);
        move |engine: &mut Engine| {
            let (unread, receiver) = mpsc::channel(1);
            // The driver's own channel stays open and empty.
            let network = engine.network.as_mut().expect("it has a network");
            let read = std::mem::replace(&mut network.service.inbox.state, unread);
            kept.borrow_mut().push((read, receiver));
        }
    };
    world.start("slow", &Plan { alter: Rc::new(alter), ..Plan::default() });
    world.until(SECOND * 5, "the cluster has formed", World::is_whole);
    world.transitions();
    let slow = world.sim.lookup("slow");
    // Much more than the window of a stream and an outbox can hold: 40 rounds of 300 rows of about 1 kB.
    let mut worst = Duration::ZERO;
    for round in 0..40_usize {
        world.visit("a", move |node, now| {
            for number in 0..300 {
                let mut spec = worker(number);
                let label = format!("{round:04}-{}", "x".repeat(900));
                spec.labels.insert("filler".to_owned(), label);
                node.update(now, WorkerWrite::Put(WorkerRecord::from(&spec))).unwrap();
            }
            node.update(now, put(10_000 + round)).unwrap();
        });
        let id = worker(10_000 + round).id();
        let took = world.until(SECOND, "the others see it", move |w| {
            ["b", "c"].iter().all(|n| w.visit(n, move |node, _| node.state().worker(id).is_some()))
        });
        worst = worst.max(took);
        world.run_for(Duration::from_millis(200));
    }
    assert!(worst < Duration::from_millis(100), "a row took {worst:?}");
    // Repetitions for it become rarer, so that they do not pile up.
    world.run_for(SECOND * 60);
    let [(sent, _), (_, by_b), (_, by_c)] = ["a", "b", "c"].map(|name| world.row_bytes(name));
    assert!(by_b > 9 << 20, "only {by_b} bytes of rows: nothing is slow");
    // This allows for a window of replication and a minute of repetitions, which is far less than an outbox can hold.
    let for_slow = sent.saturating_sub(by_b + by_c);
    assert!(for_slow < 4 << 20, "{for_slow} bytes wait for it");
    assert_eq!(world.workers("slow"), 0, "it read something: this proves nothing");
    let link = SocketAddr::new(slow, DEFAULT_PORT);
    assert!(world.handle("a").links()[&link].lane(Lane::State).unwrap().up, "it is connected");
    assert_eq!(world.transitions(), BTreeSet::new(), "it stays a member");
}

impl World {
    /// How often a connection of this lane broke or could not be made.
    fn failed_links(&self, name: &str, lane: Lane) -> u64 {
        let failures = &self.metrics(name).link_failures;
        failures.with_label_values(&[metrics::lane_name(lane)]).get()
    }

    /// The bytes of rows that were passed to links, and those that were received.
    fn row_bytes(&mut self, name: &str) -> (u64, u64) {
        self.visit(name, |node, _| {
            let counters = node.replication().counters();
            (counters.sent_bytes.iter().sum(), counters.received_bytes.iter().sum())
        })
    }
}
