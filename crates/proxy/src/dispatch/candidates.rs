//! Selects the workers that the policy may pick for the next attempt.

use std::collections::BTreeMap;
use std::time::Duration;

use smallvec::SmallVec;
use smg_routing::fleet::{self, Ejection, Fitness, Member, Rank};
use smg_routing::policies::{self, Entry};
use smg_routing::policy::{self, Candidate};
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use super::standing::Standing;

/// The candidates for one attempt.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The candidates that the policy picks from.
    pub(super) list: SmallVec<[Candidate; 16]>,
    /// For each candidate, its index among the members.
    pub(super) members: SmallVec<[u32; 16]>,
    /// The candidates are ejected workers: all others are out, and these are the least bad.
    pub(super) anyway: bool,
    /// A worker was left out only because it is at its own `max_concurrent`.
    pub(super) full: bool,
    /// Candidates, and their indexes among the members, that the policy gets only once the list is empty.
    less_preferred: SmallVec<[(Candidate, u32); 16]>,
}

/// The members that can serve now and were not tried yet. Workers that push back are candidates only if there are no
/// others. If passive signals (breakers, connect errors) eject more than `max_ejection_percent` of the members, the least
/// bad of the ejected are candidates. `weights` override the weights in the workers' specs. `left_out` receives each member that
/// is not a candidate and was not tried, with the reason.
pub(super) fn of(
    members: &[Member],
    tried: &[WorkerId],
    now: Now,
    config: &fleet::Config,
    weights: &BTreeMap<WorkerId, u32>,
    left_out: &mut impl FnMut(u32, Standing),
) -> Candidates {
    let mut found = Candidates::default();
    let mut ejected: SmallVec<[EjectedMember; 16]> = SmallVec::new();
    let mut pushing_back: SmallVec<[u32; 16]> = SmallVec::new();
    let (mut considered, mut out) = (0usize, 0usize);
    for (at, member) in (0u32..).zip(members) {
        match member.worker.fitness(now, &config.breaker) {
            Fitness::Out(outage) => {
                left_out(at, Standing::Out(outage));
                continue;
            }
            Fitness::Full => {
                found.full = true;
                left_out(at, Standing::Full);
            }
            Fitness::Fit | Fitness::PushesBack if tried.contains(&member.worker.id) => {}
            Fitness::Fit => found.push(at, member, weights, now),
            Fitness::PushesBack => pushing_back.push(at),
            Fitness::Ejected { since, by } => {
                out += 1;
                if !tried.contains(&member.worker.id) {
                    ejected.push((by == Ejection::Unreachable, since, at, by));
                }
            }
        }
        considered += 1;
    }
    let is_last_resort = found.list.is_empty();
    for at in pushing_back {
        if is_last_resort {
            // They are overloaded, but they work.
            found.push(at, &members[at as usize], weights, now);
        } else {
            left_out(at, Standing::PushesBack);
        }
    }
    let allowed = considered * usize::from(config.max_ejection_percent) / 100;
    let back = if found.list.is_empty() { out.saturating_sub(allowed) } else { 0 };
    found.anyway = back > 0;
    if back > 0 {
        // Reachable workers first, then those ejected for the longest time.
        ejected.sort_unstable();
    }
    for (nth, (_, _, at, by)) in ejected.into_iter().enumerate() {
        if nth < back {
            found.push(at, &members[at as usize], weights, now);
        } else {
            left_out(at, Standing::Ejected(by));
        }
    }
    found
}

/// Whether an ejected member could not be reached, since when it is ejected, its index, and what ejected it.
type EjectedMember = (bool, Duration, u32, Ejection);

impl Candidates {
    fn push(&mut self, at: u32, member: &Member, weights: &BTreeMap<WorkerId, u32>, now: Now) {
        let worker = &member.worker;
        // Usually no weight is overridden.
        let set = if weights.is_empty() { None } else { weights.get(&worker.id) };
        let weight = set.copied().unwrap_or_else(|| worker.spec.weight.get());
        self.list.push(policies::candidate(worker, weight, now));
        self.members.push(at);
    }

    /// Keeps the preferred candidates in the list, and puts the others aside.
    pub(super) fn prefer(&mut self, members: &[Member], entry: &Entry) {
        let ranks: SmallVec<[Rank; 16]> =
            self.members.iter().map(|at| members[*at as usize].rank).collect();
        let lowest = entry.least_preferred_rank(&self.list, &ranks);
        for index in (0..ranks.len()).rev().filter(|index| ranks[*index] < lowest) {
            self.less_preferred.push((self.list.remove(index), self.members.remove(index)));
        }
    }

    /// Removes a candidate that has reached its limit since it was listed. After the last preferred one, the others are
    /// listed, again the preferred ones among them.
    pub(super) fn remove(&mut self, index: usize, members: &[Member], entry: &Entry) {
        self.list.swap_remove(index);
        self.members.swap_remove(index);
        if self.list.is_empty() && !self.less_preferred.is_empty() {
            (self.list, self.members) = self.less_preferred.drain(..).rev().unzip();
            self.prefer(members, entry);
        }
    }

    /// The shortest time that the request would wait for the prompts before it at any candidate; `None`: there are none.
    pub(super) fn shortest_wait(&self) -> Option<Duration> {
        policy::shortest_wait(self.all().map(|(candidate, _)| candidate))
    }

    /// All candidates with their indexes among the members, the preferred ones first.
    pub(super) fn all(&self) -> impl Iterator<Item = (&Candidate, u32)> + Clone {
        let preferred = self.list.iter().zip(self.members.iter().copied());
        preferred.chain(self.less_preferred.iter().map(|(candidate, at)| (candidate, *at)))
    }

    /// Whether there is more than one candidate, preferred or not.
    pub(super) fn has_several(&self) -> bool {
        self.list.len() + self.less_preferred.len() > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smg_routing::fleet::{Fleet, Metrics, Outcome, ProbeResult, ServedBy};
    use smg_types::ids::ModelId;
    use smg_types::spec::WorkerSpec;

    const NOW: Now = Now::at(Duration::from_secs(1000));

    /// `n` ready workers that serve `m`, of which the first `open` have an open breaker.
    fn fleet(n: usize, open: usize) -> Fleet {
        let fleet = Fleet::new(
            fleet::Config::default(),
            Metrics::register(&prometheus::Registry::new()).unwrap(),
        );
        for at in 0..n {
            let url = format!("http://w{at}").parse().unwrap();
            let id = fleet
                .register(WorkerSpec { models: vec![ModelId::from("m")], ..WorkerSpec::new(url) })
                .unwrap();
            fleet.report_probe(id, ProbeResult::Good);
            if at < open {
                let worker = std::sync::Arc::clone(fleet.load().worker(id).unwrap());
                for _ in 0..10 {
                    let guard = worker.begin(NOW, &fleet.config().breaker, false).unwrap();
                    let _mode = guard.end(Outcome::Failure, NOW, &fleet.config().breaker);
                }
            }
        }
        fleet
    }

    fn candidates(fleet: &Fleet, tried: &[WorkerId], config: &fleet::Config) -> (usize, bool) {
        let snapshot = fleet.load();
        let ServedBy::Members(members) = snapshot.served_by(Some("m")) else {
            panic!("nobody serves")
        };
        let found = of(members, tried, NOW, config, &BTreeMap::new(), &mut |_, _| {});
        (found.list.len(), found.anyway)
    }

    #[test]
    fn those_with_an_open_breaker_are_out() {
        let fleet = fleet(4, 2);
        assert_eq!(candidates(&fleet, &[], fleet.config()), (2, false));
    }

    #[test]
    fn never_is_everybody_ejected() {
        assert_eq!(candidates(&fleet(1, 1), &[], &fleet::Config::default()), (1, true));
        assert_eq!(candidates(&fleet(4, 4), &[], &fleet::Config::default()), (2, true));
        let strict = fleet::Config { max_ejection_percent: 100, ..fleet::Config::default() };
        assert_eq!(candidates(&fleet(4, 4), &[], &strict), (0, false));
    }

    #[test]
    fn those_that_push_back_are_the_last_resort() {
        let fleet = fleet(3, 1);
        let workers = fleet.snapshot();
        let [_, second, third] = workers.workers() else { panic!("three workers") };
        let fit: Vec<_> = [second, third]
            .into_iter()
            .filter(|w| w.breaker_mode(NOW, &fleet.config().breaker) == fleet::BreakerMode::Closed)
            .collect();
        fit[0].push_back(NOW, Duration::from_secs(1));
        assert_eq!(candidates(&fleet, &[], fleet.config()).0, 3 - 1 - 1);
        for worker in workers.workers() {
            worker.push_back(NOW, Duration::from_secs(1));
        }
        assert_eq!(candidates(&fleet, &[], fleet.config()), (2, false));
        assert_eq!(candidates(&fleet, &[fit[0].id], fleet.config()), (1, false));
    }

    #[test]
    fn those_tried_are_out() {
        let fleet = fleet(2, 0);
        let first = fleet.load().workers()[0].id;
        assert_eq!(candidates(&fleet, &[first], fleet.config()), (1, false));
    }
}
