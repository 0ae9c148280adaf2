//! The counts of a usage object as its API has them, and what they mean.

use super::tokens::TokenUsage;

/// A number in a usage object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// All tokens of the prompt (`prompt_tokens`, OpenAI).
    Prompt,
    /// `input_tokens`: all tokens of the prompt in OpenAI's Responses API, those outside the cache in Anthropic's API.
    Input,
    /// The generated tokens so far.
    Output,
    /// The generated tokens at the begin of Anthropic's stream, which is only a placeholder.
    FirstOutput,
    /// Prompt and output together.
    Total,
    /// The part of the prompt that was cached (OpenAI).
    Cached,
    /// The tokens read from the cache, besides `input_tokens` (Anthropic).
    CacheRead,
    /// The tokens written to the cache, besides `input_tokens` (Anthropic).
    CacheWritten,
    /// The part of the output that is reasoning.
    Reasoning,
}

const COUNTS: usize = Count::Reasoning as usize + 1;

/// The counts of one or more usage objects. A count that is absent is unknown, not zero.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Report([Option<u64>; COUNTS]);

impl Report {
    /// Notes a count.
    pub(super) fn set(&mut self, count: Count, tokens: u64) {
        let own = &mut self.0[count as usize];
        *own = (*own).max(Some(tokens));
    }

    fn get(&self, count: Count) -> Option<u64> {
        self.0[count as usize]
    }

    /// Whether it has no count.
    pub(super) fn is_empty(&self) -> bool {
        self.0.iter().all(Option::is_none)
    }

    /// Whether the worker has counted the output, as far as it had got.
    pub(super) fn has_output(&self) -> bool {
        self.get(Count::Output).is_some()
    }

    /// Whether the worker has counted the prompt.
    pub(super) fn has_input(&self) -> bool {
        [Count::Prompt, Count::Input, Count::Total].iter().any(|count| self.get(*count).is_some())
    }

    /// Joins the reports of one answer. Counts in a stream are cumulative, so the largest of each is the last.
    pub(super) fn joined(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].max(other.0[at])))
    }

    /// Adds the report of another answer, as in a list of answers.
    pub(super) fn plus(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|at| match (self.0[at], other.0[at]) {
            (Some(own), Some(others)) => Some(own.saturating_add(others)),
            (own, others) => own.or(others),
        }))
    }

    /// The counts in the sense of [`TokenUsage`]. `output` replaces a count of the output that is absent.
    pub(super) fn tokens(&self, output: u64) -> TokenUsage {
        let known = |count| self.get(count).unwrap_or(0);
        let output =
            self.get(Count::Output).unwrap_or_else(|| output.max(known(Count::FirstOutput)));
        let (input, read) = match (self.get(Count::Prompt), self.get(Count::Input)) {
            (Some(prompt), _) => (prompt, 0),
            (None, Some(input)) => {
                let read = known(Count::CacheRead);
                (input.saturating_add(read).saturating_add(known(Count::CacheWritten)), read)
            }
            (None, None) => (known(Count::Total).saturating_sub(known(Count::Output)), 0),
        };
        TokenUsage {
            input,
            cached_input: known(Count::Cached).max(read).min(input),
            output,
            reasoning: known(Count::Reasoning).min(output),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(counts: &[(Count, u64)]) -> Report {
        let mut report = Report::default();
        counts.iter().for_each(|(count, tokens)| report.set(*count, *tokens));
        report
    }

    #[test]
    fn input_includes_the_cached_part_whatever_the_api() {
        let openai = report(&[(Count::Prompt, 100), (Count::Cached, 64), (Count::Output, 5)]);
        let responses = report(&[(Count::Input, 100), (Count::Cached, 64), (Count::Output, 5)]);
        let anthropic = report(&[
            (Count::Input, 26),
            (Count::CacheRead, 64),
            (Count::CacheWritten, 10),
            (Count::Output, 5),
        ]);
        let wanted = TokenUsage { input: 100, cached_input: 64, output: 5, reasoning: 0 };
        for report in [openai, responses, anthropic] {
            assert_eq!(report.tokens(0), wanted, "{report:?}");
        }
    }

    #[test]
    fn parts_are_never_larger_than_the_whole() {
        let tokens = report(&[
            (Count::Prompt, 3),
            (Count::Cached, 9),
            (Count::Output, 2),
            (Count::Reasoning, 7),
        ])
        .tokens(0);
        assert_eq!(tokens, TokenUsage { input: 3, cached_input: 3, output: 2, reasoning: 2 });
    }

    #[test]
    fn a_total_alone_is_the_prompt() {
        assert_eq!(report(&[(Count::Total, 12)]).tokens(0).input, 12);
        assert_eq!(report(&[(Count::Total, 12), (Count::Output, 2)]).tokens(0).input, 10);
    }
}
