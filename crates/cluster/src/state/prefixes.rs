//! The prefixes: hints about which worker has which prompt block in its cache. They are sent once and never repaired.
//!
//! A hint is a block, a worker and the time at which the worker served the block last. Merging takes the later time. The
//! hash of a block is chained with that of its parent, so it names a whole prefix, and a block whose parent is unknown is
//! as good as any other. A lost hint costs cache hits, nothing else. Bounded are the hints held (the least recently served
//! are evicted), their time to live, the bytes sent per flush, and the blocks that wait to be sent. A hint takes about 200
//! bytes of memory.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smallvec::SmallVec;
use smg_types::ids::WorkerId;
use smg_types::now::Now;

use crate::codec::at_most;
use crate::crdt::stamp::millis;

/// Most blocks in a run; a prompt has fewer.
const MAX_RUN: usize = 1 << 15;
/// Most workers held per block; the one that served it least recently is evicted.
const WORKERS_PER_BLOCK: usize = 4;

/// Bounds of the prefix hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Most hints held.
    pub max_entries: usize,
    /// A hint expires after this time without its worker serving the block again.
    pub ttl: Duration,
    /// Most blocks that wait to be sent. When there are more, the newest are dropped and counted.
    pub max_waiting: usize,
    /// Most bytes of hints sent to each peer per flush (every 50 ms).
    pub flush_bytes: usize,
    /// Most bytes of the hot set, which a node that joins is sent.
    pub hot_set_bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_entries: 1 << 18,
            ttl: Duration::from_secs(600),
            max_waiting: 65_536,
            flush_bytes: 26 * 1024,
            hot_set_bytes: 4 << 20,
        }
    }
}

/// A run of blocks that a worker has served. Each is the child of the block before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HintRun {
    /// The parent of the first block; 0 if that is the head of a prompt.
    pub parent: u64,
    /// The hashes of the blocks.
    #[serde(deserialize_with = "at_most::<_, _, MAX_RUN>")]
    pub blocks: Vec<u64>,
    /// The worker that served them.
    pub worker: WorkerNumber,
    /// When the worker served them, in milliseconds of wall time.
    pub touched_ms: u64,
}

/// A worker's id in at most nine bytes on the wire, because hints are many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct WorkerNumber(u64);

impl From<WorkerId> for WorkerNumber {
    fn from(id: WorkerId) -> Self {
        Self(id.as_u64())
    }
}

impl From<WorkerNumber> for WorkerId {
    fn from(number: WorkerNumber) -> Self {
        Self::from_u64(number.0)
    }
}

impl HintRun {
    fn wire_bytes(&self) -> usize {
        28 + 9 * self.blocks.len()
    }
}

#[derive(Debug)]
struct Block {
    parent: u64,
    workers: SmallVec<[(WorkerId, u64); 1]>,
}

/// The hints that this node holds, and those that wait to be sent.
#[derive(Debug)]
pub struct Prefixes {
    config: Config,
    blocks: BTreeMap<u64, Block>,
    by_touch: BTreeSet<(u64, u64, WorkerId)>,
    waiting: VecDeque<HintRun>,
    waiting_blocks: usize,
    dropped: u64,
    /// Hints received since they were last taken; `None`: nobody takes them.
    received: Option<Vec<HintRun>>,
    /// When the hints of a worker were dropped, in milliseconds of wall time. Hints that a peer sent before it dropped its own
    /// arrive later and are ignored. Entries older than the time to live of a hint are removed.
    forgotten: BTreeMap<WorkerId, u64>,
}

/// Most workers whose late hints are ignored.
const MAX_FORGOTTEN: usize = 1 << 14;

/// Most runs of received hints that wait to be taken. They are taken after each message.
const MAX_RECEIVED: usize = 1 << 17;

impl Prefixes {
    pub(crate) fn new(config: Config) -> Self {
        Self {
            config,
            blocks: BTreeMap::new(),
            by_touch: BTreeSet::new(),
            waiting: VecDeque::new(),
            waiting_blocks: 0,
            dropped: 0,
            received: None,
            forgotten: BTreeMap::new(),
        }
    }

    /// Keeps received hints from now on, until they are taken.
    pub(crate) fn keep_received(&mut self) {
        self.received.get_or_insert_default();
    }

    /// Takes the hints received since the last call.
    pub(crate) fn take_received(&mut self) -> Vec<HintRun> {
        self.received.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// Records that `worker` has just served a prompt with these chained blocks, and queues hints for the peers. `above` is
    /// the parent of the first block, 0 if that is the head. Leading blocks that the worker has served within half the time
    /// to live are not sent again.
    pub(crate) fn served(&mut self, now: Now, worker: WorkerId, above: u64, blocks: &[u64]) {
        let wall = millis(now.wall);
        let fresh = wall.saturating_sub(millis(self.config.ttl) / 2);
        let known = blocks.iter().take_while(|block| {
            let touched = self.touched(**block, worker);
            touched.is_some_and(|at| at > fresh)
        });
        let known = known.count();
        let (head, tail) = blocks.split_at(known);
        let mut parent = head.last().copied().unwrap_or(above);
        if tail.is_empty() {
            return;
        }
        let run =
            HintRun { parent, blocks: tail.to_vec(), worker: worker.into(), touched_ms: wall };
        for block in tail {
            self.touch(*block, parent, worker, wall);
            parent = *block;
        }
        if self.waiting_blocks + tail.len() > self.config.max_waiting {
            self.dropped += tail.len() as u64;
            return;
        }
        self.waiting_blocks += tail.len();
        self.waiting.push_back(run);
    }

    /// Takes the hints to send now, up to `flush_bytes`.
    pub(crate) fn flush(&mut self) -> Vec<HintRun> {
        let (mut runs, mut bytes) = (Vec::new(), 0);
        while let Some(mut run) = self.waiting.pop_front() {
            let room = self.config.flush_bytes.saturating_sub(bytes + 28) / 9;
            if room == 0 {
                self.waiting.push_front(run);
                break;
            }
            if run.blocks.len() > room {
                let tail = run.blocks.split_off(room);
                let parent = run.blocks.last().copied().unwrap_or(run.parent);
                self.waiting.push_front(HintRun { parent, blocks: tail, ..run });
            }
            self.waiting_blocks -= run.blocks.len();
            bytes += run.wire_bytes();
            runs.push(run);
        }
        runs
    }

    /// Whether hints wait to be sent.
    pub(crate) fn has_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Merges hints of a peer; returns how many were new or later. A time in the future counts as now.
    pub(crate) fn merge(&mut self, now: Now, runs: &[HintRun]) -> usize {
        let wall = millis(now.wall);
        let oldest = wall.saturating_sub(millis(self.config.ttl));
        let mut changed = 0;
        let is_current = |run: &&HintRun| {
            let forgotten = self.forgotten.get(&run.worker.into()).copied().unwrap_or(0);
            run.touched_ms > forgotten.max(oldest) || (forgotten == 0 && oldest == 0)
        };
        let runs: Vec<&HintRun> = runs.iter().filter(is_current).collect();
        for run in runs {
            let mut parent = run.parent;
            let before = changed;
            for block in &run.blocks {
                let touched = run.touched_ms.min(wall);
                changed += usize::from(self.touch(*block, parent, run.worker.into(), touched));
                parent = *block;
            }
            if changed > before
                && let Some(kept) = self.received.as_mut().filter(|kept| kept.len() < MAX_RECEIVED)
            {
                kept.push(run.clone());
            }
        }
        changed
    }

    fn touched(&self, block: u64, worker: WorkerId) -> Option<u64> {
        let workers = &self.blocks.get(&block)?.workers;
        workers.iter().find(|(w, _)| *w == worker).map(|(_, at)| *at)
    }

    fn touch(&mut self, block: u64, parent: u64, worker: WorkerId, at: u64) -> bool {
        let entry =
            self.blocks.entry(block).or_insert_with(|| Block { parent, workers: SmallVec::new() });
        match entry.workers.iter_mut().find(|(w, _)| *w == worker) {
            Some((_, before)) if *before >= at => return false,
            Some((_, before)) => {
                self.by_touch.remove(&(*before, block, worker));
                *before = at;
            }
            None => {
                if entry.workers.len() >= WORKERS_PER_BLOCK {
                    let oldest = (0..entry.workers.len()).min_by_key(|i| entry.workers[*i].1);
                    let (old, touched) = entry.workers.remove(oldest.expect("it has workers"));
                    self.by_touch.remove(&(touched, block, old));
                }
                entry.workers.push((worker, at));
            }
        }
        self.by_touch.insert((at, block, worker));
        while self.by_touch.len() > self.config.max_entries {
            self.drop_oldest();
        }
        true
    }

    fn drop_oldest(&mut self) {
        if let Some((_, block, worker)) = self.by_touch.pop_first()
            && let Some(entry) = self.blocks.get_mut(&block)
        {
            entry.workers.retain(|(w, _)| *w != worker);
            if entry.workers.is_empty() {
                self.blocks.remove(&block);
            }
        }
    }

    /// Drops hints that have expired, at most `budget` per call.
    pub(crate) fn expire(&mut self, now: Now, budget: usize) {
        let oldest = millis(now.wall).saturating_sub(millis(self.config.ttl));
        for _ in 0..budget {
            match self.by_touch.first() {
                Some((at, _, _)) if *at < oldest => self.drop_oldest(),
                Some(_) | None => return,
            }
        }
    }

    /// Drops all hints of a worker that was removed or restarted with a cold cache, those that wait to be sent included. From
    /// now on, hints that a peer made earlier are ignored. O(hints).
    pub(crate) fn forget(&mut self, now: Now, worker: WorkerId) {
        let wall = millis(now.wall);
        let oldest = wall.saturating_sub(millis(self.config.ttl));
        self.forgotten.retain(|_, at| *at > oldest);
        if self.forgotten.len() < MAX_FORGOTTEN {
            self.forgotten.insert(worker, wall);
        }
        let number = WorkerNumber::from(worker);
        self.waiting.retain(|run| run.worker != number);
        self.waiting_blocks = self.waiting.iter().map(|run| run.blocks.len()).sum();
        if let Some(received) = &mut self.received {
            received.retain(|run| run.worker != number);
        }
        self.by_touch.retain(|(_, _, w)| *w != worker);
        self.blocks.retain(|_, entry| {
            entry.workers.retain(|(w, _)| *w != worker);
            !entry.workers.is_empty()
        });
    }

    /// The most recently served hints, up to `hot_set_bytes`, in parts of at most `chunk_bytes`.
    pub(crate) fn hot_set(&self, chunk_bytes: usize) -> Vec<Vec<HintRun>> {
        let (mut chunks, mut chunk, mut bytes, mut total) = (Vec::new(), Vec::new(), 0, 0);
        for (touched_ms, block, worker) in self.by_touch.iter().rev() {
            let parent = self.blocks.get(block).map_or(0, |entry| entry.parent);
            let run = HintRun {
                parent,
                blocks: vec![*block],
                worker: (*worker).into(),
                touched_ms: *touched_ms,
            };
            bytes += run.wire_bytes();
            total += run.wire_bytes();
            if total > self.config.hot_set_bytes {
                break;
            }
            if bytes > chunk_bytes {
                chunks.push(std::mem::take(&mut chunk));
                bytes = run.wire_bytes();
            }
            chunk.push(run);
        }
        if !chunk.is_empty() {
            chunks.push(chunk);
        }
        chunks
    }

    /// The workers that have served `block`, each with the last time, in milliseconds of wall time.
    pub fn workers(&self, block: u64) -> impl Iterator<Item = (WorkerId, u64)> {
        self.blocks.get(&block).into_iter().flat_map(|entry| entry.workers.iter().copied())
    }

    /// The number of hints held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.by_touch.len()
    }

    /// Whether no hints are held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_touch.is_empty()
    }

    /// The number of blocks that were not sent because too many were waiting.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Now {
        Now::at(Duration::from_secs(seconds))
    }

    fn worker(n: u64) -> WorkerId {
        WorkerId::from_u64(n)
    }

    #[test]
    fn blocks_that_were_sent_recently_are_not_sent_again() {
        let mut here = Prefixes::new(Config::default());
        here.served(at(1000), worker(1), 0, &[10, 11, 12]);
        assert_eq!(here.flush()[0].blocks, [10, 11, 12]);
        here.served(at(1001), worker(1), 0, &[10, 11, 12, 13]);
        let sent = here.flush();
        assert_eq!((sent[0].parent, &*sent[0].blocks), (12, &[13][..]));
        here.served(at(1002), worker(1), 0, &[10, 11, 12, 13]);
        assert!(here.flush().is_empty());
        here.served(at(1400), worker(1), 0, &[10]);
        assert_eq!(here.flush()[0].blocks, [10], "half the time to live has passed");
    }

    #[test]
    fn hints_merge_to_the_later_time_in_any_order() {
        let run = |touched_ms| HintRun {
            parent: 0,
            blocks: vec![1],
            worker: worker(1).into(),
            touched_ms,
        };
        let now = at(1);
        for order in [[500, 900], [900, 500]] {
            let mut here = Prefixes::new(Config::default());
            for touched in order {
                here.merge(now, &[run(touched)]);
            }
            assert_eq!(here.workers(1).collect::<Vec<_>>(), [(worker(1), 900)]);
            here.merge(now, &[run(u64::MAX)]);
            assert_eq!(
                here.workers(1).collect::<Vec<_>>(),
                [(worker(1), 1000)],
                "a time in the future counts as now"
            );
        }
    }

    #[test]
    fn hints_from_before_a_worker_was_forgotten_are_ignored_and_not_sent() {
        let run = |touched_ms| HintRun {
            parent: 0,
            blocks: vec![1],
            worker: worker(1).into(),
            touched_ms,
        };
        let mut here = Prefixes::new(Config::default());
        here.keep_received();
        here.served(at(1000), worker(1), 0, &[7]);
        here.served(at(1000), worker(2), 0, &[8]);
        here.forget(at(1001), worker(1));
        let sent: Vec<_> = here.flush().into_iter().map(|run| run.blocks).collect();
        assert_eq!(sent, [vec![8]]);
        assert_eq!(here.merge(at(1002), &[run(1_000_500)]), 0);
        assert_eq!(here.merge(at(1002), &[run(1_001_500)]), 1);
        assert_eq!(here.take_received().len(), 1);
        // Another worker's hints do not depend on it.
        let other = HintRun { worker: worker(3).into(), ..run(1_000_500) };
        assert_eq!(here.merge(at(1002), &[other]), 1);
    }

    #[test]
    fn hints_waiting_hints_and_flushes_are_bounded() {
        let config = Config { max_entries: 100, max_waiting: 150, ..Config::default() };
        let mut here = Prefixes::new(config);
        for n in 0..1000 {
            here.served(at(1000), worker(n % 7), 0, &[n]);
        }
        assert_eq!((here.len(), here.dropped()), (100, 850));
        let mut sent = 0;
        while here.has_waiting() {
            let runs = here.flush();
            let bytes: usize = runs.iter().map(HintRun::wire_bytes).sum();
            assert!(bytes <= config.flush_bytes && !runs.is_empty());
            sent += runs.iter().map(|run| run.blocks.len()).sum::<usize>();
        }
        assert_eq!(sent, 150);
        here.forget(at(1000), worker(3));
        assert!(here.len() < 100);
        here.expire(at(2000), 1000);
        assert!(here.is_empty());
    }

    #[test]
    fn a_long_run_is_sent_in_parts_each_the_child_of_the_one_before() {
        let mut here = Prefixes::new(Config { flush_bytes: 100, ..Config::default() });
        here.served(at(1), worker(1), 0, &(1..=20).collect::<Vec<_>>());
        let mut blocks = Vec::new();
        while here.has_waiting() {
            for run in here.flush() {
                assert_eq!(run.parent, blocks.last().copied().unwrap_or(0));
                blocks.extend(run.blocks);
            }
        }
        assert_eq!(blocks, (1..=20).collect::<Vec<_>>());
    }
}
