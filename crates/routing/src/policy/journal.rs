//! What policies have learnt on this router that the other routers of a cluster should know.
//!
//! The request path writes, a few words under a short lock; somebody reads all of it a few times a second. When nobody
//! does, nothing is written; when the reader is too slow, the newest is dropped and counted, for all of it is hints.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use smg_types::ids::WorkerId;

/// Blocks that wait to be read at most: a second of ten thousand prompts with a few new blocks each.
const MAX_BLOCKS: usize = 1 << 16;
/// Sessions that wait to be read at most.
const MAX_SESSIONS: usize = 1 << 14;

/// One journal, shared by all policies of a router.
#[derive(Debug, Default)]
pub struct Journal {
    is_open: AtomicBool,
    batch: Mutex<JournalBatch>,
    dropped: AtomicU64,
}

/// All that was written since it was last read.
#[derive(Debug, Default)]
pub struct JournalBatch {
    /// Prompts that were sent.
    pub prompts: Vec<SentPrompt>,
    /// The blocks of all of them, one after the other.
    pub blocks: Vec<u64>,
    /// Sessions that were bound or used.
    pub sessions: Vec<SessionBinding>,
}

/// A part of a prompt that its worker had not been sent before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SentPrompt {
    /// Where it went.
    pub worker: WorkerId,
    /// The block before the part; 0 if it is the head.
    pub parent: u64,
    /// How many of [`JournalBatch::blocks`] are its own.
    pub blocks: usize,
}

/// A session that goes to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionBinding {
    /// A hash of the model and the session's key.
    pub key: u64,
    /// Where it goes.
    pub worker: WorkerId,
    /// It went to another worker before, which could not take it any more.
    pub moved: bool,
}

impl Journal {
    /// From now on somebody reads.
    pub fn open(&self) {
        self.is_open.store(true, Ordering::Relaxed);
    }

    /// Whether somebody reads.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Relaxed)
    }

    /// Everything that was written since the last time.
    #[must_use]
    pub fn take(&self) -> JournalBatch {
        std::mem::take(&mut *self.batch.lock())
    }

    /// Blocks and sessions that were dropped because nobody read in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) fn record_prompt(&self, worker: WorkerId, parent: u64, blocks: &[u64]) {
        if blocks.is_empty() || !self.is_open() {
            return;
        }
        let mut batch = self.batch.lock();
        if batch.blocks.len() + blocks.len() > MAX_BLOCKS {
            self.dropped.fetch_add(blocks.len() as u64, Ordering::Relaxed);
            return;
        }
        batch.blocks.extend_from_slice(blocks);
        batch.prompts.push(SentPrompt { worker, parent, blocks: blocks.len() });
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
    /// The prompts, each with its blocks.
    pub fn prompts(&self) -> impl Iterator<Item = (SentPrompt, &[u64])> {
        let mut rest = self.blocks.as_slice();
        self.prompts.iter().map(move |prompt| {
            let (own, others) = rest.split_at(prompt.blocks.min(rest.len()));
            rest = others;
            (*prompt, own)
        })
    }

    /// Whether nothing was written.
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
    fn nothing_is_written_for_nobody() {
        let journal = Journal::default();
        journal.record_prompt(A, 0, &[1]);
        assert!(journal.take().is_empty());
    }

    #[test]
    fn each_prompt_comes_with_its_blocks() {
        let journal = Journal::default();
        journal.open();
        journal.record_prompt(A, 0, &[1, 2]);
        journal.record_prompt(A, 2, &[3]);
        let batch = journal.take();
        let told: Vec<_> = batch.prompts().map(|(p, blocks)| (p.parent, blocks.to_vec())).collect();
        assert_eq!(told, [(0, vec![1, 2]), (2, vec![3])]);
        assert!(journal.take().is_empty());
    }

    #[test]
    fn what_nobody_reads_is_bounded_and_counted() {
        let journal = Journal::default();
        journal.open();
        for n in 0..(MAX_BLOCKS as u64 + 10) {
            journal.record_prompt(A, 0, &[n]);
            journal.record_session(SessionBinding { key: n, worker: A, moved: false });
        }
        let batch = journal.take();
        assert_eq!((batch.blocks.len(), batch.sessions.len()), (MAX_BLOCKS, MAX_SESSIONS));
        assert_eq!(journal.dropped(), 10 + (MAX_BLOCKS + 10 - MAX_SESSIONS) as u64);
    }
}
