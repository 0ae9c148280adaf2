//! Votes on the shares of routers that have gone.
//!
//! A router uses its whole share only while a majority of the roster has acknowledged a beat of it that it sent within
//! [`Times::ttl`]; without that, only [`KEPT`] of it. A router that has heard nothing of another one for that long may promise to
//! one heir not to acknowledge the absent router's beats for a while. An heir with the promises of a majority uses what the
//! absent router does not keep. Any two majorities share a router, which either acknowledges the one or has promised to the
//! other, so that the two are never used at the same time. After PaxosLease (Trenčík, Lamport and others, 2012):
//! nothing is stored on disk, and a router that has restarted abstains until all that it may have promised has ended.
//!
//! Each rule has a number by which the tests name it:
//!
//! * V1. A voter counts a router as absent only after [`Times::ttl`] and [`DRIFT`] more, since clocks differ in speed.
//! * V2. A voter that has promised a router's share does not acknowledge that router's beats until the promise ends.
//! * V3. A voter promises a share to one heir at a time.
//! * V4. A router that has started less than the longer one of the two times ago neither acknowledges nor promises.
//! * V5. An acknowledgement counts from the sending of the beat, and a promise from the sending of the claim.
//! * V6. The heir uses only what the absent router does not keep.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::{Generation, NodeId, NodeName};

use crate::rows::{Beat, Heard, Promised};

/// The part of its share that a router keeps without a majority, as a fraction.
pub const KEPT: (u64, u64) = (1, 4);

/// The periods of the votes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// How long an acknowledgement counts.
    pub ttl: Duration,
    /// How long a promise counts.
    pub lease: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(8), lease: Duration::from_secs(8) }
    }
}

/// How much longer than its holder a voter takes a period to be, since no two clocks run equally fast: one part in a hundred.
pub const DRIFT: u32 = 100;

fn with_drift(time: Duration) -> Duration {
    time + time / DRIFT
}

/// The units of a share that a router keeps without a majority.
#[must_use]
pub const fn kept(share: u64) -> u64 {
    // The parts of a share must not overflow: shares may be as large as a limit.
    share / KEPT.1 * KEPT.0 + share % KEPT.1 * KEPT.0 / KEPT.1
}

/// A beat that was received.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct LastBeat {
    generation: Generation,
    at_ms: u64,
    /// By this router's monotonic clock.
    received: Duration,
}

/// A promise that this router has made.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Promise {
    heir: NodeId,
    heir_at_ms: u64,
    until: Duration,
}

/// The state of the votes of one router.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Votes {
    me: NodeId,
    times: Times,
    started: Duration,
    /// Since when beats come regularly, because there are rules.
    active: Option<Duration>,
    /// Whether a former life of this router may have promised something.
    may_have_promised: bool,
    last: BTreeMap<NodeName, LastBeat>,
    /// The latest beat of this router that each voter has acknowledged, by this router's clock.
    acknowledged: BTreeMap<NodeName, u64>,
    promises: BTreeMap<NodeName, Promise>,
    /// The promises that this router has from others: by absent router and voter, the time of the claim.
    received: BTreeMap<NodeName, BTreeMap<NodeName, u64>>,
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Votes {
    /// The votes of a router that starts at `now`, by its monotonic clock.
    #[must_use]
    pub fn new(me: NodeId, times: Times, now: Duration) -> Self {
        Self {
            me,
            times,
            started: now,
            active: Some(now),
            may_have_promised: true,
            last: BTreeMap::new(),
            acknowledged: BTreeMap::new(),
            promises: BTreeMap::new(),
            received: BTreeMap::new(),
        }
    }

    /// The periods of the votes.
    #[must_use]
    pub fn times(&self) -> Times {
        self.times
    }

    /// Whether this router still abstains after its start (V4).
    #[must_use]
    pub fn abstains(&self, now: Duration) -> bool {
        let longer = with_drift(self.times.ttl.max(self.times.lease));
        self.may_have_promised && now < self.started + longer
    }

    /// States whether a former life of this router may have promised something under the present roster.
    pub fn abstain(&mut self, may_have_promised: bool) {
        self.may_have_promised = may_have_promised;
    }

    /// States whether there are rules. Without rules beats are rare, so that their absence means nothing.
    pub fn activate(&mut self, has_rules: bool, now: Duration) {
        self.active = has_rules.then(|| self.active.unwrap_or(now));
    }

    /// Applies the beat of another router; `names` are those of the roster.
    pub fn receive(&mut self, from: &NodeId, beat: &Beat, names: &[NodeName], now: Duration) {
        let is_news = self
            .last
            .get(&from.name)
            .is_none_or(|last| (last.generation, last.at_ms) < (from.generation, beat.at_ms));
        if !is_news {
            return;
        }
        let last = LastBeat { generation: from.generation, at_ms: beat.at_ms, received: now };
        self.last.insert(from.name.clone(), last);
        for heard in beat.heard.iter().filter(|heard| heard.of == self.me) {
            let known = self.acknowledged.entry(from.name.clone()).or_default();
            // A beat of the future was never sent.
            *known = heard.at_ms.min(millis(now)).max(*known);
        }
        for promised in beat.promises.iter().filter(|promised| promised.heir == self.me) {
            let voters = self.received.entry(promised.absent.clone()).or_default();
            let known = voters.entry(from.name.clone()).or_default();
            *known = promised.heir_at_ms.min(millis(now)).max(*known);
        }
        for absent in beat.claims.iter().filter(|absent| names.contains(absent)) {
            self.consider(absent, from, beat.at_ms, now);
        }
    }

    /// Promises the share of `absent` to `heir`, if this router may.
    fn consider(&mut self, absent: &NodeName, heir: &NodeId, heir_at_ms: u64, now: Duration) {
        if self.abstains(now) || !self.is_absent(absent, now) || *absent == heir.name {
            return;
        }
        if self
            .promises
            .get(absent)
            .is_some_and(|promise| promise.heir != *heir && now < promise.until)
        {
            return;
        }
        let until = now + with_drift(self.times.lease);
        let promise = Promise { heir: heir.clone(), heir_at_ms, until };
        self.promises.insert(absent.clone(), promise);
    }

    /// Whether this router has heard nothing of `name` for so long that its share may be promised (V1).
    #[must_use]
    pub fn is_absent(&self, name: &NodeName, now: Duration) -> bool {
        let Some(active) = self.active else { return false };
        let since = self.last.get(name).map_or(self.started, |last| last.received).max(active);
        *name != self.me.name && now >= since + with_drift(self.times.ttl)
    }

    /// The beats that this router acknowledges (V2, V4).
    #[must_use]
    pub fn acknowledgements(&self, now: Duration) -> Vec<Heard> {
        if self.abstains(now) {
            return Vec::new();
        }
        let is_promised =
            |name: &NodeName| self.promises.get(name).is_some_and(|promise| now < promise.until);
        let heard = self
            .last
            .iter()
            .filter(|(name, last)| !is_promised(name) && now < last.received + self.times.ttl * 2);
        heard
            .map(|(name, last)| Heard {
                of: NodeId { name: name.clone(), generation: last.generation },
                at_ms: last.at_ms,
            })
            .collect()
    }

    /// The promises of this router that have not ended. A promise to itself is one, too.
    pub fn promises(&mut self, now: Duration) -> Vec<Promised> {
        self.promises.retain(|_, promise| now < promise.until);
        let promises = self.promises.iter().map(|(absent, promise)| Promised {
            absent: absent.clone(),
            heir: promise.heir.clone(),
            heir_at_ms: promise.heir_at_ms,
        });
        promises.collect()
    }

    /// Forgets acknowledgements and promises that no longer count.
    pub fn forget_ended(&mut self, now: Duration) {
        let Times { ttl, lease } = self.times;
        let counts = |at_ms: u64, time| now < Duration::from_millis(at_ms) + time;
        self.acknowledged.retain(|_, at_ms| counts(*at_ms, ttl));
        self.received.values_mut().for_each(|votes| votes.retain(|_, at_ms| counts(*at_ms, lease)));
        self.received.retain(|_, votes| !votes.is_empty());
    }

    /// The routers of the roster `names` whose shares this router should ask for with the beat that it writes now: those that
    /// are absent, if this router is the first one of the roster that is not. It votes for itself at once.
    pub fn claim(&mut self, names: &[NodeName], now: Duration) -> Vec<NodeName> {
        let first = names.iter().find(|name| !self.is_absent(name, now));
        if first != Some(&self.me.name) {
            return Vec::new();
        }
        let absent: Vec<NodeName> =
            names.iter().filter(|name| self.is_absent(name, now)).cloned().collect();
        let me = self.me.clone();
        for name in &absent {
            self.consider(name, &me, millis(now), now);
        }
        absent
    }

    /// Until when this router may use its whole share, by its monotonic clock: as long as the acknowledgements of a
    /// majority of `size` routers count, its own among them (V5).
    #[must_use]
    pub fn whole_until(&self, names: &[NodeName], size: u32, now: Duration) -> Option<Duration> {
        let others = names.iter().filter_map(|name| self.acknowledged.get(name).copied());
        self.majority(others.chain([millis(now)]), size).map(|at| at + self.times.ttl)
    }

    /// Until when this router may use what `absent` does not keep, by its monotonic clock.
    #[must_use]
    pub fn heir_until(
        &self,
        absent: &NodeName,
        names: &[NodeName],
        size: u32,
        now: Duration,
    ) -> Option<Duration> {
        let votes = self.received.get(absent);
        let others = names.iter().filter_map(|name| votes?.get(name).copied());
        let own = self.promises.get(absent);
        let own = own.filter(|promise| promise.heir == self.me && now < promise.until);
        let until = self.majority(others.chain(own.map(|own| own.heir_at_ms)), size);
        until.map(|at| at + self.times.lease).filter(|until| now < *until)
    }

    /// How many routers of the roster have acknowledged anything since this router started, itself included.
    #[must_use]
    pub fn contacts(&self, names: &[NodeName]) -> usize {
        names.iter().filter(|name| **name == self.me.name || self.last.contains_key(*name)).count()
    }

    /// The time that a majority of `size` has reached.
    #[expect(clippy::unused_self, reason = "reads like the other questions")]
    fn majority(&self, times: impl Iterator<Item = u64>, size: u32) -> Option<Duration> {
        let mut times: Vec<u64> = times.collect();
        times.sort_unstable_by(|a, b| b.cmp(a));
        let needed = usize::try_from(size / 2).ok()?;
        times.get(needed).map(|at| Duration::from_millis(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(1) }
    }

    fn names() -> Vec<NodeName> {
        ["a", "b", "c"].map(|name| name.parse().unwrap()).to_vec()
    }

    /// Votes that no longer abstain at ten seconds.
    fn votes(name: &str) -> Votes {
        Votes::new(node(name), Times::default(), Duration::ZERO)
    }

    fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn v1_a_voter_waits_longer_than_the_holder() {
        let mut voter = votes("a");
        let beat = Beat { at_ms: 20_000, ..Beat::default() };
        voter.receive(&node("c"), &beat, &names(), seconds(20));
        assert!(!voter.is_absent(&"c".parse().unwrap(), seconds(28)));
        assert!(voter.is_absent(&"c".parse().unwrap(), seconds(29)));
    }

    #[test]
    fn v2_a_promised_router_is_not_acknowledged() {
        let mut voter = votes("a");
        let claim = Beat { at_ms: 20_000, claims: vec!["c".parse().unwrap()], ..Beat::default() };
        voter.receive(&node("b"), &claim, &names(), seconds(20));
        assert_eq!(voter.promises(seconds(20)).len(), 1);
        let late = Beat { at_ms: 21_000, ..Beat::default() };
        voter.receive(&node("c"), &late, &names(), seconds(21));
        let of_c = |votes: &Votes, at| {
            votes.acknowledgements(seconds(at)).iter().any(|heard| heard.of == node("c"))
        };
        assert!(!of_c(&voter, 21));
        assert!(of_c(&voter, 29), "the promise has ended");
    }

    #[test]
    fn v3_a_share_is_promised_to_one_heir_at_a_time() {
        let mut voter = votes("a");
        for (heir, at) in [("b", 20), ("d", 21)] {
            let claim =
                Beat { at_ms: at * 1_000, claims: vec!["c".parse().unwrap()], ..Beat::default() };
            voter.receive(&node(heir), &claim, &names(), seconds(at));
        }
        assert_eq!(voter.promises(seconds(21))[0].heir, node("b"));
    }

    #[test]
    fn v4_a_router_that_has_just_started_abstains() {
        let mut voter = votes("a");
        let claim = Beat { at_ms: 1, claims: vec!["c".parse().unwrap()], ..Beat::default() };
        voter.receive(&node("b"), &claim, &names(), seconds(8));
        assert!(voter.promises(seconds(8)).is_empty());
        assert!(voter.acknowledgements(seconds(8)).is_empty());
        assert!(!voter.acknowledgements(seconds(9)).is_empty());
    }

    #[test]
    fn v5_an_acknowledgement_counts_from_the_sending() {
        let mut holder = votes("a");
        let heard = vec![Heard { of: node("a"), at_ms: 10_000 }];
        let ack = Beat { at_ms: 1, heard, ..Beat::default() };
        holder.receive(&node("b"), &ack, &names(), seconds(15));
        assert_eq!(holder.whole_until(&names(), 3, seconds(15)), Some(seconds(18)));
        assert_eq!(
            holder.whole_until(&names(), 4, seconds(15)),
            None,
            "two of four are no majority"
        );
    }

    #[test]
    fn a_majority_of_promises_makes_an_heir() {
        let mut heir = votes("a");
        let hello = Beat { at_ms: 9_000, ..Beat::default() };
        heir.receive(&node("b"), &hello, &names(), seconds(9));
        assert_eq!(heir.claim(&names(), seconds(10)), vec!["c".parse().unwrap()]);
        let c: NodeName = "c".parse().unwrap();
        assert_eq!(
            heir.heir_until(&c, &names(), 3, seconds(10)),
            None,
            "its own vote is not enough"
        );
        let promises = vec![Promised { absent: c.clone(), heir: node("a"), heir_at_ms: 10_000 }];
        let beat = Beat { at_ms: 10_100, promises, ..Beat::default() };
        heir.receive(&node("b"), &beat, &names(), seconds(11));
        assert_eq!(heir.heir_until(&c, &names(), 3, seconds(11)), Some(seconds(18)));
        assert_eq!(heir.heir_until(&c, &names(), 3, seconds(18)), None);
    }

    #[test]
    fn v6_what_is_kept_and_what_is_inherited_make_the_share() {
        for share in [0, 1, 3, 4, 33, 1_000, u64::MAX] {
            assert!(kept(share) + (share - kept(share)) == share);
            assert!(kept(share) <= share / 4 + 1);
        }
    }
}
