//! One heap for everything that must happen later.
//!
//! A state machine without a clock can't wait: it says when it is to be called next (`next_deadline`), and it is given
//! the time when it is called. The heap belongs to the machine that uses it, so that no timer is lost in a full
//! channel. A lost probe timer would end failure detection for good.
//!
//! Timers of the same moment are ordered by rank, then by age, never by chance: foca requires that the indirect probe
//! of a round comes before the next round, and equal runs must be equal.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

/// Timers, each with a moment of the monotonic clock.
#[derive(Debug)]
pub struct Timers<T> {
    heap: BinaryHeap<Reverse<Entry<T>>>,
    issued: u64,
}

impl<T> Default for Timers<T> {
    fn default() -> Self {
        Self { heap: BinaryHeap::new(), issued: 0 }
    }
}

impl<T> Timers<T> {
    /// Schedules `what` for `at`. Of the timers that are due at the same moment, those of lower `rank` come first.
    pub fn schedule(&mut self, at: Duration, rank: u8, what: T) {
        self.issued += 1;
        self.heap.push(Reverse(Entry { at, rank, issued: self.issued, what }));
    }

    /// When the next timer is due; `None` if there is none.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Duration> {
        self.heap.peek().map(|Reverse(entry)| entry.at)
    }

    /// Takes the next timer that is due at `now`, if any.
    pub fn pop_due(&mut self, now: Duration) -> Option<T> {
        if self.next_deadline()? > now {
            return None;
        }
        self.heap.pop().map(|Reverse(entry)| entry.what)
    }

    /// Moves all timers `by` later and keeps their order: for a process that was frozen and must not count that time.
    pub fn postpone(&mut self, by: Duration) {
        // The order is unchanged, so that rebuilding the heap moves nothing.
        self.heap = std::mem::take(&mut self.heap)
            .into_iter()
            .map(|Reverse(entry)| Reverse(Entry { at: entry.at + by, ..entry }))
            .collect();
    }

    /// How many timers are scheduled.
    #[must_use]
    pub fn len(&self) -> usize {
        self.heap.len()
    }

    /// Whether no timer is scheduled.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.heap.is_empty()
    }
}

/// The first moment from `now` on of something that comes every `period` and was due at `at`: for rounds that go on after
/// a pause as if there had been none.
#[must_use]
pub(crate) fn next_beat(at: Duration, period: Duration, now: Duration) -> Duration {
    let late = now.saturating_sub(at).as_nanos().next_multiple_of(period.as_nanos().max(1));
    at + Duration::from_nanos(u64::try_from(late).unwrap_or(u64::MAX))
}

#[derive(Debug)]
struct Entry<T> {
    at: Duration,
    rank: u8,
    issued: u64,
    what: T,
}

impl<T> Entry<T> {
    fn order(&self) -> (Duration, u8, u64) {
        (self.at, self.rank, self.issued)
    }
}

impl<T> PartialEq for Entry<T> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}

impl<T> Eq for Entry<T> {}

impl<T> PartialOrd for Entry<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Entry<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.order().cmp(&other.order())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn timers_are_ordered_by_time_then_rank_then_age() {
        let mut timers = Timers::default();
        timers.schedule(ms(20), 0, "later");
        timers.schedule(ms(10), 1, "second");
        timers.schedule(ms(10), 0, "first");
        timers.schedule(ms(10), 1, "third");
        assert_eq!(timers.next_deadline(), Some(ms(10)));
        let mut due = Vec::new();
        while let Some(what) = timers.pop_due(ms(15)) {
            due.push(what);
        }
        assert_eq!(due, ["first", "second", "third"]);
        assert_eq!(timers.pop_due(ms(19)), None);
        assert_eq!(timers.pop_due(ms(20)), Some("later"));
        assert!(timers.is_empty());
    }

    #[test]
    fn rounds_keep_their_beat_through_a_pause() {
        for (now, next) in [(0, 10), (10, 10), (11, 14), (14, 14), (27, 30)] {
            assert_eq!(next_beat(ms(10), ms(4), ms(now)), ms(next), "at {now}");
        }
    }

    #[test]
    fn postponed_timers_are_due_later_and_in_the_same_order() {
        let mut timers = Timers::default();
        timers.schedule(ms(10), 0, "a");
        timers.schedule(ms(30), 0, "b");
        timers.postpone(ms(100));
        assert_eq!(timers.len(), 2);
        assert_eq!(timers.pop_due(ms(109)), None);
        assert_eq!(timers.pop_due(ms(110)), Some("a"));
        assert_eq!(timers.next_deadline(), Some(ms(130)));
    }
}
