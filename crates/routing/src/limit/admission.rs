//! A semaphore with a bounded priority queue.
//!
//! One atomic word holds both counts, permits in use and requests waiting. So acquiring a free permit, and releasing one
//! while the queue is empty, cost one atomic operation each. Every other operation takes the lock of the queue for one look-up.
//!
//! While a request waits, no permit is free: a released permit goes to the first request of the queue, so a new request can't
//! take it and no wake-up is lost. A waiter that gives up leaves the queue at once. If it was granted a permit that it has not
//! taken, the permit goes to the next waiter.
//!
//! Requests with a permit may wait for a worker ([`super::for_worker`]). They count toward the bound of the queue.

use std::collections::{BTreeMap, HashMap};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::counters::Counters;
use super::line::{Line, QueueKey};
use super::{Config, Priority};

/// Admits at most `max_concurrent` requests at once and queues at most `queue_size` more.
#[derive(Debug)]
pub struct Admission {
    /// Both [`Counts`], packed.
    word: AtomicU64,
    max_concurrent: u32,
    pub(super) queue_size: u32,
    /// Requests that wait for a worker. Changes under the lock of the queue only.
    pub(super) waiting_for_worker: AtomicU32,
    pub(super) queue: Mutex<Queue>,
    counters: Counters,
}

/// The requests that wait.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// Those that wait for a permit, in the order in which they get one.
    waiting: BTreeMap<QueueKey, Option<Waker>>,
    /// Those that wait for a worker.
    pub(super) lines: HashMap<u64, Line>,
    arrivals: u64,
}

impl Queue {
    /// The place of a request that arrives now.
    pub(super) fn next_key(&mut self, priority: Priority) -> QueueKey {
        self.arrivals += 1;
        (self.arrivals + Priority::System.head_start() - priority.head_start(), self.arrivals)
    }
}

/// The two counts that [`Admission::word`] packs into 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counts {
    in_use: u32,
    waiting: u32,
}

impl Counts {
    const fn unpack(word: u64) -> Self {
        Self { in_use: word as u32, waiting: (word >> 32) as u32 }
    }

    const fn pack(self) -> u64 {
        (self.waiting as u64) << 32 | self.in_use as u64
    }
}

/// Why a request was rejected without waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The queue is full.
    #[error("all {max_concurrent} permits are in use and {queue_size} requests wait already")]
    QueueFull {
        /// Requests that may be at the workers at once.
        max_concurrent: u32,
        /// Requests that may wait for a permit.
        queue_size: u32,
    },
    /// The queue is full, and no worker has room.
    #[error("no worker has room for the request and {queue_size} requests wait already")]
    WorkersFull {
        /// Requests that may wait.
        queue_size: u32,
    },
}

impl Admission {
    /// A semaphore with all permits free and an empty queue.
    #[must_use]
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(0),
            max_concurrent: config.max_concurrent.map_or(u32::MAX, |n| n.get()),
            queue_size: config.queue_size,
            waiting_for_worker: AtomicU32::new(0),
            queue: Mutex::default(),
            counters: Counters::new(),
        })
    }

    /// Takes a permit if one is free and no request waits.
    pub fn try_acquire(self: &Arc<Self>) -> Option<Permit> {
        self.step(|word| self.taken(word)).is_ok().then(|| Permit { admission: Arc::clone(self) })
    }

    /// Takes a free permit, or joins the queue.
    ///
    /// # Errors
    /// If no permit is free and the queue is full.
    pub fn acquire(self: &Arc<Self>, priority: Priority) -> Result<Acquire, Rejected> {
        if let Some(permit) = self.try_acquire() {
            return Ok(Acquire { admission: Arc::clone(self), state: AcquireState::Free(permit) });
        }
        let mut queue = self.queue.lock();
        let joined = self.step(|word| {
            let waits = |word: Counts| Counts { waiting: word.waiting + 1, ..word };
            let others = self.waiting_for_worker.load(Ordering::Relaxed);
            let may_wait =
                (word.waiting.saturating_add(others) < self.queue_size).then(|| waits(word));
            // A permit may have been released before this thread got the lock.
            self.taken(word).or(may_wait)
        });
        match joined {
            Ok((before, after)) if after.in_use > before.in_use => {
                drop(queue);
                let permit = Permit { admission: Arc::clone(self) };
                Ok(Acquire { admission: Arc::clone(self), state: AcquireState::Free(permit) })
            }
            Ok(_) => {
                let key = queue.next_key(priority);
                queue.waiting.insert(key, None);
                drop(queue);
                self.counters.queued(priority).inc();
                Ok(Acquire { admission: Arc::clone(self), state: AcquireState::Waiting(key) })
            }
            Err(_) => {
                drop(queue);
                self.counters.queue_full.inc();
                Err(Rejected::QueueFull {
                    max_concurrent: self.max_concurrent,
                    queue_size: self.queue_size,
                })
            }
        }
    }

    /// The number of permits in use.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.word().in_use
    }

    /// Requests in the queue, those that wait for a worker included.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.word().waiting.saturating_add(self.waiting_for_worker())
    }

    /// Requests that have a permit and wait for a worker.
    #[must_use]
    pub fn waiting_for_worker(&self) -> u32 {
        self.waiting_for_worker.load(Ordering::Relaxed)
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The counts with one more permit in use, if a permit is free and no request waits.
    fn taken(&self, word: Counts) -> Option<Counts> {
        (word.waiting == 0 && word.in_use < self.max_concurrent)
            .then_some(Counts { in_use: word.in_use + 1, ..word })
    }

    /// Gives a permit to the first request of the queue, or frees it.
    fn release(&self) {
        let freed = self
            .step(|word| (word.waiting == 0).then(|| Counts { in_use: word.in_use - 1, ..word }));
        if freed.is_ok() {
            return;
        }
        let waker = {
            let mut queue = self.queue.lock();
            // All waiters may have left since the step above. None joins while this thread holds the lock.
            match queue.waiting.pop_first() {
                Some((_, waker)) => {
                    self.leave();
                    waker
                }
                None => {
                    self.step(|word| Some(Counts { in_use: word.in_use - 1, ..word }))
                        .expect("this step is never refused");
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Counts one request less as waiting. The caller holds the lock of the queue.
    fn leave(&self) {
        self.step(|word| Some(Counts { waiting: word.waiting - 1, ..word }))
            .expect("this step is never refused");
    }

    fn word(&self) -> Counts {
        Counts::unpack(self.word.load(Ordering::Acquire))
    }

    /// Replaces the counts by `next` of them in one atomic step. Returns the counts before and after, or, if `next` refused
    /// with `None`, the counts that it refused.
    fn step(&self, next: impl Fn(Counts) -> Option<Counts>) -> Result<(Counts, Counts), Counts> {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            let before = Counts::unpack(seen);
            let after = next(before).ok_or(before)?;
            match self.word.compare_exchange_weak(
                seen,
                after.pack(),
                Ordering::AcqRel,
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok((before, after)),
                Err(other) => seen = other,
            }
        }
    }
}

/// The right to have one request at the workers. Dropping it passes it to the first request of the queue, or frees it.
#[derive(Debug)]
#[must_use = "dropping the permit releases it"]
pub struct Permit {
    admission: Arc<Admission>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release();
        // The request that held it has left its worker.
        self.admission.call_lines();
    }
}

/// A future that resolves to a permit. Dropping it leaves the queue.
#[derive(Debug)]
#[must_use = "dropping the future leaves the queue"]
pub struct Acquire {
    admission: Arc<Admission>,
    state: AcquireState,
}

#[derive(Debug)]
enum AcquireState {
    /// A permit was free at the call.
    Free(Permit),
    /// The request waits. Once it is granted a permit, its key is no longer in the queue.
    Waiting(QueueKey),
    /// The future has resolved, or has given up.
    Done,
}

impl Acquire {
    /// Leaves the queue as dropping does, and counts the request as timed out rather than abandoned.
    pub fn time_out(mut self) {
        if self.give_up() {
            self.admission.counters.timed_out.inc();
        }
    }

    /// Leaves the queue, or releases a permit that was granted and not taken. Returns whether it was still in the queue.
    fn give_up(&mut self) -> bool {
        match std::mem::replace(&mut self.state, AcquireState::Done) {
            AcquireState::Free(permit) => {
                drop(permit);
                false
            }
            AcquireState::Waiting(key) => {
                let left = {
                    let mut queue = self.admission.queue.lock();
                    let left = queue.waiting.remove(&key);
                    if left.is_some() {
                        self.admission.leave();
                    }
                    left
                };
                // The waker is dropped without the lock: it may own the last reference to a task that holds a permit.
                if left.is_none() {
                    self.admission.release();
                }
                left.is_some()
            }
            AcquireState::Done => false,
        }
    }
}

impl Future for Acquire {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let admission = Arc::clone(&self.admission);
        if let AcquireState::Waiting(key) = self.state {
            let mut queue = admission.queue.lock();
            if let Some(waker) = queue.waiting.get_mut(&key) {
                let known = waker.as_ref().is_some_and(|known| known.will_wake(context.waker()));
                let before = (!known).then(|| waker.replace(context.waker().clone()));
                // Dropping a waker runs code of the executor, which must not happen under the lock.

                drop(queue);
                drop(before);
                return Poll::Pending;
            }
        }
        match std::mem::replace(&mut self.state, AcquireState::Done) {
            AcquireState::Free(permit) => Poll::Ready(permit),
            AcquireState::Waiting(_) => Poll::Ready(Permit { admission }),
            AcquireState::Done => panic!("an `Acquire` was polled after it had resolved"),
        }
    }
}

impl Drop for Acquire {
    fn drop(&mut self) {
        if self.give_up() {
            self.admission.counters.abandoned.inc();
        }
    }
}
