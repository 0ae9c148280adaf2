//! What the limits say to one request: what was taken for it, or why it may not go on.

use std::sync::Arc;

use crate::cell::Cell;
use crate::meter::Moment;
use crate::rule::{Kind, Meter, TokenCount};

/// What the answer to a request says of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quota {
    /// The rule's name.
    pub rule: Arc<str>,
    /// What is limited.
    pub kind: Kind,
    /// Most units in a window, in the whole cluster.
    pub limit: u64,
    /// The length of the window, in milliseconds.
    pub window_ms: u32,
    /// Units that are left in the window, as far as this router knows.
    pub remaining: u64,
    /// Time to the end of the window, in milliseconds.
    pub reset_ms: u64,
}

/// Why a request may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The limit that is used up.
    pub quota: Quota,
    /// All limits that concern the request, for its answer.
    pub quotas: Vec<Quota>,
    /// The units that it would have used.
    pub needed: u64,
    /// Whether it needs more than the limit of a whole window, so that it can never be admitted.
    pub is_too_large: bool,
    /// Whether another router may have rights left, so that a short wait may help.
    pub is_hopeful: bool,
}

/// Something that was taken for a request.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) cell: Arc<Cell>,
    pub(crate) start_ms: u64,
    pub(crate) units: u64,
    /// Whether the units were free. A shadow takes them all the same.
    pub(crate) was_free: bool,
}

/// What was taken for a request that may go on. Dropping it without settling it leaves all of it taken.
#[derive(Debug, Default)]
pub struct Admission {
    pub(crate) taken: Vec<Taken>,
    /// What the answer says of each limit.
    pub quotas: Vec<Quota>,
}

impl Admission {
    /// Whether a limit of tokens concerns the request, so that it must be settled.
    #[must_use]
    pub fn counts_tokens(&self) -> bool {
        self.taken.iter().any(|taken| taken.cell.meter.kind == Kind::Tokens)
    }

    /// Replaces the tokens that were reserved by those that were used.
    pub fn settle(self, tokens: &TokenCount) {
        for taken in self.taken {
            if taken.cell.meter.kind == Kind::Tokens {
                let used = taken.cell.meter.units(tokens);
                // A window that has been dropped no longer limits anything.
                taken.cell.with(taken.start_ms, |_, _, window| {
                    window.taken = window.taken.saturating_add(used.saturating_sub(taken.units));
                    window.returned += taken.units.saturating_sub(used);
                });
            }
        }
    }

    pub(crate) fn take_back(self) {
        for taken in self.taken {
            taken.cell.with(taken.start_ms, |_, _, window| window.returned += taken.units);
        }
    }
}

pub(crate) fn quota(
    rule: &Arc<str>,
    meter: &Meter,
    remaining: u64,
    start_ms: u64,
    moment: &Moment<'_>,
) -> Quota {
    let end_ms = start_ms + u64::from(meter.window_ms);
    Quota {
        rule: Arc::clone(rule),
        kind: meter.kind,
        limit: meter.limit,
        window_ms: meter.window_ms,
        remaining,
        reset_ms: end_ms.saturating_sub(moment.cluster_ms),
    }
}

pub(crate) fn refusal(quota: Quota, needed: u64, is_hopeful: bool) -> Refusal {
    let is_too_large = needed > quota.limit;
    Refusal { quotas: vec![quota.clone()], quota, needed, is_too_large, is_hopeful }
}
