//! How a limit is divided among the places of a roster.

/// The share of place `place`, counted from 0, when `limit` is divided among `places`. Shares differ by at most 1 and add up
/// to exactly `limit`. Which places have the larger shares depends on `salt`, so that the limits of many subjects that are
/// smaller than the number of places do not all lie with the same router. A place beyond the last has no share.
#[must_use]
pub fn share(limit: u64, salt: u64, place: u32, places: u32) -> u64 {
    if place >= places {
        return 0;
    }
    let places = u64::from(places);
    let turned = (u64::from(place) + salt % places) % places;
    limit / places + u64::from(turned < limit % places)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn shares_add_up_to_the_limit(limit in 0u64..1_000_000, salt: u64, places in 1u32..60) {
            let all: Vec<u64> = (0..places).map(|place| share(limit, salt, place, places)).collect();
            prop_assert_eq!(all.iter().sum::<u64>(), limit);
            prop_assert!(all.iter().max().unwrap() - all.iter().min().unwrap() <= 1);
            prop_assert_eq!(share(limit, salt, places, places), 0);
        }
    }

    #[test]
    fn small_limits_lie_with_different_routers() {
        let owners: std::collections::BTreeSet<u32> =
            (0..64).flat_map(|salt| (0..3).find(|place| share(1, salt, *place, 3) == 1)).collect();
        assert_eq!(owners.len(), 3);
    }
}
