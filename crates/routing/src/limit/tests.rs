//! Admission compared with a simple model over random sequences of acquiring, polling, leaving and releasing.

use std::collections::BTreeMap;
use std::future::Future;
use std::num::NonZeroU32;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use proptest::prelude::*;

use super::{Acquire, Admission, Config, Metrics, Permit, Priority, Rejected};

fn admission(max_concurrent: u32, queue_size: u32) -> Arc<Admission> {
    Admission::new(&Config { max_concurrent: NonZeroU32::new(max_concurrent), queue_size })
}

/// A waker that counts its wake-ups.
#[derive(Default)]
struct WakeCounter(AtomicUsize);

impl WakeCounter {
    fn wakes(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for WakeCounter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn poll(acquire: &mut Acquire, wakes: &Arc<WakeCounter>) -> Option<Permit> {
    let waker = Waker::from(Arc::clone(wakes));
    match Pin::new(acquire).poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(permit) => Some(permit),
        Poll::Pending => None,
    }
}

fn poll_once(acquire: &mut Acquire) -> Option<Permit> {
    poll(acquire, &Arc::default())
}

/// The permits in use and the requests waiting.
fn numbers(admission: &Admission) -> (u32, u32) {
    (admission.in_use(), admission.waiting())
}

#[test]
fn permits_in_use_never_exceed_the_limit() {
    let admission = admission(2, 0);
    let first = admission.try_acquire().unwrap();
    let second = admission.try_acquire().unwrap();
    assert!(admission.try_acquire().is_none());
    assert_eq!(
        admission.acquire(Priority::System).unwrap_err(),
        Rejected::QueueFull { max_concurrent: 2, queue_size: 0 }
    );
    drop(first);
    let third = admission.try_acquire().unwrap();
    assert!(admission.try_acquire().is_none());
    drop((second, third));
    assert_eq!(numbers(&admission), (0, 0));
}

#[test]
fn without_a_limit_no_request_waits_and_all_are_counted() {
    let admission = admission(0, 0);
    let permits: Vec<_> = (0..1000).map(|_| admission.try_acquire().unwrap()).collect();
    assert_eq!(numbers(&admission), (1000, 0));
    let mut acquire = admission.acquire(Priority::Bulk).unwrap();
    assert!(poll_once(&mut acquire).is_some());
    drop(permits);
    assert_eq!(numbers(&admission), (0, 0));
}

#[test]
fn a_released_permit_goes_to_the_first_in_the_queue() {
    let admission = admission(1, 10);
    let held = admission.try_acquire().unwrap();
    let (early_wakes, late_wakes) = (Arc::<WakeCounter>::default(), Arc::<WakeCounter>::default());
    let mut early = admission.acquire(Priority::Default).unwrap();
    let mut late = admission.acquire(Priority::Default).unwrap();
    assert!(poll(&mut early, &early_wakes).is_none());
    assert!(poll(&mut late, &late_wakes).is_none());
    drop(held);
    assert_eq!((early_wakes.wakes(), late_wakes.wakes()), (1, 0));
    assert!(admission.try_acquire().is_none(), "a new request passed the queue");
    assert!(poll(&mut late, &late_wakes).is_none());
    let permit = poll(&mut early, &early_wakes).unwrap();
    assert_eq!(numbers(&admission), (1, 1));
    drop(permit);
    assert_eq!(late_wakes.wakes(), 1);
    assert!(poll(&mut late, &late_wakes).is_some());
}

#[test]
fn a_waiter_that_gives_up_leaves_at_once_and_passes_its_permit_on() {
    let admission = admission(1, 2);
    let held = admission.try_acquire().unwrap();
    let left = admission.acquire(Priority::Default).unwrap();
    let granted = admission.acquire(Priority::Default).unwrap();
    assert!(admission.acquire(Priority::Default).is_err());
    drop(left);
    let wakes = Arc::<WakeCounter>::default();
    let mut last = admission.acquire(Priority::Default).unwrap();
    assert!(poll(&mut last, &wakes).is_none());
    drop(held);
    assert_eq!((numbers(&admission), wakes.wakes()), ((1, 1), 0));
    drop(granted);
    assert_eq!((numbers(&admission), wakes.wakes()), ((1, 0), 1));
    assert!(poll(&mut last, &wakes).is_some());
    assert_eq!(numbers(&admission), (0, 0));
}

#[test]
fn only_the_last_registered_waker_is_woken() {
    let admission = admission(1, 1);
    let held = admission.try_acquire().unwrap();
    let (before, after) = (Arc::<WakeCounter>::default(), Arc::<WakeCounter>::default());
    let mut acquire = admission.acquire(Priority::Default).unwrap();
    assert!(poll(&mut acquire, &before).is_none());
    assert!(poll(&mut acquire, &after).is_none());
    drop(held);
    assert_eq!((before.wakes(), after.wakes()), (0, 1));
}

/// Queues requests in the order of `arrivals` and returns their names in the order in which they get a permit.
fn order(arrivals: &[(&'static str, Priority)]) -> Vec<&'static str> {
    let admission = admission(1, u32::MAX);
    let held = admission.try_acquire();
    let mut queue: Vec<_> =
        arrivals.iter().map(|(name, class)| (*name, admission.acquire(*class).unwrap())).collect();
    drop(held);
    let mut served = Vec::new();
    while !queue.is_empty() {
        let (at, permit) = queue
            .iter_mut()
            .enumerate()
            .find_map(|(at, (_, acquire))| Some((at, poll_once(acquire)?)))
            .expect("a free permit goes to a waiter");
        served.push(queue.remove(at).0);
        drop(permit);
    }
    served
}

#[test]
fn urgent_requests_go_first_and_classes_keep_their_order() {
    use Priority::{Bulk, Default, Interactive, System};
    let arrivals = [
        ("b1", Bulk),
        ("d1", Default),
        ("i1", Interactive),
        ("b2", Bulk),
        ("s1", System),
        ("d2", Default),
        ("s2", System),
        ("i2", Interactive),
    ];
    assert_eq!(order(&arrivals), ["s1", "s2", "i1", "i2", "d1", "d2", "b1", "b2"]);
}

#[test]
fn a_bulk_request_is_passed_by_a_bounded_number_of_others() {
    for (urgent, passes) in
        [(Priority::Default, 255), (Priority::Interactive, 1023), (Priority::System, 4095)]
    {
        let mut arrivals = vec![("bulk", Priority::Bulk)];
        arrivals.extend(std::iter::repeat_n(("urgent", urgent), passes + 50));
        let passed_by = order(&arrivals).iter().position(|name| *name == "bulk").unwrap();
        assert_eq!(passed_by, passes, "{urgent}");
    }
}

#[test]
fn rejected_requests_are_counted_by_reason() {
    let admission = admission(1, 2);
    let registry = prometheus::Registry::new();
    Metrics::register(&registry, &admission).unwrap();
    let held = admission.try_acquire().unwrap();
    let slow = admission.acquire(Priority::Bulk).unwrap();
    let waiting = admission.acquire(Priority::System).unwrap();
    assert!(admission.acquire(Priority::System).is_err());
    slow.time_out();
    drop(admission.acquire(Priority::Default).unwrap());
    let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
    let shown: BTreeMap<&str, &str> = text
        .lines()
        .filter(|line| !line.starts_with('#') && !line.ends_with(" 0"))
        .filter_map(|line| line.rsplit_once(' '))
        .collect();
    let expected = [
        ("smg_admission_abandoned_total", "1"),
        ("smg_admission_in_use", "1"),
        ("smg_admission_queued_total{priority=\"bulk\"}", "1"),
        ("smg_admission_queued_total{priority=\"default\"}", "1"),
        ("smg_admission_queued_total{priority=\"system\"}", "1"),
        ("smg_admission_rejected_total{reason=\"queue_full\"}", "1"),
        ("smg_admission_rejected_total{reason=\"timeout\"}", "1"),
        ("smg_admission_waiting", "1"),
    ];
    assert_eq!(shown, BTreeMap::from(expected), "{text}");
    drop((held, waiting));
    assert_eq!(numbers(&admission), (0, 0));
}

#[test]
fn threads_never_hold_more_than_the_limit_and_none_is_left_waiting() {
    const LIMIT: u32 = 3;
    let admission = admission(LIMIT, 8);
    let inside = AtomicU32::new(0);
    let acquired = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (admission, inside, acquired) = (&admission, &inside, &acquired);
            scope.spawn(move || {
                let parked = std::thread::current();
                let waker = Waker::from(Arc::new(Unpark(parked)));
                for turn in 0..2000 {
                    let Ok(mut acquire) = admission.acquire(Priority::ALL[turn % 4]) else {
                        continue;
                    };
                    if (turn + thread) % 7 == 0 {
                        drop(acquire);
                        continue;
                    }
                    // A lost wake-up would park this thread for ever.
                    let permit = loop {
                        match Pin::new(&mut acquire).poll(&mut Context::from_waker(&waker)) {
                            Poll::Ready(permit) => break permit,
                            Poll::Pending => std::thread::park(),
                        }
                    };
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < LIMIT);
                    acquired.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                    drop(permit);
                }
            });
        }
    });
    assert!(acquired.into_inner() > 1000);
    assert_eq!(numbers(&admission), (0, 0));
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[derive(Debug, Clone)]
enum Op {
    TryAcquire,
    Acquire(usize),
    /// Poll the waiter at this index, modulo the number of waiters.
    Poll(usize),
    Leave(usize),
    Release(usize),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => Just(Op::TryAcquire),
        4 => (0..4usize).prop_map(Op::Acquire),
        4 => any::<usize>().prop_map(Op::Poll),
        1 => any::<usize>().prop_map(Op::Leave),
        3 => any::<usize>().prop_map(Op::Release),
    ]
}

/// The expected behaviour of admission, with a sorted list. Requests are numbers.
#[derive(Default)]
struct Model {
    limit: usize,
    size: usize,
    in_use: usize,
    arrivals: u64,
    /// Rank and request, lowest rank first.
    queue: Vec<(u64, usize)>,
    granted: Vec<usize>,
}

impl Model {
    fn acquires(&mut self) -> bool {
        let free = self.queue.is_empty() && self.in_use < self.limit;
        self.in_use += usize::from(free);
        free
    }

    fn waits(&mut self, request: usize, class: Priority) -> bool {
        let room = self.queue.len() < self.size;
        if room {
            self.arrivals += 1;
            self.queue.push((self.arrivals + 10_000 - class.head_start(), request));
            self.queue.sort_by_key(|(rank, _)| *rank);
        }
        room
    }

    fn releases(&mut self) {
        if self.queue.is_empty() {
            self.in_use -= 1;
        } else {
            self.granted.push(self.queue.remove(0).1);
        }
    }

    fn leaves(&mut self, request: usize) {
        let before = self.queue.len();
        self.queue.retain(|(_, other)| *other != request);
        if self.queue.len() == before {
            self.granted.retain(|other| *other != request);
            self.releases();
        }
    }
}

proptest! {
    #[test]
    fn admission_behaves_as_the_model(
        limit in 1..5u32,
        size in 0..6u32,
        ops in prop::collection::vec(op(), 1..200),
    ) {
        let admission = admission(limit, size);
        let mut model =
            Model { limit: limit as usize, size: size as usize, ..Model::default() };
        let mut permits = Vec::new();
        let mut waiters: Vec<(usize, Acquire, Arc<WakeCounter>, bool)> = Vec::new();
        for (request, op) in ops.into_iter().enumerate() {
            match op {
                Op::TryAcquire => {
                    let permit = admission.try_acquire();
                    prop_assert_eq!(permit.is_some(), model.acquires());
                    permits.extend(permit);
                }
                Op::Acquire(class) => {
                    let class = Priority::ALL[class];
                    let acquire = admission.acquire(class);
                    if model.acquires() {
                        permits.push(poll_once(&mut acquire.unwrap()).unwrap());
                    } else {
                        let waits = model.waits(request, class);
                        prop_assert_eq!(acquire.is_ok(), waits);
                        waiters.extend(acquire.ok().map(|e| (request, e, Arc::default(), false)));
                    }
                }
                Op::Poll(at) if !waiters.is_empty() => {
                    let at = at % waiters.len();
                    let (request, acquire, wakes, polled) = &mut waiters[at];
                    let granted = model.granted.contains(request);
                    prop_assert_eq!(wakes.wakes() > 0, granted && *polled, "a wake-up was lost");
                    let permit = poll(acquire, wakes);
                    *polled = true;
                    prop_assert_eq!(permit.is_some(), granted);
                    if let Some(permit) = permit {
                        permits.push(permit);
                        model.granted.retain(|other| other != request);
                        drop(waiters.remove(at));
                    }
                }
                Op::Leave(at) if !waiters.is_empty() => {
                    let (request, acquire, ..) = waiters.remove(at % waiters.len());
                    drop(acquire);
                    model.leaves(request);
                }
                Op::Release(at) if !permits.is_empty() => {
                    drop(permits.remove(at % permits.len()));
                    model.releases();
                }
                Op::Poll(_) | Op::Leave(_) | Op::Release(_) => {}
            }
            let (in_use, waiting) = numbers(&admission);
            prop_assert!(in_use <= limit && waiting <= size);
            prop_assert_eq!((in_use as usize, waiting as usize), (model.in_use, model.queue.len()));
        }
        drop(permits);
        drop(waiters);
        prop_assert_eq!(numbers(&admission), (0, 0));
    }
}
