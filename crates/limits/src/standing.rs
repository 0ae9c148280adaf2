//! What a router may use at present, in a form that the data path reads without asking anybody.
//!
//! Every statement carries the time at which it ends, so that a thread that was stopped for a while, or an engine that no
//! longer runs, never lets the data path use more than is right.

use std::time::Duration;

use crate::roster::Shares;
use crate::share::share;
use crate::votes::kept;

/// How the routers of a cluster divide a limit.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Rights are never created: the share of a router that has gone is idle until it returns.
    Strict,
    /// As `strict`, and a majority may let another router use most of the share of one that has gone.
    Bounded,
    /// Each router counts for itself and adds what the others have reported. Reports are late, so that the cluster may
    /// admit more than the limit.
    Soft,
}

/// A router's place in a division.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// How many shares a limit is divided into.
    pub size: u32,
    /// Which of them this router has; `None`: none.
    pub place: Option<u32>,
}

impl Place {
    /// No share.
    pub const NONE: Self = Self { size: 1, place: None };

    /// The place of `name` in `shares`.
    #[must_use]
    pub fn of(shares: &Shares, name: &smg_types::ids::NodeName) -> Self {
        Self { size: shares.size, place: shares.place(name) }
    }

    fn share(self, limit: u64, salt: u64) -> u64 {
        self.place.map_or(0, |place| share(limit, salt, place, self.size))
    }
}

/// A share that this router uses for one that has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inherited {
    /// The place of the absent router.
    pub place: u32,
    /// Only windows that start at this time of the cluster or later, in milliseconds.
    pub from_ms: u64,
    /// Until when, by this router's monotonic clock.
    pub until: Duration,
}

/// What this router may use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// Its places by all rosters that are not known to be replaced everywhere; the smallest share counts.
    pub places: Vec<Place>,
    /// Earlier places, each with a time in milliseconds: in windows that started before it, that share counts if it is smaller.
    pub earlier: Vec<(Place, u64)>,
    /// Until when a majority knows this router, by its monotonic clock. Afterwards it keeps a part of its share.
    pub whole_until: Duration,
    /// In windows that started before this time of the cluster, in milliseconds, it keeps only that part, too.
    pub whole_from_ms: u64,
    /// The shares that it uses for routers that have gone.
    pub inherited: Vec<Inherited>,
    /// It uses nothing in windows that start at this time of the cluster or later, because it leaves.
    pub until_ms: u64,
}

impl Standing {
    /// A router that may use nothing.
    #[must_use]
    pub fn none() -> Self {
        Self {
            places: Vec::new(),
            earlier: Vec::new(),
            whole_until: Duration::ZERO,
            whole_from_ms: u64::MAX,
            inherited: Vec::new(),
            until_ms: u64::MAX,
        }
    }

    /// A router alone, which has every limit whole.
    #[must_use]
    pub fn alone() -> Self {
        Self {
            places: vec![Place { size: 1, place: Some(0) }],
            earlier: Vec::new(),
            whole_until: Duration::MAX,
            whole_from_ms: 0,
            inherited: Vec::new(),
            until_ms: u64::MAX,
        }
    }

    /// This router's share of `limit` in a window that starts at `start_ms`, by the rosters alone.
    #[must_use]
    pub fn share(&self, limit: u64, salt: u64, start_ms: u64) -> u64 {
        if start_ms >= self.until_ms {
            return 0;
        }
        let earlier = self.earlier.iter().filter(|(_, before)| start_ms < *before);
        let places = self.places.iter().chain(earlier.map(|(place, _)| place));
        places.map(|place| place.share(limit, salt)).min().unwrap_or(0)
    }

    /// Whether a majority knows this router, and has since before the window at `start_ms` started.
    #[must_use]
    pub fn is_whole(&self, start_ms: u64, mono: Duration) -> bool {
        mono < self.whole_until && start_ms >= self.whole_from_ms
    }

    /// What this router may use of the shares of others in a window that starts at `start_ms`.
    #[must_use]
    pub fn inherited(&self, limit: u64, salt: u64, start_ms: u64, mono: Duration) -> u64 {
        if start_ms >= self.until_ms {
            return 0;
        }
        let Some(size) = self.places.last().map(|place| place.size) else { return 0 };
        let valid = self
            .inherited
            .iter()
            .filter(|inherited| start_ms >= inherited.from_ms && mono < inherited.until);
        valid
            .map(|inherited| {
                let whole = share(limit, salt, inherited.place, size);
                whole - kept(whole)
            })
            .sum()
    }

    /// The number of shares that a limit is divided into.
    #[must_use]
    pub fn size(&self) -> u32 {
        self.places.iter().map(|place| place.size).max().unwrap_or(1)
    }
}
