//! Traffic as chats cause it: sessions of several turns with shared system prompts, and the pace of requests.
//!
//! Each turn repeats all previous ones, so that its prompt begins with exactly the bytes of the previous prompt. Prefix
//! caches and cache-aware policies depend on that. Sessions are plain values made from a seed; the demo and the load
//! generator decide when to send them.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// The properties of chats.
#[derive(Debug, Clone, PartialEq)]
pub struct Chats {
    /// The model of the requests.
    pub model: String,
    /// The number of system prompts that sessions share; 0 means no system prompts.
    pub system_prompts: u32,
    /// The length of a system prompt, in bytes.
    pub system_bytes: usize,
    /// The length of a user's text in one turn, in bytes.
    pub turn_bytes: usize,
    /// The number of turns in a session, at least one.
    pub turns: u32,
    /// The most tokens in an answer.
    pub max_tokens: u32,
    /// The mean time between an answer and the user's next turn.
    pub think: Duration,
    /// Whether answers are streamed, with their usage.
    pub stream: bool,
}

impl Default for Chats {
    fn default() -> Self {
        Self {
            model: "mock-model".to_owned(),
            system_prompts: 8,
            system_bytes: 2048,
            turn_bytes: 200,
            turns: 6,
            max_tokens: 32,
            think: Duration::from_millis(500),
            stream: true,
        }
    }
}

/// One chat of a user.
#[derive(Debug)]
pub struct Session {
    /// The JSON of the request before the messages.
    head: String,
    /// The messages so far, as the content of a JSON list.
    messages: String,
    turn_bytes: usize,
    turns_left: u32,
    think: Duration,
    rng: StdRng,
}

impl Session {
    /// Starts a session without messages. Equal seeds make equal sessions.
    #[must_use]
    pub fn start(chats: &Chats, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut messages = String::new();
        if chats.system_prompts > 0 {
            // The text of a system prompt depends only on its number, not on the session.
            let number = rng.random_range(0..chats.system_prompts);
            let mut texts = StdRng::seed_from_u64(u64::from(number) ^ 0x5157_E3A9);
            messages.push_str(r#"{"role":"system","content":""#);
            push_words(&mut messages, chats.system_bytes, &mut texts);
            messages.push_str(r#""}"#);
        }
        let model = serde_json::Value::from(chats.model.as_str());
        let max_tokens = chats.max_tokens;
        let stream = if chats.stream {
            r#","stream":true,"stream_options":{"include_usage":true}"#
        } else {
            ""
        };
        Self {
            head: format!(r#"{{"model":{model},"max_tokens":{max_tokens}{stream},"messages":["#),
            messages,
            turn_bytes: chats.turn_bytes,
            turns_left: chats.turns.max(1),
            think: chats.think,
            rng,
        }
    }

    /// Adds the user's next turn. Returns the body of the request, or `None` after the last turn.
    pub fn ask(&mut self) -> Option<String> {
        self.turns_left = self.turns_left.checked_sub(1)?;
        if !self.messages.is_empty() {
            self.messages.push(',');
        }
        self.messages.push_str(r#"{"role":"user","content":""#);
        push_words(&mut self.messages, self.turn_bytes, &mut self.rng);
        self.messages.push_str(r#""}"#);
        Some([&self.head, &self.messages, "]}"].concat())
    }

    /// Adds an answer, given as the content of a JSON string.
    pub fn answered(&mut self, escaped: &str) {
        self.messages.push_str(r#",{"role":"assistant","content":""#);
        self.messages.push_str(escaped);
        self.messages.push_str(r#""}"#);
    }

    /// The time that the user takes before the next turn: half to one and a half of the mean.
    pub fn think(&mut self) -> Duration {
        self.think.mul_f64(self.rng.random_range(0.5..1.5))
    }
}

/// The times of requests at a fixed rate, independent of the answers.
///
/// Latency is measured from the time when a request is due, not from when it could be sent. Otherwise a stalled server
/// would delay the very requests that should show the stall (Gil Tene's coordinated omission).
#[derive(Debug, Clone)]
pub struct FixedRate {
    per_second: f64,
    next: u64,
}

impl FixedRate {
    /// A rate of `per_second` requests per second; `None` unless that is finite and above zero.
    #[must_use]
    pub fn new(per_second: f64) -> Option<Self> {
        (per_second.is_finite() && per_second > 0.0).then_some(Self { per_second, next: 0 })
    }

    /// The time when the next request is due, since the start. Each call advances to the next request.
    pub fn next_due(&mut self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "exact for 2^53 requests")]
        let seconds = self.next as f64 / self.per_second;
        self.next += 1;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// The text of a chat's answer, complete or streamed, with its JSON escapes, as [`Session::answered`] expects it.
#[must_use]
pub fn answer_text(answer: &[u8]) -> String {
    const KEY: &[u8] = b"\"content\":\"";
    let mut text = Vec::new();
    let mut rest = answer;
    while let Some(start) = memchr::memmem::find(rest, KEY).map(|at| at + KEY.len()) {
        rest = &rest[start..];
        let mut end = 0;
        while end < rest.len() && rest[end] != b'"' {
            end += 1 + usize::from(rest[end] == b'\\');
        }
        let end = end.min(rest.len());
        text.extend_from_slice(&rest[..end]);
        rest = &rest[end..];
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Appends words until `bytes` bytes are written.
fn push_words(text: &mut String, bytes: usize, rng: &mut StdRng) {
    const WORDS: [&str; 24] = [
        "river ", "stone ", "when ", "the ", "of ", "table ", "quiet ", "how ", "green ", "and ",
        "seven ", "paper ", "walk ", "to ", "north ", "a ", "light ", "answer ", "please ",
        "list ", "my ", "without ", "explain ", "number ",
    ];
    let end = text.len() + bytes;
    while text.len() < end {
        text.push_str(WORDS[rng.random_range(0..WORDS.len())]);
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    fn messages(body: &str) -> &str {
        let start = body.find(r#""messages":["#).unwrap() + r#""messages":["#.len();
        body[start..].strip_suffix("]}").unwrap()
    }

    #[test]
    fn each_prompt_begins_with_the_previous_one() {
        let mut session = Session::start(&Chats { turns: 4, ..Chats::default() }, 1);
        let mut before = String::new();
        let mut turns = 0;
        while let Some(body) = session.ask() {
            turns += 1;
            let all: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(all["messages"].as_array().unwrap().len(), 2 * turns);
            let now = messages(&body);
            assert!(
                now.starts_with(&before) && now.len() >= before.len() + 200,
                "{before} | {now}"
            );
            before = now.to_owned();
            session.answered(r"w0 w1 \u00e9");
        }
        assert_eq!(turns, 4);
    }

    #[test]
    fn sessions_share_system_prompts_but_no_user_texts() {
        let chats = Chats { system_prompts: 3, system_bytes: 400, ..Chats::default() };
        let mut prompts = std::collections::HashSet::new();
        let mut texts = std::collections::HashSet::new();
        for seed in 0..60 {
            let body = Session::start(&chats, seed).ask().unwrap();
            let all: Value = serde_json::from_str(&body).unwrap();
            prompts.insert(all["messages"][0]["content"].as_str().unwrap().to_owned());
            texts.insert(all["messages"][1]["content"].as_str().unwrap().to_owned());
        }
        assert_eq!((prompts.len(), texts.len()), (3, 60));
        assert!(prompts.iter().all(|prompt| prompt.len() == 400));
    }

    #[test]
    fn equal_seeds_make_equal_sessions() {
        let body = |seed| Session::start(&Chats::default(), seed).ask();
        assert_eq!(body(5), body(5));
        assert_ne!(body(5), body(6));
    }

    #[test]
    fn the_text_of_an_answer_is_found_complete_and_streamed() {
        assert_eq!(answer_text(br#"{"message":{"content":"a\"b\\"},"x":"y"}"#), r#"a\"b\\"#);
        let stream =
            b"data: {\"delta\":{\"content\":\"\"}}\n\ndata: {\"delta\":{\"content\":\"w0 \"}}\n\n\
                       data: {\"delta\":{\"content\":\"w1 \"}}\n\ndata: [DONE]\n\n";
        assert_eq!(answer_text(stream), "w0 w1 ");
        assert_eq!(answer_text(br#"{"content":"broken off\"#), r"broken off\");
        assert_eq!(answer_text(b"{}"), "");
    }

    #[test]
    fn a_fixed_rate_does_not_drift() {
        let mut rate = FixedRate::new(300.0).unwrap();
        let dues: Vec<Duration> = (0..=3000).map(|_| rate.next_due()).collect();
        assert_eq!(
            (dues[0], dues[300], dues[3000]),
            (Duration::ZERO, Duration::from_secs(1), Duration::from_secs(10))
        );
        assert!(FixedRate::new(0.0).is_none() && FixedRate::new(f64::NAN).is_none());
    }
}
