//! When new rows and hints of this node are sent: the first of a quiet time at once, the following ones together (R15).

use std::time::Duration;

use crate::state::{STORES, StoreId};

/// Hints wait this long for more.
const HINT_DELAY: Duration = Duration::from_millis(50);

/// When a store's new rows are sent, and when the last ones were.
#[derive(Debug, Clone, Copy, Default)]
struct Flush {
    due_at: Option<Duration>,
    last_at: Option<Duration>,
}

/// When new rows of each store, and new hints, are sent.
#[derive(Debug, Default)]
pub(super) struct Coalescing {
    flushes: [Flush; STORES],
    hints_due_at: Option<Duration>,
}

impl Coalescing {
    /// `store` has new rows. They are sent at once if its last ones were sent longer ago than the store's coalescing time,
    /// else together with those that come until then. Returns whether that was not planned already.
    pub(super) fn plan_rows(&mut self, store: StoreId, now: Duration) -> bool {
        let flush = &mut self.flushes[store.index()];
        let is_new = flush.due_at.is_none();
        if is_new {
            let earliest = flush.last_at.map_or(Duration::ZERO, |last| last + store.coalescing());
            flush.due_at = Some(now.max(earliest));
        }
        is_new
    }

    /// Whether new rows of `store` are to be sent now; if so, they count as sent.
    pub(super) fn take_due_rows(&mut self, store: StoreId, now: Duration) -> bool {
        let flush = &mut self.flushes[store.index()];
        let is_due = flush.due_at.is_some_and(|due_at| due_at <= now);
        if is_due {
            *flush = Flush { due_at: None, last_at: Some(now) };
        }
        is_due
    }

    /// Forgets when rows were sent: this node goes on as another writer.
    pub(super) fn reset_rows(&mut self) {
        self.flushes = [Flush::default(); STORES];
    }

    /// There are new hints; they are sent after 50 ms, with those that come until then.
    pub(super) fn plan_hints(&mut self, now: Duration) {
        self.hints_due_at.get_or_insert(now + HINT_DELAY);
    }

    /// Whether hints are to be sent now; if so, they count as sent.
    pub(super) fn take_due_hints(&mut self, now: Duration) -> bool {
        let is_due = self.hints_due_at.is_some_and(|due_at| due_at <= now);
        if is_due {
            self.hints_due_at = None;
        }
        is_due
    }

    /// When something is to be sent next.
    pub(super) fn next_deadline(&self) -> Option<Duration> {
        let rows = self.flushes.iter().filter_map(|flush| flush.due_at);
        rows.chain(self.hints_due_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_first_rows_of_a_quiet_time_are_sent_at_once_and_the_next_ones_together() {
        let store = StoreId::Load;
        let mut coalescing = Coalescing::default();
        assert!(coalescing.plan_rows(store, ms(1000)));
        assert!(coalescing.take_due_rows(store, ms(1000)));
        assert!(coalescing.plan_rows(store, ms(1010)));
        assert!(!coalescing.plan_rows(store, ms(1020)), "it is planned already");
        assert_eq!(coalescing.next_deadline(), Some(ms(1000) + store.coalescing()));
        assert!(!coalescing.take_due_rows(store, ms(1099)));
        assert!(coalescing.take_due_rows(store, ms(1100)));
        assert_eq!(coalescing.next_deadline(), None);
    }

    #[test]
    fn hints_wait_for_more() {
        let mut coalescing = Coalescing::default();
        coalescing.plan_hints(ms(0));
        coalescing.plan_hints(ms(40));
        assert!(!coalescing.take_due_hints(ms(49)) && coalescing.take_due_hints(ms(50)));
        assert!(!coalescing.take_due_hints(ms(50)));
    }
}
