//! Whether a worker is a candidate for a request, and if not, why.

use smg_routing::fleet::{Ejection, Outage};

/// How a worker stands to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The policy may pick it.
    Candidate,
    /// There are candidates of a higher priority.
    LowerPriority,
    /// There are candidates that are nearer to this router and not much busier.
    FartherAway,
    /// It refuses requests because it is overloaded, and others do not.
    PushesBack,
    /// It has as many requests in flight as its `max_concurrent` allows.
    Full,
    /// Its requests fail, or no connection to it can be made.
    Ejected(Ejection),
    /// It gets no requests.
    Out(Outage),
    /// It does not serve the model.
    OtherModel,
}

impl Standing {
    /// The name in the API.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Candidate => "candidate",
            Self::LowerPriority => "lower_priority",
            Self::FartherAway => "farther_away",
            Self::PushesBack => "pushes_back",
            Self::Full => "full",
            Self::Ejected(Ejection::Breaker) => "breaker_open",
            Self::Ejected(Ejection::OtherRouters) => "breaker_open_elsewhere",
            Self::Ejected(Ejection::Unreachable) => "unreachable",
            Self::Out(Outage::Draining) => "draining",
            Self::Out(Outage::ModelsUnknown) => "models_unknown",
            Self::Out(Outage::Overridden) => "overridden",
            Self::Out(Outage::Down) => "down",
            Self::Out(Outage::Sleeping) => "sleeping",
            Self::OtherModel => "other_model",
        }
    }

    /// What that means, in one sentence.
    #[must_use]
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Candidate => "the policy may pick it",
            Self::LowerPriority => "other candidates have a higher priority",
            Self::FartherAway => {
                "other candidates are in the zone or region of this router and not much busier"
            }
            Self::PushesBack => {
                "it has just refused a request because it is overloaded, and other workers have not"
            }
            Self::Full => "it has as many requests in flight as its max_concurrent allows",
            Self::Ejected(Ejection::Breaker) => {
                "its circuit breaker is open: too many requests have failed"
            }
            Self::Ejected(Ejection::OtherRouters) => {
                "its circuit breaker is open on other routers, and no request of this one has succeeded lately"
            }
            Self::Ejected(Ejection::Unreachable) => {
                "the last request could not connect, and no probe has succeeded since"
            }
            Self::Out(Outage::Draining) => "it is draining",
            Self::Out(Outage::ModelsUnknown) => {
                "the router does not know yet which models it serves"
            }
            Self::Out(Outage::Overridden) => "an administrator has declared it unhealthy",
            Self::Out(Outage::Down) => "it fails its probes, or no probe has succeeded yet",
            Self::Out(Outage::Sleeping) => "its engine sleeps",
            Self::OtherModel => "it does not serve the model",
        }
    }
}
