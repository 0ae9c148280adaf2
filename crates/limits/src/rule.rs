//! Rules: what is limited, for whom, and how the routers divide it.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::rows::{MeterId, SubjectId};
use crate::standing::Mode;

/// Longest window: a week.
pub const MAX_WINDOW: Duration = Duration::from_secs(7 * 24 * 3600);

/// Shortest window.
pub const MIN_WINDOW: Duration = Duration::from_secs(1);

/// Longest id, and longest name in a match, in bytes.
pub const MAX_NAME_BYTES: usize = 128;

/// The largest limit; larger ones could not be added up.
pub const MAX_LIMIT: u64 = 1 << 50;

/// The largest weight of a kind of token.
pub const MAX_WEIGHT: f64 = 1_000.0;

/// A weight of 1, in the unit in which weights are computed.
const WEIGHT_ONE: u64 = 1_000;

/// What is wrong with a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct RuleError {
    /// The field.
    pub field: &'static str,
    /// The value and what is expected.
    pub reason: String,
}

fn error(field: &'static str, reason: impl Into<String>) -> RuleError {
    RuleError { field, reason: reason.into() }
}

/// A rule as it is written in configuration files and requests.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleDocument {
    /// The name by which the rule is changed and removed. In the path of a request, or in a file.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub id: String,
    /// Which requests count, and which of them count together.
    #[serde(rename = "match", default)]
    pub matches: MatchDocument,
    /// Most requests in a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests: Option<u64>,
    /// Most tokens in a window.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Which tokens count and how much. All count as one unless this is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cost: Option<Cost>,
    /// The length of the window, such as `1s`, `1m`, `1h` or `1d`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Requests per time, such as `100/s`, in place of `requests` and `window`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<String>,
    /// How many requests may come at once beyond an even rate. Without it, those of a whole window may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
    /// How the routers divide the limit.
    #[serde(default = "bounded")]
    pub mode: Mode,
    /// Count and report, and reject nothing.
    #[serde(default)]
    pub shadow: bool,
}

const fn bounded() -> Mode {
    Mode::Bounded
}

/// Which requests count, as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum MatchDocument {
    /// `global`, or a property whose values count separately: `api_key`, `tenant`, `model`.
    One(String),
    /// Properties with their values; `*` stands for each value separately.
    Some(MatchFields),
}

impl Default for MatchDocument {
    fn default() -> Self {
        Self::One("global".to_owned())
    }
}

/// Properties of requests with the values that match.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MatchFields {
    /// The client's key; only `*` is possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// The tenant of the client's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<String>,
    /// The model that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
}

/// How much a token of each kind counts.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cost {
    /// A token of the prompt that was not cached.
    #[serde(default = "one")]
    pub input: f64,
    /// A token of the prompt that was cached. As `input` unless it is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cached_input: Option<f64>,
    /// A token of the answer.
    #[serde(default = "one")]
    pub output: f64,
}

const fn one() -> f64 {
    1.0
}

/// A number of tokens of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenCount {
    /// All tokens of the prompt.
    pub input: u64,
    /// Those of them that were cached.
    pub cached_input: u64,
    /// The tokens of the answer.
    pub output: u64,
}

/// Weights in thousandths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Weights {
    input: u64,
    cached_input: u64,
    output: u64,
}

impl Weights {
    const EQUAL: Self = Self { input: WEIGHT_ONE, cached_input: WEIGHT_ONE, output: WEIGHT_ONE };

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "the weights are between 0 and MAX_WEIGHT"
    )]
    fn of(cost: &Cost) -> Result<Self, RuleError> {
        let weight = |name: &str, value: f64| {
            if !(0.0..=MAX_WEIGHT).contains(&value) {
                return Err(error(
                    "cost",
                    format!("{name} is {value}, 0 to {MAX_WEIGHT} expected"),
                ));
            }
            Ok((value * WEIGHT_ONE as f64).round() as u64)
        };
        let input = weight("input", cost.input)?;
        let cached_input = cost.cached_input.map_or(Ok(input), |w| weight("cached_input", w))?;
        let output = weight("output", cost.output)?;
        if input == 0 && cached_input == 0 && output == 0 {
            return Err(error("cost", "all weights are 0, so that nothing is counted"));
        }
        Ok(Self { input, cached_input, output })
    }

    fn units(&self, tokens: &TokenCount) -> u64 {
        let cached = tokens.cached_input.min(tokens.input);
        let parts = [
            (tokens.input - cached, self.input),
            (cached, self.cached_input),
            (tokens.output, self.output),
        ];
        let sum: u128 = parts.iter().map(|(n, w)| u128::from(*n) * u128::from(*w)).sum();
        u64::try_from(sum.div_ceil(u128::from(WEIGHT_ONE))).unwrap_or(u64::MAX)
    }
}

/// What a meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Each request is one unit.
    Requests,
    /// Tokens, by their weights.
    Tokens,
}

impl Kind {
    /// `requests` or `tokens`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
        }
    }
}

/// One limit of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meter {
    /// The identity under which routers count it.
    pub id: MeterId,
    /// What is counted.
    pub kind: Kind,
    /// Most units in a window.
    pub limit: u64,
    /// Length of the window, in milliseconds.
    pub window_ms: u32,
    /// How many units may come at once beyond an even rate.
    pub burst: Option<u64>,
    /// How the routers divide the limit.
    pub mode: Mode,
    weights: Weights,
}

impl Meter {
    /// The units of a request with these tokens.
    #[must_use]
    pub fn units(&self, tokens: &TokenCount) -> u64 {
        match self.kind {
            Kind::Requests => 1,
            Kind::Tokens => self.weights.units(tokens),
        }
    }
}

/// The properties of a request by which rules match.
#[derive(Debug, Clone, Copy, Default)]
pub struct Who<'a> {
    /// A hash of the client's key; `None`: it showed none.
    pub api_key: Option<u64>,
    /// The tenant of the key.
    pub tenant: Option<&'a str>,
    /// The model.
    pub model: Option<&'a str>,
}

/// A value that a property must have.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Value {
    Each,
    Is(String),
}

/// A checked rule.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    /// Its name.
    pub id: String,
    /// Whether it only counts and reports.
    pub shadow: bool,
    /// Its limits, at most one of each kind.
    pub meters: Vec<Meter>,
    document: RuleDocument,
    api_key: Option<Value>,
    tenant: Option<Value>,
    model: Option<Value>,
}

impl Rule {
    /// Checks a rule.
    ///
    /// # Errors
    /// Names the first field that is missing, out of its bounds, or contradicts another one.
    pub fn new(mut document: RuleDocument) -> Result<Self, RuleError> {
        name("id", &document.id)?;
        let (requests, window) = requests_and_window(&document)?;
        if requests.is_none() && document.tokens.is_none() {
            return Err(error("requests", "the rule limits neither requests nor tokens"));
        }
        for (field, limit) in [("requests", requests), ("tokens", document.tokens)] {
            if limit.is_some_and(|limit| limit == 0 || limit > MAX_LIMIT) {
                let limit = limit.unwrap_or_default();
                return Err(error(field, format!("{limit}, 1 to {MAX_LIMIT} expected")));
            }
        }
        if document.cost.is_some() && document.tokens.is_none() {
            return Err(error("cost", "the rule does not limit tokens"));
        }
        if let Some(burst) = document.burst {
            let Some(requests) = requests else {
                return Err(error("burst", "applies to requests, which the rule does not limit"));
            };
            if burst == 0 || burst > requests {
                return Err(error("burst", format!("{burst}, 1 to {requests} expected")));
            }
            if document.mode == Mode::Soft {
                return Err(error("burst", "is not possible with mode soft"));
            }
        }
        let weights = document.cost.as_ref().map_or(Ok(Weights::EQUAL), Weights::of)?;
        let [api_key, tenant, model] = values(&document.matches)?;
        let meter = |kind: Kind, limit: u64, burst| Meter {
            id: MeterId(hash(&format!("{}\0{}", document.id, kind.as_str()))),
            kind,
            limit,
            window_ms: window,
            burst,
            mode: document.mode,
            weights,
        };
        let requests_meter = requests.map(|limit| meter(Kind::Requests, limit, document.burst));
        let tokens_meter = document.tokens.map(|limit| meter(Kind::Tokens, limit, None));
        let meters = requests_meter.into_iter().chain(tokens_meter).collect();
        document.requests = requests;
        document.rate = None;
        document.window = Some(window_text(window));
        let (id, shadow) = (document.id.clone(), document.shadow);
        Ok(Self { id, shadow, meters, document, api_key, tenant, model })
    }

    /// The rule as it is shown: with the defaults filled in.
    #[must_use]
    pub fn document(&self) -> &RuleDocument {
        &self.document
    }

    /// With whom a request counts together; `None`: the rule does not concern it.
    ///
    /// Requests without a key count together under a rule for each key, because a client could otherwise leave its key away.
    #[must_use]
    pub fn subject(&self, who: &Who<'_>) -> Option<SubjectId> {
        let mut parts = [0u64; 3];
        if self.api_key.is_some() {
            parts[0] = who.api_key.unwrap_or(1);
        }
        for (part, wanted, value) in [(1, &self.tenant, who.tenant), (2, &self.model, who.model)] {
            match wanted {
                None => {}
                Some(Value::Each) => parts[part] = hash(value?),
                Some(Value::Is(name)) if value == Some(name) => {}
                Some(Value::Is(_)) => return None,
            }
        }
        let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
        Some(SubjectId(xxh3_64(&bytes)))
    }

    /// Names the subject of a request for people. A key is shown as a part of its hash.
    #[must_use]
    pub fn label(&self, who: &Who<'_>) -> String {
        let mut label = Vec::new();
        if self.api_key.is_some() {
            label.push(match who.api_key {
                Some(key) => format!("api_key=#{:08x}", key >> 32),
                None => "api_key=none".to_owned(),
            });
        }
        for (name, wanted, value) in
            [("tenant", &self.tenant, who.tenant), ("model", &self.model, who.model)]
        {
            if wanted.is_some() {
                label.push(format!("{name}={}", value.unwrap_or_default()));
            }
        }
        if label.is_empty() { "global".to_owned() } else { label.join(",") }
    }
}

/// The hash by which routers name rules and subjects. It never changes, because routers of different versions share counts.
#[must_use]
pub fn hash(text: &str) -> u64 {
    xxh3_64(text.as_bytes())
}

fn name(field: &'static str, name: &str) -> Result<(), RuleError> {
    let is_plain = |c: char| !c.is_control();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        let shown = name.escape_debug().take(MAX_NAME_BYTES).collect::<String>();
        return Err(error(
            field,
            format!("\"{shown}\": 1 to {MAX_NAME_BYTES} bytes without control characters expected"),
        ));
    }
    Ok(())
}

fn requests_and_window(document: &RuleDocument) -> Result<(Option<u64>, u32), RuleError> {
    let Some(rate) = &document.rate else {
        let Some(window) = &document.window else {
            return Err(error("window", "is missing: a length such as 1s, 1m, 1h or 1d"));
        };
        let length = length(window).ok_or_else(|| bad_window("window", window))?;
        return Ok((document.requests, length));
    };
    for (field, is_set) in
        [("requests", document.requests.is_some()), ("window", document.window.is_some())]
    {
        if is_set {
            return Err(error(field, "is part of `rate`: set one of the two"));
        }
    }
    let bad =
        || error("rate", format!("\"{rate}\": a number per time such as 100/s or 10/m expected"));
    let (number, per) = rate.split_once('/').ok_or_else(bad)?;
    let requests = number.trim().parse::<u64>().map_err(|_| bad())?;
    let per = per.trim();
    let is_unit = per.starts_with(|c: char| c.is_ascii_alphabetic());
    let window = if is_unit { format!("1{per}") } else { per.to_owned() };
    Ok((Some(requests), length(&window).ok_or_else(bad)?))
}

fn bad_window(field: &'static str, text: &str) -> RuleError {
    error(field, format!("\"{text}\": a length from 1s to 7d such as 1s, 1m, 1h or 1d expected"))
}

/// A length such as `1m`, in milliseconds.
fn length(text: &str) -> Option<u32> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number = number.parse::<u64>().ok()?;
    let unit_ms = match unit.trim() {
        "ms" => 1,
        "" | "s" | "sec" | "second" | "seconds" => 1_000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        "w" | "week" => 604_800_000,
        _ => return None,
    };
    let length = Duration::from_millis(number.checked_mul(unit_ms)?);
    let is_allowed = (MIN_WINDOW..=MAX_WINDOW).contains(&length);
    is_allowed.then(|| u32::try_from(length.as_millis()).ok())?
}

fn window_text(window_ms: u32) -> String {
    for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
        if window_ms.is_multiple_of(unit) {
            return format!("{}{name}", window_ms / unit);
        }
    }
    format!("{window_ms}ms")
}

/// The values of `api_key`, `tenant` and `model`.
fn values(document: &MatchDocument) -> Result<[Option<Value>; 3], RuleError> {
    let fields = match document {
        MatchDocument::Some(fields) => fields.clone(),
        MatchDocument::One(property) => {
            let each = Some("*".to_owned());
            match property.as_str() {
                "global" => MatchFields::default(),
                "api_key" => MatchFields { api_key: each, ..MatchFields::default() },
                "tenant" => MatchFields { tenant: each, ..MatchFields::default() },
                "model" => MatchFields { model: each, ..MatchFields::default() },
                _ => {
                    return Err(error(
                        "match",
                        format!(
                            "\"{property}\": global, api_key, tenant, model or an object expected"
                        ),
                    ));
                }
            }
        }
    };
    let value = |field: &'static str, text: Option<String>| match text {
        None => Ok(None),
        Some(text) if text == "*" => Ok(Some(Value::Each)),
        Some(text) => name(field, &text).map(|()| Some(Value::Is(text))),
    };
    if fields.api_key.as_ref().is_some_and(|key| key != "*") {
        return Err(error(
            "match",
            "api_key can only be \"*\", each key by itself: rules are shown to administrators, keys are secret. Give \
             the client a tenant key and match its tenant",
        ));
    }
    Ok([
        value("match", fields.api_key)?,
        value("match", fields.tenant)?,
        value("match", fields.model)?,
    ])
}
