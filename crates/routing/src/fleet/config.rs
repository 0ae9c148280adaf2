//! What the fleet judges workers by.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use smg_types::ids::ModelId;

/// What the fleet judges workers by, and how long a removed one may stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Probes judge health by these where a worker's spec says nothing.
    pub health: HealthConfig,
    /// When traffic takes a worker out.
    pub breaker: BreakerConfig,
    /// Share of a model's workers, 0..=100 %, that passive signals (breaker, connect errors) may take out; beyond it
    /// the least bad stay in.
    pub max_ejection_percent: u8,
    /// How long a deleted worker may finish what is in flight.
    pub drain_timeout: Duration,
    /// Other names for models, whichever workers serve them: a request for the key is sent as one for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
}

/// Defaults of `spec::HealthSpec`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// Path that answers 2xx while a worker can serve.
    pub endpoint: String,
    /// Time between probes.
    pub interval: Duration,
    /// Time after which a probe failed.
    pub timeout: Duration,
    /// Failed probes in a row that take a worker out.
    pub failure_threshold: NonZeroU32,
    /// Good probes in a row that bring it back.
    pub success_threshold: NonZeroU32,
    /// No probes: every worker is taken for healthy.
    pub disabled: bool,
}

/// When traffic takes a worker out, and how it comes back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// Failures within `window` that open it.
    pub failure_threshold: NonZeroU32,
    /// Successes in half-open that close it.
    pub success_threshold: NonZeroU32,
    /// Time from open to half-open.
    pub timeout: Duration,
    /// The window in which failures count.
    pub window: Duration,
    /// Never opens.
    pub disabled: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            health: HealthConfig::default(),
            breaker: BreakerConfig::default(),
            max_ejection_percent: 50,
            drain_timeout: Duration::from_secs(300),
            aliases: BTreeMap::new(),
        }
    }
}

impl Default for HealthConfig {
    fn default() -> Self {
        Self {
            endpoint: "/health".to_owned(),
            interval: Duration::from_secs(10),
            timeout: Duration::from_secs(5),
            failure_threshold: NonZeroU32::new(3).expect("3 is not 0"),
            success_threshold: NonZeroU32::new(1).expect("1 is not 0"),
            disabled: false,
        }
    }
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failure_threshold: NonZeroU32::new(10).expect("10 is not 0"),
            success_threshold: NonZeroU32::new(3).expect("3 is not 0"),
            timeout: Duration::from_secs(60),
            window: Duration::from_secs(120),
            disabled: false,
        }
    }
}
