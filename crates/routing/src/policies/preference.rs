//! Preference among the candidates for a request, for every policy alike: the dispatcher gives the policy only the preferred
//! candidates.
//!
//! A higher priority always comes first. Among candidates of the same priority, those near this router come first while they
//! are not much busier than the others: within the bound of `balance_abs_threshold` and `balance_rel_threshold`. Beyond the
//! bound all candidates of that priority are alike, and the policy decides between near and far ones.

use crate::fleet::{Proximity, Rank};
use crate::policy::{self, Candidate};

/// The rank from which on candidates are preferred. `ranks` holds the rank of each candidate. At least one candidate has the
/// resulting rank or a higher one, unless there are no candidates.
#[must_use]
pub fn least_preferred_rank(
    candidates: &[Candidate],
    ranks: &[Rank],
    config: &policy::Config,
) -> Rank {
    let Some(priority) = ranks.iter().map(|rank| rank.priority).max() else {
        return Rank::default();
    };
    let least_loaded = |proximity: Proximity| {
        let lowest = Rank { priority, proximity };
        let near = candidates.iter().zip(ranks).filter(|(_, rank)| **rank >= lowest);
        near.map(|(candidate, _)| candidate).min_by(|a, b| policy::compare_load(a, b))
    };
    let least_of_all = least_loaded(Proximity::Elsewhere);
    let is_preferred = |proximity: &Proximity| {
        least_loaded(*proximity).zip(least_of_all).is_some_and(|(near, least_of_all)| {
            policy::is_within_balance(near, least_of_all, config)
        })
    };
    let proximity = Proximity::NEAREST_FIRST.into_iter().find(is_preferred);
    Rank { priority, proximity: proximity.unwrap_or_default() }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt as _, SeedableRng as _};
    use smg_types::ids::WorkerId;

    use super::*;

    const NEAR: Proximity = Proximity::Zone;
    const FAR: Proximity = Proximity::Elsewhere;

    /// Each element is a candidate: its priority, proximity and load. The result is the indexes of the preferred ones.
    fn preferred(workers: &[(i32, Proximity, u32)]) -> Vec<usize> {
        let config = policy::Config { balance_abs_threshold: 4, ..policy::Config::default() };
        let candidate = |(at, (_, _, load)): (usize, &(i32, Proximity, u32))| {
            Candidate::new(WorkerId::from_u64(at as u64), *load, 1)
        };
        let candidates: Vec<_> = workers.iter().enumerate().map(candidate).collect();
        let ranks: Vec<_> = workers
            .iter()
            .map(|(priority, proximity, _)| Rank { priority: *priority, proximity: *proximity })
            .collect();
        let lowest = least_preferred_rank(&candidates, &ranks, &config);
        (0..workers.len()).filter(|at| ranks[*at] >= lowest).collect()
    }

    #[test]
    fn the_highest_priority_comes_first_whatever_its_load_and_place() {
        assert_eq!(preferred(&[(0, NEAR, 0), (5, FAR, 900), (5, FAR, 1), (-3, NEAR, 0)]), [1, 2]);
        assert_eq!(preferred(&[]), [0usize; 0]);
    }

    #[test]
    fn the_own_zone_then_the_own_region_come_first() {
        let region = Proximity::Region;
        assert_eq!(preferred(&[(0, FAR, 0), (0, region, 0), (0, NEAR, 0)]), [2]);
        assert_eq!(preferred(&[(0, FAR, 0), (0, region, 0), (0, FAR, 0)]), [1]);
        assert_eq!(preferred(&[(0, FAR, 0), (0, FAR, 0)]), [0, 1]);
    }

    #[test]
    fn beyond_the_balance_bound_near_and_far_are_alike() {
        // The bound: 4 requests more than the least loaded one, or half as many more.
        assert_eq!(preferred(&[(0, FAR, 0), (0, NEAR, 4)]), [1]);
        assert_eq!(preferred(&[(0, FAR, 0), (0, NEAR, 5)]), [0, 1]);
        assert_eq!(preferred(&[(0, FAR, 20), (0, NEAR, 30)]), [1]);
        // One near worker below the bound is enough.
        assert_eq!(preferred(&[(0, FAR, 0), (0, NEAR, 90), (0, NEAR, 3)]), [1, 2]);
        // A busy zone falls back on the region before the rest.
        assert_eq!(preferred(&[(0, FAR, 0), (0, Proximity::Region, 2), (0, NEAR, 90)]), [1, 2]);
    }

    #[test]
    fn some_candidate_is_always_preferred_and_all_have_the_highest_priority() {
        let mut rng = SmallRng::seed_from_u64(7);
        for _ in 0..10_000 {
            let count = rng.random_range(1..6);
            let workers: Vec<_> = (0..count)
                .map(|_| {
                    let proximity = Proximity::NEAREST_FIRST[rng.random_range(0..3)];
                    (rng.random_range(-1..2), proximity, rng.random_range(0..20))
                })
                .collect();
            let chosen = preferred(&workers);
            let highest = workers.iter().map(|(priority, ..)| *priority).max();
            assert!(!chosen.is_empty(), "{workers:?}");
            assert!(chosen.iter().all(|at| Some(workers[*at].0) == highest), "{workers:?}");
        }
    }
}
