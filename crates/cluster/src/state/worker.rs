//! The workers store: an add-wins set of workers. Of each worker it holds the spec, an operator's override and the
//! worker's administrative state; of each of these the last write wins.
//!
//! A [`WorkerRecord`] is the replicated form of a `spec::WorkerSpec`. It contains the worker's API key, because a router
//! without the key can't use the worker. A mesh without encryption sends that key in the clear.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_types::bounds;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::{
    HealthSpec, Secret, Weight, WorkerSpec, WorkerTls, WorkerUrl, WorkerUrlError,
};

use crate::crdt::Merge;
use crate::crdt::lww_register::LwwRegister;
use crate::crdt::stamp::Stamp;
#[cfg(test)]
use crate::state::golden::Golden;
use crate::state::operations::{Draw, StoreOperations};
use crate::state::row;
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};

/// The workers store.
#[derive(Debug)]
pub enum Workers {}

impl Store for Workers {
    const NAME: &'static str = "workers";
    const ID: StoreId = StoreId::Workers;
    const OWNERSHIP: Ownership = Ownership::Shared;
    const RETENTION: Retention = Retention::Never;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 32_768;
    const MAX_CONTENT_BYTES: usize = row::MAX_CONTENT_BYTES;
    const IS_AWAITED: bool = true;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = true;

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
        value.record.stamp().max(value.overridden.stamp()).max(value.admin_state.stamp())
    }
}

impl StoreOperations for Workers {
    type Write = WorkerWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        write: WorkerWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        let (id, entry) = match write {
            WorkerWrite::Put(record) => {
                let id = record.id;
                let entry =
                    WorkerEntry::with_record(LwwRegister::of(parts.clock.tick(parts.now), record));
                return table.put_shared(parts, &id, entry).map(Some);
            }
            WorkerWrite::Remove(id) => return table.remove_shared(parts, &id),
            WorkerWrite::Override(id, verdict) => {
                let verdict = LwwRegister::of(parts.clock.tick(parts.now), verdict);
                (id, WorkerEntry::with_override(verdict))
            }
            WorkerWrite::AdminState(id, admin_state) => {
                let admin_state = LwwRegister::of(parts.clock.tick(parts.now), admin_state);
                (id, WorkerEntry::with_admin_state(admin_state))
            }
        };
        if table.values(&id).next().is_none() {
            let reason = format!("worker {id} is not registered");
            return Err(RefusedRow::Invalid { store: Self::ID, reason });
        }
        table.put_shared(parts, &id, entry).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<WorkerWrite> {
        let url = format!("http://10.0.0.{}:8000", draw.number % 16);
        let spec = WorkerSpec::new(url.parse().expect("a URL"));
        Some(match draw.is_put {
            true => WorkerWrite::Put(WorkerRecord::from(&spec)),
            false => WorkerWrite::Remove(spec.id()),
        })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        tests::golden()
    }
}

/// A change of the workers.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a write is consumed where it is made")]
pub enum WorkerWrite {
    /// Registers a worker, or replaces its spec.
    Put(WorkerRecord),
    /// Sets an operator's override of a registered worker; `None` lifts it.
    Override(WorkerId, Option<Override>),
    /// Sets the administrative state of a registered worker.
    AdminState(WorkerId, AdminState),
    /// Removes a worker.
    Remove(WorkerId),
}

/// All that administrators and configurations have set for a worker.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WorkerEntry {
    record: LwwRegister<WorkerRecord>,
    overridden: LwwRegister<Option<Override>>,
    admin_state: LwwRegister<AdminState>,
}

/// Whether a worker gets requests, as administrators have decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub enum AdminState {
    /// It gets requests.
    #[default]
    Serving,
    /// It gets no new requests, and stays registered.
    Cordoned,
    /// It was removed. The entry stays because the configuration of some router names the worker, which would otherwise
    /// register it again when it restarts.
    Dismissed,
}

impl WorkerEntry {
    pub(crate) fn with_record(record: LwwRegister<WorkerRecord>) -> Self {
        Self { record, ..Self::default() }
    }

    pub(crate) fn with_override(overridden: LwwRegister<Option<Override>>) -> Self {
        Self { overridden, ..Self::default() }
    }

    pub(crate) fn with_admin_state(admin_state: LwwRegister<AdminState>) -> Self {
        Self { admin_state, ..Self::default() }
    }

    /// Whether the worker gets requests.
    #[must_use]
    pub fn admin_state(&self) -> AdminState {
        self.admin_state.get().copied().unwrap_or_default()
    }

    /// The spec of the worker; `None` if only its override or administrative state has been received so far.
    #[must_use]
    pub fn record(&self) -> Option<&WorkerRecord> {
        self.record.get()
    }

    /// The operator's override, if one is set. The caller checks whether it has expired.
    #[must_use]
    pub fn verdict(&self) -> Option<&Override> {
        self.overridden.get().and_then(Option::as_ref)
    }
}

impl Merge for WorkerEntry {
    fn merge(&mut self, other: &Self) -> bool {
        self.record.merge(&other.record)
            | self.overridden.merge(&other.overridden)
            | self.admin_state.merge(&other.admin_state)
    }
}

/// A state of a worker that an operator has set. It takes precedence over probes and traffic.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Override {
    /// The state.
    pub state: OverrideState,
    /// The reason, for other operators; at most [`bounds::OVERRIDE_REASON_BYTES`].
    pub reason: String,
    /// When the override expires, in milliseconds of wall time; `None`: never.
    pub until_ms: Option<u64>,
}

/// The state that an override sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OverrideState {
    /// The worker counts as healthy.
    Up,
    /// The worker gets no requests.
    Down,
}

/// The replicated form of a worker's spec.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerRecord {
    /// The worker's id, a hash of its URL.
    pub id: WorkerId,
    url: String,
    models: Vec<ModelId>,
    aliases: BTreeMap<ModelId, ModelId>,
    /// The worker's part in disaggregated serving. Only 0, both prefill and decode, is supported.
    kind: u8,
    labels: BTreeMap<String, String>,
    region: Option<String>,
    zone: Option<String>,
    priority: i32,
    weight: u32,
    api_key: Option<String>,
    health: HealthRecord,
    max_concurrent: Option<std::num::NonZeroU32>,
    /// Tells apart the registrations of one URL; `None`: a configuration registered the worker. Early versions kept the port
    /// of a prefill worker here and made no use of it.
    registration: Option<u16>,
    /// A hash of the spec in a router's configuration, if one names the worker.
    configured: Option<u64>,
}

impl WorkerRecord {
    /// The record of a spec in a router's configuration. Changes by administrators stay until the configuration changes.
    #[must_use]
    pub fn configured(spec: &WorkerSpec) -> Self {
        Self::from(spec).into_configured()
    }

    fn into_configured(self) -> Self {
        let text = crate::codec::encode(&self);
        Self { configured: Some(xxhash_rust::xxh3::xxh3_64(&text)), ..self }
    }

    /// The record of an administrator's registration. Its number differs from that of the registration before it with a
    /// probability of 65,535 in 65,536; if `before` is given, it differs from that one in any case.
    #[must_use]
    pub fn registered(spec: &WorkerSpec, before: Option<&Self>, now: Now) -> Self {
        let hash = xxhash_rust::xxh3::xxh3_64(&now.wall.as_nanos().to_le_bytes());
        let [low, high, ..] = hash.to_le_bytes();
        let number = u16::from_le_bytes([low, high]);
        let is_taken = before.is_some_and(|before| before.registration == Some(number));
        let registration = Some(number.wrapping_add(is_taken.into()));
        let configured = before.and_then(|before| before.configured);
        Self { registration, configured, ..Self::from(spec) }
    }

    /// This record for the same registration as `before`: it changes only the spec.
    #[must_use]
    pub fn replacing(self, before: &Self) -> Self {
        Self { registration: before.registration, configured: before.configured, ..self }
    }

    /// The number that tells apart the registrations of one URL; `None`: a configuration registered the worker.
    #[must_use]
    pub fn registration(&self) -> Option<u16> {
        self.registration
    }

    /// A hash of the spec in a router's configuration, if one names the worker.
    #[must_use]
    pub fn configuration(&self) -> Option<u64> {
        self.configured
    }

    /// The same record with another hash of the spec in a router's configuration.
    #[must_use]
    pub fn with_configuration(self, configured: Option<u64>) -> Self {
        Self { configured, ..self }
    }

    /// Checks that the record is a valid spec, without making one, because a snapshot may have ten thousand records.
    fn check(&self) -> Result<WorkerUrl, WorkerRecordError> {
        let url: WorkerUrl = self.url.parse()?;
        if url.as_str() != self.url {
            return Err(WorkerRecordError::Spelling(self.url.clone()));
        }
        Weight::try_from(self.weight)?;
        if self.kind > 2 {
            return Err(WorkerRecordError::Kind(self.kind));
        }
        Ok(url)
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
    /// Prints the URL only, so that no key gets into a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "record of {}", self.url)
    }
}

/// The labels of a record that hold the worker's TLS settings, because its bytes are fixed: older routers take them for labels
/// and check the certificate as usual. No label of an administrator has a blank in its name.
const PINS: &str = "tls pin_sha256";
const SKIPS_VERIFY: &str = "tls insecure_skip_verify";

/// The labels of a record: those of the spec, and its TLS settings.
fn labels_with_tls(spec: &WorkerSpec) -> BTreeMap<String, String> {
    let mut labels = spec.labels.clone();
    if let Some(pins) = spec.tls.pins() {
        labels.insert(PINS.to_owned(), pins);
    }
    if spec.tls.is_unchecked() {
        labels.insert(SKIPS_VERIFY.to_owned(), "true".to_owned());
    }
    labels
}

impl From<&WorkerSpec> for WorkerRecord {
    fn from(spec: &WorkerSpec) -> Self {
        Self {
            id: spec.id(),
            url: spec.url.as_str().to_owned(),
            models: spec.models.clone(),
            aliases: spec.aliases.clone(),
            kind: 0,
            labels: labels_with_tls(spec),
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
            registration: None,
            configured: None,
        }
    }
}

/// A record is not a valid spec.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WorkerRecordError {
    /// The URL is not valid.
    #[error(transparent)]
    Url(#[from] WorkerUrlError),
    /// The URL is not in the normal form of which the id is a hash.
    #[error("worker url {0:?} is not normalised")]
    Spelling(String),
    /// The weight is out of bounds.
    #[error(transparent)]
    Weight(#[from] smg_types::spec::WeightError),
    /// The kind is unknown, or one of disaggregated serving.
    #[error("worker kind {0} is not supported")]
    Kind(u8),
    /// The TLS settings can't be read.
    #[error("tls: {0}")]
    Tls(String),
}

impl TryFrom<&WorkerRecord> for WorkerSpec {
    type Error = WorkerRecordError;

    fn try_from(record: &WorkerRecord) -> Result<Self, Self::Error> {
        let url = record.check()?;
        // A version that supports disaggregated serving may have written the row: it is valid, but of no use here.
        if record.kind != 0 {
            return Err(WorkerRecordError::Kind(record.kind));
        }
        let health = record.health.clone();
        let mut labels = record.labels.clone();
        let (pins, skips) = (labels.remove(PINS), labels.remove(SKIPS_VERIFY));
        let tls =
            WorkerTls::of(pins.as_deref(), skips.is_some()).map_err(WorkerRecordError::Tls)?;
        Ok(Self {
            url,
            models: record.models.clone(),
            aliases: record.aliases.clone(),
            labels,
            region: record.region.clone(),
            zone: record.zone.clone(),
            priority: record.priority,
            weight: Weight::try_from(record.weight)?,
            api_key: record.api_key.as_deref().map(Secret::new),
            tls,
            health: HealthSpec {
                endpoint: health.endpoint,
                interval: health.interval,
                timeout: health.timeout,
                failure_threshold: health.failure_threshold,
                success_threshold: health.success_threshold,
                disabled: health.disabled,
            },
            max_concurrent: record.max_concurrent,
        })
    }
}

#[cfg(test)]
mod tests;
