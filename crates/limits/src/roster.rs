//! The roster: which routers have a share of the limits.
//!
//! The roster is agreed upon, not derived from who is alive: a router that divides a limit by the routers that it sees
//! takes more than its part as soon as two routers see different ones. A roster is changed in two steps. Once it is written,
//! every router uses the smaller one of its shares by the old and by the new roster. Only when all routers of both go by the
//! new one is it *settled*, and larger shares begin, in windows that start later.

use serde::{Deserialize, Serialize};
use smg_types::ids::{NodeId, NodeName};
use xxhash_rust::xxh3::xxh3_64;

/// Most routers in a roster.
pub const MAX_PLACES: u32 = 1_024;

/// Another router of the cluster, as membership knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name and generation.
    pub node: NodeId,
    /// Whether it is alive.
    pub is_alive: bool,
}

/// The routers that have a share.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Roster {
    /// One more than the version of the roster that it replaces; the first is 1.
    pub version: u64,
    /// How many shares a limit is divided into: the number of routers that the configuration expects, or that of `places`.
    pub size: u32,
    /// The routers that have shares, at most `size`. A router keeps its place as long as it is in the roster.
    pub places: Vec<NodeId>,
    /// Places from this one on have never belonged to a router, so that nothing of them has been used or granted.
    pub untouched_from: u32,
    /// The most places that have ever been taken.
    pub most_taken: u32,
    /// The shares before.
    pub previous: Option<Shares>,
}

/// The sizes of the shares of a roster.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Shares {
    /// How many shares a limit is divided into.
    pub size: u32,
    /// The routers that have one.
    pub names: Vec<NodeName>,
}

impl Shares {
    /// The place of a router.
    #[must_use]
    pub fn place(&self, name: &NodeName) -> Option<u32> {
        let at = self.names.iter().position(|own| own == name)?;
        u32::try_from(at).ok()
    }
}

/// The identity of a roster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RosterId {
    /// Its version.
    pub version: u64,
    /// A hash of its content, which tells two rosters of one version apart.
    pub hash: u64,
}

impl Roster {
    /// The identity.
    #[must_use]
    pub fn id(&self) -> RosterId {
        let Self { version, size, untouched_from, most_taken, .. } = self;
        let mut text = format!("{version} {size} {untouched_from} {most_taken}");
        for place in &self.places {
            text.push_str(&format!(" {} {}", place.name, place.generation.0));
        }
        for name in self.previous.iter().flat_map(|previous| &previous.names) {
            text.push_str(&format!(" -{name}"));
        }
        RosterId { version: self.version, hash: xxh3_64(text.as_bytes()) }
    }

    /// The sizes of the shares.
    #[must_use]
    pub fn shares(&self) -> Shares {
        let names = self.places.iter().map(|place| place.name.clone()).collect();
        Shares { size: self.size, names }
    }

    /// The names of all routers whose share changes or may change, sorted.
    #[must_use]
    pub fn concerned(&self) -> Vec<NodeName> {
        let before = self.previous.iter().flat_map(|previous| previous.names.iter().cloned());
        let mut names: Vec<NodeName> =
            self.places.iter().map(|place| place.name.clone()).chain(before).collect();
        names.sort();
        names.dedup();
        names
    }

    /// Whether numbers and names are inside their bounds.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        let bound = |size: u32, names: usize| {
            (1..=MAX_PLACES).contains(&size) && names <= usize::try_from(size).unwrap_or(0)
        };
        let mut names = self.shares().names;
        names.sort();
        names.dedup();
        names.len() == self.places.len()
            && bound(self.size, self.places.len())
            && self.previous.as_ref().is_none_or(|before| bound(before.size, before.names.len()))
    }
}

/// What a router knows when it considers a new roster.
#[derive(Debug, Clone)]
pub struct Situation<'a> {
    /// The settled roster; `None`: there has been none.
    pub current: Option<&'a Roster>,
    /// The routers that are alive, this one included, sorted by name.
    pub alive: &'a [NodeId],
    /// Names in the roster that have left for good.
    pub gone: &'a [NodeName],
    /// The greatest number of routers that any router's configuration expects.
    pub expected: Option<u32>,
}

/// The roster that should replace the current one; `None`: the current one is right, or no change is possible now.
///
/// A change needs all routers of the current roster that have not left for good to be alive; the first roster with an
/// expected size needs a majority of it. So of several groups that do not see each other, at most one makes a roster, if
/// there are no more routers than expected.
#[must_use]
pub fn propose(situation: &Situation<'_>) -> Option<Roster> {
    let Situation { current, alive, gone, expected } = situation;
    let is_alive = |name: &NodeName| alive.iter().any(|node| node.name == *name);
    let empty = Vec::new();
    let before = current.map_or(&empty, |roster| &roster.places);
    let mut places: Vec<NodeId> =
        before.iter().filter(|place| !gone.contains(&place.name)).cloned().collect();
    if places.iter().any(|place| !is_alive(&place.name)) {
        return None;
    }
    let most = match expected {
        Some(size) => (*size).clamp(1, MAX_PLACES),
        None => MAX_PLACES,
    };
    let majority = usize::try_from(most / 2 + 1).unwrap_or(usize::MAX);
    if current.is_none() && expected.is_some() && alive.len() < majority {
        return None;
    }
    for node in *alive {
        let has_room = places.len() < usize::try_from(most).unwrap_or(0);
        if has_room && !places.iter().any(|place| place.name == node.name) {
            places.push(node.clone());
        }
    }
    let named = u32::try_from(places.len()).unwrap_or(MAX_PLACES);
    let size = expected.map_or(named, |_| most).max(named).max(1);
    let names = |places: &[NodeId]| places.iter().map(|p| p.name.clone()).collect::<Vec<_>>();
    let is_same = current
        .is_some_and(|roster| roster.size == size && names(&roster.places) == names(&places));
    if is_same || places.is_empty() {
        return None;
    }
    let most_taken = current.map_or(0, |roster| roster.most_taken);
    let is_same_size = current.is_some_and(|roster| roster.size == size);
    Some(Roster {
        // Another size gives every place another share.
        untouched_from: if is_same_size { most_taken } else { size },
        most_taken: most_taken.max(named),
        version: current.map_or(0, |roster| roster.version) + 1,
        size,
        places,
        previous: current.map(Roster::shares),
    })
}

#[cfg(test)]
mod tests {
    use smg_types::ids::Generation;

    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(1) }
    }

    fn next(current: Option<&Roster>, alive: &[&str], expected: Option<u32>) -> Option<Roster> {
        let alive: Vec<NodeId> = alive.iter().map(|name| node(name)).collect();
        propose(&Situation { current, alive: &alive, gone: &[], expected })
    }

    #[test]
    fn the_first_roster_with_an_expected_size_needs_a_majority() {
        assert_eq!(next(None, &["a"], Some(3)), None);
        let roster = next(None, &["a", "b"], Some(3)).unwrap();
        assert_eq!((roster.version, roster.size, roster.places.len()), (1, 3, 2));
        let full = next(Some(&roster), &["a", "b", "c", "d"], Some(3)).unwrap();
        assert_eq!((full.version, full.size, full.places.len()), (2, 3, 3));
        assert_eq!(next(Some(&full), &["a", "b", "c", "d"], Some(3)), None);
    }

    #[test]
    fn a_roster_changes_only_while_all_its_routers_are_alive() {
        let roster = next(None, &["a", "b"], None).unwrap();
        assert_eq!(next(Some(&roster), &["a", "c"], None), None);
        assert_eq!(next(Some(&roster), &["a", "b", "c"], None).unwrap().size, 3);
        let alive = [node("a"), node("c")];
        let gone = ["b".parse().unwrap()];
        let situation =
            Situation { current: Some(&roster), alive: &alive, gone: &gone, expected: None };
        let without = propose(&situation).unwrap();
        assert_eq!(without.shares().names, vec!["a".parse().unwrap(), "c".parse().unwrap()]);
    }
}
