//! Tests of failing processes and networks: partitions, crashes, restarts, late joins.

use super::*;

const FIVE: [&str; 5] = ["a", "b", "c", "d", "e"];
const THREE: [&str; 3] = ["a", "b", "c"];

#[test]
fn a_partition_heals() {
    let mut world = World::formed(&FIVE, &Plan::default());
    let sides = [["a", "b"].as_slice(), ["c", "d", "e"].as_slice()];
    let across = |world: &World, act: fn(&turmoil::Sim<'static>, &str, &str)| {
        for here in sides[0] {
            for there in sides[1] {
                act(&world.sim, here, there);
            }
        }
    };
    across(&world, |sim, a, b| sim.partition(a, b));
    world.run_for(SECOND * 15);
    assert_eq!(world.state_at("a", "c"), Some(MemberState::Down), "{}", world.picture());
    assert_eq!(world.state_at("a", "b"), Some(MemberState::Alive));
    world.write("a", 0..20);
    world.write("c", 20..50);
    world.run_for(SECOND * 15);
    assert_eq!([world.workers("b"), world.workers("e")], [20, 30], "each side goes on");
    across(&world, |sim, a, b| sim.repair(a, b));
    let whole = world.until(SECOND * 10, "all ALIVE", World::is_whole);
    let left = (SECOND * 10).saturating_sub(whole);
    world.until(left, "all replicas are equal", World::agrees);
    assert_eq!(world.workers("a"), 50);
}

#[test]
fn a_crash_is_detected_and_the_router_returns_under_its_name() {
    let mut world = World::formed(&THREE, &Plan::default());
    world.write("b", 0..100);
    world.until(SECOND, "all have it", |w| w.workers("a") == 100 && w.workers("c") == 100);
    // It returns once immediately, and once after all others have noticed.
    for noticed in [false, true] {
        world.kill("b");
        if noticed {
            world.until(SECOND * 8, "DOWN everywhere", |w| {
                ["a", "c"].iter().all(|name| w.state_at(name, "b") == Some(MemberState::Down))
            });
        } else {
            world.run_for(Duration::from_millis(300));
        }
        world.restart("b");
        world.until(SECOND, "the router runs", |w| w.routers.borrow().contains_key("b"));
        let alive = world.until(SECOND * 3, "ALIVE everywhere", World::is_whole);
        assert!(alive < Duration::from_millis(500), "ALIVE only after {alive:?}");
        let left = (SECOND * 3).saturating_sub(alive);
        world.until(left, "its state is back", |w| w.workers("b") == 100 && w.agrees());
    }
    world.write("b", 100..110);
    world.until(SECOND, "its writes have arrived", |w| {
        w.workers("a") == 110 && w.workers("c") == 110
    });
}

#[test]
fn replacing_all_routers_one_by_one_loses_nothing() {
    let mut world = World::formed(&THREE, &Plan::default());
    world.write("a", 0..200);
    world.until(SECOND, "all have it", |w| w.workers("b") == 200 && w.workers("c") == 200);
    world.transitions();
    for (round, name) in THREE.into_iter().enumerate() {
        let begin = world.sim.elapsed();
        world.depart(name);
        let rest: Vec<_> = THREE.into_iter().filter(|other| *other != name).collect();
        world.until(SECOND / 2, "the others know that it left", |w| {
            rest.iter().all(|other| w.state_at(other, name).is_none())
        });
        world.write(rest[0], 200 + 10 * round..210 + 10 * round);
        world.restart(name);
        world.until(SECOND, "the router runs", |w| w.routers.borrow().contains_key(name));
        world.until(SECOND * 3, "the cluster is whole", World::is_whole);
        let all = 210 + 10 * round;
        world.until(SECOND * 3, "it has everything", |w| w.workers(name) == all && w.agrees());
        assert!(world.sim.elapsed() - begin < SECOND * 6);
    }
    let paged: Vec<_> = world
        .transitions()
        .into_iter()
        .filter(|(_, to)| matches!(to, MemberState::Down | MemberState::Suspected))
        .collect();
    assert_eq!(paged, [], "a router that leaves is never declared down");
}

#[test]
fn a_late_router_receives_ten_thousand_workers() {
    let mut world = World::of(&THREE);
    let plan = Plan::default();
    world.start("a", &plan);
    world.start("b", &plan);
    world.until(SECOND * 5, "the two routers have joined", |w| {
        w.state_at("a", "b") == Some(MemberState::Alive)
            && w.state_at("b", "a") == Some(MemberState::Alive)
    });
    for half in [0..5000, 5000..10_000] {
        let name = if half.start == 0 { "a" } else { "b" };
        for numbers in half.collect::<Vec<_>>().chunks(500) {
            world.write(name, numbers.iter().copied());
        }
    }
    world.until(SECOND * 10, "both have all", |w| w.workers("a") == 10_000 && w.agrees());
    world.start("c", &plan);
    world.until(SECOND, "the router runs", |w| w.routers.borrow().contains_key("c"));
    world.until(SECOND * 5, "it has everything", |w| w.workers("c") == 10_000 && w.agrees());
    assert!(world.is_whole());
}
