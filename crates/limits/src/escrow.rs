//! Grants: a router that has more rights in a window than it needs gives some to a router that lacks them.
//!
//! The giver loses the rights before it writes the grant, and the receiver has them when it reads it. So a lost grant leaves
//! rights unused, and never duplicates them. A grant is of one window and of one generation of the receiver: a restarted
//! router does not use what its former life was given.
//!
//! A router reports a subject only after it has used half of its rights there, and asks for more only when it lacks some. A
//! subject that is used little therefore costs no message and no memory on other routers.

use std::collections::BTreeMap;

use smg_types::ids::{NodeId, NodeName};

use crate::rows::{Report, WindowKey};

/// What is known of one window of one subject.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// The latest report of each generation of each other router.
    reports: BTreeMap<NodeId, Report>,
    /// All grants that are known, by giver and receiver.
    grants: BTreeMap<(NodeId, NodeId), u64>,
    /// Of the grants to this router: what has been added to its window.
    applied: BTreeMap<NodeId, u64>,
    /// Units granted to each router since it last reported what it wants.
    since_report: BTreeMap<NodeId, u64>,
}

/// What a giver knows of the other routers of the roster.
pub(crate) struct Other<'a> {
    /// The router's name.
    pub(crate) name: &'a NodeName,
    /// Its present generation; `None`: it is not present.
    pub(crate) node: Option<&'a NodeId>,
    /// Its share of the limit.
    pub(crate) share: u64,
}

impl Book {
    pub(crate) fn report(&mut self, from: &NodeId, report: Report) {
        self.since_report.remove(from);
        let known = self.reports.entry(from.clone()).or_default();
        known.taken = known.taken.max(report.taken);
        known.returned = known.returned.max(report.returned);
        known.wanted = report.wanted;
    }

    /// Notes a grant by another router; later ones replace earlier ones.
    pub(crate) fn grant(&mut self, from: &NodeId, to: &NodeId, units: u64) {
        let known = self.grants.entry((from.clone(), to.clone())).or_default();
        let more = units.saturating_sub(*known);
        *known = units.max(*known);
        if more > 0 {
            *self.since_report.entry(to.clone()).or_default() += more;
        }
    }

    /// Notes a grant of this router, and returns all that it has granted to `to`.
    pub(crate) fn granted(&mut self, me: &NodeId, to: &NodeId, units: u64) -> u64 {
        let total = self.grants.get(&(me.clone(), to.clone())).copied().unwrap_or(0) + units;
        self.grant(me, to, total);
        total
    }

    /// The grants to `me` that have not been added to its window yet.
    pub(crate) fn unapplied(&self, me: &NodeId) -> u64 {
        let to_me = self.grants.iter().filter(|((_, to), _)| to == me);
        to_me.map(|((from, _), units)| units - self.applied.get(from).copied().unwrap_or(0)).sum()
    }

    pub(crate) fn apply(&mut self, me: &NodeId) {
        for ((from, to), units) in &self.grants {
            if to == me {
                self.applied.insert(from.clone(), *units);
            }
        }
    }

    /// The units that all other routers have reported.
    pub(crate) fn used_by_others(&self) -> u64 {
        self.reports.values().map(Report::used).fold(0, u64::saturating_add)
    }

    /// The reports, by router.
    pub(crate) fn reports(&self) -> impl Iterator<Item = (&NodeId, &Report)> {
        self.reports.iter()
    }

    /// Units that a router wants and has not been granted since it said so.
    fn unfulfilled(&self, node: &NodeId) -> u64 {
        let wanted = self.reports.get(node).map_or(0, |report| report.wanted);
        wanted.saturating_sub(self.since_report.get(node).copied().unwrap_or(0))
    }

    /// Whether any other router lacks rights.
    pub(crate) fn is_wanted(&self) -> bool {
        self.reports.keys().any(|node| self.unfulfilled(node) > 0)
    }

    /// What another router probably has left.
    fn estimated_free(&self, other: &Other<'_>) -> u64 {
        let Some(node) = other.node else { return 0 };
        let report = self.reports.get(node).copied().unwrap_or_default();
        if report.wanted > 0 {
            return 0;
        }
        let sum = |is_his: &dyn Fn(&(NodeId, NodeId)) -> bool| -> u64 {
            self.grants.iter().filter(|(pair, _)| is_his(pair)).map(|(_, units)| *units).sum()
        };
        let got = sum(&|(_, to)| to == node);
        let gone = sum(&|(from, _)| from == node);
        (other.share + got).saturating_sub(gone).saturating_sub(report.used())
    }

    /// How to divide `surplus` of this router: receivers with their units. Every giver gives in proportion to what it has,
    /// so that together they give what is wanted, and hardly more.
    pub(crate) fn divide(&self, surplus: u64, others: &[Other<'_>]) -> Vec<(NodeId, u64)> {
        let elsewhere =
            others.iter().map(|other| u128::from(self.estimated_free(other))).sum::<u128>();
        let total = elsewhere + u128::from(surplus);
        let mut left = surplus;
        let mut receivers: Vec<(u64, &NodeId)> = others
            .iter()
            .filter_map(|other| other.node)
            .map(|node| (self.unfulfilled(node), node))
            .filter(|(wanted, _)| *wanted > 0)
            .collect();
        // Those outside the roster have no share and live on grants.
        for node in self.reports.keys() {
            let is_listed = others.iter().any(|other| *other.name == node.name);
            if !is_listed && self.unfulfilled(node) > 0 {
                receivers.push((self.unfulfilled(node), node));
            }
        }
        receivers.sort();
        let wanted = receivers.iter().map(|(wanted, _)| u128::from(*wanted)).sum::<u128>();
        let scale = wanted.max(1).max(total);
        let mut grants = Vec::new();
        for (wanted, node) in receivers {
            let part = (u128::from(wanted) * u128::from(surplus)).div_ceil(scale);
            let units = u64::try_from(part).unwrap_or(u64::MAX).min(left);
            if units > 0 {
                left -= units;
                grants.push((node.clone(), units));
            }
        }
        grants
    }
}

/// The books of all windows that are exchanged.
pub(crate) type Books = BTreeMap<WindowKey, Book>;

#[cfg(test)]
mod tests {
    use smg_types::ids::Generation;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(1) }
    }

    fn wants(wanted: u64) -> Report {
        Report { wanted, ..Report::default() }
    }

    #[test]
    fn givers_share_what_is_wanted_in_proportion_to_what_they_have() {
        let (b, c) = (node("b"), node("c"));
        let mut book = Book::default();
        book.report(&b, wants(10));
        let others = [
            Other { name: &b.name, node: Some(&b), share: 30 },
            Other { name: &c.name, node: Some(&c), share: 30 },
        ];
        assert_eq!(book.divide(30, &others), vec![(b.clone(), 5)], "c can give as much");
        let total = book.granted(&node("a"), &b, 5);
        assert_eq!(total, 5);
        assert_eq!(book.unfulfilled(&b), 5);
        book.report(&b, wants(0));
        assert_eq!(book.divide(25, &others), vec![]);
    }

    #[test]
    fn a_grant_counts_once_however_often_it_is_read() {
        let (a, b) = (node("a"), node("b"));
        let mut book = Book::default();
        book.grant(&b, &a, 3);
        book.grant(&b, &a, 3);
        assert_eq!(book.unapplied(&a), 3);
        book.apply(&a);
        book.grant(&b, &a, 2);
        assert_eq!(book.unapplied(&a), 0);
        book.grant(&b, &a, 7);
        assert_eq!(book.unapplied(&a), 4);
    }
}
