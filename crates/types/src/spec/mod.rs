//! The specification of a worker, as the configuration, the admin API or another router gives it.
//!
//! Code that makes a [`WorkerSpec`] from input must call [`WorkerSpec::check`]. What the router measures or asks of a worker
//! (its health, its models) is kept apart, in `smg_routing::fleet`.

mod networks;
mod secret;
mod tls;
mod url;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use networks::{ForbiddenPlace, WorkerNetworks};
pub use secret::Secret;
pub use tls::{Pin, WorkerTls};
pub use url::{WorkerUrl, WorkerUrlError};

use crate::bounds;
use crate::ids::{ModelId, WorkerId};

/// The only value of a worker's `worker_type` that is supported: the worker does both prefill and decode.
pub const REGULAR_WORKER: &str = "regular";

/// The reason why other worker types, and the settings that go with them, are refused.
pub const NO_DISAGGREGATION: &str =
    "disaggregated prefill is not supported yet: register workers that do both prefill and decode";

/// The settings of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSpec {
    /// The normalised URL. It is the worker's identity.
    pub url: WorkerUrl,
    /// The models that the worker serves; empty: the router asks the worker.
    pub models: Vec<ModelId>,
    /// Other names for the worker's models: a request for the key is sent as a request for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Free labels. The label `policy` names the policy of the worker's models.
    pub labels: BTreeMap<String, String>,
    /// The region of the worker. Routers prefer workers of their own region to those of others.
    pub region: Option<String>,
    /// The zone of the worker within its region. Routers prefer workers of their own zone.
    pub zone: Option<String>,
    /// A higher number is preferred: the worker serves only while all workers of its models with a higher priority are out
    /// or full.
    pub priority: i32,
    /// The worker's share of traffic relative to other workers.
    pub weight: Weight,
    /// The key that the router sends as `authorization: Bearer …` in place of the client's.
    pub api_key: Option<Secret>,
    /// How the worker's certificate is checked.
    pub tls: WorkerTls,
    /// The settings of the worker's probes.
    pub health: HealthSpec,
    /// Most requests in flight on the worker. The router counts its own requests and those that other routers report.
    pub max_concurrent: Option<NonZeroU32>,
}

impl WorkerSpec {
    /// A worker with this URL and default settings.
    #[must_use]
    pub fn new(url: WorkerUrl) -> Self {
        Self {
            url,
            models: Vec::new(),
            aliases: BTreeMap::new(),
            labels: BTreeMap::new(),
            region: None,
            zone: None,
            priority: 0,
            weight: Weight::ONE,
            api_key: None,
            tls: WorkerTls::Authorities,
            health: HealthSpec::default(),
            max_concurrent: None,
        }
    }

    /// Checks each field against its bounds. The types of the URL and the weight ensure theirs.
    ///
    /// # Errors
    /// If a field is out of its bounds: the first such field.
    pub fn check(&self) -> Result<(), SpecError> {
        for (field, entries) in [
            ("models", self.models.len()),
            ("aliases", self.aliases.len()),
            ("labels", self.labels.len()),
        ] {
            if entries > bounds::MAX_ENTRIES {
                let reason = format!("has more than {} entries", bounds::MAX_ENTRIES);
                return Err(SpecError { field, value: None, reason });
            }
        }
        let aliases = self.aliases.iter().flat_map(|(alias, model)| [alias, model]);
        for model in &self.models {
            text("models", model.as_str(), bounds::model_name)?;
        }
        for model in aliases {
            text("aliases", model.as_str(), bounds::model_name)?;
        }
        for (name, value) in &self.labels {
            text("labels", name, bounds::label_name)?;
            text("labels", value, bounds::label_value)?;
        }
        for (field, place) in [("region", &self.region), ("zone", &self.zone)] {
            place.as_ref().map_or(Ok(()), |place| text(field, place, bounds::place))?;
        }
        number("priority", Some(self.priority), &bounds::PRIORITY)?;
        let max_concurrent = self.max_concurrent.map(NonZeroU32::get);
        number("max_concurrent", max_concurrent, &bounds::MAX_CONCURRENT)?;
        if self.tls != WorkerTls::Authorities && !self.url.is_secure() {
            let reason = "needs a URL that begins with https://".to_owned();
            return Err(SpecError { field: "tls", value: None, reason });
        }
        self.health.check()
    }

    /// The worker's id, which depends only on its URL.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.url.id()
    }
}

/// A field of a spec that is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}{} {reason}", value.as_ref().map(|value| format!(" {value}")).unwrap_or_default())]
pub struct SpecError {
    /// The name of the field in the API and the configuration; fields of `health` have their full path.
    pub field: &'static str,
    value: Option<String>,
    reason: String,
}

fn text(
    field: &'static str,
    text: &str,
    check: impl Fn(&str) -> Result<(), String>,
) -> Result<(), SpecError> {
    check(text).map_err(|reason| {
        let shown: String = text.chars().take(64).collect();
        SpecError { field, value: Some(format!("{shown:?}")), reason }
    })
}

fn number<T: PartialOrd + Copy + std::fmt::Display>(
    field: &'static str,
    number: Option<T>,
    bounds: &std::ops::RangeInclusive<T>,
) -> Result<(), SpecError> {
    let Some(number) = number else { return Ok(()) };
    bounds::number(&number, bounds).map_err(|reason| SpecError {
        field,
        value: Some(number.to_string()),
        reason,
    })
}

/// A share of traffic relative to other workers: an integer within [`bounds::WEIGHT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

impl Weight {
    /// The default weight.
    pub const ONE: Self = Self(1);

    /// The weight as a number, at least 1.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

/// The number is not a weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("weight {0} is not between {min} and {max}", min = bounds::WEIGHT.start(), max = bounds::WEIGHT.end())]
pub struct WeightError(u32);

impl TryFrom<u32> for Weight {
    type Error = WeightError;

    fn try_from(weight: u32) -> Result<Self, Self::Error> {
        match u16::try_from(weight) {
            Ok(small) if bounds::WEIGHT.contains(&weight) => Ok(Self(small)),
            Ok(_) | Err(_) => Err(WeightError(weight)),
        }
    }
}

impl From<Weight> for u32 {
    fn from(weight: Weight) -> Self {
        weight.get()
    }
}

/// The probe settings of a worker. `None` means the router's default.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthSpec {
    /// The path that the prober requests. A worker that can serve answers it with 2xx.
    pub endpoint: Option<String>,
    /// Time between probes.
    pub interval: Option<Duration>,
    /// A probe without an answer after this time has failed.
    pub timeout: Option<Duration>,
    /// The worker is down after this many failed probes in a row.
    pub failure_threshold: Option<NonZeroU32>,
    /// A worker that was down is up after this many good probes in a row.
    pub success_threshold: Option<NonZeroU32>,
    /// The worker is not probed and counts as healthy.
    pub disabled: bool,
}

impl HealthSpec {
    fn check(&self) -> Result<(), SpecError> {
        if let Some(endpoint) = &self.endpoint {
            text("health.endpoint", endpoint, bounds::probe_path)?;
        }
        let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
        let interval = seconds(self.interval);
        number("health.interval_secs", interval, &bounds::PROBE_INTERVAL_SECONDS)?;
        let timeout = seconds(self.timeout);
        number("health.timeout_secs", timeout, &bounds::PROBE_TIMEOUT_SECONDS)?;
        let threshold = |threshold: Option<NonZeroU32>| threshold.map(NonZeroU32::get);
        let failures = threshold(self.failure_threshold);
        number("health.failure_threshold", failures, &bounds::PROBE_THRESHOLD)?;
        let successes = threshold(self.success_threshold);
        number("health.success_threshold", successes, &bounds::PROBE_THRESHOLD)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(change: impl FnOnce(&mut WorkerSpec)) -> String {
        let mut spec = WorkerSpec::new("http://a:1".parse().unwrap());
        change(&mut spec);
        spec.check().expect_err("it is within its bounds").to_string()
    }

    #[test]
    fn a_field_out_of_its_bounds_is_named_with_its_value() {
        let long = "x".repeat(257);
        for (error, expected) in [
            (
                wrong(|spec| spec.models = vec!["".into()]),
                "models \"\" is not a model's name of 1 to 512",
            ),
            (wrong(|spec| spec.models = vec!["a\n".into()]), "models \"a\\n\" is not"),
            (wrong(|spec| spec.models = vec!["m".into(); 257]), "models has more than 256"),
            (wrong(|spec| drop(spec.aliases.insert("a".into(), " ".into()))), "aliases \" \""),
            (wrong(|spec| drop(spec.labels.insert("a b".into(), String::new()))), "labels \"a b\""),
            (wrong(|spec| drop(spec.labels.insert("a".into(), long.clone()))), "at most 256"),
            (wrong(|spec| spec.zone = Some(String::new())), "zone \"\" is empty"),
            (wrong(|spec| spec.priority = 1_000_001), "priority 1000001 is not between"),
            (
                wrong(|spec| spec.max_concurrent = NonZeroU32::new(1_000_001)),
                "max_concurrent 1000001",
            ),
            (
                wrong(|spec| spec.tls = WorkerTls::Unchecked),
                "tls needs a URL that begins with https",
            ),
            (wrong(|spec| spec.health.endpoint = Some("x".into())), "health.endpoint \"x\""),
            (wrong(|spec| spec.health.interval = Some(Duration::ZERO)), "health.interval_secs 0"),
            (
                wrong(|spec| spec.health.timeout = Some(Duration::from_secs(3601))),
                "health.timeout_secs 3601 is not between 0.001 and 3600",
            ),
            (
                wrong(|spec| spec.health.failure_threshold = NonZeroU32::new(1001)),
                "health.failure_threshold 1001",
            ),
        ] {
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_weight_outside_its_bounds_is_refused() {
        assert_eq!(Weight::try_from(1000).map(Weight::get), Ok(1000));
        for wrong in [0, 1001, 70_000] {
            let error = Weight::try_from(wrong).unwrap_err().to_string();
            assert_eq!(error, format!("weight {wrong} is not between 1 and 1000"));
        }
    }
}
