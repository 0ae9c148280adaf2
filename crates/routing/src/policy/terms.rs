//! The terms by which a policy compares workers, for people who ask why a worker gets a request.

use crate::prefix::Recall;
use crate::speed::Speed;

/// The terms of one candidate's expected time to first token. Times are in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TimeTerms {
    /// What the worker is expected to hold of the prompt.
    pub recall: Recall,
    /// Tokens of the prompt that the worker would have to compute.
    pub own_tokens: f32,
    /// The time that it takes for them.
    pub own_seconds: f32,
    /// How many times [`TimeTerms::own_seconds`] counts.
    pub own_weight: f32,
    /// The time that it takes for the prompts which wait on it.
    pub waiting_seconds: f32,
    /// The time that its requests in flight add.
    pub crowding_seconds: f32,
    /// The speed that is taken for it: its own, or if it has shown none the mean of the others.
    pub speed: Speed,
    /// The mean weight of the candidates, divided by the worker's own.
    pub share_factor: f32,
    /// The time by which candidates are compared: the sum of the overhead, the waiting, the own part as often as it counts and the
    /// crowding, multiplied by [`TimeTerms::share_factor`].
    pub cost: f32,
    /// Whether the worker's load is within the bound on imbalance, so that it may be picked. Set in explanations only.
    pub is_within_balance: bool,
    /// Whether the worker is about as good as the best one, so that it may be picked in its place. Set in explanations only.
    pub is_alike: bool,
}

impl TimeTerms {
    /// Terms that are all zero, for a worker of this speed.
    pub(super) fn of_speed(speed: Speed) -> Self {
        Self {
            recall: Recall::default(),
            own_tokens: 0.0,
            own_seconds: 0.0,
            own_weight: 0.0,
            waiting_seconds: 0.0,
            crowding_seconds: 0.0,
            speed,
            share_factor: 1.0,
            cost: 0.0,
            is_within_balance: false,
            is_alike: false,
        }
    }
}
