//! The bounds of all fields that come from users or other routers. The HTTP API, the configuration and the replicated form of a
//! value use the same bounds, so they refuse the same inputs.

use std::ops::RangeInclusive;

/// Length of a model's name, in bytes.
pub const MODEL_NAME_BYTES: RangeInclusive<usize> = 1..=512;

/// Length of a policy's name, in bytes.
pub const POLICY_NAME_BYTES: RangeInclusive<usize> = 1..=64;

/// Length of a label's name, in bytes.
pub const LABEL_NAME_BYTES: RangeInclusive<usize> = 1..=63;

/// Length of a label's value, in bytes.
pub const LABEL_VALUE_BYTES: RangeInclusive<usize> = 0..=256;

/// Length of the name of a region or a zone, in bytes.
pub const PLACE_BYTES: RangeInclusive<usize> = 1..=256;

/// Length of a worker's URL, in bytes.
pub const WORKER_URL_BYTES: RangeInclusive<usize> = 1..=2048;

/// Most models, most aliases and most labels of one worker.
pub const MAX_ENTRIES: usize = 256;

/// A worker's weight, in its spec and in a policy's setting.
pub const WEIGHT: RangeInclusive<u32> = 1..=1000;

/// A worker's priority.
pub const PRIORITY: RangeInclusive<i32> = -1_000_000..=1_000_000;

/// Most requests in flight on one worker.
pub const MAX_CONCURRENT: RangeInclusive<u32> = 1..=1_000_000;

/// Probes in a row that change a worker's health.
pub const PROBE_THRESHOLD: RangeInclusive<u32> = 1..=1000;

/// Time between two probes of a worker, in seconds.
pub const PROBE_INTERVAL_SECONDS: RangeInclusive<f64> = 0.001..=86_400.0;

/// Timeout of a probe, in seconds.
pub const PROBE_TIMEOUT_SECONDS: RangeInclusive<f64> = 0.001..=3600.0;

/// Length of the path of a probe, in bytes.
pub const PROBE_PATH_BYTES: RangeInclusive<usize> = 1..=1024;

/// Length of the reason of an override, in bytes.
pub const OVERRIDE_REASON_BYTES: RangeInclusive<usize> = 1..=1024;

/// Duration of an override that ends by itself, in seconds.
pub const OVERRIDE_SECONDS: RangeInclusive<f64> = 0.01..=31_536_000.0;

/// Checks the name of a model.
///
/// # Errors
/// A predicate that says what is wrong, to follow the name in a message.
pub fn model_name(text: &str) -> Result<(), String> {
    let is_name = MODEL_NAME_BYTES.contains(&text.len())
        && !text.trim().is_empty()
        && !text.contains(char::is_control);
    unless(is_name, || format!("is not a model's name of {} bytes", span(&MODEL_NAME_BYTES)))
}

/// Checks the name of a label.
///
/// # Errors
/// As [`model_name`].
pub fn label_name(text: &str) -> Result<(), String> {
    let is_name =
        LABEL_NAME_BYTES.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic());
    unless(is_name, || {
        format!("is not a label's name of {} visible ASCII characters", span(&LABEL_NAME_BYTES))
    })
}

/// Checks the value of a label.
///
/// # Errors
/// As [`model_name`].
pub fn label_value(text: &str) -> Result<(), String> {
    let is_value = LABEL_VALUE_BYTES.contains(&text.len()) && !text.contains(char::is_control);
    let most = LABEL_VALUE_BYTES.end();
    unless(is_value, || format!("is not a label's value of at most {most} bytes"))
}

/// Checks the name of a region or a zone.
///
/// # Errors
/// As [`model_name`].
pub fn place(text: &str) -> Result<(), String> {
    unless(!text.is_empty(), || "is empty".to_owned())?;
    let is_place = PLACE_BYTES.contains(&text.len()) && !text.contains(char::is_control);
    unless(is_place, || format!("is not a name of {} bytes", span(&PLACE_BYTES)))
}

/// Checks the path of a probe.
///
/// # Errors
/// As [`model_name`].
pub fn probe_path(text: &str) -> Result<(), String> {
    let most = *PROBE_PATH_BYTES.end();
    unless(text.starts_with('/'), || "does not begin with a slash".to_owned())?;
    unless(text.len() <= most, || format!("is longer than {most} bytes"))?;
    unless(text.bytes().all(|b| b.is_ascii_graphic()), || {
        "has a blank, a control character or a character that is not ASCII".to_owned()
    })
}

/// Checks a number.
///
/// # Errors
/// As [`model_name`].
pub fn number<T: PartialOrd + std::fmt::Display>(
    number: &T,
    bounds: &RangeInclusive<T>,
) -> Result<(), String> {
    unless(bounds.contains(number), || {
        format!("is not between {} and {}", bounds.start(), bounds.end())
    })
}

/// Formats bounds, for example as `1 to 512`.
fn span<T: std::fmt::Display>(bounds: &RangeInclusive<T>) -> String {
    format!("{} to {}", bounds.start(), bounds.end())
}

fn unless(holds: bool, why: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(why()) }
}
