//! The journal: what the policies of this router have learnt and the other routers do not know yet.
//!
//! The request path appends a few words under a short lock. A reader, the bridge to the cluster, takes all entries several
//! times a second. Before a reader has opened the journal, nothing is written. If the reader is too slow, new entries are
//! dropped and counted: all entries are hints, so a lost one costs a cache hit at most.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use smg_types::ids::WorkerId;

/// Most blocks in the journal: enough for a second of ten thousand prompts with a few new blocks each.
const MAX_BLOCKS: usize = 1 << 16;
/// Most sessions in the journal.
const MAX_SESSIONS: usize = 1 << 14;

/// The journal that all policies of a router share.
#[derive(Debug, Default)]
pub struct Journal {
    is_open: AtomicBool,
    batch: Mutex<JournalBatch>,
    dropped: AtomicU64,
}

/// All entries since the journal was last taken.
#[derive(Debug, Default)]
pub struct JournalBatch {
    /// The new parts of prompts that were sent.
    pub prompts: Vec<SentPrompt>,
    /// The blocks of all [`JournalBatch::prompts`], one prompt after the other.
    pub blocks: Vec<u64>,
    /// Sessions that were bound or used.
    pub sessions: Vec<SessionBinding>,
}

/// The part of a prompt that its worker had not been sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentPrompt {
    /// The worker that was sent the prompt.
    pub worker: WorkerId,
    /// The block before the part; 0 if the part begins with the prompt's first block.
    pub parent: u64,
    /// Number of [`JournalBatch::blocks`] that belong to the part.
    pub blocks: usize,
}

/// A session and its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionBinding {
    /// A hash of the model and the session's key.
    pub key: u64,
    /// The worker that serves the session.
    pub worker: WorkerId,
    /// The session had another worker before, which could not take the request.
    pub moved: bool,
}

impl Journal {
    /// Starts recording. Called once by the reader.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Whether a reader has opened the journal.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Takes all entries since the last call.
    #[must_use]
    pub fn take(&self) -> JournalBatch {
        std::mem::take(&mut *self.batch.lock())
    }

    /// Number of blocks and sessions that were dropped because the journal was full.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// Removes the entries of a worker that has left the fleet or has lost its cache.
    pub(super) fn forget(&self, worker: WorkerId) {
        self.batch.lock().forget(worker);
    }

    pub(super) fn record_prompt(
        &self,
        worker: WorkerId,
        parent: u64,
        blocks: impl ExactSizeIterator<Item = u64>,
    ) {
        let count = blocks.len();
        if count == 0 || !self.is_open() {
            return;
        }
        let mut batch = self.batch.lock();
        if batch.blocks.len() + count > MAX_BLOCKS {
            self.dropped.fetch_add(count as u64, Ordering::Relaxed);
            return;
        }
        batch.blocks.extend(blocks);
        batch.prompts.push(SentPrompt { worker, parent, blocks: count });
    }

    pub(super) fn record_session(&self, bound: SessionBinding) {
        if !self.is_open() {
            return;
        }
        let mut batch = self.batch.lock();
        if batch.sessions.len() >= MAX_SESSIONS {
            self.dropped.fetch_add(1, Ordering::Relaxed);
            return;
        }
        batch.sessions.push(bound);
    }
}

impl JournalBatch {
    /// Iterates over the prompts, each with its blocks.
    pub fn prompts(&self) -> impl Iterator<Item = (SentPrompt, &[u64])> {
        let mut rest = self.blocks.as_slice();
        self.prompts.iter().map(move |prompt| {
            let (own, others) = rest.split_at(prompt.blocks.min(rest.len()));
            rest = others;
            (*prompt, own)
        })
    }

    fn forget(&mut self, worker: WorkerId) {
        self.sessions.retain(|bound| bound.worker != worker);
        if self.prompts.iter().all(|prompt| prompt.worker != worker) {
            return;
        }
        let mut kept = Self { sessions: std::mem::take(&mut self.sessions), ..Self::default() };
        for (prompt, blocks) in self.prompts().filter(|(prompt, _)| prompt.worker != worker) {
            kept.prompts.push(prompt);
            kept.blocks.extend_from_slice(blocks);
        }
        *self = kept;
    }

    /// Whether the batch has no entries.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.prompts.is_empty() && self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId::from_u64(1);

    #[test]
    fn a_journal_without_a_reader_stays_empty() {
        let journal = Journal::default();
        journal.record_prompt(A, 0, [1].into_iter());
        assert!(journal.take().is_empty());
    }

    #[test]
    fn each_prompt_comes_with_its_blocks() {
        let journal = Journal::default();
        journal.open();
        journal.record_prompt(A, 0, [1, 2].into_iter());
        journal.record_prompt(A, 2, [3].into_iter());
        let batch = journal.take();
        let taken: Vec<_> =
            batch.prompts().map(|(p, blocks)| (p.parent, blocks.to_vec())).collect();
        assert_eq!(taken, [(0, vec![1, 2]), (2, vec![3])]);
        assert!(journal.take().is_empty());
    }

    #[test]
    fn the_entries_of_a_forgotten_worker_are_removed() {
        let other = WorkerId::from_u64(2);
        let journal = Journal::default();
        journal.open();
        for (worker, blocks) in [(A, vec![1, 2]), (other, vec![3, 4, 5]), (A, vec![6])] {
            journal.record_prompt(worker, 0, blocks.iter().copied());
            journal.record_session(SessionBinding { key: blocks[0], worker, moved: false });
        }
        journal.forget(A);
        let batch = journal.take();
        let kept: Vec<_> = batch.prompts().map(|(p, blocks)| (p.worker, blocks.to_vec())).collect();
        assert_eq!(kept, [(other, vec![3, 4, 5])]);
        assert_eq!(batch.sessions.iter().map(|bound| bound.key).collect::<Vec<_>>(), [3]);
    }

    #[test]
    fn a_full_journal_drops_and_counts() {
        let journal = Journal::default();
        journal.open();
        for n in 0..(MAX_BLOCKS as u64 + 10) {
            journal.record_prompt(A, 0, [n].into_iter());
            journal.record_session(SessionBinding { key: n, worker: A, moved: false });
        }
        let batch = journal.take();
        assert_eq!((batch.blocks.len(), batch.sessions.len()), (MAX_BLOCKS, MAX_SESSIONS));
        assert_eq!(journal.dropped(), 10 + (MAX_BLOCKS + 10 - MAX_SESSIONS) as u64);
    }
}
