//! Until when, and in which windows, a router uses its whole share and what it inherits, by the votes of the routers.
//!
//! A vote says until when a right may be used. It does not say what others have used in the present window. A right that begins
//! therefore counts only in windows that begin later. Each rule has a number by which the tests name it:
//!
//! * T1. A router that was without a majority is whole only in windows that begin [`CLOCK_MARGIN_MS`] after it has one again:
//!   its heir may have used the rest of its share in windows that began before.
//! * T2. An heir uses what it inherits only in windows that begin [`CLOCK_MARGIN_MS`] after its first majority of promises: the
//!   absent router may have used its whole share in windows that began before.
//! * T3. Only the first majority of a router's first life, soon after the rules, is no interruption in the sense of T1.
//! * T4. If the cluster's time steps forward, these times do so, too.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};

use crate::roster::Shares;
use crate::standing::Inherited;
use crate::votes::Votes;
use crate::windows::CLOCK_MARGIN_MS;

/// The facts at one moment from which the rights of a router follow.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// This router.
    pub me: &'a NodeId,
    /// Its votes.
    pub votes: &'a Votes,
    /// The divisions that routers may go by, of which a majority of each is needed; the settled one is the last.
    pub divisions: &'a [Shares],
    /// Whether no former life of this router has promised anything under the settled roster.
    pub is_first_life: bool,
    /// This router's monotonic clock.
    pub mono: Duration,
    /// The cluster's time, in milliseconds.
    pub cluster_ms: u64,
}

impl Moment<'_> {
    /// Until when this router may use what `absent` does not keep, by the promises of a majority of every division.
    fn heir_until(&self, absent: &NodeName) -> Option<Duration> {
        let until = self.divisions.iter().map(|division| {
            self.votes.heir_until(absent, &division.names, division.size, self.mono)
        });
        until.min().flatten()
    }

    /// Until when this router may use its whole share, by the acknowledgements of a majority of every division.
    fn whole_until(&self) -> Option<Duration> {
        let until = self.divisions.iter().map(|division| match division.size {
            ..=2 => Some(Duration::MAX),
            size => self.votes.whole_until(&division.names, size, self.mono),
        });
        until.min().flatten()
    }
}

/// The rights of one router by votes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Tenure {
    whole_until: Duration,
    whole_from_ms: u64,
    /// Since when this router has both rules and a settled roster, by its monotonic clock.
    active_since: Option<Duration>,
    /// The absent routers whose shares this one uses, each with the time from which windows count.
    heir_from_ms: BTreeMap<NodeName, u64>,
}

impl Tenure {
    /// States whether this router has both rules and a settled roster.
    pub fn activate(&mut self, is_active: bool, mono: Duration) {
        self.active_since = is_active.then(|| self.active_since.unwrap_or(mono));
    }

    /// Follows the votes. Called at least once between the end of a majority and the next one.
    pub fn follow(&mut self, moment: &Moment<'_>) {
        let Moment { me, divisions, mono, cluster_ms, .. } = *moment;
        let Some(settled) = divisions.last() else { return };
        if divisions.iter().all(|division| division.size <= 2) {
            self.whole_until = Duration::MAX;
            self.whole_from_ms = 0;
            self.heir_from_ms.clear();
            return;
        }
        if self.whole_until <= mono {
            // There was a time without a majority, even if there is one now.
            self.whole_from_ms =
                if self.is_first(moment) { 0 } else { cluster_ms + CLOCK_MARGIN_MS };
        }
        match moment.whole_until() {
            Some(until) if until > mono => self.whole_until = until,
            _ => self.whole_until = self.whole_until.min(mono),
        }
        let mut heirs = BTreeMap::new();
        for name in settled.names.iter().filter(|name| **name != me.name) {
            if moment.heir_until(name).is_some() {
                let from = self.heir_from_ms.get(name).copied();
                heirs.insert(name.clone(), from.unwrap_or(cluster_ms + CLOCK_MARGIN_MS));
            }
        }
        self.heir_from_ms = heirs;
    }

    /// Whether this router has had no majority yet, at a time before any promise of its share could have ended (T3).
    fn is_first(&self, moment: &Moment<'_>) -> bool {
        let lease = moment.votes.times().lease;
        let is_early = self.active_since.is_none_or(|since| moment.mono < since + lease);
        self.whole_until.is_zero() && is_early && moment.is_first_life
    }

    /// Moves all times by what `later` says, because the cluster's time has stepped forward (T4).
    pub fn shift(&mut self, later: impl Fn(u64) -> u64) {
        self.whole_from_ms = later(self.whole_from_ms);
        self.heir_from_ms.values_mut().for_each(|from_ms| *from_ms = later(*from_ms));
    }

    /// Until when this router is whole, by its monotonic clock, and in windows from which time of the cluster on.
    #[must_use]
    pub fn whole(&self) -> (Duration, u64) {
        (self.whole_until, self.whole_from_ms)
    }

    /// The shares that this router uses for routers that have gone.
    #[must_use]
    pub fn inherited(&self, moment: &Moment<'_>) -> Vec<Inherited> {
        let Some(settled) = moment.divisions.last() else { return Vec::new() };
        let inherited = self.heir_from_ms.iter().filter_map(|(name, from_ms)| {
            let until = moment.heir_until(name)?;
            Some(Inherited { place: settled.place(name)?, from_ms: *from_ms, until })
        });
        inherited.collect()
    }
}

#[cfg(test)]
mod tests {
    use smg_types::ids::Generation;

    use super::*;
    use crate::rows::{Beat, Heard, Promised};
    use crate::votes::Times;

    fn node(name: &str) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(1) }
    }

    /// The router `a` of the roster `a`, `b`, `c`, with its rights at one moment after the other.
    struct Router {
        me: NodeId,
        votes: Votes,
        tenure: Tenure,
        divisions: Vec<Shares>,
        is_first_life: bool,
    }

    impl Router {
        fn new() -> Self {
            let names: Vec<NodeName> = ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec();
            let mut votes = Votes::new(node("a"), Times::default(), Duration::ZERO);
            votes.abstain(false);
            let mut tenure = Tenure::default();
            tenure.activate(true, Duration::ZERO);
            let divisions = vec![Shares { size: 3, names }];
            Self { me: node("a"), votes, tenure, divisions, is_first_life: true }
        }

        fn moment(&self, at_ms: u64) -> Moment<'_> {
            Moment {
                me: &self.me,
                votes: &self.votes,
                divisions: &self.divisions,
                is_first_life: self.is_first_life,
                mono: Duration::from_millis(at_ms),
                cluster_ms: 1_000_000 + at_ms,
            }
        }

        fn follow(&mut self, at_ms: u64) {
            let mut tenure = self.tenure.clone();
            tenure.follow(&self.moment(at_ms));
            self.tenure = tenure;
        }

        /// `b` acknowledges this router's beat, and promises the share of `c` if this router has asked for it.
        fn hear(&mut self, at_ms: u64) {
            let names = self.divisions[0].names.clone();
            let mono = Duration::from_millis(at_ms);
            let claimed = self.votes.claim(&names, mono);
            let promises = claimed
                .into_iter()
                .filter(|absent| absent.as_str() == "c")
                .map(|absent| Promised { absent, heir: node("a"), heir_at_ms: at_ms });
            let heard = vec![Heard { of: node("a"), at_ms }];
            let beat = Beat { at_ms, heard, promises: promises.collect(), ..Beat::default() };
            self.votes.receive(&node("b"), &beat, &names, mono);
            self.follow(at_ms);
        }

        fn inherits_from(&self, at_ms: u64) -> Vec<u64> {
            let inherited = self.tenure.inherited(&self.moment(at_ms));
            inherited.iter().map(|inherited| inherited.from_ms).collect()
        }
    }

    #[test]
    fn t1_a_router_that_was_without_a_majority_is_whole_in_later_windows() {
        let mut router = Router::new();
        router.hear(1_000);
        assert_eq!(router.tenure.whole(), (Duration::from_secs(9), 0));
        router.hear(8_000);
        assert_eq!(router.tenure.whole(), (Duration::from_secs(16), 0));
        // It has not looked while it was without a majority.
        router.hear(16_000);
        assert_eq!(router.tenure.whole(), (Duration::from_secs(24), 1_022_000));
        router.follow(25_000);
        router.hear(30_000);
        assert_eq!(router.tenure.whole(), (Duration::from_secs(38), 1_036_000));
    }

    #[test]
    fn t2_an_heir_inherits_in_later_windows() {
        let mut router = Router::new();
        for at_ms in [1_000, 6_000, 12_000, 16_000] {
            router.hear(at_ms);
        }
        assert_eq!(router.inherits_from(16_000), vec![1_018_000], "from its first majority on");
        assert_eq!(router.inherits_from(24_000), Vec::<u64>::new(), "the promise has ended");
        router.follow(24_000);
        router.hear(30_000);
        assert_eq!(router.inherits_from(30_000), vec![1_036_000]);
    }

    #[test]
    fn t3_only_the_first_majority_of_a_first_life_is_no_interruption() {
        let mut former = Router { is_first_life: false, ..Router::new() };
        former.hear(1_000);
        assert_eq!(former.tenure.whole().1, 1_007_000);
        let mut late = Router::new();
        late.hear(8_000);
        assert_eq!(late.tenure.whole().1, 1_014_000, "an heir may have had its share");
        let mut waiting = Router::new();
        waiting.tenure.activate(false, Duration::from_secs(10));
        waiting.tenure.activate(true, Duration::from_secs(20));
        waiting.hear(21_000);
        assert_eq!(waiting.tenure.whole().1, 0, "without rules nobody inherits");
    }

    #[test]
    fn t4_all_times_move_with_the_time_of_the_cluster() {
        let mut router = Router::new();
        for at_ms in [9_000, 10_000] {
            router.hear(at_ms);
        }
        assert_eq!(
            (router.tenure.whole().1, router.inherits_from(10_000)),
            (1_015_000, vec![1_015_000])
        );
        router.tenure.shift(|from_ms| from_ms + 5_000);
        assert_eq!(
            (router.tenure.whole().1, router.inherits_from(10_000)),
            (1_020_000, vec![1_020_000])
        );
    }
}
