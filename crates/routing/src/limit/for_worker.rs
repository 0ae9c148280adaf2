//! The part of the queue for requests that have a permit and wait for a worker, because none has room.
//!
//! Requests that can go to the same workers wait in one line, in the order of the queue. Only the first one of a line tries to find
//! a worker: when it joins, when it becomes the first, and when it is called. All lines are called when a request ends; workers may
//! also get room otherwise (a probe succeeds, other routers report less), so that the first one of a line should try now and then
//! without a call.
//!
//! A line is a number, because admission knows no models. Requests of different lines do not wait for each other, except for
//! permits: a request in a line keeps its permit, so that with `--max-concurrent-requests` those of one model may leave none.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use super::admission::{Admission, Rejected};
use super::line::{QueueKey, Waiter};
use super::priority::Priority;

/// The place of a request in a line. Dropping it leaves the line and counts the request as abandoned.
#[derive(Debug)]
#[must_use = "dropping the place leaves the line"]
pub struct Place {
    admission: Arc<Admission>,
    line: u64,
    key: QueueKey,
    has_left: bool,
}

impl Admission {
    /// Whether requests wait in this line, so that a new one must wait behind them.
    #[must_use]
    pub fn has_line(&self, line: u64) -> bool {
        self.waiting_for_worker() > 0 && self.queue.lock().lines.contains_key(&line)
    }

    /// Joins a line. The request should try to find a worker once more if it is the first one: one may have got room meanwhile.
    ///
    /// # Errors
    /// If the queue is full.
    pub fn join_line(self: &Arc<Self>, line: u64, priority: Priority) -> Result<Place, Rejected> {
        let mut queue = self.queue.lock();
        if self.waiting() >= self.queue_size {
            drop(queue);
            self.counters().queue_full.inc();
            return Err(Rejected::WorkersFull { queue_size: self.queue_size });
        }
        let key = queue.next_key(priority);
        queue.lines.entry(line).or_default().insert(key, Waiter::default());
        self.waiting_for_worker.fetch_add(1, Ordering::Relaxed);
        drop(queue);
        self.counters().queued(priority).inc();
        Ok(Place { admission: Arc::clone(self), line, key, has_left: false })
    }

    /// Calls the first request of each line, because a worker may have got room.
    pub fn call_lines(&self) {
        if self.waiting_for_worker() == 0 {
            return;
        }
        let mut queue = self.queue.lock();
        let mut called: Vec<(QueueKey, Waker)> = queue
            .lines
            .values_mut()
            .filter_map(|line| {
                let mut first = line.first_entry()?;
                Some((*first.key(), first.get_mut().call()?))
            })
            .collect();
        drop(queue);
        // If two lines wait for the same worker, the first one of the queue tries first.
        called.sort_unstable_by_key(|(key, _)| *key);
        called.into_iter().for_each(|(_, waker)| waker.wake());
    }
}

impl Place {
    /// Whether the request is the first one of its line.
    #[must_use]
    pub fn is_first(&self) -> bool {
        let queue = self.admission.queue.lock();
        queue.lines.get(&self.line).and_then(|line| line.first_key_value()).map(|(key, _)| *key)
            == Some(self.key)
    }

    /// Ready when the request should try to find a worker: it has become the first one, or a worker may have got room.
    pub fn poll_called(&mut self, context: &Context<'_>) -> Poll<()> {
        let mut queue = self.admission.queue.lock();
        let waiter = queue.lines.get_mut(&self.line).and_then(|line| line.get_mut(&self.key));
        let Some(waiter) = waiter else { return Poll::Ready(()) };
        if std::mem::take(&mut waiter.is_called) {
            return Poll::Ready(());
        }
        let known = waiter.waker.as_ref().is_some_and(|known| known.will_wake(context.waker()));
        let before = (!known).then(|| waiter.waker.replace(context.waker().clone()));
        // Dropping a waker runs code of the executor, which must not happen under the lock.
        drop(queue);
        drop(before);
        Poll::Pending
    }

    /// Leaves the line because the request waits no longer.
    pub fn leave(mut self) {
        self.give_up();
    }

    /// Leaves the line, and counts the request as timed out.
    pub fn time_out(mut self) {
        self.give_up();
        self.admission.counters().timed_out.inc();
    }

    /// Leaves the line. The next request of the line is called if this one was the first.
    fn give_up(&mut self) {
        if std::mem::replace(&mut self.has_left, true) {
            return;
        }
        let mut queue = self.admission.queue.lock();
        let Some(line) = queue.lines.get_mut(&self.line) else { return };
        let was_first = line.first_key_value().is_some_and(|(key, _)| *key == self.key);
        let left = line.remove(&self.key);
        let next = line.first_entry().filter(|_| was_first);
        let waker = next.and_then(|mut next| next.get_mut().call());
        if line.is_empty() {
            queue.lines.remove(&self.line);
        }
        self.admission.waiting_for_worker.fetch_sub(1, Ordering::Relaxed);
        drop(queue);
        drop(left);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.has_left {
            self.give_up();
            self.admission.counters().abandoned.inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;
    use crate::limit::Config;

    fn admission(queue_size: u32) -> Arc<Admission> {
        Admission::new(&Config { max_concurrent: NonZeroU32::new(1), queue_size })
    }

    fn join(admission: &Arc<Admission>, line: u64, priority: Priority) -> Place {
        admission.join_line(line, priority).unwrap()
    }

    fn is_called(place: &mut Place) -> bool {
        place.poll_called(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn only_the_first_of_a_line_is_called_when_a_request_ends() {
        let admission = admission(10);
        let permit = admission.try_acquire().unwrap();
        let [mut bulk, mut default, mut urgent] =
            [Priority::Bulk, Priority::Default, Priority::Interactive]
                .map(|priority| join(&admission, 1, priority));
        let mut other = join(&admission, 2, Priority::Bulk);
        let firsts = |places: [&Place; 4]| places.map(Place::is_first);
        assert_eq!(firsts([&bulk, &default, &urgent, &other]), [false, false, true, true]);
        let called = |places: [&mut Place; 4]| places.map(is_called);
        assert_eq!(called([&mut bulk, &mut default, &mut urgent, &mut other]), [false; 4]);
        drop(permit);
        let seen = called([&mut bulk, &mut default, &mut urgent, &mut other]);
        assert_eq!(seen, [false, false, true, true]);
        assert!(!is_called(&mut urgent), "one call is for one try");
        urgent.leave();
        assert!(is_called(&mut default) && !is_called(&mut bulk), "the next one is the first now");
        drop(bulk);
        assert!(default.is_first() && !is_called(&mut default));
        default.time_out();
        assert!(!admission.has_line(1) && admission.has_line(2));
        other.leave();
        assert_eq!((admission.waiting(), admission.has_line(2)), (0, false));
    }

    #[test]
    fn all_that_wait_count_toward_the_bound() {
        let admission = admission(2);
        let _permit = admission.try_acquire().unwrap();
        let place = join(&admission, 1, Priority::Default);
        let waiting = admission.acquire(Priority::Default).unwrap();
        assert_eq!(admission.waiting(), 2);
        assert!(admission.acquire(Priority::Default).is_err());
        let full = admission.join_line(1, Priority::System).unwrap_err();
        assert_eq!(full, Rejected::WorkersFull { queue_size: 2 });
        drop(place);
        let _place = join(&admission, 1, Priority::Default);
        drop(waiting);
        assert_eq!((admission.waiting(), admission.waiting_for_worker()), (1, 1));
    }
}
