//! Aborts the requests in flight on a worker that is removed after its drain timeout.
//!
//! Each request in flight registers its waker once. So the removal of a worker wakes a stream that is silent, and no request
//! has to poll for the removal.

use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

/// Tells the requests in flight on one worker that they must end.
#[derive(Debug, Default)]
pub(super) struct AbortSignal {
    aborted: AtomicBool,
    // Held for one push, store or take; nothing awaits or wakes under it.
    waiting: Mutex<Waiting>,
}

#[derive(Debug, Default)]
struct Waiting {
    wakers: Vec<Option<Waker>>,
    /// Indexes of the free elements of `wakers`.
    free: Vec<usize>,
}

/// The index at which a request registered, and the waker that it registered; `None` before its first poll.
#[derive(Debug, Default)]
pub(super) struct Registration(Option<(usize, Waker)>);

impl AbortSignal {
    /// Wakes all registered requests. Requests that poll later find the signal set.
    pub(super) fn abort_all(&self) {
        self.aborted.store(true, Ordering::SeqCst);
        let wakers = std::mem::take(&mut self.waiting.lock().wakers);
        for waker in wakers.into_iter().flatten() {
            waker.wake();
        }
    }

    /// Whether [`AbortSignal::abort_all`] was called.
    pub(super) fn is_aborted(&self) -> bool {
        self.aborted.load(Ordering::Relaxed)
    }

    /// Ready once [`AbortSignal::abort_all`] was called. Takes the lock only if the polling task has changed.
    pub(super) fn poll(&self, registration: &mut Registration, cx: &Context<'_>) -> Poll<()> {
        if !registration.0.as_ref().is_some_and(|(_, waker)| waker.will_wake(cx.waker())) {
            let mut waiting = self.waiting.lock();
            let at = match &registration.0 {
                Some((at, _)) => *at,
                None => waiting.free.pop().unwrap_or(waiting.wakers.len()),
            };
            if waiting.wakers.len() <= at {
                waiting.wakers.resize(at + 1, None);
            }
            waiting.wakers[at] = Some(cx.waker().clone());
            registration.0 = Some((at, cx.waker().clone()));
        }
        // Read after the registration: an `abort_all` between the two finds the waker.
        if self.aborted.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Removes the registration of a request that has ended.
    pub(super) fn deregister(&self, registration: &mut Registration) {
        if let Some((at, _)) = registration.0.take() {
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
    fn a_registered_request_is_woken_once_and_a_deregistered_one_never() {
        let signal = AbortSignal::default();
        let counters: Vec<_> = (0..4).map(|_| Arc::new(Counter::default())).collect();
        let mut registrations: Vec<_> = (0..4).map(|_| Registration::default()).collect();
        for (counter, registration) in counters.iter().zip(&mut registrations) {
            let waker = Waker::from(Arc::clone(counter));
            assert!(signal.poll(registration, &Context::from_waker(&waker)).is_pending());
            assert!(signal.poll(registration, &Context::from_waker(&waker)).is_pending());
        }
        signal.deregister(&mut registrations[1]);
        // From here on another task polls the last registration.
        let other = Arc::new(Counter::default());
        let waker = Waker::from(Arc::clone(&other));
        assert!(signal.poll(&mut registrations[3], &Context::from_waker(&waker)).is_pending());
        signal.abort_all();
        let woken = |counter: &Arc<Counter>| counter.0.load(Ordering::SeqCst);
        assert_eq!(counters.iter().map(woken).collect::<Vec<_>>(), [1, 0, 1, 0]);
        assert_eq!(woken(&other), 1);
        assert!(signal.is_aborted());
        let mut late = Registration::default();
        assert!(signal.poll(&mut late, &Context::from_waker(Waker::noop())).is_ready());
        for registration in &mut registrations {
            signal.deregister(registration);
        }
    }

    #[test]
    fn a_freed_registration_is_reused() {
        let signal = AbortSignal::default();
        for _ in 0..100 {
            let mut registration = Registration::default();
            assert!(
                signal.poll(&mut registration, &Context::from_waker(Waker::noop())).is_pending()
            );
            signal.deregister(&mut registration);
        }
        assert_eq!(signal.waiting.lock().wakers.len(), 1);
    }
}
