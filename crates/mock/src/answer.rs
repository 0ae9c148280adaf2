//! The answers that contain generated text, in the format of each API.
//!
//! They are formatted by hand instead of with `serde`, for two reasons: a worker must cost a benchmark as little as
//! possible, and a stream is split at its tokens. The tests parse all of it as JSON.

use std::fmt::Write as _;

use crate::body::StreamShape;
use crate::engine::Usage;
use crate::script::UsageForm;

/// The APIs that generate text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// OpenAI's `/v1/chat/completions`.
    Chat,
    /// OpenAI's `/v1/completions`.
    Completions,
    /// OpenAI's `/v1/responses`.
    Responses,
    /// Anthropic's `/v1/messages`.
    Messages,
    /// SGLang's `/generate`.
    Generate,
    /// OpenAI's `/v1/audio/transcriptions`.
    Transcription,
    /// OpenAI's `/v1/audio/translations`.
    Translation,
}

/// The data of an answer besides its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Facts<'a> {
    /// A number that is unique among the answers of this worker.
    pub(super) id: u64,
    /// The time of the answer, in seconds since the Unix epoch.
    pub(super) created: u64,
    /// The model's name as JSON, with its quotes.
    pub(super) model: &'a str,
    pub(super) usage: Usage,
    /// Whether the text ended because of the request's own limit.
    pub(super) at_limit: bool,
    /// Whether an OpenAI stream reports its usage.
    pub(super) include_usage: bool,
    pub(super) usage_form: UsageForm,
}

impl Facts<'_> {
    /// How an OpenAI stream reports its usage; `None`: it does not.
    fn stream_usage(&self) -> Option<UsageForm> {
        let is_asked = self.include_usage && self.usage_form != UsageForm::Absent;
        is_asked.then_some(self.usage_form)
    }

    /// The usage as a field of a chunk with choices, after the other fields; `tokens` have been generated.
    fn chunk_usage(&self, dialect: Dialect, tokens: u32, is_last: bool) -> String {
        let counts = Usage { completion: tokens, ..self.usage };
        match self.stream_usage() {
            None | Some(UsageForm::Absent) => String::new(),
            Some(UsageForm::LastChoice) if is_last => {
                format!(r#","usage":{}"#, usage(dialect, counts))
            }
            Some(UsageForm::Continuous) => format!(r#","usage":{}"#, usage(dialect, counts)),
            Some(UsageForm::OwnChunk | UsageForm::LastChoice | UsageForm::Absurd) => {
                r#","usage":null"#.to_owned()
            }
        }
    }

    /// The part of a chunk with a token after the token's text: `begin` closes the text and its choice. The number of tokens
    /// so far may follow it, and then `close`.
    fn after_token(&self, begin: &str) -> (String, Option<u32>, &'static str) {
        if self.stream_usage() == Some(UsageForm::Continuous) {
            let prompt = self.usage.prompt;
            let usage = format!(r#","usage":{{"prompt_tokens":{prompt},"completion_tokens":"#);
            return (format!("{begin}{usage}"), Some(1), "}}\n\n");
        }
        let usage = self.chunk_usage(Dialect::Chat, 0, false);
        (format!("{begin}{usage}}}\n\n"), None, "")
    }
}

/// A usage that can't be one.
const ABSURD: &str =
    r#"{"prompt_tokens":-1,"completion_tokens":9223372036854775808,"total_tokens":1.5}"#;

/// The answer as one body.
pub(super) fn whole(dialect: Dialect, facts: &Facts<'_>, text: &str) -> String {
    let Facts { id, created, model, .. } = facts;
    let usage = match facts.usage_form {
        UsageForm::Absent => "null".to_owned(),
        UsageForm::Absurd => ABSURD.to_owned(),
        UsageForm::OwnChunk | UsageForm::LastChoice | UsageForm::Continuous => {
            usage(dialect, facts.usage)
        }
    };
    let finish = finish(dialect, facts.at_limit);
    match dialect {
        Dialect::Chat => format!(
            r#"{{"id":"chatcmpl-{id}","object":"chat.completion","created":{created},"model":{model},"choices":[{{"index":0,"message":{{"role":"assistant","content":"{text}"}},"logprobs":null,"finish_reason":"{finish}"}}],"usage":{usage}}}"#
        ),
        Dialect::Completions => format!(
            r#"{{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{model},"choices":[{{"index":0,"text":"{text}","logprobs":null,"finish_reason":"{finish}"}}],"usage":{usage}}}"#
        ),
        Dialect::Responses => {
            let item = item(*id, text, "completed");
            response(facts, "completed", &item, &usage)
        }
        Dialect::Messages => format!(
            r#"{{"id":"msg_{id}","type":"message","role":"assistant","model":{model},"content":[{{"type":"text","text":"{text}"}}],"stop_reason":"{finish}","stop_sequence":null,"usage":{usage}}}"#
        ),
        Dialect::Generate => {
            format!(r#"{{"text":"{text}","meta_info":{}}}"#, meta_info(facts, finish))
        }
        Dialect::Transcription => format!(r#"{{"text":"{text}","usage":{usage}}}"#),
        Dialect::Translation => format!(r#"{{"text":"{text}"}}"#),
    }
}

/// A response of `/v1/responses` that is not streamed, with its status. Only a completed one has its text.
pub(super) fn with_status(facts: &Facts<'_>, status: &str, text: &str) -> String {
    if status == "completed" {
        return whole(Dialect::Responses, facts, text);
    }
    response(facts, status, "", "null")
}

/// The answer as a stream of server-sent events. `text` is the complete text.
pub(super) fn stream(dialect: Dialect, facts: &Facts<'_>, text: &str) -> StreamShape {
    match dialect {
        Dialect::Chat => chat_stream(facts),
        Dialect::Completions => completions_stream(facts),
        Dialect::Responses => responses_stream(facts, text),
        Dialect::Messages => messages_stream(facts),
        Dialect::Generate => generate_stream(facts, text),
        Dialect::Transcription | Dialect::Translation => transcription_stream(facts, text),
    }
}

/// Whether a stream of this dialect repeats the whole text at its end.
pub(super) fn repeats_text(dialect: Dialect) -> bool {
    match dialect {
        Dialect::Responses | Dialect::Transcription | Dialect::Translation | Dialect::Generate => {
            true
        }
        Dialect::Chat | Dialect::Completions | Dialect::Messages => false,
    }
}

fn chat_stream(facts: &Facts<'_>) -> StreamShape {
    let Facts { id, created, model, usage: Usage { completion, .. }, .. } = facts;
    let head = format!(
        r#"data: {{"id":"chatcmpl-{id}","object":"chat.completion.chunk","created":{created},"model":{model}"#
    );
    let usage = |tokens, is_last| facts.chunk_usage(Dialect::Chat, tokens, is_last);
    let finish = finish(Dialect::Chat, facts.at_limit);
    let mut epilogue = format!(
        "{head},\"choices\":[{{\"index\":0,\"delta\":{{}},\"logprobs\":null,\"finish_reason\":\"{finish}\"}}]{}}}\n\n",
        usage(*completion, true)
    );
    push_openai_end(&mut epilogue, &head, Dialect::Chat, facts);
    let (after, numbered_from, close) =
        facts.after_token(r#""},"logprobs":null,"finish_reason":null}]"#);
    StreamShape {
        prologue: format!(
            "{head},\"choices\":[{{\"index\":0,\"delta\":{{\"role\":\"assistant\",\"content\":\"\"}},\"logprobs\":null,\"finish_reason\":null}}]{}}}\n\n",
            usage(0, false)
        ),
        before: format!(r#"{head},"choices":[{{"index":0,"delta":{{"content":""#),
        after,
        numbered_from,
        close,
        epilogue,
        ..StreamShape::default()
    }
}

fn completions_stream(facts: &Facts<'_>) -> StreamShape {
    let Facts { id, created, model, usage: Usage { completion, .. }, .. } = facts;
    let head = format!(
        r#"data: {{"id":"cmpl-{id}","object":"text_completion","created":{created},"model":{model}"#
    );
    let finish = finish(Dialect::Completions, facts.at_limit);
    let mut epilogue = format!(
        "{head},\"choices\":[{{\"index\":0,\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"{finish}\"}}]{}}}\n\n",
        facts.chunk_usage(Dialect::Completions, *completion, true)
    );
    push_openai_end(&mut epilogue, &head, Dialect::Completions, facts);
    let (after, numbered_from, close) =
        facts.after_token(r#"","logprobs":null,"finish_reason":null}]"#);
    StreamShape {
        before: format!(r#"{head},"choices":[{{"index":0,"text":""#),
        after,
        numbered_from,
        close,
        epilogue,
        ..StreamShape::default()
    }
}

fn push_openai_end(epilogue: &mut String, head: &str, dialect: Dialect, facts: &Facts<'_>) {
    let usage = match facts.stream_usage() {
        Some(UsageForm::OwnChunk | UsageForm::Continuous) => Some(usage(dialect, facts.usage)),
        Some(UsageForm::Absurd) => Some(ABSURD.to_owned()),
        None | Some(UsageForm::LastChoice | UsageForm::Absent) => None,
    };
    if let Some(usage) = usage {
        // Writing to a string can't fail.
        let _infallible = write!(epilogue, "{head},\"choices\":[],\"usage\":{usage}}}\n\n");
    }
    epilogue.push_str("data: [DONE]\n\n");
}

fn responses_stream(facts: &Facts<'_>, text: &str) -> StreamShape {
    let Facts { id, usage: Usage { completion, .. }, .. } = *facts;
    let mut events = Events::default();
    events.push(
        "response.created",
        &format!(r#""response":{}"#, response(facts, "in_progress", "", "null")),
    );
    events.push(
        "response.in_progress",
        &format!(r#""response":{}"#, response(facts, "in_progress", "", "null")),
    );
    let empty = format!(
        r#"{{"id":"msg_{id}","type":"message","status":"in_progress","role":"assistant","content":[]}}"#
    );
    events.push("response.output_item.added", &format!(r#""output_index":0,"item":{empty}"#));
    let place = format!(r#""item_id":"msg_{id}","output_index":0,"content_index":0"#);
    events.push(
        "response.content_part.added",
        &format!(r#"{place},"part":{{"type":"output_text","text":"","annotations":[]}}"#),
    );
    let prologue = std::mem::take(&mut events.text);
    let first = events.next;
    events.next += completion;
    events.push("response.output_text.done", &format!(r#"{place},"text":"{text}","logprobs":[]"#));
    events.push(
        "response.content_part.done",
        &format!(r#"{place},"part":{{"type":"output_text","text":"{text}","annotations":[]}}"#),
    );
    let item = item(id, text, "completed");
    events.push("response.output_item.done", &format!(r#""output_index":0,"item":{item}"#));
    let usage = usage(Dialect::Responses, facts.usage);
    let response = response(facts, "completed", &item, &usage);
    events.push("response.completed", &format!(r#""response":{response}"#));
    StreamShape {
        prologue,
        before: format!(
            "event: response.output_text.delta\ndata: {{\"type\":\"response.output_text.delta\",{place},\"delta\":\""
        ),
        after: r#"","logprobs":[],"sequence_number":"#.to_owned(),
        numbered_from: Some(first),
        close: "}\n\n",
        cumulative: false,
        epilogue: events.text,
    }
}

/// Numbered events of `/v1/responses`.
#[derive(Debug, Default)]
struct Events {
    text: String,
    next: u32,
}

impl Events {
    fn push(&mut self, kind: &str, fields: &str) {
        let number = self.next;
        self.next += 1;
        // Writing to a string can't fail.
        let _infallible = write!(
            self.text,
            "event: {kind}\ndata: {{\"type\":\"{kind}\",{fields},\"sequence_number\":{number}}}\n\n"
        );
    }
}

fn response(facts: &Facts<'_>, status: &str, output: &str, usage: &str) -> String {
    let Facts { id, created, model, .. } = facts;
    format!(
        r#"{{"id":"resp_{id}","object":"response","created_at":{created},"status":"{status}","error":null,"incomplete_details":null,"instructions":null,"metadata":{{}},"model":{model},"output":[{output}],"parallel_tool_calls":true,"temperature":1.0,"tool_choice":"auto","tools":[],"top_p":1.0,"usage":{usage}}}"#
    )
}

fn item(id: u64, text: &str, status: &str) -> String {
    format!(
        r#"{{"id":"msg_{id}","type":"message","status":"{status}","role":"assistant","content":[{{"type":"output_text","text":"{text}","annotations":[]}}]}}"#
    )
}

fn messages_stream(facts: &Facts<'_>) -> StreamShape {
    let Facts { id, model, usage: Usage { prompt, cached, completion }, .. } = facts;
    let fresh = prompt - cached;
    let finish = finish(Dialect::Messages, facts.at_limit);
    StreamShape {
        prologue: format!(
            "event: message_start\ndata: {{\"type\":\"message_start\",\"message\":{{\"id\":\"msg_{id}\",\"type\":\"message\",\"role\":\"assistant\",\"model\":{model},\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":{{\"input_tokens\":{fresh},\"cache_creation_input_tokens\":0,\"cache_read_input_tokens\":{cached},\"output_tokens\":1}}}}}}\n\n\
             event: content_block_start\ndata: {{\"type\":\"content_block_start\",\"index\":0,\"content_block\":{{\"type\":\"text\",\"text\":\"\"}}}}\n\n"
        ),
        before: "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"".to_owned(),
        after: "\"}}\n\n".to_owned(),
        epilogue: format!(
            "event: content_block_stop\ndata: {{\"type\":\"content_block_stop\",\"index\":0}}\n\n\
             event: message_delta\ndata: {{\"type\":\"message_delta\",\"delta\":{{\"stop_reason\":\"{finish}\",\"stop_sequence\":null}},\"usage\":{{\"output_tokens\":{completion}}}}}\n\n\
             event: message_stop\ndata: {{\"type\":\"message_stop\"}}\n\n"
        ),
        ..StreamShape::default()
    }
}

fn generate_stream(facts: &Facts<'_>, text: &str) -> StreamShape {
    let Facts { id, usage: Usage { prompt, cached, .. }, .. } = facts;
    let finish = finish(Dialect::Generate, facts.at_limit);
    StreamShape {
        before: r#"data: {"text":""#.to_owned(),
        after: format!(
            r#"","meta_info":{{"id":"{id}","finish_reason":null,"prompt_tokens":{prompt},"cached_tokens":{cached},"completion_tokens":"#
        ),
        numbered_from: Some(1),
        close: "}}\n\n",
        cumulative: true,
        epilogue: format!(
            "data: {{\"text\":\"{text}\",\"meta_info\":{}}}\n\ndata: [DONE]\n\n",
            meta_info(facts, finish)
        ),
        ..StreamShape::default()
    }
}

fn transcription_stream(facts: &Facts<'_>, text: &str) -> StreamShape {
    let usage = usage(Dialect::Transcription, facts.usage);
    StreamShape {
        before: r#"data: {"type":"transcript.text.delta","delta":""#.to_owned(),
        after: "\"}\n\n".to_owned(),
        epilogue: format!(
            "data: {{\"type\":\"transcript.text.done\",\"text\":\"{text}\",\"usage\":{usage}}}\n\ndata: [DONE]\n\n"
        ),
        ..StreamShape::default()
    }
}

fn meta_info(facts: &Facts<'_>, finish: &str) -> String {
    let Facts { id, usage: Usage { prompt, cached, completion }, .. } = facts;
    format!(
        r#"{{"id":"{id}","finish_reason":{{"type":"{finish}"}},"prompt_tokens":{prompt},"cached_tokens":{cached},"completion_tokens":{completion}}}"#
    )
}

fn usage(dialect: Dialect, Usage { prompt, cached, completion }: Usage) -> String {
    let total = u64::from(prompt) + u64::from(completion);
    match dialect {
        Dialect::Chat | Dialect::Completions | Dialect::Generate => format!(
            r#"{{"prompt_tokens":{prompt},"completion_tokens":{completion},"total_tokens":{total},"prompt_tokens_details":{{"cached_tokens":{cached}}}}}"#
        ),
        Dialect::Responses => format!(
            r#"{{"input_tokens":{prompt},"input_tokens_details":{{"cached_tokens":{cached}}},"output_tokens":{completion},"output_tokens_details":{{"reasoning_tokens":0}},"total_tokens":{total}}}"#
        ),
        Dialect::Messages => {
            let fresh = prompt - cached;
            format!(
                r#"{{"input_tokens":{fresh},"cache_creation_input_tokens":0,"cache_read_input_tokens":{cached},"output_tokens":{completion}}}"#
            )
        }
        Dialect::Transcription | Dialect::Translation => format!(
            r#"{{"type":"tokens","input_tokens":{prompt},"output_tokens":{completion},"total_tokens":{total}}}"#
        ),
    }
}

fn finish(dialect: Dialect, at_limit: bool) -> &'static str {
    match (dialect, at_limit) {
        (Dialect::Messages, true) => "max_tokens",
        (Dialect::Messages, false) => "end_turn",
        (_, true) => "length",
        (_, false) => "stop",
    }
}
