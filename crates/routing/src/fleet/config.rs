//! The settings by which the fleet judges workers.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use smg_types::ids::ModelId;

/// Thresholds and timeouts by which the fleet decides whether a worker gets requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Probe settings for workers whose spec does not set their own.
    pub health: HealthConfig,
    /// Settings of the circuit breaker of each worker.
    pub breaker: BreakerConfig,
    /// Share of a model's workers, 0..=100 %, that breakers and connect errors may eject when no other worker is left. The
    /// workers beyond it stay eligible: reachable ones first, then those that were ejected first.
    pub max_ejection_percent: u8,
    /// Time that the requests in flight on a removed worker have to finish before they are aborted.
    pub drain_timeout: Duration,
    /// Other names for models, whichever workers serve them: a request for the key is sent as a request for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Time for which a model whose last worker was removed is still a known model; zero: not at all.
    pub model_memory: Duration,
    /// The place of this router; its workers are preferred.
    pub place: Place,
}

/// The place of a router or a worker. `None`: not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Place {
    /// The region.
    pub region: Option<String>,
    /// The zone within the region.
    pub zone: Option<String>,
}

/// Probe settings of a worker whose [`HealthSpec`](smg_types::spec::HealthSpec) does not set its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthConfig {
    /// The path that the prober requests. A worker that can serve answers it with 2xx.
    pub endpoint: String,
    /// Time from the end of a probe to the next one; the prober varies it by ±10 %.
    pub interval: Duration,
    /// A probe without an answer after this time has failed.
    pub timeout: Duration,
    /// A worker is down after this many failed probes in a row.
    pub failure_threshold: NonZeroU32,
    /// A worker that was down is up after this many good probes in a row.
    pub success_threshold: NonZeroU32,
    /// The router sends no probes and assumes every worker to be healthy.
    pub disabled: bool,
}

/// Settings of a circuit breaker: when the outcomes of requests eject a worker, and when the worker returns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BreakerConfig {
    /// The breaker opens after this many failures within `window`.
    pub failure_threshold: NonZeroU32,
    /// A half-open breaker closes after this many successes.
    pub success_threshold: NonZeroU32,
    /// An open breaker becomes half-open after this time.
    pub timeout: Duration,
    /// Failures that are older than this do not count.
    pub window: Duration,
    /// The breaker never opens.
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
            model_memory: Duration::from_secs(24 * 3600),
            place: Place::default(),
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
