//! Compares the cached tokens that a worker's response reports with what the policy expected.
//!
//! Engines report in `usage` how many tokens of a prompt they had cached. The response is inspected piece by piece as it
//! passes. A report that is split between two pieces is missed; that costs one sample. One low report does not withdraw
//! the hint for the prompt, because the worker has cached it by now. Several low reports in a row mean that the worker was
//! restarted.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use smg_routing::policy::Decision;

/// The token counts of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Usage {
    /// Tokens of the prompt.
    pub(super) prompt: u64,
    /// Of those, how many were cached.
    pub(super) cached: u64,
}

/// The share of the prompt, 0..=1, that `decision` expects in the worker's cache; `None`: no expectation that a response
/// could disprove.
pub(super) fn expected(decision: Decision) -> Option<f32> {
    match decision {
        Decision::Hit(fraction) => Some(fraction),
        Decision::Plain
        | Decision::Balance
        | Decision::Miss
        | Decision::Sticky
        | Decision::Spill
        | Decision::NoKey => None,
    }
}

impl Usage {
    /// Whether at least a quarter of the expected tokens was cached. The threshold is above zero because a restarted
    /// worker soon caches the head that many prompts share.
    pub(super) fn is_about(self, expected: f32) -> bool {
        self.cached as f32 * 4.0 >= expected * self.prompt as f32
    }

    /// Reads the counts from one piece of a response in OpenAI's shape: `"prompt_tokens":N` and, near it,
    /// `"cached_tokens":N`.
    pub(super) fn in_piece(piece: &[u8]) -> Option<Self> {
        static CACHED: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new("\"cached_tokens\"").into_owned());
        static PROMPT: LazyLock<Finder<'static>> =
            LazyLock::new(|| Finder::new("\"prompt_tokens\"").into_owned());
        let at = CACHED.find(piece)?;
        let cached = number_after(&piece[at + CACHED.needle().len()..])?;
        let at = PROMPT.find(piece)?;
        let prompt = number_after(&piece[at + PROMPT.needle().len()..])?;
        (prompt > 0 && cached <= prompt).then_some(Self { prompt, cached })
    }
}

/// The number after a key's colon.
fn number_after(rest: &[u8]) -> Option<u64> {
    let rest = rest.trim_ascii_start().strip_prefix(b":")?.trim_ascii_start();
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn says(piece: &str) -> Option<(u64, u64)> {
        Usage::in_piece(piece.as_bytes()).map(|usage| (usage.prompt, usage.cached))
    }

    #[test]
    fn an_answer_says_what_was_cached() {
        let usage = r#"{"usage":{"prompt_tokens":100,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":64}}}"#;
        assert_eq!(says(usage), Some((100, 64)));
        assert_eq!(says(r#"{"prompt_tokens" : 7, "cached_tokens" : 0 }"#), Some((7, 0)));
    }

    #[test]
    fn far_less_than_was_expected_is_not_about_it() {
        let about = |cached| Usage { prompt: 100, cached }.is_about(0.8);
        assert_eq!([0, 16, 19, 20, 64, 100].map(about), [false, false, false, true, true, true]);
    }

    #[test]
    fn what_says_nothing_or_nonsense_is_no_lesson() {
        for piece in [
            "",
            r#"{"usage":{"prompt_tokens":100}}"#,
            r#"{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":9}}"#,
            r#"{"prompt_tokens":0,"cached_tokens":0}"#,
            r#"{"prompt_tokens":5,"cached_tokens":null}"#,
            r#"{"prompt_tokens":5,"cached_tokens":"#,
            r#"{"prompt_tokens":99999999999999999999999,"cached_tokens":1}"#,
        ] {
            assert_eq!(says(piece), None, "{piece}");
        }
    }
}
