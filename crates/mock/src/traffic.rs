//! Traffic as chats make it: sessions of several turns over shared system prompts, and the pace of requests.
//!
//! Each turn repeats all before it, so that its prompt begins with exactly the bytes of the one before: what prefix
//! caches and cache-aware policies live on. Sessions are plain values made from a seed; who sends them, and when, is
//! the demo's and the load generator's affair.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// What the chats are like.
#[derive(Debug, Clone, PartialEq)]
pub struct Chats {
    /// The model that they ask.
    pub model: String,
    /// System prompts that sessions share; 0: they have none.
    pub system_prompts: u32,
    /// Bytes of a system prompt.
    pub system_bytes: usize,
    /// Bytes of what a user says in one turn.
    pub turn_bytes: usize,
    /// Turns of a session, at least one.
    pub turns: u32,
    /// Tokens of an answer.
    pub max_tokens: u32,
    /// Mean time that a user takes between an answer and the next turn.
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

/// One chat.
#[derive(Debug)]
pub struct Session {
    /// The request up to the messages.
    head: String,
    /// The messages so far, as the inside of a JSON list.
    messages: String,
    turn_bytes: usize,
    turns_left: u32,
    think: Duration,
    rng: StdRng,
}

impl Session {
    /// A session with nothing said yet. The same seed makes the same session.
    #[must_use]
    pub fn start(chats: &Chats, seed: u64) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut messages = String::new();
        if chats.system_prompts > 0 {
            // Its text depends on its number only, not on the session.
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

    /// Says something: the body of the next request, `None` when the session is over.
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

    /// Remembers what came back, as the inside of a JSON string.
    pub fn answered(&mut self, escaped: &str) {
        self.messages.push_str(r#",{"role":"assistant","content":""#);
        self.messages.push_str(escaped);
        self.messages.push_str(r#""}"#);
    }

    /// How long the user takes before the next turn: half to one and a half of the mean.
    pub fn think(&mut self) -> Duration {
        self.think.mul_f64(self.rng.random_range(0.5..1.5))
    }
}

/// Requests at a fixed rate, whatever the answers do.
///
/// Latency counts from when a request was due, not from when it could be sent: otherwise a stalled server would delay
/// the very requests that were to notice it (Gil Tene's coordinated omission).
#[derive(Debug, Clone)]
pub struct FixedRate {
    per_second: f64,
    next: u64,
}

impl FixedRate {
    /// `per_second` requests each second, `None` unless that is finite and above zero.
    #[must_use]
    pub fn new(per_second: f64) -> Option<Self> {
        (per_second.is_finite() && per_second > 0.0).then_some(Self { per_second, next: 0 })
    }

    /// When the next request is due, since the start; each call tells of one more.
    pub fn next_due(&mut self) -> Duration {
        #[expect(clippy::cast_precision_loss, reason = "exact for 2^53 requests")]
        let seconds = self.next as f64 / self.per_second;
        self.next += 1;
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }
}

/// What a chat's answer says, whole or as a stream, as it stands in the JSON: what [`Session::answered`] wants.
#[must_use]
pub fn said(answer: &[u8]) -> String {
    const KEY: &[u8] = b"\"content\":\"";
    let mut said = Vec::new();
    let mut rest = answer;
    while let Some(start) = memchr::memmem::find(rest, KEY).map(|at| at + KEY.len()) {
        rest = &rest[start..];
        let mut end = 0;
        while end < rest.len() && rest[end] != b'"' {
            end += 1 + usize::from(rest[end] == b'\\');
        }
        let end = end.min(rest.len());
        said.extend_from_slice(&rest[..end]);
        rest = &rest[end..];
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// Adds words until `bytes` are written.
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
    fn prompts_grow_by_their_exact_prefix() {
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
    fn sessions_share_system_prompts_and_nothing_else() {
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
    fn the_same_seed_is_the_same_session() {
        let body = |seed| Session::start(&Chats::default(), seed).ask();
        assert_eq!(body(5), body(5));
        assert_ne!(body(5), body(6));
    }

    #[test]
    fn what_was_said_is_found_whole_and_in_pieces() {
        assert_eq!(said(br#"{"message":{"content":"a\"b\\"},"x":"y"}"#), r#"a\"b\\"#);
        let stream =
            b"data: {\"delta\":{\"content\":\"\"}}\n\ndata: {\"delta\":{\"content\":\"w0 \"}}\n\n\
                       data: {\"delta\":{\"content\":\"w1 \"}}\n\ndata: [DONE]\n\n";
        assert_eq!(said(stream), "w0 w1 ");
        assert_eq!(said(br#"{"content":"broken off\"#), r"broken off\");
        assert_eq!(said(b"{}"), "");
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
