//! Ends what is in flight on a worker whose time is over. Each request in flight leaves its waker here once, so that a
//! stream that is silent is woken when its worker is taken away, and nobody looks meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// The end of a worker, for those who are in flight on it.
#[derive(Debug, Default)]
pub(super) struct Cut {
    over: AtomicBool,
    // Held for a push, a store or a take.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<Option<Waker>>,
    /// Places in `wakers` that are free.
    free: Vec<usize>,
}

/// One request's place among those that are to be woken.
#[derive(Debug, Default)]
pub(super) struct Place(Option<(usize, Waker)>);

impl Cut {
    /// Ends everything in flight, now and later.
    pub(super) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut self.waiting.lock().wakers);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// Whether that has happened.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Ready once it has happened. Takes the lock only when the task has changed.
    pub(super) fn poll(&self, place: &mut Place, cx: &Context<'_>) -> Poll<()> {
        if !place.0.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            let mut waiting = self.waiting.lock();
            let at = match &place.0 {
                Some((at, _)) => *at,
                None => waiting.free.pop().unwrap_or(waiting.wakers.len()),
            };
            if waiting.wakers.len() <= at {
                waiting.wakers.resize(at + 1, None);
            }
            waiting.wakers[at] = Some(cx.waker().clone());
            place.0 = Some((at, cx.waker().clone()));
        }
        // Looked at after the waker was left: between the two, `end` would have found it.
        if self.over.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The request has ended.
    pub(super) fn leave(&self, place: &mut Place) {
        if let Some((at, _)) = place.0.take() {
            let mut waiting = self.waiting.lock();
            if let Some(waker) = waiting.wakers.get_mut(at) {
                *waker = None;
            }
            waiting.free.push(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::Wake;

    use super::*;

    #[derive(Default)]
    struct Counter(AtomicUsize);

    impl Wake for Counter {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn who_waits_is_woken_once_and_who_left_is_not() {
        let cut = Cut::default();
        let counters: Vec<_> = (0..4).map(|_| Arc::new(Counter::default())).collect();
        let mut places: Vec<_> = (0..4).map(|_| Place::default()).collect();
        for (counter, place) in counters.iter().zip(&mut places) {
            let waker = Waker::from(Arc::clone(counter));
            assert!(cut.poll(place, &Context::from_waker(&waker)).is_pending());
            assert!(cut.poll(place, &Context::from_waker(&waker)).is_pending());
        }
        cut.leave(&mut places[1]);
        // Another task polls the last one from now on.
        let other = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&other));
        assert!(cut.poll(&mut places[3], &Context::from_waker(&waker)).is_pending());
        cut.end();
        let woken = |counter: &Arc<Counter>| counter.0.load(Ordering::SeqCst);
        assert_eq!(counters.iter().map(woken).collect::<Vec<_>>(), [1, 0, 1, 0]);
        assert_eq!(woken(&other), 1);
        assert!(cut.is_over());
        let mut late = Place::default();
        assert!(cut.poll(&mut late, &Context::from_waker(Waker::noop())).is_ready());
        for place in &mut places {
            cut.leave(place);
        }
    }

    #[test]
    fn places_are_used_again() {
        let cut = Cut::default();
        for _ in 0..100 {
            let mut place = Place::default();
            assert!(cut.poll(&mut place, &Context::from_waker(Waker::noop())).is_pending());
            cut.leave(&mut place);
        }
        assert_eq!(cut.waiting.lock().wakers.len(), 1);
    }
}
