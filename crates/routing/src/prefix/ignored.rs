//! Text of prompts that is left out when they are hashed, because it changes without changing what a worker computes or can
//! reuse.
//!
//! A prefix is equal only up to the first byte that differs. A line at the head of a prompt that is different in each request
//! (a date, a request id) therefore hides that the rest was served before. Such text is left out of the hash; the worker gets the
//! prompt as it is.
//!
//! One rule is built in; more are regular expressions (`--prefix-ignore`). The `regex` crate searches in linear time, and a search
//! sees only the first [`SEARCHED_BYTES`] of each piece of a prompt, so the cost of a request has a bound.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use regex::bytes::{Regex, RegexBuilder};
use smallvec::SmallVec;

/// The bytes at the head of each piece of a prompt (tools, system, messages) in which patterns are searched.
pub const SEARCHED_BYTES: usize = 64 << 10;
/// Most patterns.
pub const MOST_PATTERNS: usize = 16;
/// The longest pattern, in bytes.
const LONGEST_PATTERN: usize = 1024;
/// The most memory of a compiled pattern, in bytes; and as much for its cache on each thread.
const COMPILED_BYTES: usize = 1 << 20;

/// The text that is left out of the hashes of prompts.
#[derive(Debug, Clone, Default)]
pub struct Ignored {
    patterns: Vec<Regex>,
}

/// The pieces of a prompt that are hashed.
pub type Hashed<'a> = SmallVec<[&'a [u8]; 8]>;

/// Why a pattern is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// The pattern can't be compiled.
    #[error("is not a regular expression: {0}")]
    Syntax(String),
    /// The pattern would need too much memory.
    #[error("needs more than {COMPILED_BYTES} bytes when it is compiled: simplify its repetitions")]
    TooLarge,
    /// The text of the pattern is too long.
    #[error("is longer than {LONGEST_PATTERN} bytes")]
    TooLong,
    /// The pattern matches where there is nothing.
    #[error("matches the empty text, so that it does not say what to leave out")]
    Empty,
}

impl PartialEq for Ignored {
    fn eq(&self, other: &Self) -> bool {
        self.patterns().eq(other.patterns())
    }
}

impl Ignored {
    /// Leaves out what matches one of the patterns, and what the built-in rule says.
    ///
    /// # Errors
    /// If a pattern is not accepted.
    pub fn new<'p>(patterns: impl IntoIterator<Item = &'p str>) -> Result<Self, PatternError> {
        let patterns: Result<_, _> = patterns.into_iter().map(compile).collect();
        Ok(Self { patterns: patterns? })
    }

    /// The patterns, without the built-in rule.
    pub fn patterns(&self) -> impl Iterator<Item = &str> {
        self.patterns.iter().map(Regex::as_str)
    }

    /// The parts of a prompt's pieces that are hashed.
    #[must_use]
    pub fn without<'a>(&self, pieces: &[&'a [u8]]) -> Hashed<'a> {
        let mut hashed = Hashed::new();
        for piece in pieces {
            let mut kept_from = billing_line_end(piece).unwrap_or(0);
            for (start, end) in self.matches(piece) {
                if end > kept_from {
                    hashed.push(&piece[kept_from..start.max(kept_from)]);
                    kept_from = end;
                }
            }
            hashed.push(&piece[kept_from..]);
        }
        hashed
    }

    /// The matches of all patterns in the head of a piece, in the order of their beginnings.
    fn matches(&self, piece: &[u8]) -> SmallVec<[(usize, usize); 8]> {
        let head = &piece[..piece.len().min(SEARCHED_BYTES)];
        let of = |pattern: &Regex| {
            pattern.find_iter(head).map(|found| (found.start(), found.end())).collect::<Vec<_>>()
        };
        let mut found: SmallVec<_> = self.patterns.iter().flat_map(of).collect();
        if self.patterns.len() > 1 {
            found.sort_unstable();
        }
        found
    }
}

fn compile(pattern: &str) -> Result<Regex, PatternError> {
    if pattern.len() > LONGEST_PATTERN {
        return Err(PatternError::TooLong);
    }
    let mut builder = RegexBuilder::new(pattern);
    builder.size_limit(COMPILED_BYTES).dfa_size_limit(COMPILED_BYTES);
    let regex = builder.build().map_err(|error| match error {
        regex::Error::CompiledTooBig(_) => PatternError::TooLarge,
        // The error of the parser has several lines: the pattern, a mark below it, and the reason.
        other => PatternError::Syntax(
            other.to_string().lines().last().unwrap_or_default().replacen("error: ", "", 1),
        ),
    })?;
    if regex.is_match(b"") { Err(PatternError::Empty) } else { Ok(regex) }
}

/// The bytes at the head of a piece in which that line may begin.
const BILLING_WITHIN: usize = 128;

/// The end of Claude Code's billing line, if a piece begins with it.
///
/// The line is different in each request (`cch=…`). Engines drop it, so that they find the rest of the prompt in their cache.
fn billing_line_end(piece: &[u8]) -> Option<usize> {
    static BEGINNING: LazyLock<Finder<'static>> =
        LazyLock::new(|| Finder::new("x-anthropic-billing-header:"));
    // The line is the piece itself, or the text of its first block.
    static LINE: LazyLock<Regex> = LazyLock::new(|| {
        let line = r#"(?s-u)\A[^}]{0,128}?"x-anthropic-billing-header:(?:[^"\\]|\\[^n])*(?:\\n|")"#;
        Regex::new(line).expect("a well-formed pattern")
    });
    // Nearly all prompts are without it, and this is the fastest way to see it.
    let head = &piece[..piece.len().min(BILLING_WITHIN)];
    BEGINNING.find(head)?;
    LINE.find(piece).map(|line| line.end())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hashed(patterns: &[&str], pieces: &[&str]) -> String {
        let ignored = Ignored::new(patterns.iter().copied()).unwrap();
        let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
        String::from_utf8(ignored.without(&pieces).concat()).unwrap()
    }

    #[test]
    fn what_matches_is_left_out_of_every_piece() {
        assert_eq!(hashed(&[], &["tools", "system"]), "toolssystem");
        let pieces = ["now 12:30, user a", "at 08:15 and 09:00", "none"];
        assert_eq!(hashed(&[r"\d\d:\d\d"], &pieces), "now , user aat  and none");
        assert_eq!(hashed(&[r"user \w", r"\d\d:\d\d"], &pieces), "now , at  and none");
        // Overlapping matches of two patterns are left out once.
        assert_eq!(hashed(&["abcd", "cdef"], &["xabcdefx"]), "xx");
        assert_eq!(hashed(&["bc", "abcd"], &["xabcdefx"]), "xefx");
        assert_eq!(hashed(&["(?s).+"], &["all", "of it"]), "");
    }

    #[test]
    fn only_the_head_of_a_piece_is_searched() {
        let long = "x".repeat(SEARCHED_BYTES);
        assert_eq!(hashed(&["date"], &[&format!("date{long}date")]), format!("{long}date"));
    }

    #[test]
    fn a_pattern_that_is_not_accepted_says_why() {
        let error = |pattern: &str| Ignored::new([pattern]).unwrap_err().to_string();
        assert_eq!(error("a("), "is not a regular expression: unclosed group");
        assert!(error(r"(a{1000}){1000}").contains("compiled"), "{}", error(r"(a{1000}){1000}"));
        assert_eq!(error("a*"), PatternError::Empty.to_string());
        assert_eq!(error(&"a".repeat(1025)), "is longer than 1024 bytes");
    }

    #[test]
    fn patterns_that_take_other_engines_forever_take_linear_time() {
        let text = format!("{}b", "a".repeat(SEARCHED_BYTES - 1));
        assert_eq!(hashed(&["(?:a+)+c"], &[&text]).len(), text.len());
    }

    #[test]
    fn the_billing_line_of_claude_code_is_no_part_of_the_prompt() {
        let line =
            r"x-anthropic-billing-header: cc_version=2.1.100.7b4; cc_entrypoint=cli; cch=eb6c6;";
        for (before, after) in [
            (
                format!(r#"[{{"type":"text","text":"{line}"}},{{"type":"text","text":"You"}}]"#),
                r#"},{"type":"text","text":"You"}]"#,
            ),
            (format!("[ {{\n\"text\" : \"{line}\",\"type\":\"text\"}}]"), r#","type":"text"}]"#),
            (format!(r#""{line}\nYou are""#), r#"You are""#),
            (format!(r#"[{{"text":"{line} \"\u00e9\" \\\\\nYou"}}]"#), r#"You"}]"#),
            (format!(r#""{line}""#), ""),
            // As proxies translate it for OpenAI-compatible engines.
            (format!(r#"[{{"role":"system","content":"{line}\nYou"}}]"#), r#"You"}]"#),
        ] {
            assert_eq!(hashed(&[], &[&before]), after, "{before}");
            assert_eq!(hashed(&["cch=[0-9a-f]+"], &[&before]), after, "beside a pattern: {before}");
        }
        for same in [
            format!(r#"[{{"type":"text","text":"You"}},{{"type":"text","text":"{line}"}}]"#),
            format!(r#""You are {line}""#),
            format!(r#"[{{"type":"text","text":"{}{line}"}}]"#, " ".repeat(200)),
            format!(r#""{line}"#),
            r#""""#.to_owned(),
            "[]".to_owned(),
        ] {
            assert_eq!(hashed(&[], &[&same]), same);
        }
    }
}
