//! `[[workers]]` tables: workers described in full.
//!
//! Read field by field and not by serde, so that every mistake is found and each names its key. A key of a worker may
//! stand in the file itself, in another file or in a variable; here it is fetched.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use smg_routing::policy::Kind;
use smg_types::bounds::{
    self, MAX_CONCURRENT, MAX_ENTRIES, PRIORITY, PROBE_INTERVAL_SECONDS, PROBE_THRESHOLD,
    PROBE_TIMEOUT_SECONDS, WEIGHT,
};
use smg_types::ids::ModelId;
use smg_types::spec::{
    HealthSpec, NO_DISAGGREGATION, REGULAR_WORKER, Secret, Weight, WorkerSpec, WorkerTls, WorkerUrl,
};
use toml::{Table, Value};

use crate::cli::values;
use crate::config::file::text_of;
use crate::config::mistakes::{Mistake, did_you_mean, key_in, shown, value_and_reason};
use crate::config::process::Process;

/// Keys of a worker's table.
const KEYS: &[&str] = &[
    "url",
    "models",
    "aliases",
    "worker_type",
    "labels",
    "region",
    "zone",
    "priority",
    "weight",
    "api_key",
    "api_key_file",
    "api_key_env",
    "tls",
    "health",
    "max_concurrent",
    "bootstrap_port",
];

/// Keys of its `health` table.
const HEALTH_KEYS: &[&str] = &[
    "endpoint",
    "interval_secs",
    "timeout_secs",
    "failure_threshold",
    "success_threshold",
    "disabled",
];

/// Keys of its `tls` table.
const TLS_KEYS: &[&str] = &["pin_sha256", "insecure_skip_verify"];

/// Reads the tables. Mistakes in one do not keep the others from being read.
pub(super) fn read(
    tables: &[Table],
    file: &Path,
    process: &Process<'_>,
) -> (Vec<WorkerSpec>, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let mut specs: Vec<WorkerSpec> = Vec::new();
    let mut urls = BTreeMap::new();
    for (index, table) in tables.iter().enumerate() {
        let place = format!("workers[{index}]");
        let mut fields = Fields::of(table, KEYS, place.clone(), file, &mut mistakes);
        let Some(spec) = worker(&mut fields, process) else { continue };
        if let Some(first) = urls.insert(spec.id(), index) {
            mistakes.push(Mistake::new(format!(
                "{}: worker {} is described by workers[{first}] already",
                key_in(file, &format!("{place}.url")),
                spec.url
            )));
            continue;
        }
        specs.push(spec);
    }
    (specs, mistakes)
}

/// A worker, if at least its URL is right.
fn worker(fields: &mut Fields<'_>, process: &Process<'_>) -> Option<WorkerSpec> {
    let url: Option<WorkerUrl> = fields.text("url", values::worker_url);
    if url.is_none() && !fields.has("url") {
        fields.wrong("url", "is missing");
    }
    let models = fields.list("models", values::model_name);
    let aliases: BTreeMap<ModelId, ModelId> =
        fields.pairs("aliases", values::model_name, values::model_name);
    let labels: BTreeMap<String, String> = fields.pairs("labels", label_name, label_value);
    if let Some(policy) = labels.get("policy")
        && policy.parse::<Kind>().is_err()
    {
        fields.wrong("labels.policy", &format!("{} is no policy", shown(policy)));
    }
    check_aliases(fields, &models, &aliases);
    fields.text("worker_type", regular);
    let region = fields.text("region", values::place);
    let zone = fields.text("zone", values::place);
    let priority = fields.text("priority", priority).unwrap_or_default();
    let weight = fields
        .text("weight", |text| {
            let (low, high) = (u64::from(*WEIGHT.start()), u64::from(*WEIGHT.end()));
            let weight: u32 = values::whole(low, high)(text)?;
            Weight::try_from(weight).map_err(|e| e.to_string())
        })
        .unwrap_or_default();
    let max_concurrent = fields.text("max_concurrent", values::positive(*MAX_CONCURRENT.end()));
    fields.text("bootstrap_port", |_| Err::<(), _>(format!("is refused: {NO_DISAGGREGATION}")));
    let health = fields.table("health", HEALTH_KEYS, health).unwrap_or_default();
    let tls = fields.table("tls", TLS_KEYS, tls).unwrap_or_default();
    let api_key = api_key(fields, process);
    let url = url?;
    if tls != WorkerTls::Authorities && !url.is_secure() {
        fields.wrong(
            "tls",
            &format!("needs a URL that begins with https://, and the worker's is {url}"),
        );
    }
    Some(WorkerSpec {
        models,
        aliases,
        labels,
        region,
        zone,
        priority,
        weight,
        api_key,
        tls,
        health,
        max_concurrent,
        ..WorkerSpec::new(url)
    })
}

fn tls(fields: &mut Fields<'_>) -> WorkerTls {
    let pins =
        fields.text("pin_sha256", |text| WorkerTls::of(Some(text), false).map(|_| text.to_owned()));
    let skip_verify = fields.text("insecure_skip_verify", values::yes_or_no).unwrap_or_default();
    WorkerTls::of(pins.as_deref(), skip_verify).unwrap_or_else(|why| {
        fields.wrong("insecure_skip_verify", &why);
        WorkerTls::Authorities
    })
}

fn health(fields: &mut Fields<'_>) -> HealthSpec {
    HealthSpec {
        endpoint: fields.text("endpoint", values::path),
        interval: fields.text("interval_secs", seconds(&PROBE_INTERVAL_SECONDS)),
        timeout: fields.text("timeout_secs", seconds(&PROBE_TIMEOUT_SECONDS)),
        failure_threshold: fields
            .text("failure_threshold", values::positive(*PROBE_THRESHOLD.end())),
        success_threshold: fields
            .text("success_threshold", values::positive(*PROBE_THRESHOLD.end())),
        disabled: fields.text("disabled", values::yes_or_no).unwrap_or_default(),
    }
}

/// The key itself, or what a file or a variable holds.
fn api_key(fields: &mut Fields<'_>, process: &Process<'_>) -> Option<Secret> {
    const NAMES: [&str; 3] = ["api_key", "api_key_file", "api_key_env"];
    let present: Vec<&str> = NAMES.into_iter().filter(|name| fields.has(name)).collect();
    if present.len() > 1 {
        fields.wrong(present[1], &format!("and {} exclude each other", present[0]));
    }
    let own = fields.secret("api_key", values::secret);
    let of_file = fields.text("api_key_file", |path| {
        let text = (process.read)(Path::new(path)).map_err(|e| format!("can't be read: {e}"))?;
        values::secret(text.trim()).map_err(|why| format!("names a file whose text {why}"))
    });
    let of_variable = fields.text("api_key_env", |name| match process.variable(name) {
        Some(text) => {
            values::secret(text).map_err(|why| format!("names a variable whose text {why}"))
        }
        None => Err("names a variable that is not set".to_owned()),
    });
    own.or(of_file).or(of_variable)
}

fn check_aliases(
    fields: &mut Fields<'_>,
    models: &[ModelId],
    aliases: &BTreeMap<ModelId, ModelId>,
) {
    let served: BTreeSet<&ModelId> = models.iter().collect();
    for (alias, target) in aliases {
        let key = format!("aliases.{alias}");
        if served.contains(alias) {
            fields.wrong(&key, "is a model that the worker serves");
        } else if !served.is_empty() && !served.contains(target) {
            fields.wrong(&key, &format!("{target:?} is not among the worker's models"));
        }
    }
}

fn label_name(text: &str) -> Result<String, String> {
    bounds::label_name(text).map(|()| text.to_owned())
}

fn label_value(text: &str) -> Result<String, String> {
    bounds::label_value(text).map(|()| text.to_owned())
}

fn seconds(
    bounds: &RangeInclusive<f64>,
) -> impl Fn(&str) -> Result<Duration, String> + Clone + Send + Sync + 'static {
    values::seconds(*bounds.start(), *bounds.end())
}

/// Accepts the one worker type that is supported.
fn regular(text: &str) -> Result<(), String> {
    if text == REGULAR_WORKER {
        return Ok(());
    }
    Err(format!("is refused, only {REGULAR_WORKER} is accepted: {NO_DISAGGREGATION}"))
}

fn priority(text: &str) -> Result<i32, String> {
    i32::from_str(text).ok().filter(|n| PRIORITY.contains(n)).ok_or_else(|| {
        format!("is not a whole number from {} to {}", PRIORITY.start(), PRIORITY.end())
    })
}

/// A table that is read field by field.
struct Fields<'a> {
    values: BTreeMap<String, &'a Value>,
    place: String,
    file: &'a Path,
    mistakes: &'a mut Vec<Mistake>,
}

impl<'a> Fields<'a> {
    /// The fields of `table`, of which only those of `known` may be there.
    fn of(
        table: &'a Table,
        known: &[&str],
        place: String,
        file: &'a Path,
        mistakes: &'a mut Vec<Mistake>,
    ) -> Self {
        let mut fields = Self { values: BTreeMap::new(), place, file, mistakes };
        for (name, value) in table {
            let id = name.replace('-', "_");
            if !known.contains(&id.as_str()) {
                let hint = did_you_mean(&id, known.iter().copied());
                let mistake = fields.mistake(name, "is not known").with_hint(hint);
                fields.mistakes.push(mistake);
            } else if fields.values.insert(id, value).is_some() {
                fields.wrong(name, "stands there twice, with dashes and with underscores");
            }
        }
        fields
    }

    fn has(&self, name: &str) -> bool {
        self.values.contains_key(name)
    }

    fn mistake(&self, name: &str, why: &str) -> Mistake {
        let key = key_in(self.file, &format!("{}.{name}", self.place));
        Mistake::new(format!("{key}: {why}"))
    }

    fn wrong(&mut self, name: &str, why: &str) {
        let mistake = self.mistake(name, why);
        self.mistakes.push(mistake);
    }

    /// A single value.
    fn text<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.values.get(name)?;
        self.parsed(name, value, true, parse)
    }

    /// A single value that no error shows.
    fn secret<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let value = self.values.get(name)?;
        self.parsed(name, value, false, parse)
    }

    fn parsed<T>(
        &mut self,
        name: &str,
        value: &Value,
        show: bool,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<T> {
        let text = match text_of(value) {
            Ok(text) => text,
            Err(why) => {
                self.wrong(name, why);
                return None;
            }
        };
        parse(&text)
            .map_err(|why| {
                let why = if show { value_and_reason(&text, &why) } else { why };
                self.wrong(name, &why);
            })
            .ok()
    }

    /// A list of values; a single one is a list too.
    fn list<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Vec<T> {
        let Some(&value) = self.values.get(name) else { return Vec::new() };
        let elements = match value {
            Value::Array(elements) => elements.as_slice(),
            single => std::slice::from_ref(single),
        };
        if elements.len() > MAX_ENTRIES {
            self.wrong(name, &format!("has more than {MAX_ENTRIES} entries"));
            return Vec::new();
        }
        elements.iter().filter_map(|element| self.parsed(name, element, true, &parse)).collect()
    }

    /// A table of free keys.
    fn pairs<K: Ord, V>(
        &mut self,
        name: &str,
        parse_key: impl Fn(&str) -> Result<K, String>,
        parse: impl Fn(&str) -> Result<V, String>,
    ) -> BTreeMap<K, V> {
        let Some(&value) = self.values.get(name) else { return BTreeMap::new() };
        let Value::Table(table) = value else {
            self.wrong(name, "is not a table");
            return BTreeMap::new();
        };
        if table.len() > MAX_ENTRIES {
            self.wrong(name, &format!("has more than {MAX_ENTRIES} entries"));
            return BTreeMap::new();
        }
        let mut pairs = BTreeMap::new();
        for (key, value) in table {
            let parsed = match parse_key(key) {
                Ok(parsed) => parsed,
                Err(why) => {
                    self.wrong(name, &format!("{} {why}", shown(key)));
                    continue;
                }
            };
            if let Some(value) = self.parsed(&format!("{name}.{key}"), value, true, &parse) {
                pairs.insert(parsed, value);
            }
        }
        pairs
    }

    /// A table within the table.
    fn table<T>(
        &mut self,
        name: &str,
        known: &[&str],
        read: impl Fn(&mut Fields<'_>) -> T,
    ) -> Option<T> {
        let &value = self.values.get(name)?;
        let Value::Table(table) = value else {
            self.wrong(name, "is not a table");
            return None;
        };
        let place = format!("{}.{name}", self.place);
        Some(read(&mut Fields::of(table, known, place, self.file, self.mistakes)))
    }
}
