//! Priority classes of requests that wait (`x-smg-priority`).
//!
//! All classes share one queue. A class is a head start: the queue orders a request as if it had arrived so many requests
//! earlier. Urgent requests therefore pass others, and requests of one class keep their order. No request starves: fewer than
//! 4,096 later system requests, 1,024 interactive or 256 default ones can pass a bulk request. The order needs no clock.

use std::fmt;
use std::str::FromStr;

/// How urgent a request is; the most urgent class compares lowest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Probes and other traffic that keeps the system running.
    System,
    /// A person waits for the answer.
    Interactive,
    /// The request names no priority.
    #[default]
    Default,
    /// Batch work: no person waits for the answer.
    Bulk,
}

impl Priority {
    /// All classes, most urgent first.
    pub const ALL: [Self; 4] = [Self::System, Self::Interactive, Self::Default, Self::Bulk];

    /// The name in `x-smg-priority` and in metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Interactive => "interactive",
            Self::Default => "default",
            Self::Bulk => "bulk",
        }
    }

    /// Head start in requests: a request passes a waiting bulk request that arrived fewer than so many requests earlier.
    #[must_use]
    pub const fn head_start(self) -> u64 {
        match self {
            Self::System => 4096,
            Self::Interactive => 1024,
            Self::Default => 256,
            Self::Bulk => 0,
        }
    }
}

impl fmt::Display for Priority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The text is not the name of a priority; it holds the first 64 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("priority {0:?} is not one of system, interactive, default, bulk")]
pub struct ParsePriorityError(String);

impl FromStr for Priority {
    type Err = ParsePriorityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let named = |priority: &Self| text.trim().eq_ignore_ascii_case(priority.name());
        let found = Self::ALL.into_iter().find(named);
        found.ok_or_else(|| ParsePriorityError(text.chars().take(64).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_priority_prints_and_parses() {
        for priority in Priority::ALL {
            assert_eq!(priority.to_string().parse(), Ok(priority));
        }
        assert_eq!(" Bulk".parse(), Ok(Priority::Bulk));
        assert_eq!(
            "urgent".parse::<Priority>().unwrap_err().to_string(),
            "priority \"urgent\" is not one of system, interactive, default, bulk"
        );
    }

    #[test]
    fn a_more_urgent_class_has_a_longer_head_start() {
        assert!(Priority::ALL.is_sorted_by(|a, b| a < b && a.head_start() > b.head_start()));
    }
}
