//! Whose word counts about a worker, and who asks it.
//!
//! A few routers ask each worker, chosen by rendezvous hashing over those that are there, so that all agree on who does
//! without a word, and probes don't grow with the number of routers. Of what the others see, the majority counts, and of
//! those only who has seen anything; a tie speaks for the worker. So no single router can take a worker from the others.

use smg_cluster::state::State;
use smg_cluster::state::observation::{Observation, SeenBreaker, SeenHealth};
use smg_routing::fleet::{BreakerMode, RemoteView};
use smg_types::ids::{NodeId, NodeName, WorkerId};

/// What the routers but `me` say of a worker, put together.
pub(super) fn heard(
    state: &State,
    me: &NodeId,
    id: WorkerId,
    probed_elsewhere: bool,
) -> RemoteView {
    let others = |node: &NodeId| node.name != me.name;
    let loads = state.loads(id).filter(|(node, _)| others(node));
    let in_flight = loads.fold(0u32, |sum, (_, load)| sum.saturating_add(load.requests));
    let seen = state.observations(id).filter(|(node, _)| others(node));
    let (health, breaker) = judge(seen.map(|(_, seen)| seen));
    RemoteView { in_flight, health, breaker, probed_elsewhere }
}

/// What several routers' observations of one worker mean: its health, and the most closed of their breakers.
fn judge<'a>(seen: impl Iterator<Item = &'a Observation>) -> (Option<bool>, Option<BreakerMode>) {
    let (mut good, mut bad, mut serving) = (0u32, 0u32, 0u32);
    let (mut open, mut half_open) = (0u32, 0u32);
    for seen in seen {
        match seen.health {
            SeenHealth::Healthy => good += 1,
            SeenHealth::Unhealthy => bad += 1,
            SeenHealth::Unknown => {}
        }
        match seen.breaker {
            SeenBreaker::Open => open += 1,
            SeenBreaker::HalfOpen => half_open += 1,
            SeenBreaker::Serving => serving += 1,
            SeenBreaker::Closed => {}
        }
    }
    let breaker = if open > serving {
        Some(BreakerMode::Open)
    } else {
        (open + half_open > 0).then_some(BreakerMode::HalfOpen)
    };
    ((good + bad > 0).then_some(bad <= good), breaker)
}

/// Whether `me` is none of the `count` routers of `present` (which it is one of) that ask a worker.
pub(super) fn is_asked_elsewhere(
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
    use super::*;

    /// Each word is a router: `+`, `-` or `?` for its probes, `c`, `s`, `h` or `o` for its breaker.
    fn judged(routers: &str) -> (Option<bool>, Option<BreakerMode>) {
        let seen = routers.split_whitespace().map(|router| Observation {
            health: match router.as_bytes()[0] {
                b'+' => SeenHealth::Healthy,
                b'-' => SeenHealth::Unhealthy,
                _ => SeenHealth::Unknown,
            },
            breaker: match router.as_bytes()[1] {
                b's' => SeenBreaker::Serving,
                b'h' => SeenBreaker::HalfOpen,
                b'o' => SeenBreaker::Open,
                _ => SeenBreaker::Closed,
            },
            latency_us: 0,
            restarts: 0,
            seen_ms: 0,
        });
        judge(seen.collect::<Vec<_>>().iter())
    }

    #[test]
    fn the_majority_of_those_who_have_seen_something_counts_and_a_tie_is_for_the_worker() {
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
    fn as_many_routers_ask_as_should_and_workers_are_spread() {
        let names: Vec<NodeName> = (0..7).map(|n| format!("r{n}").parse().unwrap()).collect();
        let mut asks = [0; 7];
        for worker in 0..700 {
            let id = WorkerId::of_url(&format!("http://w{worker}:80"));
            let asking: Vec<usize> =
                (0..7).filter(|n| !is_asked_elsewhere(&names[*n], &names, 2, id)).collect();
            assert_eq!(asking.len(), 2);
            asking.iter().for_each(|n| asks[*n] += 1);
        }
        assert!(asks.iter().all(|n| (140..=260).contains(n)), "{asks:?}");
        let alone = &names[..1];
        assert!(!is_asked_elsewhere(&names[0], alone, 2, WorkerId::from_u64(1)));
    }

    #[test]
    fn who_leaves_changes_only_what_it_asked() {
        let names: Vec<NodeName> = (0..5).map(|n| format!("r{n}").parse().unwrap()).collect();
        let left = &names[..4];
        for worker in 0..200 {
            let id = WorkerId::from_u64(worker * 7919);
            for name in left {
                let before = is_asked_elsewhere(name, &names, 2, id);
                let after = is_asked_elsewhere(name, left, 2, id);
                assert!(before || !after, "who asked goes on asking");
            }
        }
    }
}
