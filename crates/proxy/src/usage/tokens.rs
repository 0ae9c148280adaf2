//! The tokens that a request used, how they are known, and the kinds of work that requests ask for.

/// The most tokens that one request can have. A worker's number beyond it is not a count.
pub(super) const MAX_TOKENS: u64 = 1 << 32;

/// The tokens of one request. The counts mean the same for every API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Tokens of the prompt, those from a cache included.
    pub input: u64,
    /// The part of `input` that the worker had in its cache.
    pub cached_input: u64,
    /// Generated tokens, those of the reasoning included.
    pub output: u64,
    /// The part of `output` that is reasoning.
    pub reasoning: u64,
}

/// How the tokens of a request are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The worker reported them.
    Reported,
    /// The worker reported the input. The answer ended without a count of the output, which is estimated from what passed.
    OutputEstimated,
    /// The worker reported nothing before the answer ended or the client left: input and output are estimated.
    Estimated,
    /// The answer is complete and has no usage, as with answers about tokens, images or models. The counts are zero.
    Unreported,
    /// No worker did the work: the request reached none, or was refused. The counts are zero.
    Unused,
}

/// What a request used, known once at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The tokens.
    pub tokens: TokenUsage,
    /// How they are known.
    pub origin: Origin,
    /// Usage objects in the answer whose numbers are not counts of tokens (negative, fractional, huge, or no numbers). They
    /// were ignored.
    pub unreadable: u32,
}

impl Settlement {
    /// The settlement of a request for which no worker did any work.
    pub const UNUSED: Self = Self {
        tokens: TokenUsage { input: 0, cached_input: 0, output: 0, reasoning: 0 },
        origin: Origin::Unused,
        unreadable: 0,
    };

    /// The settlement of a request whose client left after it was sent and before a worker answered.
    #[must_use]
    pub fn unanswered(work: Work, prompt_bytes: usize) -> Self {
        if work == Work::Other {
            return Self::UNUSED;
        }
        let tokens = TokenUsage { input: tokens_in(prompt_bytes as u64), ..TokenUsage::default() };
        Self { tokens, origin: Origin::Estimated, unreadable: 0 }
    }
}

/// The estimated number of tokens in a text: four bytes each, which is about right for English text and JSON, and too low
/// for most other languages.
pub(super) fn tokens_in(bytes: u64) -> u64 {
    bytes.div_ceil(4).min(MAX_TOKENS)
}

/// The kind of work that a request causes, by the tokens that it uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// It reads a prompt and generates tokens.
    Generate,
    /// It reads a prompt, as for embeddings and ranks.
    Read,
    /// Anything else. Its tokens count only if the worker reports them.
    Other,
}

impl Work {
    /// The work behind a path of an API, in the spelling of the table of routes.
    #[must_use]
    pub fn of(path: &str) -> Self {
        match path {
            "/v1/chat/completions"
            | "/v1/completions"
            | "/v1/messages"
            | "/v1/responses"
            | "/generate"
            | "/inference/v1/generate"
            | "/v1/chat/completions/batch"
            | "/completion"
            | "/infill"
            | "/api/chat"
            | "/api/generate"
            | "/invocations"
            | "/v1/audio/transcriptions"
            | "/v1/audio/translations" => Self::Generate,
            "/v1/embeddings" | "/v2/embed" | "/embedding" | "/encode" | "/v1/rerank"
            | "/rerank" | "/v2/rerank" | "/v1/reranking" | "/reranking" | "/v1/score"
            | "/score" | "/v1/classify" | "/classify" | "/pooling" => Self::Read,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_work_on_a_prompt_is_estimated_when_nobody_waits_for_the_answer() {
        let estimate = |path| Settlement::unanswered(Work::of(path), 41);
        for path in ["/v1/chat/completions", "/v1/embeddings"] {
            assert_eq!((estimate(path).tokens.input, estimate(path).tokens.output), (11, 0));
            assert_eq!(estimate(path).origin, Origin::Estimated, "{path}");
        }
        assert_eq!(estimate("/v1/tokenize"), Settlement::UNUSED);
    }
}
