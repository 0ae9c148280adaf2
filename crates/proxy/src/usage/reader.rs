//! Reads the usage of one answer, whatever its API and encoding.

use super::events::Events;
use super::report::Report;
use super::scan::{Place, Scanner};
use super::tokens::{Origin, Settlement, TokenUsage, Work, tokens_in};

/// How the body of an answer is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// One JSON text.
    Json,
    /// A stream of server-sent events.
    Events,
    /// Anything else: audio, an image, a compressed body. It is not read.
    Opaque,
}

impl Encoding {
    /// The encoding of a body with this content type. `is_plain`: the body is not compressed.
    #[must_use]
    pub fn of(content_type: &[u8], is_plain: bool) -> Self {
        let is = |essence: &[u8]| {
            let start = content_type.get(..essence.len()).unwrap_or_default();
            start.eq_ignore_ascii_case(essence)
        };
        match is_plain {
            true if is(b"text/event-stream") => Self::Events,
            true if is(b"application/json") => Self::Json,
            true | false => Self::Opaque,
        }
    }
}

/// Reads one answer.
#[derive(Debug)]
pub struct Reader {
    work: Work,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Json { scanner: Box<Scanner>, bytes: u64 },
    Events(Box<Events>),
    Opaque,
}

impl Reader {
    /// Reads the answer to a request for `path`, in the spelling of the table of routes.
    #[must_use]
    pub fn new(path: &str, encoding: Encoding) -> Self {
        let place = if path == "/generate" { Place::MetaInfo } else { Place::Usage };
        // The first event of a chat has the role and no text.
        let opening = u32::from(path == "/v1/chat/completions");
        let kind = match encoding {
            Encoding::Json => Kind::Json { scanner: Box::new(Scanner::new(place)), bytes: 0 },
            Encoding::Events => Kind::Events(Box::new(Events::new(place, opening))),
            Encoding::Opaque => Kind::Opaque,
        };
        Self { work: Work::of(path), kind }
    }

    /// Reads the next piece of the body.
    pub fn feed(&mut self, piece: &[u8]) {
        match &mut self.kind {
            Kind::Json { scanner, bytes } => {
                *bytes = bytes.saturating_add(piece.len() as u64);
                scanner.feed(piece);
            }
            Kind::Events(events) => events.feed(piece),
            Kind::Opaque => {}
        }
    }

    /// What the request has used, at the end of its answer. `is_complete`: the worker has sent the whole answer.
    /// `prompt_bytes`: the size of the prompt, for an estimate.
    #[must_use]
    pub fn settlement(&self, is_complete: bool, prompt_bytes: usize) -> Settlement {
        let (report, unreadable, passed) = match &self.kind {
            Kind::Json { scanner, bytes } => {
                let (report, unreadable) = scanner.found();
                (report, unreadable, tokens_in(*bytes))
            }
            Kind::Events(events) => {
                let (report, unreadable) = events.found();
                (report, unreadable, events.estimate())
            }
            Kind::Opaque => (None, 0, 0),
        };
        let is_stream = matches!(self.kind, Kind::Events(_));
        let report = report.unwrap_or_default();
        let (tokens, origin) = match self.work {
            _ if report.has_output() => (report.tokens(0), Origin::Reported),
            // A complete answer without a count of the output has none, as with embeddings, unless it is a stream.
            _ if report.has_input() && is_complete && !is_stream => {
                (report.tokens(0), Origin::Reported)
            }
            Work::Read if report.has_input() => (report.tokens(0), Origin::Reported),
            Work::Generate if report.has_input() => {
                (report.tokens(passed), Origin::OutputEstimated)
            }
            Work::Generate if is_stream || !is_complete => {
                (estimate(&report, prompt_bytes, passed), Origin::Estimated)
            }
            Work::Read if !is_complete => (estimate(&report, prompt_bytes, 0), Origin::Estimated),
            Work::Generate | Work::Read | Work::Other => (report.tokens(0), Origin::Unreported),
        };
        Settlement { tokens, origin, unreadable }
    }
}

fn estimate(report: &Report, prompt_bytes: usize, output: u64) -> TokenUsage {
    let tokens = report.tokens(output);
    TokenUsage { input: tokens_in(prompt_bytes as u64).max(tokens.input), ..tokens }
}

#[cfg(test)]
mod tests;
