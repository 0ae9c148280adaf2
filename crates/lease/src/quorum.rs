//! Whose votes count: the configured cluster (L1), and majorities of two while it changes (L12).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_types::ids::NodeName;

/// The routers of the configured cluster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Voters {
    /// How many there are to be: the number that the configuration expects. A majority is more than half of it.
    pub size: u32,
    /// Those whose names are known, at most `size`.
    pub names: Vec<NodeName>,
}

impl Voters {
    /// How many votes are needed.
    #[must_use]
    pub fn majority(&self) -> usize {
        usize::try_from(self.size / 2 + 1).unwrap_or(usize::MAX)
    }
}

/// The votes that a lease needs: a majority of each of these. There are several while the configured cluster changes, because
/// majorities of two different clusters need not have a router in common. There is none while it is not known.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Quorum(pub Vec<Voters>);

impl Quorum {
    /// All voters.
    #[must_use]
    pub fn names(&self) -> BTreeSet<&NodeName> {
        self.0.iter().flat_map(|voters| &voters.names).collect()
    }

    /// Whether a router is a voter.
    #[must_use]
    pub fn contains(&self, name: &NodeName) -> bool {
        self.0.iter().any(|voters| voters.names.contains(name))
    }

    /// Whether the voters of which `counts` is true are enough.
    #[must_use]
    pub fn is_met(&self, counts: impl Fn(&NodeName) -> bool) -> bool {
        let met = |voters: &Voters| {
            voters.names.iter().filter(|name| counts(name)).count() >= voters.majority()
        };
        !self.0.is_empty() && self.0.iter().all(met)
    }

    /// Whether `me` is the only voter that there is and will be.
    #[must_use]
    pub fn is_only(&self, me: &NodeName) -> bool {
        let only = |voters: &Voters| voters.size == 1 && voters.names.iter().all(|name| name == me);
        self.is_met(|name| name == me) && self.0.iter().all(only)
    }

    /// Until when votes that end at these times are enough; `None`: they are not enough at any time.
    #[must_use]
    pub fn held_until(&self, votes: &BTreeMap<NodeName, Duration>) -> Option<Duration> {
        let until = |voters: &Voters| {
            let mut ends: Vec<Duration> =
                voters.names.iter().filter_map(|name| votes.get(name).copied()).collect();
            ends.sort_unstable_by(|a, b| b.cmp(a));
            ends.get(voters.majority() - 1).copied()
        };
        let ends: Option<Vec<Duration>> = self.0.iter().map(until).collect();
        ends?.into_iter().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(size: u32, names: &[&str]) -> Voters {
        Voters { size, names: names.iter().map(|name| name.parse().unwrap()).collect() }
    }

    fn until(quorum: &Quorum, votes: &[(&str, u64)]) -> Option<u64> {
        let votes = votes.iter().map(|(name, s)| (name.parse().unwrap(), Duration::from_secs(*s)));
        quorum.held_until(&votes.collect()).map(|until| until.as_secs())
    }

    #[test]
    fn a_majority_is_of_the_configured_size_and_not_of_the_known_names() {
        let three = Quorum(vec![voters(3, &["a"])]);
        assert_eq!(until(&three, &[("a", 9)]), None);
        assert!(!three.is_met(|_| true));
        let even = Quorum(vec![voters(4, &["a", "b", "c", "d"])]);
        assert_eq!(until(&even, &[("a", 9), ("b", 9)]), None);
        assert_eq!(until(&even, &[("a", 9), ("b", 8), ("c", 7)]), Some(7));
        assert_eq!(until(&even, &[("a", 9), ("b", 8), ("c", 7), ("d", 1)]), Some(7));
    }

    #[test]
    fn votes_of_others_do_not_count_and_without_voters_nothing_is_enough() {
        let three = Quorum(vec![voters(3, &["a", "b", "c"])]);
        assert_eq!(until(&three, &[("a", 9), ("x", 9), ("y", 9)]), None);
        assert_eq!(until(&Quorum::default(), &[("a", 9)]), None);
        assert!(!Quorum::default().is_met(|_| true));
        assert!(!Quorum::default().is_only(&"a".parse().unwrap()));
    }

    #[test]
    fn a_majority_of_each_of_two_clusters_is_needed() {
        let both = Quorum(vec![voters(1, &["a"]), voters(3, &["a", "b", "c"])]);
        assert_eq!(until(&both, &[("b", 9), ("c", 9)]), None);
        assert_eq!(until(&both, &[("a", 5), ("c", 9)]), Some(5));
        assert_eq!(until(&both, &[("a", 5), ("b", 9), ("c", 9)]), Some(5));
        assert!(!both.is_only(&"a".parse().unwrap()));
        assert!(Quorum(vec![voters(1, &["a"])]).is_only(&"a".parse().unwrap()));
    }
}
