//! How routers agree on the roster: who changes it, when a change is settled, and in which windows a router may not use its
//! share yet. See [`roster`](crate::roster) for what a roster is.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::ids::{Generation, NodeId, NodeName};

use crate::roster::{self, Member, Roster, RosterId, Shares, Situation};
use crate::rows::Beat;
use crate::standing::Place;
use crate::windows::UNUSED_MS;

/// How long the same change of the roster must be due before it is made.
const ROSTER_DELAY: Duration = Duration::from_millis(300);

/// How long the others have to learn of a new life before it uses anything, in milliseconds.
const LIFE_DELAY_MS: u64 = 1_000;

/// How long a router must have left before its place is given up. A router that restarts returns sooner.
const GONE_AFTER: Duration = Duration::from_secs(600);

/// The most rosters that are remembered because another one replaced them before they were settled.
const MAX_SUPERSEDED: usize = 16;

/// The latest beat of each other router, by name.
pub(crate) type Beats = BTreeMap<NodeName, (NodeId, Beat)>;

/// What a router knows when it considers a change of the roster.
pub(crate) struct Around<'a> {
    /// This router's monotonic clock.
    pub(crate) mono: Duration,
    /// The cluster's time, in milliseconds.
    pub(crate) cluster_ms: u64,
    /// The other routers.
    pub(crate) members: &'a [Member],
    /// Their latest beats.
    pub(crate) beats: &'a Beats,
    /// Whether this router has the state of the others.
    pub(crate) is_complete: bool,
    /// The greatest number of routers that any present router expects.
    pub(crate) expected: Option<u32>,
}

impl Around<'_> {
    /// How many routers are alive, this one included.
    pub(crate) fn alive(&self) -> usize {
        self.members.iter().filter(|member| member.is_alive).count() + 1
    }

    fn knows(&self, name: &NodeName) -> bool {
        self.members.iter().any(|member| member.node.name == *name)
    }
}

/// The rosters that a router goes by.
#[derive(Debug)]
pub(crate) struct Agreement {
    me: NodeId,
    roster: Option<Roster>,
    settled: Option<Roster>,
    /// Divisions by rosters that this router went by, and that another roster replaced before they were settled.
    superseded: Vec<Shares>,
    /// Earlier places, each with a time: see [`Standing`](crate::standing::Standing).
    pub(crate) earlier: Vec<(Place, u64)>,
    proposal: Option<(Roster, Duration)>,
    /// The routers of the roster that have left, and since when.
    missing: BTreeMap<NodeName, Duration>,
    /// The former lives of this router that are known, and the time at which each said that it would stop.
    former: BTreeMap<Generation, Option<u64>>,
}

impl Agreement {
    pub(crate) fn new(me: NodeId) -> Self {
        Self {
            me,
            roster: None,
            settled: None,
            superseded: Vec::new(),
            earlier: Vec::new(),
            proposal: None,
            missing: BTreeMap::new(),
            former: BTreeMap::new(),
        }
    }

    /// The roster that this router goes by.
    pub(crate) fn roster(&self) -> Option<&Roster> {
        self.roster.as_ref()
    }

    /// The latest roster of which this router knows that all of its routers go by it.
    pub(crate) fn settled(&self) -> Option<&Roster> {
        self.settled.as_ref()
    }

    pub(crate) fn is_settled(&self, id: RosterId) -> bool {
        self.settled.as_ref().is_some_and(|settled| settled.id() == id)
    }

    /// The names of the roster, in the order of their places.
    pub(crate) fn names(&self) -> Vec<NodeName> {
        self.roster.as_ref().map(|roster| roster.shares().names).unwrap_or_default()
    }

    /// Goes by another roster. One that it replaces before it was settled still restricts this router, because others may
    /// have settled it.
    pub(crate) fn adopt(&mut self, roster: Roster) {
        if let Some(before) = &self.roster
            && before.id() != roster.id()
            && !self.is_settled(before.id())
            && !self.superseded.contains(&before.shares())
            && self.superseded.len() < MAX_SUPERSEDED
        {
            self.superseded.push(before.shares());
        }
        self.roster = Some(roster);
    }

    /// The divisions that other routers may go by; the settled one is the last. While a roster is not settled, a majority of
    /// every division is needed, since majorities of two divisions need not have a router in common.
    pub(crate) fn divisions(&self) -> Vec<Shares> {
        let Some(settled) = &self.settled else { return Vec::new() };
        let mut divisions = self.superseded.clone();
        let pending = self.roster.iter().filter(|roster| roster.id() != settled.id());
        divisions.extend(pending.map(Roster::shares));
        divisions.push(settled.shares());
        divisions
    }

    /// Notes that a former life of this router is known, and the time at which it said that it would stop. A later life that
    /// has said nothing makes what an earlier one said worthless.
    pub(crate) fn note_life(&mut self, node: &NodeId, until_ms: Option<u64>) {
        if node.name == self.me.name && node.generation < self.me.generation {
            let known = self.former.entry(node.generation).or_default();
            *known = (*known).max(until_ms);
        }
    }

    /// Makes a change of the roster that has been due for a while, if that is this router's part.
    pub(crate) fn change(&mut self, around: &Around<'_>) -> Option<Roster> {
        let Around { mono, members, is_complete, expected, .. } = *around;
        let gone = self.follow_missing(around);
        let alive = members.iter().filter(|member| member.is_alive);
        let mut alive: Vec<NodeId> =
            alive.map(|member| member.node.clone()).chain([self.me.clone()]).collect();
        alive.sort();
        let is_unsettled = self.roster.as_ref().is_some_and(|roster| !self.is_settled(roster.id()));
        let names = self.names();
        let first = match names.is_empty() {
            true => alive.first().map(|node| &node.name),
            false => names.iter().find(|name| alive.iter().any(|node| node.name == **name)),
        };
        if !is_complete || is_unsettled || first != Some(&self.me.name) {
            self.proposal = None;
            return None;
        }
        let current = self.roster.as_ref();
        let proposal =
            roster::propose(&Situation { current, alive: &alive, gone: &gone, expected })?;
        // A router alone waits for nobody.
        let is_alone = members.is_empty() && current.is_none();
        let since = match &self.proposal {
            Some((known, since)) if *known == proposal => *since,
            _ => mono,
        };
        if mono < since + ROSTER_DELAY && !is_alone {
            self.proposal = Some((proposal, since));
            return None;
        }
        self.proposal = None;
        self.roster = Some(proposal.clone());
        Some(proposal)
    }

    /// Follows which routers of the roster have left. Returns those that have left for good.
    fn follow_missing(&mut self, around: &Around<'_>) -> Vec<NodeName> {
        let names = self.names();
        let is_known = |name: &NodeName| *name == self.me.name || around.knows(name);
        self.missing.retain(|name, _| names.contains(name) && !is_known(name));
        for name in names.iter().filter(|name| !is_known(name)) {
            self.missing.entry(name.clone()).or_insert(around.mono);
        }
        let for_good = self.missing.iter().filter(|(_, since)| around.mono >= **since + GONE_AFTER);
        for_good.map(|(name, _)| name.clone()).collect()
    }

    /// Notices that all routers go by the present roster. `contacts`: how many routers of it this one has heard, itself
    /// included. Returns whether the roster is newly settled.
    pub(crate) fn settle(&mut self, contacts: usize, around: &Around<'_>) -> bool {
        let Some(roster) = self.roster.clone() else { return false };
        let majority = usize::try_from(roster.size / 2 + 1).unwrap_or(usize::MAX);
        if self.is_settled(roster.id())
            || contacts < majority
            || around.alive() < majority
            || !self.is_followed(&roster, around)
        {
            return false;
        }
        let is_first_life = self.is_in_first_life(&roster);
        if !around.is_complete && !is_first_life {
            // What a former life has said of itself must be here before this one uses anything.
            return false;
        }
        let restriction = match &self.settled {
            Some(before) => Some((Place::of(&before.shares(), &self.me.name), UNUSED_MS)),
            // A founder: nobody has used anything before.
            None if is_first_life && roster.previous.is_none() => None,
            None if is_first_life && self.is_untouched(&roster) => None,
            None if is_first_life => Some((Place::NONE, UNUSED_MS)),
            None => Some((Place::NONE, self.after_former_life(around.cluster_ms))),
        };
        // A router that has left since may have granted what it had by the roster before.
        let superseded = std::mem::take(&mut self.superseded);
        let superseded =
            superseded.iter().map(|shares| (Place::of(shares, &self.me.name), UNUSED_MS));
        let all = restriction.into_iter().chain(superseded);
        self.earlier.extend(all.map(|(place, after_ms)| (place, around.cluster_ms + after_ms)));
        self.settled = Some(roster);
        true
    }

    /// Whether all routers that a roster concerns go by it, as they say themselves or as one that knows says.
    fn is_followed(&self, roster: &Roster, around: &Around<'_>) -> bool {
        let id = roster.id();
        if around.beats.values().any(|(_, beat)| beat.is_settled && beat.roster == Some(id)) {
            return true;
        }
        let names = roster.shares().names;
        let settled = self.settled.iter().flat_map(|settled| settled.shares().names);
        let mut concerned = roster.concerned().into_iter().chain(settled);
        concerned.all(|name| {
            let has_left = !names.contains(&name) && !around.knows(&name);
            let beat = around.beats.get(&name);
            let says_so = beat.is_some_and(|(_, beat)| beat.roster == Some(id));
            name == self.me.name || has_left || says_so
        })
    }

    /// Whether this router has had its place in the roster since it started, so that no former life of it has used or promised
    /// anything under it.
    pub(crate) fn is_in_first_life(&self, roster: &Roster) -> bool {
        roster.places.contains(&self.me)
    }

    /// Whether this router's place has never belonged to another one.
    fn is_untouched(&self, roster: &Roster) -> bool {
        let place = roster.shares().place(&self.me.name);
        place.is_some_and(|place| place >= roster.untouched_from)
    }

    /// How long after `cluster_ms` the windows begin in which no former life of this router can have used or granted anything.
    fn after_former_life(&self, cluster_ms: u64) -> u64 {
        match self.former.last_key_value() {
            // It has said where it stopped. A moment more, so that the others know of this life before it uses anything.
            Some((_, Some(until_ms))) => until_ms.saturating_sub(cluster_ms).max(LIFE_DELAY_MS),
            Some((_, None)) | None => UNUSED_MS,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(1) }
    }

    /// The roster of these routers, which replaces the one of `before`.
    fn roster(version: u64, names: &[&str], before: &[&str]) -> Roster {
        let size = u32::try_from(names.len()).unwrap();
        let names_before: Vec<NodeName> = before.iter().map(|name| name.parse().unwrap()).collect();
        let previous = Shares { size: u32::try_from(before.len()).unwrap(), names: names_before };
        Roster {
            version,
            size,
            places: names.iter().map(|name| node(name)).collect(),
            untouched_from: size,
            most_taken: size,
            previous: (!before.is_empty()).then_some(previous),
        }
    }

    /// Lets `me` notice whether all go by its roster, when the others go by these.
    fn settle(agreement: &mut Agreement, others: &[(&str, &Roster)]) -> bool {
        let members: Vec<Member> =
            others.iter().map(|(name, _)| Member { node: node(name), is_alive: true }).collect();
        let beats = others.iter().map(|(name, roster)| {
            let beat = Beat { roster: Some(roster.id()), ..Beat::default() };
            (node(name).name, (node(name), beat))
        });
        let beats = beats.collect();
        let around = Around {
            mono: Duration::from_secs(100),
            cluster_ms: 1_000_000,
            members: &members,
            beats: &beats,
            is_complete: true,
            expected: None,
        };
        agreement.settle(others.len() + 1, &around)
    }

    #[test]
    fn a_router_that_joins_has_no_share_in_windows_that_began_before() {
        let (first, second) =
            (roster(1, &["a", "b"], &[]), roster(2, &["a", "b", "c"], &["a", "b"]));
        let mut joiner = Agreement::new(node("c"));
        joiner.adopt(second.clone());
        assert!(!settle(&mut joiner, &[("a", &second), ("b", &first)]));
        assert!(settle(&mut joiner, &[("a", &second), ("b", &second)]));
        assert_eq!(joiner.earlier, vec![(Place::NONE, 1_000_000 + UNUSED_MS)]);
    }

    #[test]
    fn a_roster_is_settled_only_when_all_routers_of_both_go_by_it() {
        let (first, second) =
            (roster(1, &["a", "b"], &[]), roster(2, &["a", "b", "c"], &["a", "b"]));
        let mut agreement = Agreement::new(node("a"));
        agreement.adopt(first.clone());
        assert!(settle(&mut agreement, &[("b", &first)]));
        assert_eq!(agreement.earlier, Vec::new(), "a founder is free");
        agreement.adopt(second.clone());
        assert!(!settle(&mut agreement, &[("b", &first), ("c", &second)]));
        assert!(!settle(&mut agreement, &[("b", &second), ("c", &first)]));
        assert_eq!(agreement.divisions(), vec![second.shares(), first.shares()]);
        assert!(settle(&mut agreement, &[("b", &second), ("c", &second)]));
        let before = Place { size: 2, place: Some(0) };
        assert_eq!(agreement.earlier, vec![(before, 1_000_000 + UNUSED_MS)]);
        // A router of the roster before that is present counts, and one that has left does not.
        let third = roster(3, &["a", "b"], &["a", "b", "c"]);
        agreement.adopt(third.clone());
        assert!(!settle(&mut agreement, &[("b", &third), ("c", &second)]));
        assert!(settle(&mut agreement, &[("b", &third)]));
    }
}
