//! Faults on request: what a worker does to one request, and to which.
//!
//! A [`Script`] comes with a request, as the header `x-mock: {…}` or the body field `"mock": {…}`, or hits requests at
//! large by [`Faults`] (`PUT /_mock/faults`). The request's own script goes first.

use std::time::Duration;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::config::bounded;

/// What happens to one request. Empty: an ordinary answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Wait before anything else.
    pub delay_ms: u64,
    /// Answer with this status and an error, instead of the ordinary.
    pub status: Option<u16>,
    /// Send `retry-after` with that status.
    pub retry_after: Option<u64>,
    /// Close the connection without an answer.
    pub cut_before_head: bool,
    /// Send bytes that are no HTTP in place of the answer, then close.
    pub garbage: bool,
    /// Of a stream, send so many tokens and then nothing more, without an end. Nothing else is said: 0 sends the head.
    pub stall_after_chunks: Option<u32>,
    /// Of a stream, send so many tokens and then close the connection without an end.
    pub cut_after_chunks: Option<u32>,
    /// Tokens to generate, whatever the request says.
    pub output_tokens: Option<u32>,
    /// Bytes that each token is padded to.
    pub chunk_bytes: Option<u32>,
}

/// Largest token that a script may ask for, in bytes.
const MAX_CHUNK_BYTES: u32 = 4 << 20;

impl Script {
    /// Reads a script.
    ///
    /// # Errors
    /// When it is no JSON, has an unknown field or a value that no script can have.
    pub fn parse(json: &[u8]) -> Result<Self, ScriptError> {
        let script: Self = serde_json::from_slice(json)?;
        script.validate()?;
        Ok(script)
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// When a value is out of its bounds.
    pub fn validate(&self) -> Result<(), ScriptError> {
        if let Some(status) = self.status.filter(|status| !(200..=599).contains(status)) {
            return Err(ScriptError::Status(status));
        }
        match self.chunk_bytes {
            Some(bytes) if bytes > MAX_CHUNK_BYTES => Err(ScriptError::ChunkBytes(bytes)),
            _ => Ok(()),
        }
    }

    /// How long to wait before anything else.
    #[must_use]
    pub fn delay(&self) -> Duration {
        millis(self.delay_ms)
    }
}

/// Which requests get a script that they did not bring. Empty: none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// What happens to those that are hit.
    pub script: Script,
    /// The next so many requests are hit. Neither this nor `fraction`: every request is.
    pub next: Option<u64>,
    /// Each request is hit with this probability.
    pub fraction: Option<f64>,
    /// What `/health` does.
    pub health: Health,
}

/// What `/health` does. Empty: 200 at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Answer with this status.
    pub status: Option<u16>,
    /// Answer so late.
    pub delay_ms: u64,
}

/// Why something is no [`Script`] and no [`Faults`].
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Not the JSON that was expected.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// A status that no answer can have.
    #[error("status {0} is not in 200..=599")]
    Status(u16),
    /// A token larger than a worker would make.
    #[error("chunk_bytes {0} exceeds {MAX_CHUNK_BYTES}")]
    ChunkBytes(u32),
    /// No probability.
    #[error("fraction {0} is not in 0..=1")]
    Fraction(f64),
}

impl Faults {
    /// Reads faults.
    ///
    /// # Errors
    /// When it is no JSON, has an unknown field or a value out of its bounds.
    pub fn parse(json: &[u8]) -> Result<Self, ScriptError> {
        let faults: Self = serde_json::from_slice(json)?;
        faults.script.validate()?;
        Script { status: faults.health.status, ..Script::default() }.validate()?;
        match faults.fraction {
            Some(fraction) if !(0.0..=1.0).contains(&fraction) => {
                Err(ScriptError::Fraction(fraction))
            }
            _ => Ok(faults),
        }
    }

    /// The script of the next request: `None` when it is spared.
    pub fn strike(&mut self, rng: &mut dyn Rng) -> Option<Script> {
        if self.script == Script::default() {
            return None;
        }
        if let Some(fraction) = self.fraction
            && !rng.random_bool(fraction)
        {
            return None;
        }
        if let Some(next) = &mut self.next {
            *next = next.checked_sub(1)?;
        }
        Some(self.script.clone())
    }

    /// Whether there is anything to strike with.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.script == Script::default() || self.next == Some(0)
    }
}

impl Health {
    /// How late to answer.
    #[must_use]
    pub fn delay(&self) -> Duration {
        millis(self.delay_ms)
    }
}

#[expect(
    clippy::cast_precision_loss,
    reason = "bounded to a day, which a double holds in milliseconds"
)]
fn millis(millis: u64) -> Duration {
    bounded(millis as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    fn hits(json: &str, requests: usize) -> usize {
        let mut faults = Faults::parse(json.as_bytes()).unwrap();
        let mut rng = StdRng::seed_from_u64(7);
        (0..requests).filter(|_| faults.strike(&mut rng).is_some()).count()
    }

    #[test]
    fn they_hit_whom_they_say() {
        assert_eq!(hits("{}", 100), 0);
        assert_eq!(hits(r#"{"script":{"status":500}}"#, 100), 100);
        assert_eq!(hits(r#"{"script":{"status":500},"next":3}"#, 100), 3);
        assert_eq!(hits(r#"{"script":{"status":500},"fraction":0.0}"#, 100), 0);
        let some = hits(r#"{"script":{"status":500},"fraction":0.25}"#, 4000);
        assert!((900..1100).contains(&some), "{some} of 4000");
        assert_eq!(hits(r#"{"script":{"status":500},"fraction":0.5,"next":5}"#, 4000), 5);
    }

    #[test]
    fn mistakes_name_their_value() {
        for (json, named) in [
            (r#"{"script":{"stauts":500}}"#, "stauts"),
            (r#"{"script":{"status":99}}"#, "status 99"),
            (r#"{"health":{"status":600}}"#, "status 600"),
            (r#"{"fraction":1.5}"#, "fraction 1.5"),
            (r#"{"script":{"chunk_bytes":99999999}}"#, "chunk_bytes 99999999"),
            ("[", "EOF"),
        ] {
            let error = Faults::parse(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(named), "{json}: {error}");
        }
    }
}
