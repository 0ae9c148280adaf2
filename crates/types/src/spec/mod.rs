//! The specification of a worker, as configuration, an administrator or another router gives it.
//!
//! Whoever makes a [`WorkerSpec`] from input calls [`WorkerSpec::check`]. What a worker turns out to be (its models, its
//! health) is kept apart, in `routing::fleet`.

mod secret;
mod url;

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use secret::Secret;
pub use url::{WorkerUrl, WorkerUrlError};

use crate::bounds;
use crate::ids::{ModelId, WorkerId};

/// What is specified of a worker.
#[derive(Debug, Clone, PartialEq)]
pub struct WorkerSpec {
    /// Where it listens, normalised: the worker's identity.
    pub url: WorkerUrl,
    /// The models it serves; empty: ask the worker.
    pub models: Vec<ModelId>,
    /// Other names for its models: a request for the key is sent as one for the value.
    pub aliases: BTreeMap<ModelId, ModelId>,
    /// Its part in disaggregated serving.
    pub kind: WorkerKind,
    /// Free labels; `policy` names the policy of its models.
    pub labels: BTreeMap<String, String>,
    /// Where it stands, for people and for zone-aware routing.
    pub region: Option<String>,
    /// Where it stands within the region.
    pub zone: Option<String>,
    /// Workers of a higher priority are preferred by nothing yet but shown; kept so that a spec survives a round trip.
    pub priority: i32,
    /// Its share of traffic relative to other workers.
    pub weight: Weight,
    /// Sent as `authorization: Bearer …` in place of the client's.
    pub api_key: Option<Secret>,
    /// How it is probed.
    pub health: HealthSpec,
    /// Never more requests than this at once on the worker, counted by this router.
    pub max_concurrent: Option<NonZeroU32>,
    /// SGLang's port for handing a prefill over.
    pub bootstrap_port: Option<u16>,
}

impl WorkerSpec {
    /// A worker of which nothing is known but its URL.
    #[must_use]
    pub fn new(url: WorkerUrl) -> Self {
        Self {
            url,
            models: Vec::new(),
            aliases: BTreeMap::new(),
            kind: WorkerKind::Regular,
            labels: BTreeMap::new(),
            region: None,
            zone: None,
            priority: 0,
            weight: Weight::ONE,
            api_key: None,
            health: HealthSpec::default(),
            max_concurrent: None,
            bootstrap_port: None,
        }
    }

    /// Checks each field against its bounds. The URL and the weight are right by their types.
    ///
    /// # Errors
    /// The first field that is out of its bounds.
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
        self.health.check()
    }

    /// The worker's id: derived from its URL and nothing else.
    #[must_use]
    pub fn id(&self) -> WorkerId {
        self.url.id()
    }
}

/// A worker's part in disaggregated serving.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerKind {
    /// Does prefill and decode.
    #[default]
    Regular,
    /// Does prefill only.
    Prefill,
    /// Does decode only.
    Decode,
}

/// A field of a spec is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}{} {reason}", value.as_ref().map(|value| format!(" {value}")).unwrap_or_default())]
pub struct SpecError {
    /// The field, as the API and the configuration call it; fields of `health` are called by their full path.
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

/// A share of traffic relative to other workers: a whole number within [`bounds::WEIGHT`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Weight(u16);

impl Weight {
    /// The weight of a worker of which nothing is said.
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

/// A number that is no weight.
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

/// How a worker is probed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthSpec {
    /// Path that answers 2xx while the worker can serve.
    pub endpoint: Option<String>,
    /// Time between probes; `None`: the router's default.
    pub interval: Option<Duration>,
    /// Time after which a probe failed; `None`: the router's default.
    pub timeout: Option<Duration>,
    /// Failed probes in a row that take it out; `None`: the router's default.
    pub failure_threshold: Option<NonZeroU32>,
    /// Good probes in a row that bring it back; `None`: the router's default.
    pub success_threshold: Option<NonZeroU32>,
    /// Never probed: always taken for healthy.
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
        for (said, wanted) in [
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
            assert!(said.contains(wanted), "{said}");
        }
    }

    #[test]
    fn a_weight_has_bounds() {
        assert_eq!(Weight::try_from(1000).map(Weight::get), Ok(1000));
        for wrong in [0, 1001, 70_000] {
            let said = Weight::try_from(wrong).unwrap_err().to_string();
            assert_eq!(said, format!("weight {wrong} is not between 1 and 1000"));
        }
    }
}
