//! Whether a worker gets requests, by what the router knows and by what an operator has decided.

use std::time::Duration;

/// An operator's decision on a worker's health. It takes precedence over probes and breakers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Whether the worker gets requests.
    pub healthy: bool,
    /// The operator's reason, shown by the API.
    pub reason: String,
    /// The override ends at this time of `Now::mono`; `None`: it holds until it is lifted.
    pub until: Option<Duration>,
}

/// Whether a worker is a candidate for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fitness {
    /// The worker is a candidate.
    Fit,
    /// The worker is overloaded: it is a candidate only if no other worker is fit.
    PushesBack,
    /// The worker has reached its `max_concurrent`.
    Full,
    /// A breaker or a connect error ejected the worker. It may get requests all the same when all others are ejected too.
    Ejected {
        /// The time of the ejection (`Now::mono`).
        since: Duration,
        /// What ejected it.
        by: Ejection,
    },
    /// The worker gets no requests.
    Out(Outage),
}

/// What has ejected a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ejection {
    /// This router's breaker: too many requests have failed.
    Breaker,
    /// The breakers of other routers.
    OtherRouters,
    /// The last attempt could not connect.
    Unreachable,
}

/// Why a worker gets no requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// The worker is draining.
    Draining,
    /// The router does not know yet which models the worker serves.
    ModelsUnknown,
    /// An operator has decided so.
    Overridden,
    /// The worker fails its probes, or no probe has succeeded yet.
    Down,
    /// The worker's engine sleeps.
    Sleeping,
}
