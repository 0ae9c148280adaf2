//! A true semaphore with a bounded queue.
//!
//! One atomic word holds both numbers, permits in use and requests waiting, so that a request that finds a free place,
//! and a permit that comes back while nobody waits, cost one atomic operation. Everything else happens under the lock
//! of the queue, which is held for one look-up in it. While somebody waits no place is free: a permit that comes back is
//! handed to the next in line and never lies open to whoever comes along, so nobody jumps the queue and no wake-up is
//! lost. A waiter that gave up leaves at once; one that was granted a permit and never took it passes it on.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::counters::Counters;
use super::{Config, Priority};

/// Lets at most so many requests in at once; more wait in order, up to a bound.
#[derive(Debug)]
pub struct Admission {
    /// [`Word`] as a number.
    word: AtomicU64,
    max_concurrent: u32,
    queue_size: u32,
    queue: Mutex<Queue>,
    counters: Counters,
}

/// Who waits. The first key goes first.
#[derive(Debug, Default)]
struct Queue {
    waiting: BTreeMap<Ticket, Option<Waker>>,
    arrivals: u64,
}

/// A place in line: when it came, less its head start; then when it came.
type Ticket = (u64, u64);

/// Both numbers of [`Admission::word`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Word {
    in_use: u32,
    waiting: u32,
}

impl Word {
    const fn unpack(word: u64) -> Self {
        Self { in_use: word as u32, waiting: (word >> 32) as u32 }
    }

    const fn pack(self) -> u64 {
        (self.waiting as u64) << 32 | self.in_use as u64
    }
}

/// Why a request may not even wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// As many requests as are allowed wait already.
    #[error("all {max_concurrent} places are taken and {queue_size} requests wait already")]
    QueueFull {
        /// Requests that may be at the workers at once.
        max_concurrent: u32,
        /// Requests that may wait.
        queue_size: u32,
    },
}

impl Admission {
    /// Everything free, nobody waiting.
    #[must_use]
    pub fn new(config: &Config) -> Arc<Self> {
        Arc::new(Self {
            word: AtomicU64::new(0),
            max_concurrent: config.max_concurrent.map_or(u32::MAX, |n| n.get()),
            queue_size: config.queue_size,
            queue: Mutex::default(),
            counters: Counters::new(),
        })
    }

    /// Takes a free place, if there is one and nobody waits for it.
    pub fn try_enter(self: &Arc<Self>) -> Option<Permit> {
        self.step(|word| self.taken(word)).is_ok().then(|| Permit { admission: Arc::clone(self) })
    }

    /// Takes a place in line, or a free place if there is one.
    ///
    /// # Errors
    /// When the queue is full.
    pub fn enter(self: &Arc<Self>, priority: Priority) -> Result<Enter, Rejected> {
        if let Some(permit) = self.try_enter() {
            return Ok(Enter { admission: Arc::clone(self), state: EnterState::Free(permit) });
        }
        let mut queue = self.queue.lock();
        let joined = self.step(|word| {
            let waits = |word: Word| Word { waiting: word.waiting + 1, ..word };
            let may_wait = (word.waiting < self.queue_size).then(|| waits(word));
            // A place may have become free before the lock was ours.
            self.taken(word).or(may_wait)
        });
        match joined {
            Ok((before, after)) if after.in_use > before.in_use => {
                drop(queue);
                let permit = Permit { admission: Arc::clone(self) };
                Ok(Enter { admission: Arc::clone(self), state: EnterState::Free(permit) })
            }
            Ok(_) => {
                queue.arrivals += 1;
                let arrival = queue.arrivals;
                let ticket =
                    (arrival + Priority::System.head_start() - priority.head_start(), arrival);
                queue.waiting.insert(ticket, None);
                drop(queue);
                self.counters.queued(priority).inc();
                Ok(Enter { admission: Arc::clone(self), state: EnterState::Waiting(ticket) })
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

    /// Permits that are out.
    #[must_use]
    pub fn in_use(&self) -> u32 {
        self.word().in_use
    }

    /// Requests in line.
    #[must_use]
    pub fn waiting(&self) -> u32 {
        self.word().waiting
    }

    pub(super) fn counters(&self) -> &Counters {
        &self.counters
    }

    /// With one more place taken, if one is free and nobody waits.
    fn taken(&self, word: Word) -> Option<Word> {
        (word.waiting == 0 && word.in_use < self.max_concurrent)
            .then_some(Word { in_use: word.in_use + 1, ..word })
    }

    /// A permit came back.
    fn release(&self) {
        let freed =
            self.step(|word| (word.waiting == 0).then(|| Word { in_use: word.in_use - 1, ..word }));
        if freed.is_ok() {
            return;
        }
        let waker = {
            let mut queue = self.queue.lock();
            // All may have left meanwhile, and nobody joins while the lock is ours.
            match queue.waiting.pop_first() {
                Some((_, waker)) => {
                    self.leave();
                    waker
                }
                None => {
                    self.step(|word| Some(Word { in_use: word.in_use - 1, ..word }))
                        .expect("the step always goes on");
                    None
                }
            }
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// One fewer waits. The lock of the queue is held.
    fn leave(&self) {
        self.step(|word| Some(Word { waiting: word.waiting - 1, ..word }))
            .expect("the step always goes on");
    }

    fn word(&self) -> Word {
        Word::unpack(self.word.load(Ordering::Acquire))
    }

    /// One atomic step from a word to the next; the word that could not be stepped from when `next` is `None`.
    fn step(&self, next: impl Fn(Word) -> Option<Word>) -> Result<(Word, Word), Word> {
        let mut seen = self.word.load(Ordering::Relaxed);
        loop {
            let before = Word::unpack(seen);
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

/// A place at the workers. Dropping it gives it to the next in line.
#[derive(Debug)]
#[must_use = "dropping the permit gives the place back"]
pub struct Permit {
    admission: Arc<Admission>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.admission.release();
    }
}

/// A place in line: resolves to the permit. Dropping it leaves the line.
#[derive(Debug)]
#[must_use = "a place in line is given up when it is dropped"]
pub struct Enter {
    admission: Arc<Admission>,
    state: EnterState,
}

#[derive(Debug)]
enum EnterState {
    /// There was a free place.
    Free(Permit),
    /// In line, or granted a permit: then the ticket is no longer in the queue.
    Waiting(Ticket),
    /// The permit was handed out.
    Done,
}

impl Enter {
    /// Gives up because it took too long: as dropping it, but counted as a time-out.
    pub fn time_out(mut self) {
        if self.give_up() {
            self.admission.counters.timed_out.inc();
        }
    }

    /// Leaves the line, or hands the permit on that was granted and not taken; whether it was still in line.
    fn give_up(&mut self) -> bool {
        match std::mem::replace(&mut self.state, EnterState::Done) {
            EnterState::Free(permit) => {
                drop(permit);
                false
            }
            EnterState::Waiting(ticket) => {
                let left = {
                    let mut queue = self.admission.queue.lock();
                    let left = queue.waiting.remove(&ticket);
                    if left.is_some() {
                        self.admission.leave();
                    }
                    left
                };
                // The waker is dropped without the lock: it may be the last to hold a task that holds a permit.
                if left.is_none() {
                    self.admission.release();
                }
                left.is_some()
            }
            EnterState::Done => false,
        }
    }
}

impl Future for Enter {
    type Output = Permit;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Permit> {
        let admission = Arc::clone(&self.admission);
        if let EnterState::Waiting(ticket) = self.state {
            let mut queue = admission.queue.lock();
            if let Some(waker) = queue.waiting.get_mut(&ticket) {
                let known = waker.as_ref().is_some_and(|known| known.will_wake(context.waker()));
                let before = (!known).then(|| waker.replace(context.waker().clone()));
                // Foreign code runs when a waker is dropped: not under the lock.
                drop(queue);
                drop(before);
                return Poll::Pending;
            }
        }
        match std::mem::replace(&mut self.state, EnterState::Done) {
            EnterState::Free(permit) => Poll::Ready(permit),
            EnterState::Waiting(_) => Poll::Ready(Permit { admission }),
            EnterState::Done => panic!("an `Enter` was polled after it had resolved"),
        }
    }
}

impl Drop for Enter {
    fn drop(&mut self) {
        if self.give_up() {
            self.admission.counters.abandoned.inc();
        }
    }
}
