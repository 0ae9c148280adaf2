//! Families of scenarios: each makes a plan from a seed, and names the rare states that some seed must reach.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use smg_cluster::membership;

use crate::faults::{Fault, Plan, with_disks};
use crate::world::{World, any_of};

/// A way to make histories.
pub(crate) struct Family {
    pub name: &'static str,
    pub prepare: fn(&mut StdRng, &mut World) -> Plan,
    /// Rare states that some seed must reach: a state that no seed reached was not tested.
    pub sometimes: &'static [&'static str],
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Adds a cluster of 2 to 7 nodes.
fn cluster(rng: &mut StdRng, world: &mut World) -> usize {
    let n = rng.random_range(2..=7);
    world.add_cluster(n, &membership::Config::lan());
    usize::from(n)
}

fn start_all(rng: &mut StdRng, plan: &mut Plan, n: usize) {
    for slot in 0..n {
        plan.at(rng.random_range(0..1000), Fault::Start(slot));
    }
}

pub(crate) const FAMILIES: &[Family] = &[
    Family {
        name: "cold_start",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            for slot in 0..n {
                plan.at(rng.random_range(0..20_000), Fault::Start(slot));
            }
            plan
        },
        sometimes: &[],
    },
    Family {
        name: "loss",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            plan.at(2000, Fault::Drop(any_of(rng, &[0.05, 0.1, 0.2, 0.4, 0.7])));
            plan.at(rng.random_range(20_000..60_000), Fault::Heal);
            plan
        },
        sometimes: &[
            "a suspicion was refuted",
            "a false DOWN was renewed",
            "a stale suspicion was dropped",
            "a row was refused to its author",
        ],
    },
    Family {
        name: "disorder",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let late = ms(any_of(rng, &[50, 500, 3000, 10_000]));
            plan.at(2000, Fault::Reorder(rng.random_range(0.05..0.5), late));
            plan.at(2000, Fault::Duplicate(rng.random_range(0.0..0.5)));
            plan.at(3000, Fault::Delay(ms(0), ms(any_of(rng, &[1, 50, 400]))));
            plan.at(rng.random_range(20_000..60_000), Fault::Heal);
            plan
        },
        sometimes: &["a suspicion was refuted"],
    },
    Family {
        name: "one_way_cut",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            for _ in 0..rng.random_range(1..=3) {
                let (a, b) = (rng.random_range(0..n), rng.random_range(0..n));
                plan.at(rng.random_range(3000..20_000), Fault::CutOneWay(a, b));
            }
            plan.at(rng.random_range(30_000..60_000), Fault::Heal);
            plan
        },
        sometimes: &["a suspicion was refuted"],
    },
    Family {
        name: "partition",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let k = rng.random_range(2..=3);
            let groups = (0..n).map(|_| rng.random_range(0..k)).collect();
            plan.at(rng.random_range(3000..6000), Fault::Partition(groups));
            let slot = rng.random_range(0..n);
            if rng.random_bool(0.3) {
                plan.at(15_000, Fault::Crash(slot));
                plan.at(25_000, Fault::Start(slot));
            }
            plan.at(rng.random_range(7000..120_000), Fault::Heal);
            plan
        },
        sometimes: &[
            "a suspected member went down",
            "a member that was down came back",
            "a false DOWN was renewed",
        ],
    },
    Family {
        name: "crash_restart",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            if rng.random_bool(0.5) {
                with_disks(world);
            }
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            for _ in 0..rng.random_range(1..=6) {
                let slot = rng.random_range(0..n);
                let at = rng.random_range(3000..40_000);
                plan.at(at, Fault::Crash(slot));
                if rng.random_bool(0.4) {
                    plan.at(at, Fault::LoseDisk(slot));
                }
                if rng.random_bool(0.5) {
                    let by = any_of(rng, &[-20_000, -10_000, -5000, -1000, 5000]);
                    plan.at(at, Fault::ClockJump(slot, by));
                }
                if rng.random_bool(0.3) {
                    plan.at(at, Fault::Move(slot, 100 + rng.random_range(0..50)));
                }
                if rng.random_bool(0.8) {
                    plan.at(at + any_of(rng, &[0, 10, 500, 4000, 15_000]), Fault::Start(slot));
                }
            }
            plan
        },
        sometimes: &["a node went on as a later generation", "a suspected member went down"],
    },
    Family {
        name: "stall",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let mut last = 0;
            for _ in 0..rng.random_range(1..=5) {
                let (slot, at) = (rng.random_range(0..n), rng.random_range(3000..40_000));
                let time = any_of(rng, &[400, 1000, 2000, 4000, 8000, 20_000]);
                plan.at(at, Fault::Stall(slot, ms(time)));
                last = last.max(at + time);
            }
            plan.at(last, Fault::Heal);
            plan
        },
        sometimes: &["a suspicion was refuted", "a false DOWN was renewed", "a freeze was noticed"],
    },
    Family {
        name: "slow_link",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            for _ in 0..rng.random_range(1..=4) {
                let (a, b) = (rng.random_range(0..n), rng.random_range(0..n));
                let by = ms(any_of(rng, &[100, 400, 2000, 8000]));
                plan.at(rng.random_range(3000..20_000), Fault::SlowLink(a, b, by));
            }
            plan.at(rng.random_range(30_000..60_000), Fault::Heal);
            plan
        },
        sometimes: &["a suspicion was refuted"],
    },
    Family {
        name: "clocks",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            let is_wild = rng.random_bool(0.5);
            world.compares_state = !is_wild;
            for slot in 0..n {
                plan.at(0, Fault::ClockJump(slot, rng.random_range(-5000..5000)));
            }
            start_all(rng, &mut plan, n);
            for _ in 0..rng.random_range(1..=6) {
                let (slot, at) = (rng.random_range(0..n), rng.random_range(2000..30_000));
                let by = if is_wild {
                    rng.random_range(-7_200_000..7_200_000)
                } else {
                    rng.random_range(-4000..4000)
                };
                plan.at(at, Fault::ClockJump(slot, by));
                if rng.random_bool(0.4) {
                    plan.at(at + 10, Fault::Crash(slot));
                    plan.at(at + rng.random_range(20..5000), Fault::Start(slot));
                }
            }
            plan
        },
        sometimes: &["a node went on as a later generation"],
    },
    Family {
        name: "addresses",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            for i in 0..rng.random_range(1..=4) {
                let (slot, at) = (rng.random_range(0..n), rng.random_range(3000..30_000));
                let fresh = 100 + i;
                if rng.random_bool(0.5) {
                    // A pod returns at another address, and sometimes another pod moves to its former address.
                    let former = u16::try_from(slot).unwrap_or_default();
                    let other = rng.random_range(0..n);
                    plan.at(at, Fault::Crash(slot));
                    plan.at(at, Fault::Move(slot, fresh));
                    plan.at(at + any_of(rng, &[10, 1000, 10_000]), Fault::Start(slot));
                    if other != slot && rng.random_bool(0.5) {
                        plan.at(at + 5, Fault::Move(other, former));
                    }
                } else {
                    plan.at(at, Fault::Move(slot, fresh));
                }
            }
            plan
        },
        sometimes: &["a challenge was not answered"],
    },
    Family {
        name: "duplicate_names",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let of = rng.random_range(0..n);
            let at: u64 = any_of(rng, &[500, 3000, 10_000]);
            if rng.random_bool(0.4) {
                let groups = (0..n + 1).map(|_| rng.random_range(0..2)).collect();
                plan.at(at.saturating_sub(100), Fault::Partition(groups));
                plan.at(at + rng.random_range(1000..30_000), Fault::Heal);
            }
            plan.at(at, Fault::Namesake { of, address: 200 });
            if rng.random_bool(0.3) {
                // The holder of the name crashes: its namesake may join.
                plan.at(at + 20_000, Fault::Crash(of));
            }
            plan
        },
        sometimes: &[
            "a duplicate name was refused",
            "a holder noticed its namesake",
            "a namesake came in after the holder had gone",
        ],
    },
    Family {
        name: "foreign_cluster",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            plan.at(rng.random_range(0..10_000), Fault::Foreigner { address: 200 });
            if rng.random_bool(0.5) {
                // A pod of another cluster takes the address of one of ours.
                let slot = rng.random_range(0..n);
                plan.at(12_000, Fault::Crash(slot));
                let address = u16::try_from(slot).unwrap_or_default();
                plan.at(12_010, Fault::Foreigner { address });
            }
            plan
        },
        sometimes: &["a foreign cluster was refused", "a foreign frame was counted"],
    },
    Family {
        name: "mixed_versions",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            for slot in 0..n {
                let (major, minor) = smg_cluster::codec::VERSION;
                world.slots[slot].version =
                    any_of(rng, &[(major, minor), (major, minor + 1), (major, minor + 1)]);
            }
            if rng.random_bool(0.3) {
                world.slots[n - 1].version.0 += 1;
            }
            start_all(rng, &mut plan, n);
            let slot = rng.random_range(0..n);
            plan.at(10_000, Fault::Crash(slot));
            plan.at(12_000, Fault::Start(slot));
            plan
        },
        sometimes: &["an unknown kind was skipped", "an unknown version was refused"],
    },
    Family {
        name: "corruption",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            plan.at(1000, Fault::Corrupt(rng.random_range(0.01..0.4)));
            for _ in 0..20 {
                let (slot, at) = (rng.random_range(0..n), rng.random_range(1000..20_000));
                plan.at(at, Fault::Garbage(slot));
            }
            plan.at(rng.random_range(20_000..40_000), Fault::Heal);
            plan
        },
        sometimes: &["a corrupted frame was refused"],
    },
    Family {
        name: "leaving",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            if rng.random_bool(0.5) {
                with_disks(world);
            }
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            if rng.random_bool(0.3) {
                plan.at(2000, Fault::Drop(0.2));
                plan.at(40_000, Fault::Heal);
            }
            // A rolling restart: one node after the other leaves and returns, some at another address.
            let mut at = 5000;
            for slot in 0..n {
                let drain = any_of(rng, &[0, 200, 3000]);
                plan.at(at, Fault::Leave(slot, ms(drain)));
                if rng.random_bool(0.3) {
                    plan.at(at + drain + 200, Fault::Move(slot, 100 + rng.random_range(0..50)));
                }
                if rng.random_bool(0.8) {
                    plan.at(at + drain + rng.random_range(200..5000), Fault::Start(slot));
                }
                at += rng.random_range(500..6000);
            }
            plan
        },
        sometimes: &["a leaving member was gone"],
    },
    Family {
        name: "chaos",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            if rng.random_bool(0.5) {
                with_disks(world);
            }
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let mut last = 0;
            for _ in 0..rng.random_range(5..25) {
                let (a, b) = (rng.random_range(0..n), rng.random_range(0..n));
                let at = rng.random_range(1000..60_000);
                let fault = match rng.random_range(0..14) {
                    0 => Fault::Drop(rng.random_range(0.0..0.5)),
                    1 => Fault::Duplicate(rng.random_range(0.0..0.5)),
                    2 => Fault::Reorder(rng.random_range(0.0..0.5), ms(rng.random_range(1..5000))),
                    3 => Fault::Corrupt(rng.random_range(0.0..0.2)),
                    4 => Fault::CutOneWay(a, b),
                    5 => Fault::Partition((0..n).map(|_| rng.random_range(0..3)).collect()),
                    6 => Fault::SlowLink(a, b, ms(rng.random_range(100..5000))),
                    7 => Fault::Heal,
                    8 | 9 => {
                        plan.at(at + rng.random_range(0..20_000), Fault::Start(a));
                        Fault::Crash(a)
                    }
                    10 => Fault::ClockJump(a, rng.random_range(-15_000..5000)),
                    11 => {
                        let time = rng.random_range(100..15_000);
                        last = last.max(at + time);
                        Fault::Stall(a, ms(time))
                    }
                    12 => Fault::Move(a, 100 + rng.random_range(0..100)),
                    _ => Fault::LoseDisk(a),
                };
                plan.at(at, fault);
            }
            let last =
                plan.faults.iter().map(|(at, _)| *at).max().unwrap_or_default().max(ms(last));
            plan.faults.push((last, Fault::Heal));
            plan
        },
        sometimes: &[
            "a suspicion was refuted",
            "a suspected member went down",
            "a member that was down came back",
            "a false DOWN was renewed",
        ],
    },
    Family {
        name: "liar",
        prepare: |rng, world| {
            let n = cluster(rng, world);
            world.has_liar = true;
            let mut plan = Plan::default();
            start_all(rng, &mut plan, n);
            let end: u64 = rng.random_range(8_000..30_000);
            for _ in 0..any_of(rng, &[1, 3, 10, 100, 300]) {
                plan.at(rng.random_range(3000..end), Fault::Lie);
            }
            plan.at(end, Fault::Heal);
            plan
        },
        sometimes: &[
            "a node went on as a later generation",
            "a false DOWN was renewed",
            "an absurd claim was refused",
            "an absurd version was refused",
            "a claim was withdrawn",
            "an audit repaired rows",
        ],
    },
];
