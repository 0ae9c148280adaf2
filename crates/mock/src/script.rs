//! Faults: what a worker does to requests, and to which.
//!
//! A request can carry a [`Script`], as the header `x-mock: {…}` or the body field `"mock": {…}`. [`Faults`] (`PUT
//! /_mock/faults`) apply a script to other requests. The request's own script takes precedence.

use std::time::Duration;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use crate::config::bounded;

/// The faults and delays with which the worker answers one request. An empty script means an ordinary answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Script {
    /// Wait this long before anything else.
    pub delay_ms: u64,
    /// Answer with this status and an error instead of the ordinary answer.
    pub status: Option<u16>,
    /// Send `retry-after` with that status, in seconds.
    pub retry_after: Option<u64>,
    /// Close the connection without an answer.
    pub cut_before_head: bool,
    /// Send bytes that are not HTTP instead of the answer, then close the connection.
    pub garbage: bool,
    /// Stop a stream after this many tokens, without an end. After 0 tokens only the head has been sent.
    pub stall_after_chunks: Option<u32>,
    /// Close the connection of a stream after this many tokens, without an end.
    pub cut_after_chunks: Option<u32>,
    /// The number of tokens to generate, whatever the request asks for.
    pub output_tokens: Option<u32>,
    /// The size in bytes to which each token is padded.
    pub chunk_bytes: Option<u32>,
    /// How the answer reports the tokens that it used.
    pub usage: UsageForm,
}

/// How an answer of OpenAI's chat and completions reports its tokens. The forms of streams apply if the request asks for
/// usage.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UsageForm {
    /// A stream has a chunk of its own for it, without choices, and a null in the others, as OpenAI documents it.
    #[default]
    OwnChunk,
    /// A stream has it in the last chunk with choices.
    LastChoice,
    /// A stream has it, cumulative, in every chunk, and in one of its own at the end.
    Continuous,
    /// There is none, whatever the request asks for.
    Absent,
    /// As `own_chunk`, with numbers that are not counts of tokens.
    Absurd,
}

/// The largest token that a script may ask for, in bytes.
const MAX_CHUNK_BYTES: u32 = 4 << 20;

impl Script {
    /// Parses a script.
    ///
    /// # Errors
    /// If the text is not JSON, has an unknown field, or an invalid value.
    pub fn parse(json: &[u8]) -> Result<Self, ScriptError> {
        let script: Self = serde_json::from_slice(json)?;
        script.validate()?;
        Ok(script)
    }

    /// Checks the bounds of the values.
    ///
    /// # Errors
    /// If a value is out of its bounds.
    pub fn validate(&self) -> Result<(), ScriptError> {
        if let Some(status) = self.status.filter(|status| !(200..=599).contains(status)) {
            return Err(ScriptError::Status(status));
        }
        match self.chunk_bytes {
            Some(bytes) if bytes > MAX_CHUNK_BYTES => Err(ScriptError::ChunkBytes(bytes)),
            _ => Ok(()),
        }
    }

    /// The time to wait before anything else.
    #[must_use]
    pub fn delay(&self) -> Duration {
        millis(self.delay_ms)
    }
}

/// The requests that get a script besides those that carry one. Empty faults apply to none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Faults {
    /// What happens to the affected requests.
    pub script: Script,
    /// Only this many of the next requests are affected. Without this and `fraction`, all requests are.
    pub next: Option<u64>,
    /// Each request is affected with this probability, 0 to 1.
    pub fraction: Option<f64>,
    /// The behaviour of `/health`.
    pub health: Health,
}

/// The behaviour of `/health`. By default it answers 200 at once.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Answer with this status.
    pub status: Option<u16>,
    /// Answer after this delay.
    pub delay_ms: u64,
}

/// Why a text is not a valid [`Script`] or [`Faults`].
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// The text is not the expected JSON.
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    /// The status is not valid.
    #[error("status {0} is not in 200..=599")]
    Status(u16),
    /// The token is too large.
    #[error("chunk_bytes {0} exceeds {MAX_CHUNK_BYTES}")]
    ChunkBytes(u32),
    /// The fraction is not a probability.
    #[error("fraction {0} is not in 0..=1")]
    Fraction(f64),
}

impl Faults {
    /// Parses faults.
    ///
    /// # Errors
    /// If the text is not JSON, has an unknown field, or a value out of its bounds.
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

    /// The script for the next request; `None` if it is not affected.
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

    /// Whether no request is affected.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.script == Script::default() || self.next == Some(0)
    }
}

impl Health {
    /// The time before the answer.
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
    fn faults_hit_the_requests_that_they_select() {
        assert_eq!(hits("{}", 100), 0);
        assert_eq!(hits(r#"{"script":{"status":500}}"#, 100), 100);
        assert_eq!(hits(r#"{"script":{"status":500},"next":3}"#, 100), 3);
        assert_eq!(hits(r#"{"script":{"status":500},"fraction":0.0}"#, 100), 0);
        let some = hits(r#"{"script":{"status":500},"fraction":0.25}"#, 4000);
        assert!((900..1100).contains(&some), "{some} of 4000");
        assert_eq!(hits(r#"{"script":{"status":500},"fraction":0.5,"next":5}"#, 4000), 5);
    }

    #[test]
    fn errors_contain_the_value() {
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
