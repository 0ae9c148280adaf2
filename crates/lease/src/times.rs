//! The periods of the protocol.

use std::time::Duration;

/// The periods of the protocol.
///
/// What must hold between them is stated for clocks whose rates are at most [`Times::MAX_DRIFT`] wrong: a holder counts
/// `hold`, a voter counts `ttl` from a later moment, so it is enough that `hold / (1 - drift) <= ttl / (1 + drift)`. With 4 s
/// and 5 s that is true up to a drift of 11 %, so the assumed 5 % leave a margin of more than half of it. (A quartz is wrong
/// by 0.01 %, and the kernel slews a clock by at most 0.05 % while NTP corrects it.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Times {
    /// How long a voter votes for no other router, from the moment at which it voted, by its clock.
    pub ttl: Duration,
    /// How long a vote counts for its holder, from the moment before it sent the request, by the holder's clock (L3).
    pub hold: Duration,
    /// Time between two requests of a holder.
    pub renew: Duration,
    /// How long a voter abstains that has lost its memory (L5).
    pub abstain: Duration,
    /// How long a candidate waits for promises, and then for votes.
    pub round: Duration,
    /// By how much a candidate waits longer than the one that is preferred before it (L15).
    pub stagger: Duration,
    /// How long other candidates wait for the router to which a holder hands its lease.
    pub handover: Duration,
}

impl Times {
    /// By how much the rate of a clock may be wrong: one part in this number.
    pub const MAX_DRIFT: u32 = 20;

    /// Leases of 5 s that are renewed each second.
    pub const DEFAULT: Self = Self {
        ttl: Duration::from_secs(5),
        hold: Duration::from_secs(4),
        renew: Duration::from_secs(1),
        abstain: Duration::from_secs(6),
        round: Duration::from_secs(1),
        stagger: Duration::from_millis(150),
        handover: Duration::from_secs(1),
    };
}

impl Default for Times {
    fn default() -> Self {
        Self::DEFAULT
    }
}
