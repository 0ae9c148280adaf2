//! The health of workers as routers share it: the translation between what the fleet measures and what the cluster stores,
//! the verdict on the reports of other routers, and the choice of the routers that probe a worker.
//!
//! `--health-probers` routers probe each worker. Rendezvous hashing over the present routers chooses them, so all routers
//! agree on them without a message, and the number of probes does not grow with the number of routers. A router without
//! other routers probes all workers, has no reports, and decides by its own probes and breakers alone.
//!
//! Of the other routers' reports on the health of a worker, the majority decides. A router that does not probe the worker
//! reports no health and does not count. A tie counts as healthy.

use smg_cluster::state::State;
use smg_cluster::state::observation::{Observation, SeenBreaker, SeenHealth};
use smg_routing::fleet::{self, BreakerMode, LocalView, RemoteView};
use smg_types::ids::{NodeId, NodeName, WorkerId};
use smg_types::now::Now;

/// What one router has measured of a worker, in the terms of the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Measured {
    /// The result of the router's probes; `None`: the router has no result of its own.
    pub(super) health: Option<bool>,
    pub(super) breaker: BreakerMode,
    /// A request succeeded within the last 10 s, and none has failed since.
    pub(super) serving: bool,
}

impl From<&LocalView> for Measured {
    fn from(view: &LocalView) -> Self {
        Self { health: view.health, breaker: view.breaker, serving: view.serving }
    }
}

impl From<&Observation> for Measured {
    fn from(seen: &Observation) -> Self {
        let health = match seen.health {
            SeenHealth::Unknown => None,
            SeenHealth::Healthy => Some(true),
            SeenHealth::Unhealthy => Some(false),
        };
        let (breaker, serving) = match seen.breaker {
            SeenBreaker::Closed => (BreakerMode::Closed, false),
            SeenBreaker::Serving => (BreakerMode::Closed, true),
            SeenBreaker::HalfOpen => (BreakerMode::HalfOpen, false),
            SeenBreaker::Open => (BreakerMode::Open, false),
        };
        Self { health, breaker, serving }
    }
}

/// The row in which this router publishes what it has measured of a worker.
pub(super) fn observation(view: &LocalView, now: Now) -> Observation {
    let Measured { health, breaker, serving } = view.into();
    Observation {
        health: match health {
            None => SeenHealth::Unknown,
            Some(true) => SeenHealth::Healthy,
            Some(false) => SeenHealth::Unhealthy,
        },
        breaker: match breaker {
            BreakerMode::Closed if serving => SeenBreaker::Serving,
            BreakerMode::Closed => SeenBreaker::Closed,
            BreakerMode::HalfOpen => SeenBreaker::HalfOpen,
            BreakerMode::Open => SeenBreaker::Open,
        },
        latency_us: view
            .latency
            .map_or(0, |latency| u32::try_from(latency.as_micros()).unwrap_or(u32::MAX)),
        restarts: view.cold_count,
        seen_ms: u64::try_from(now.wall.as_millis()).unwrap_or(u64::MAX),
    }
}

/// Combines the reports of all routers but `me` on a worker.
pub(super) fn combined_reports(
    state: &State,
    me: &NodeId,
    id: WorkerId,
    probed_elsewhere: bool,
) -> RemoteView {
    let others = |node: &NodeId| node.name != me.name;
    let loads = state.loads(id).filter(|(node, _)| others(node));
    let load = loads.fold(fleet::Load::default(), |sum, (_, load)| fleet::Load {
        requests: sum.requests.saturating_add(load.requests),
        waiting_tokens: sum
            .waiting_tokens
            .saturating_add(u32::try_from(load.tokens).unwrap_or(u32::MAX)),
    });
    let seen = state.observations(id).filter(|(node, _)| others(node));
    let (health, breaker) = judge(seen.map(|(_, seen)| seen.into()));
    RemoteView { load, health, breaker, probed_elsewhere }
}

/// The health and the breaker that follow from several routers' measurements of one worker; `None`: no router has measured
/// its health, or all breakers are closed. The breaker counts as open if more routers have an open breaker than have had a
/// success within the last 10 s.
fn judge(measured: impl Iterator<Item = Measured>) -> (Option<bool>, Option<BreakerMode>) {
    let (mut good, mut bad, mut serving) = (0u32, 0u32, 0u32);
    let (mut open, mut half_open) = (0u32, 0u32);
    for router in measured {
        match router.health {
            Some(true) => good += 1,
            Some(false) => bad += 1,
            None => {}
        }
        match router.breaker {
            BreakerMode::Open => open += 1,
            BreakerMode::HalfOpen => half_open += 1,
            BreakerMode::Closed => serving += u32::from(router.serving),
        }
    }
    let breaker = if open > serving {
        Some(BreakerMode::Open)
    } else {
        (open + half_open > 0).then_some(BreakerMode::HalfOpen)
    };
    ((good + bad > 0).then_some(bad <= good), breaker)
}

/// Whether the `count` routers that probe a worker are all other routers than `me`. `present` holds the names of all present
/// routers, `me` included. False if `me` is the only router.
pub(super) fn is_probed_elsewhere(
    me: &NodeName,
    present: &[NodeName],
    count: usize,
    id: WorkerId,
) -> bool {
    let score = |name: &NodeName| {
        (xxhash_rust::xxh3::xxh3_64_with_seed(name.as_str().as_bytes(), id.as_u64()), name.clone())
    };
    let own = score(me);
    present.iter().filter(|name| *name != me && score(name) > own).count() >= count
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Each word is a router: `+`, `-` or `?` for its probes, `c`, `s`, `h` or `o` for its breaker.
    fn measured(router: &str) -> Measured {
        let (breaker, serving) = match router.as_bytes()[1] {
            b's' => (BreakerMode::Closed, true),
            b'h' => (BreakerMode::HalfOpen, false),
            b'o' => (BreakerMode::Open, false),
            _ => (BreakerMode::Closed, false),
        };
        let health = match router.as_bytes()[0] {
            b'+' => Some(true),
            b'-' => Some(false),
            _ => None,
        };
        Measured { health, breaker, serving }
    }

    fn judged(routers: &str) -> (Option<bool>, Option<BreakerMode>) {
        judge(routers.split_whitespace().map(measured))
    }

    #[test]
    fn the_majority_of_the_routers_that_have_probed_decides_and_a_tie_counts_as_healthy() {
        assert_eq!(judged(""), (None, None));
        assert_eq!(judged("?c ?c"), (None, None));
        assert_eq!(judged("+c ?c"), (Some(true), None));
        assert_eq!(judged("-c ?c"), (Some(false), None));
        assert_eq!(judged("+c -c"), (Some(true), None));
        assert_eq!(judged("-c +c -c"), (Some(false), None));
        assert_eq!(judged("?o ?c ?c"), (None, Some(BreakerMode::Open)));
        assert_eq!(judged("?o ?s"), (None, Some(BreakerMode::HalfOpen)));
        assert_eq!(judged("?o ?s ?o"), (None, Some(BreakerMode::Open)));
        assert_eq!(judged("?h ?s"), (None, Some(BreakerMode::HalfOpen)));
    }

    #[test]
    fn a_measurement_survives_its_way_through_the_cluster() {
        let now = Now { mono: Duration::ZERO, wall: Duration::from_millis(7) };
        for health in ["+", "-", "?"] {
            for breaker in ["c", "s", "h", "o"] {
                let measured = measured(&format!("{health}{breaker}"));
                let view = LocalView {
                    health: measured.health,
                    breaker: measured.breaker,
                    serving: measured.serving,
                    latency: Some(Duration::from_micros(9)),
                    cold_count: 3,
                    load: fleet::Load::default(),
                };
                let row = observation(&view, now);
                assert_eq!(Measured::from(&row), measured, "{row:?}");
                assert_eq!((row.latency_us, row.restarts, row.seen_ms), (9, 3, 7));
            }
        }
    }

    #[test]
    fn each_worker_has_its_count_of_probers_and_workers_are_spread_over_the_routers() {
        let names: Vec<NodeName> = (0..7).map(|n| format!("r{n}").parse().unwrap()).collect();
        let mut probes = [0; 7];
        for worker in 0..700 {
            let id = WorkerId::of_url(&format!("http://w{worker}:80"));
            let probers: Vec<usize> =
                (0..7).filter(|n| !is_probed_elsewhere(&names[*n], &names, 2, id)).collect();
            assert_eq!(probers.len(), 2);
            probers.iter().for_each(|n| probes[*n] += 1);
        }
        assert!(probes.iter().all(|n| (140..=260).contains(n)), "{probes:?}");
        let alone = &names[..1];
        assert!(!is_probed_elsewhere(&names[0], alone, 2, WorkerId::from_u64(1)));
    }

    #[test]
    fn a_router_that_leaves_changes_only_the_probers_of_its_workers() {
        let names: Vec<NodeName> = (0..5).map(|n| format!("r{n}").parse().unwrap()).collect();
        let left = &names[..4];
        for worker in 0..200 {
            let id = WorkerId::from_u64(worker * 7919);
            for name in left {
                let before = is_probed_elsewhere(name, &names, 2, id);
                let after = is_probed_elsewhere(name, left, 2, id);
                assert!(before || !after, "a router that probes a worker goes on probing it");
            }
        }
    }
}
