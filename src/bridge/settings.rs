//! The policies that administrators set: their JSON document, their record, and their effect.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use smg_cluster::state::policy::PolicyRecord;
use smg_routing::policies::Setting;
use smg_routing::policy;
use smg_types::ids::WorkerId;
use smg_types::spec::{Weight, WeightError};

/// A policy for a model, as a document of the API.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyDocument {
    /// The policy's name.
    pub policy: String,
    /// Its parameters: `cache_threshold`, `balance_abs_threshold`, `balance_rel_threshold`.
    #[serde(default)]
    pub parameters: BTreeMap<String, serde_json::Number>,
    /// Weights that replace those in the workers' specs, by worker id.
    #[serde(default)]
    pub weights: BTreeMap<WorkerId, u32>,
}

/// Why a policy can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// There is no such policy.
    #[error(transparent)]
    Policy(#[from] policy::ParseKindError),
    /// There is no such parameter.
    #[error(
        "parameter {0:?} is not one of cache_threshold, balance_abs_threshold, balance_rel_threshold"
    )]
    Parameter(String),
    /// A parameter is out of its bounds.
    #[error("parameter {name} {value:?} is not {wanted}")]
    Value {
        /// The parameter's name.
        name: &'static str,
        /// The value that was given.
        value: String,
        /// The values that are valid.
        wanted: &'static str,
    },
    /// A weight is out of its bounds.
    #[error("{error} (of worker {worker})")]
    Weight {
        /// The worker of the weight.
        worker: WorkerId,
        /// What is wrong with the weight.
        error: WeightError,
    },
}

/// The policy as it is stored in the shared state.
pub(super) fn record(document: &PolicyDocument) -> PolicyRecord {
    let parameters = document.parameters.iter();
    PolicyRecord {
        policy: document.policy.clone(),
        parameters: parameters.map(|(name, value)| (name.clone(), value.to_string())).collect(),
        weights: document.weights.clone(),
    }
}

/// The effect of a record on a router whose own parameters are `defaults`.
pub(super) fn setting(
    record: &PolicyRecord,
    defaults: &policy::Config,
) -> Result<Setting, PolicyError> {
    let kind = record.policy.parse()?;
    let mut config = defaults.clone();
    for (name, value) in &record.parameters {
        match name.as_str() {
            "cache_threshold" => {
                let wanted = "a number between 0 and 1";
                config.cache_threshold =
                    number("cache_threshold", value, wanted, |v: &f32| (0.0..=1.0).contains(v))?;
            }
            "balance_abs_threshold" => {
                let wanted = "a whole number";
                config.balance_abs_threshold =
                    number("balance_abs_threshold", value, wanted, |_| true)?;
            }
            "balance_rel_threshold" => {
                let wanted = "a number of at least 1";
                config.balance_rel_threshold =
                    number("balance_rel_threshold", value, wanted, |v: &f32| {
                        v.is_finite() && *v >= 1.0
                    })?;
            }
            _ => return Err(PolicyError::Parameter(name.clone())),
        }
    }
    for (worker, weight) in &record.weights {
        Weight::try_from(*weight)
            .map_err(|error| PolicyError::Weight { worker: *worker, error })?;
    }
    Ok(Setting { kind, config, weights: record.weights.clone() })
}

fn number<T: std::str::FromStr>(
    name: &'static str,
    value: &str,
    wanted: &'static str,
    is_within: impl Fn(&T) -> bool,
) -> Result<T, PolicyError> {
    let refuse = || PolicyError::Value { name, value: value.chars().take(64).collect(), wanted };
    value.parse().ok().filter(|parsed| is_within(parsed)).ok_or_else(refuse)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meaning(text: &str) -> Result<Setting, String> {
        let document: PolicyDocument =
            serde_json::from_str(text).map_err(|error| error.to_string())?;
        setting(&record(&document), &policy::Config::default()).map_err(|error| error.to_string())
    }

    #[test]
    fn a_document_sets_policy_parameters_and_weights() {
        let set = meaning(
            r#"{"policy":"cache_aware","parameters":{"cache_threshold":0.5,"balance_abs_threshold":3},
                "weights":{"w-0000000000000001":7}}"#,
        )
        .unwrap();
        assert_eq!(set.kind, policy::Kind::CacheAware);
        assert_eq!((set.config.cache_threshold, set.config.balance_abs_threshold), (0.5, 3));
        assert_eq!(set.weights[&WorkerId::from_u64(1)], 7);
    }

    #[test]
    fn a_mistake_names_the_field_and_the_value() {
        for (text, says) in [
            (r#"{"policy":"fastest"}"#, "\"fastest\""),
            (r#"{"policy":"random","parameters":{"speed":1}}"#, "\"speed\""),
            (
                r#"{"policy":"random","parameters":{"cache_threshold":1.5}}"#,
                "cache_threshold \"1.5\"",
            ),
            (r#"{"policy":"random","parameters":{"balance_abs_threshold":-1}}"#, "\"-1\""),
            (r#"{"policy":"random","parameters":{"balance_rel_threshold":0.5}}"#, "at least 1"),
            (r#"{"policy":"random","weights":{"w-0000000000000001":0}}"#, "weight 0 is not"),
            (
                r#"{"policy":"random","weights":{"w-0000000000000001":1001}}"#,
                "weight 1001 is not between 1 and 1000 (of worker w-0000000000000001)",
            ),
            (r#"{"policy":"random","wieghts":{}}"#, "wieghts"),
        ] {
            let said = meaning(text).unwrap_err();
            assert!(said.contains(says), "{text} said {said:?}");
        }
    }
}
