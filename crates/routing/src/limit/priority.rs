//! Classes of requests that wait (`x-smg-priority`).
//!
//! A class is a head start, not a queue of its own: a request waits as if it had come so many requests earlier. So
//! urgent requests pass others, requests of one class keep their order, and nobody waits for ever, since those who come
//! later have ever worse places: a bulk request is passed by fewer than 4096 later system, 1024 interactive or 256
//! default requests. The queue needs no clock for that.

use std::fmt;
use std::str::FromStr;

/// How urgent a request is, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum Priority {
    /// Probes and other traffic that keeps the system alive.
    System,
    /// Somebody is waiting.
    Interactive,
    /// Nothing was said.
    #[default]
    Default,
    /// Nobody is waiting.
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

    /// It passes those that came fewer than so many requests earlier and have no head start themselves.
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

/// A text that names no priority.
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
    fn the_more_urgent_has_the_longer_head_start() {
        assert!(Priority::ALL.is_sorted_by(|a, b| a < b && a.head_start() > b.head_start()));
    }
}
