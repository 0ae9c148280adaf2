//! Preference among workers: a higher priority first, and within it the workers near this router.
//!
//! A snapshot notes whether the ranks of its workers differ at all. In a fleet without priorities and places they do not, and
//! a request does no work for them.

use smg_types::spec::WorkerSpec;

use super::config::Place;

/// How near a worker is to this router, farthest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Proximity {
    /// The worker is in another region, or the place of the worker or of this router is not given.
    #[default]
    Elsewhere,
    /// The worker is in the region of this router, in another zone.
    Region,
    /// The worker is in the zone of this router.
    Zone,
}

impl Proximity {
    /// All proximities, the nearest first.
    pub const NEAREST_FIRST: [Self; 3] = [Self::Zone, Self::Region, Self::Elsewhere];

    /// How near a worker is to a router at `place`. Zones of the same name in two regions are two zones; a region that is not
    /// given does not tell zones apart.
    fn of(spec: &WorkerSpec, place: &Place) -> Self {
        let same = |ours: &Option<String>, theirs: &Option<String>| match (ours, theirs) {
            (Some(ours), Some(theirs)) => Some(ours == theirs),
            (None, _) | (_, None) => None,
        };
        let region = same(&place.region, &spec.region);
        match same(&place.zone, &spec.zone) {
            Some(true) if region != Some(false) => Self::Zone,
            Some(_) | None if region == Some(true) => Self::Region,
            Some(_) | None => Self::Elsewhere,
        }
    }
}

/// A worker's place in the order of preference. A greater rank is preferred.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Rank {
    /// The priority in the worker's spec.
    pub priority: i32,
    /// How near the worker is to this router.
    pub proximity: Proximity,
}

impl Rank {
    /// The rank of a worker for a router at `place`.
    pub(super) fn of(spec: &WorkerSpec, place: &Place) -> Self {
        Self { priority: spec.priority, proximity: Proximity::of(spec, place) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proximity(ours: [&str; 2], theirs: [&str; 2]) -> Proximity {
        let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let mut spec = WorkerSpec::new("http://a".parse().unwrap());
        [spec.region, spec.zone] = theirs.map(given);
        let [region, zone] = ours.map(given);
        Proximity::of(&spec, &Place { region, zone })
    }

    #[test]
    fn a_worker_is_near_if_zone_or_region_are_given_on_both_sides_and_equal() {
        use Proximity::{Elsewhere, Region, Zone};
        for (ours, theirs, expected) in [
            (["", ""], ["", ""], Elsewhere),
            (["", ""], ["eu", "a"], Elsewhere),
            (["eu", "a"], ["", ""], Elsewhere),
            (["", "a"], ["", "a"], Zone),
            (["", "a"], ["", "b"], Elsewhere),
            (["", "a"], ["eu", "a"], Zone),
            (["eu", "a"], ["", "a"], Zone),
            (["eu", "a"], ["eu", "a"], Zone),
            (["eu", "a"], ["us", "a"], Elsewhere),
            (["eu", "a"], ["eu", "b"], Region),
            (["eu", ""], ["eu", "b"], Region),
            (["eu", "a"], ["eu", ""], Region),
            (["eu", "a"], ["us", "b"], Elsewhere),
        ] {
            assert_eq!(proximity(ours, theirs), expected, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn priority_comes_before_place() {
        let far = Rank { priority: 1, proximity: Proximity::Elsewhere };
        let near = Rank { priority: 0, proximity: Proximity::Zone };
        assert!(far > near && Rank { priority: 1, ..near } > far);
    }
}
