//! Finds the usage objects of a JSON text that arrives in pieces, without keeping the text.
//!
//! The text comes from a worker and may hold what a model wrote, so only objects at known places count: `usage` and, where
//! an engine's native API has it, `meta_info` at the top; `usage` in `response` (Responses API) and in `message`
//! (Anthropic's first event). Everything else is skipped, mostly by `memchr`. A text that is not JSON gives no report or an
//! incomplete one; nothing is kept of it but the state below, whatever its size and nesting.

use memchr::{memchr2, memchr3};
use smallvec::SmallVec;

use super::report::{Count, Report};
use super::tokens::MAX_TOKENS;

/// Where an API has the counts of its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In `usage`.
    Usage,
    /// In `meta_info`, as in SGLang's native API.
    MetaInfo,
}

/// An object or list that is read, not skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Context {
    /// A list of answers, as a batch has it.
    Answers,
    /// An answer, or an event of a stream.
    Answer,
    /// The object `response` of an event.
    Response,
    /// The object `message` of Anthropic's first event.
    Message,
    /// The counts.
    Usage,
    /// The counts in Anthropic's first event.
    FirstUsage,
    /// The details of the prompt's counts.
    InputDetails,
    /// The details of the output's counts.
    OutputDetails,
}

/// The role of the value after a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Skip,
    Open(Context),
    Number(Count),
}

/// The next expected token of the grammar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Value,
    BeforeKey,
    /// The rest of a key.
    Key,
    Colon,
    /// The rest of a number that counts.
    Number,
    /// The rest of a word or number that does not count.
    Scalar,
    /// The rest of a string. `escaped`: its next byte has no meaning.
    Text {
        escaped: bool,
    },
    /// The rest of an object or list that is skipped, which ends at `close` once `depth` is zero.
    Nested {
        open: u8,
        close: u8,
        depth: u32,
        in_text: bool,
        escaped: bool,
    },
    /// A comma or the end of the object.
    After,
    /// Nothing: the text has ended, or is not JSON.
    Ended,
}

/// The longest key that is known, in bytes.
const LONGEST_KEY: usize = b"cache_creation_input_tokens".len();

/// Reads one JSON text.
#[derive(Debug)]
pub(super) struct Scanner {
    place: Place,
    state: State,
    stack: SmallVec<[Context; 5]>,
    /// The key that is being read, as far as it can be a known one.
    key: SmallVec<[u8; 32]>,
    /// Whether that key is not a known one: it is too long or has escapes.
    is_unknown_key: bool,
    /// Whether the key's next byte follows a backslash.
    escaped: bool,
    meaning: Meaning,
    number: u64,
    /// The counts of the usage object that is being read.
    object: Report,
    /// Whether a number of that object is not a count.
    has_invalid_count: bool,
    /// The counts of the answer that is being read.
    answer: Option<Report>,
    /// The sum of the answers before it, in a list of answers.
    answers: Option<Report>,
    unreadable: u32,
}

impl Scanner {
    pub(super) fn new(place: Place) -> Self {
        Self {
            place,
            state: State::Value,
            stack: SmallVec::new(),
            key: SmallVec::new(),
            is_unknown_key: false,
            escaped: false,
            meaning: Meaning::Skip,
            number: 0,
            object: Report::default(),
            has_invalid_count: false,
            answer: None,
            answers: None,
            unreadable: 0,
        }
    }

    /// The counts found so far, and the number of usage objects that could not be read.
    pub(super) fn found(&self) -> (Option<Report>, u32) {
        let report = match (self.answers, self.answer) {
            (Some(before), Some(last)) => Some(before.plus(&last)),
            (before, last) => before.or(last),
        };
        (report, self.unreadable)
    }

    /// Reads the next piece of the text.
    pub(super) fn feed(&mut self, mut rest: &[u8]) {
        while let Some(byte) = rest.first() {
            let used = match self.state {
                State::Ended => return,
                State::Key => self.key(rest),
                State::Number => self.number(rest),
                State::Scalar => self.scalar(rest),
                State::Text { escaped } => self.text(rest, escaped),
                State::Nested { .. } => self.nested(rest),
                _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => 1,
                State::Value => self.value(*byte),
                State::BeforeKey => self.before_key(*byte),
                State::Colon => {
                    self.state = if *byte == b':' { State::Value } else { State::Ended };
                    1
                }
                State::After => self.after(*byte),
            };
            rest = &rest[used..];
        }
    }

    fn before_key(&mut self, byte: u8) -> usize {
        match byte {
            b'"' => {
                self.key.clear();
                (self.is_unknown_key, self.escaped) = (false, false);
                self.state = State::Key;
            }
            b'}' => self.close(),
            _ => self.state = State::Ended,
        }
        1
    }

    fn key(&mut self, rest: &[u8]) -> usize {
        if std::mem::take(&mut self.escaped) {
            return 1;
        }
        let end = memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        if self.key.len() + end > LONGEST_KEY {
            self.is_unknown_key = true;
        } else {
            self.key.extend_from_slice(&rest[..end]);
        }
        match rest.get(end) {
            None => end,
            Some(b'"') => {
                self.meaning = if self.is_unknown_key { Meaning::Skip } else { self.meaning() };
                self.state = State::Colon;
                end + 1
            }
            Some(_backslash) => {
                (self.is_unknown_key, self.escaped) = (true, true);
                end + 1
            }
        }
    }

    /// The role of the value after the present key.
    fn meaning(&self) -> Meaning {
        use Context as C;
        let Some(context) = self.stack.last() else { return Meaning::Skip };
        match (context, &*self.key) {
            (C::Answer, b"usage") if self.place == Place::Usage => Meaning::Open(C::Usage),
            (C::Answer, b"meta_info") if self.place == Place::MetaInfo => Meaning::Open(C::Usage),
            (C::Answer, b"response") if self.place == Place::Usage => Meaning::Open(C::Response),
            (C::Answer, b"message") if self.place == Place::Usage => Meaning::Open(C::Message),
            (C::Response, b"usage") => Meaning::Open(C::Usage),
            (C::Message, b"usage") => Meaning::Open(C::FirstUsage),
            (C::FirstUsage, b"output_tokens") => Meaning::Number(Count::FirstOutput),
            (C::Usage | C::FirstUsage, key) => match key {
                b"prompt_tokens" => Meaning::Number(Count::Prompt),
                b"input_tokens" => Meaning::Number(Count::Input),
                b"completion_tokens" | b"output_tokens" => Meaning::Number(Count::Output),
                b"total_tokens" => Meaning::Number(Count::Total),
                b"cached_tokens" => Meaning::Number(Count::Cached),
                b"cache_read_input_tokens" => Meaning::Number(Count::CacheRead),
                b"cache_creation_input_tokens" => Meaning::Number(Count::CacheWritten),
                b"reasoning_tokens" => Meaning::Number(Count::Reasoning),
                b"prompt_tokens_details" | b"input_tokens_details" => {
                    Meaning::Open(C::InputDetails)
                }
                b"completion_tokens_details" | b"output_tokens_details" => {
                    Meaning::Open(C::OutputDetails)
                }
                _ => Meaning::Skip,
            },
            (C::InputDetails, b"cached_tokens") => Meaning::Number(Count::Cached),
            (C::OutputDetails, b"reasoning_tokens") => Meaning::Number(Count::Reasoning),
            _ => Meaning::Skip,
        }
    }

    /// Begins a value. Returns the number of bytes that it has read: 0 or 1.
    fn value(&mut self, byte: u8) -> usize {
        match self.stack.last() {
            None => {
                match byte {
                    b'{' => self.open(Context::Answer),
                    b'[' => self.open(Context::Answers),
                    _ => self.state = State::Ended,
                }
                return 1;
            }
            Some(Context::Answers) => {
                match byte {
                    b'{' => self.open(Context::Answer),
                    b']' => self.close(),
                    _ => self.skip(byte),
                }
                return 1;
            }
            Some(_) => {}
        }
        match (self.meaning, byte) {
            (Meaning::Open(context), b'{') => self.open(context),
            (Meaning::Number(_), b'0'..=b'9') => {
                self.number = 0;
                self.state = State::Number;
                return 0;
            }
            (Meaning::Open(Context::Usage | Context::FirstUsage), _) if byte != b'n' => {
                self.unreadable = self.unreadable.saturating_add(1);
                self.skip(byte);
            }
            (Meaning::Number(_), _) if byte != b'n' => {
                self.has_invalid_count = true;
                self.skip(byte);
            }
            _ => self.skip(byte),
        }
        1
    }

    fn open(&mut self, context: Context) {
        if matches!(context, Context::Usage | Context::FirstUsage) {
            (self.object, self.has_invalid_count) = (Report::default(), false);
        }
        self.stack.push(context);
        self.state = if context == Context::Answers { State::Value } else { State::BeforeKey };
    }

    /// Skips a value that begins with this byte.
    fn skip(&mut self, byte: u8) {
        let nested =
            |open, close| State::Nested { open, close, depth: 1, in_text: false, escaped: false };
        self.state = match byte {
            b'"' => State::Text { escaped: false },
            b'{' => nested(b'{', b'}'),
            b'[' => nested(b'[', b']'),
            b'}' | b']' | b',' | b':' => State::Ended,
            _ => State::Scalar,
        };
    }

    fn number(&mut self, rest: &[u8]) -> usize {
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        for digit in &rest[..digits] {
            self.number = self.number.saturating_mul(10).saturating_add(u64::from(digit - b'0'));
        }
        match rest.get(digits) {
            None => {}
            Some(b',' | b'}' | b' ' | b'\t' | b'\n' | b'\r') => {
                match self.meaning {
                    Meaning::Number(count) if self.number <= MAX_TOKENS => {
                        self.object.set(count, self.number);
                    }
                    Meaning::Number(_) => self.has_invalid_count = true,
                    Meaning::Skip | Meaning::Open(_) => {}
                }
                self.state = State::After;
            }
            // A fraction or an exponent, or not JSON.
            Some(_) => {
                self.has_invalid_count = true;
                self.state = State::Scalar;
            }
        }
        digits
    }

    fn scalar(&mut self, rest: &[u8]) -> usize {
        let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
        let end = rest.iter().position(ends);
        if end.is_some() {
            self.state = State::After;
        }
        end.unwrap_or(rest.len())
    }

    fn text(&mut self, rest: &[u8], escaped: bool) -> usize {
        let (state, used) = rest_of_text(rest, escaped);
        self.state = match state {
            TextState::Ended => State::After,
            TextState::Open { escaped } => State::Text { escaped },
        };
        used
    }

    fn nested(&mut self, rest: &[u8]) -> usize {
        let State::Nested { open, close, mut depth, mut in_text, mut escaped } = self.state else {
            return rest.len();
        };
        let used = if in_text {
            let (state, used) = rest_of_text(rest, escaped);
            (in_text, escaped) = match state {
                TextState::Ended => (false, false),
                TextState::Open { escaped } => (true, escaped),
            };
            used
        } else {
            match memchr3(b'"', open, close, rest) {
                None => rest.len(),
                Some(at) => {
                    match rest[at] {
                        b'"' => in_text = true,
                        byte if byte == open => depth = depth.saturating_add(1),
                        _ => depth -= 1,
                    }
                    at + 1
                }
            }
        };
        self.state = if depth == 0 {
            State::After
        } else {
            State::Nested { open, close, depth, in_text, escaped }
        };
        used
    }

    fn after(&mut self, byte: u8) -> usize {
        let is_list = self.stack.last() == Some(&Context::Answers);
        match (byte, is_list) {
            (b',', true) => self.state = State::Value,
            (b',', false) => self.state = State::BeforeKey,
            (b']', true) | (b'}', false) => self.close(),
            _ => self.state = State::Ended,
        }
        1
    }

    /// Ends the innermost object or list.
    fn close(&mut self) {
        match self.stack.pop() {
            Some(Context::Usage | Context::FirstUsage) => {
                if self.has_invalid_count {
                    self.unreadable = self.unreadable.saturating_add(1);
                } else if !self.object.is_empty() {
                    let object = self.object;
                    self.answer = Some(self.answer.map_or(object, |answer| answer.joined(&object)));
                }
            }
            Some(Context::Answer) if !self.stack.is_empty() => {
                if let Some(answer) = self.answer.take() {
                    self.answers = Some(self.answers.map_or(answer, |before| before.plus(&answer)));
                }
            }
            _ => {}
        }
        self.state = if self.stack.is_empty() { State::Ended } else { State::After };
    }
}

/// Where a string stands after a piece of it.
enum TextState {
    Ended,
    Open { escaped: bool },
}

/// Skips what `rest` has of a string, up to a backslash. Returns where the string stands, and the bytes that were skipped.
fn rest_of_text(rest: &[u8], escaped: bool) -> (TextState, usize) {
    if escaped {
        return (TextState::Open { escaped: false }, 1);
    }
    match memchr2(b'"', b'\\', rest) {
        None => (TextState::Open { escaped: false }, rest.len()),
        Some(at) if rest[at] == b'"' => (TextState::Ended, at + 1),
        Some(at) => (TextState::Open { escaped: true }, at + 1),
    }
}

#[cfg(test)]
mod tests;
