//! The workers store: an add-wins set of worker ids, each with its spec and an operator's override, both last write wins.
//!
//! A [`WorkerRecord`] is the replicated form of a `spec::WorkerSpec`. It carries the worker's key, for a router that lacks
//! it can't use the worker; whoever runs a mesh without encryption sends it in the clear.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::spec::{
    HealthSpec, Secret, Weight, WorkerKind, WorkerSpec, WorkerUrl, WorkerUrlError,
};

use crate::crdt::Merge;
use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
use crate::state::StoreId;
use crate::state::table::Store;

/// The workers store.
#[derive(Debug)]
pub enum Workers {}

impl Store for Workers {
    const ID: StoreId = StoreId::Workers;
    type Key = WorkerId;
    type Value = WorkerEntry;

    fn validate(key: &WorkerId, value: &WorkerEntry) -> Result<(), String> {
        if let Some(record) = value.record() {
            let url = record.check().map_err(|error| error.to_string())?;
            if record.id != *key || url.id() != *key {
                return Err(format!("the record under {key} is that of {}", url.id()));
            }
        }
        match value.verdict() {
            Some(verdict) if verdict.reason.len() > *bounds::OVERRIDE_REASON_BYTES.end() => {
                let (bytes, most) = (verdict.reason.len(), bounds::OVERRIDE_REASON_BYTES.end());
                Err(format!("the reason is {bytes} bytes long, the limit is {most}"))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn stamp(value: &WorkerEntry) -> Option<Stamp> {
        value.told.stamp().max(value.overridden.stamp()).max(value.stance.stamp())
    }
}

/// What the cluster knows about a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerEntry {
    told: LwwRegister<WorkerRecord>,
    overridden: LwwRegister<Option<Override>>,
    stance: LwwRegister<Stance>,
}

/// Whether a worker takes part, as administrators decide it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum Stance {
    /// It does.
    #[default]
    Serving,
    /// It gets no new request and stays.
    Cordoned,
    /// It was removed, but some router's configuration names it: kept so that a restart of that router does not bring it
    /// back.
    Dismissed,
}

impl WorkerEntry {
    pub(crate) fn told(told: LwwRegister<WorkerRecord>) -> Self {
        Self { told, ..Self::default() }
    }

    pub(crate) fn overridden(overridden: LwwRegister<Option<Override>>) -> Self {
        Self { overridden, ..Self::default() }
    }

    pub(crate) fn stands(stance: LwwRegister<Stance>) -> Self {
        Self { stance, ..Self::default() }
    }

    /// Whether it takes part.
    #[must_use]
    pub fn stance(&self) -> Stance {
        self.stance.get().copied().unwrap_or_default()
    }

    /// What is told about it; `None` in the moment in which only an override is known.
    #[must_use]
    pub fn record(&self) -> Option<&WorkerRecord> {
        self.told.get()
    }

    /// When that was told.
    #[must_use]
    pub fn told_at(&self) -> Option<Stamp> {
        self.told.stamp()
    }

    /// The operator's verdict, if one is laid down. Whether it has ended is the reader's to see.
    #[must_use]
    pub fn verdict(&self) -> Option<&Override> {
        self.overridden.get().and_then(Option::as_ref)
    }
}

impl Merge for WorkerEntry {
    fn merge(&mut self, other: &Self) -> bool {
        self.told.merge(&other.told)
            | self.overridden.merge(&other.overridden)
            | self.stance.merge(&other.stance)
    }
}

/// What an operator says of a worker, whatever probes and traffic say.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Override {
    /// In or out.
    pub state: OverrideState,
    /// Why, for the next operator; at most [`bounds::OVERRIDE_REASON_BYTES`].
    pub reason: String,
    /// When it ends by itself, in milliseconds of wall time.
    pub until_ms: Option<u64>,
}

/// In or out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OverrideState {
    /// Taken for healthy.
    Up,
    /// Gets no request.
    Down,
}

/// A worker's spec as it travels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// Hash of the URL.
    pub id: WorkerId,
    url: String,
    models: Vec<ModelId>,
    aliases: BTreeMap<ModelId, ModelId>,
    kind: u8,
    labels: BTreeMap<String, String>,
    region: Option<String>,
    zone: Option<String>,
    priority: i32,
    weight: u32,
    api_key: Option<String>,
    health: HealthRecord,
    max_concurrent: Option<std::num::NonZeroU32>,
    bootstrap_port: Option<u16>,
    /// A hash of what a router's configuration said of it, if one named it.
    configured: Option<u64>,
}

impl WorkerRecord {
    /// The record as a router's configuration says it. What administrators change later stays until a configuration says
    /// something else.
    #[must_use]
    pub fn configured(spec: &WorkerSpec) -> Self {
        let record = Self::from(spec);
        let text = crate::codec::encode(&record);
        Self { configured: Some(xxhash_rust::xxh3::xxh3_64(&text)), ..record }
    }

    /// A hash of what a router's configuration said of it, if one named it.
    #[must_use]
    pub fn configuration(&self) -> Option<u64> {
        self.configured
    }

    /// The same, with what is known of a configuration that names it.
    #[must_use]
    pub fn with_configuration(self, configured: Option<u64>) -> Self {
        Self { configured, ..self }
    }

    /// Whether it is a spec, without making one: a snapshot has ten thousand of them.
    fn check(&self) -> Result<WorkerUrl, WorkerRecordError> {
        let url: WorkerUrl = self.url.parse()?;
        if url.as_str() != self.url {
            return Err(WorkerRecordError::Spelling(self.url.clone()));
        }
        Weight::try_from(self.weight)?;
        self.kind()?;
        Ok(url)
    }

    fn kind(&self) -> Result<WorkerKind, WorkerRecordError> {
        match self.kind {
            0 => Ok(WorkerKind::Regular),
            1 => Ok(WorkerKind::Prefill),
            2 => Ok(WorkerKind::Decode),
            kind => Err(WorkerRecordError::Kind(kind)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
struct HealthRecord {
    endpoint: Option<String>,
    interval: Option<Duration>,
    timeout: Option<Duration>,
    failure_threshold: Option<std::num::NonZeroU32>,
    success_threshold: Option<std::num::NonZeroU32>,
    disabled: bool,
}

impl std::fmt::Debug for WorkerRecord {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record of {}", self.url)
    }
}

impl From<&WorkerSpec> for WorkerRecord {
    fn from(spec: &WorkerSpec) -> Self {
        Self {
            id: spec.id(),
            url: spec.url.as_str().to_owned(),
            models: spec.models.clone(),
            aliases: spec.aliases.clone(),
            kind: match spec.kind {
                WorkerKind::Regular => 0,
                WorkerKind::Prefill => 1,
                WorkerKind::Decode => 2,
            },
            labels: spec.labels.clone(),
            region: spec.region.clone(),
            zone: spec.zone.clone(),
            priority: spec.priority,
            weight: spec.weight.get(),
            api_key: spec.api_key.as_ref().map(|key| key.expose().to_owned()),
            health: HealthRecord {
                endpoint: spec.health.endpoint.clone(),
                interval: spec.health.interval,
                timeout: spec.health.timeout,
                failure_threshold: spec.health.failure_threshold,
                success_threshold: spec.health.success_threshold,
                disabled: spec.health.disabled,
            },
            max_concurrent: spec.max_concurrent,
            bootstrap_port: spec.bootstrap_port,
            configured: None,
        }
    }
}

/// Why a record is no spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerRecordError {
    /// No URL.
    #[error(transparent)]
    Url(#[from] WorkerUrlError),
    /// Not in the one spelling that its id is the hash of.
    #[error("worker url {0:?} is not normalised")]
    Spelling(String),
    /// Out of bounds.
    #[error(transparent)]
    Weight(#[from] smg_types::spec::WeightError),
    /// Not a kind.
    #[error("worker kind {0} is unknown")]
    Kind(u8),
}

impl TryFrom<&WorkerRecord> for WorkerSpec {
    type Error = WorkerRecordError;

    fn try_from(record: &WorkerRecord) -> Result<Self, Self::Error> {
        let url = record.check()?;
        let health = record.health.clone();
        Ok(Self {
            url,
            models: record.models.clone(),
            aliases: record.aliases.clone(),
            kind: record.kind()?,
            labels: record.labels.clone(),
            region: record.region.clone(),
            zone: record.zone.clone(),
            priority: record.priority,
            weight: Weight::try_from(record.weight)?,
            api_key: record.api_key.as_deref().map(Secret::new),
            health: HealthSpec {
                endpoint: health.endpoint,
                interval: health.interval,
                timeout: health.timeout,
                failure_threshold: health.failure_threshold,
                success_threshold: health.success_threshold,
                disabled: health.disabled,
            },
            max_concurrent: record.max_concurrent,
            bootstrap_port: record.bootstrap_port,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_survives_the_journey() {
        let mut spec = WorkerSpec::new("http://[::1]:8000/v".parse().unwrap());
        spec.models = vec!["m".into()];
        spec.aliases.insert("a".into(), "m".into());
        spec.kind = WorkerKind::Decode;
        spec.labels.insert("k".to_owned(), "v".to_owned());
        spec.zone = Some("z".to_owned());
        spec.priority = -3;
        spec.weight = Weight::try_from(7).unwrap();
        spec.api_key = Some(Secret::new("hunter2"));
        spec.health.interval = Some(Duration::from_millis(1500));
        spec.max_concurrent = std::num::NonZeroU32::new(9);
        spec.bootstrap_port = Some(1);
        let record = WorkerRecord::from(&spec);
        assert_eq!(WorkerSpec::try_from(&record), Ok(spec));
        assert!(!format!("{record:?}").contains("hunter2"));
    }

    #[test]
    fn a_record_that_is_no_spec_is_not_valid() {
        let spec = WorkerSpec::new("http://a:80".parse().unwrap());
        let record = WorkerRecord::from(&spec);
        let check = |record: WorkerRecord| {
            let entry = WorkerEntry::told(LwwRegister::of(Stamp::default(), record));
            Workers::validate(&spec.id(), &entry)
        };
        assert_eq!(check(record.clone()), Ok(()));
        assert!(check(WorkerRecord { url: "http://A".to_owned(), ..record.clone() }).is_err());
        assert!(check(WorkerRecord { url: "http://b:80".to_owned(), ..record.clone() }).is_err());
        assert!(check(WorkerRecord { weight: 0, ..record.clone() }).is_err());
        assert!(check(WorkerRecord { kind: 9, ..record }).is_err());
    }
}
