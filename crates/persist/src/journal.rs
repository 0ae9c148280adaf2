//! The journal: all keys in memory, a log of their changes on disk, and a snapshot now and then.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use crate::disk::Disk;
use crate::frame::push_entry;
use crate::image::{Batch, Image};
use crate::recovery::{self, Contents, Recovered};
use crate::seal::Seal;
use crate::state::{Counters, State, Turn};
use crate::write::{self, OpenLog};

/// When a change is written and synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fsync {
    /// This long after the first change that is not written yet, together with all changes until then.
    Interval(Duration),
    /// At once; together only with the changes that came while the one before was synced.
    Always,
}

/// Settings of a journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// When a change is written and synced.
    pub fsync: Fsync,
    /// A snapshot is written when the log has this many bytes, and twice those of the snapshot before it.
    pub log_bytes: u64,
    /// How often the folder is checked.
    pub check_interval: Duration,
    /// The time until the first attempt to write again after a failure. It doubles with each attempt.
    pub retry_first: Duration,
    /// The longest time between two attempts.
    pub retry_last: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            fsync: Fsync::Interval(Duration::from_millis(50)),
            log_bytes: 256 * 1024,
            check_interval: Duration::from_secs(2),
            retry_first: Duration::from_secs(1),
            retry_last: Duration::from_secs(10),
        }
    }
}

/// Files that could not be read may have numbers after the last one that was found. A log that begins this much later can't
/// be taken for the continuation of such a file.
const UNUSED_NUMBERS: u64 = 1 << 32;

/// Where the journal writes.
#[derive(Debug)]
enum Target {
    /// Nowhere yet: the first turn writes a snapshot.
    New,
    Log(OpenLog),
    /// Nowhere, because the disk does not work.
    Failed {
        cause: String,
        since: Duration,
        retry_at: Duration,
        wait: Duration,
    },
}

/// All keys, in memory and on disk.
#[derive(Debug)]
pub struct Journal<D> {
    disk: D,
    seal: Option<Box<dyn Seal>>,
    config: Config,
    image: Image,
    /// Keys that have changed since they were last written, and since when.
    unwritten: BTreeSet<Vec<u8>>,
    unwritten_since: Option<Duration>,
    target: Target,
    /// The number of the last batch that was written, or may have been.
    number: u64,
    /// The highest epoch that was used.
    epoch: u64,
    /// The epoch of the snapshot with which the files that can be used begin.
    base_epoch: u64,
    /// How many batches were pushed, and how many of these are on disk.
    pushed: u64,
    synced: u64,
    checked_at: Duration,
    counters: Counters,
}

impl<D: Disk> Journal<D> {
    /// Reads what is on disk. Nothing is written before the first [`Journal::turn`]. It never fails: what can't be used is in
    /// the answer.
    pub fn open(
        mut disk: D,
        seal: Option<Box<dyn Seal>>,
        config: Config,
        now: Duration,
    ) -> (Self, Recovered) {
        let Contents { image, number, epoch, last_epoch, recovered } =
            recovery::read(&mut disk, seal.as_deref().map(|seal| seal as &dyn Seal));
        let journal = Self {
            disk,
            seal,
            config,
            image,
            unwritten: BTreeSet::new(),
            unwritten_since: None,
            target: Target::New,
            number: number + UNUSED_NUMBERS,
            epoch: last_epoch,
            base_epoch: epoch,
            pushed: 0,
            synced: 0,
            checked_at: now,
            counters: Counters::default(),
        };
        (journal, recovered)
    }

    /// Takes changes in. They are on disk when [`Journal::synced`] has come to the number that this returns.
    pub fn push(&mut self, batch: Batch, now: Duration) -> u64 {
        for (key, value) in batch.into_changes() {
            if self.image.set(key.clone(), value) {
                self.unwritten.insert(key);
                self.unwritten_since.get_or_insert(now);
            }
        }
        self.pushed += 1;
        if self.unwritten.is_empty() && matches!(self.target, Target::Log(_)) {
            self.synced = self.pushed;
        }
        self.pushed
    }

    /// How many of the batches that were pushed are on disk.
    #[must_use]
    pub fn synced(&self) -> u64 {
        self.synced
    }

    /// Whether there are changes that are not on disk.
    #[must_use]
    pub fn has_unwritten(&self) -> bool {
        !self.unwritten.is_empty()
    }

    /// Does what is due, and blocks until the disk has done it.
    pub fn turn(&mut self, now: Duration) -> Turn {
        match &self.target {
            Target::New => self.snapshot(now),
            Target::Failed { retry_at, .. } if *retry_at <= now => self.retry(now),
            Target::Failed { .. } => Turn::default(),
            // Also while something is written: a file that was removed can still be written.
            Target::Log(_) if self.check_at() <= now => self.check(now),
            // What the log lacks is written before the snapshot, so that the log leads up to it.
            Target::Log(log) if self.unwritten.is_empty() && self.is_snapshot_due(log) => {
                self.snapshot(now)
            }
            Target::Log(log)
                if self.write_at().is_some_and(|at| at <= now || self.is_snapshot_due(log)) =>
            {
                self.write(now)
            }
            Target::Log(_) => Turn::default(),
        }
    }

    /// Writes what is not written yet, due or not: for an orderly end.
    pub fn flush(&mut self, now: Duration) -> Turn {
        match &self.target {
            Target::New => self.snapshot(now),
            Target::Log(_) if !self.unwritten.is_empty() => self.write(now),
            Target::Failed { .. } => self.retry(now),
            Target::Log(_) => Turn::default(),
        }
    }

    /// When [`Journal::turn`] has something to do next.
    #[must_use]
    pub fn next_deadline(&self) -> Duration {
        match &self.target {
            Target::New => Duration::ZERO,
            Target::Failed { retry_at, .. } => *retry_at,
            Target::Log(log) if self.is_snapshot_due(log) => Duration::ZERO,
            Target::Log(_) => {
                let check_at = self.check_at();
                self.write_at().map_or(check_at, |at| at.min(check_at))
            }
        }
    }

    /// All keys with their values, in order.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.image.values().iter().map(|(key, value)| (key.as_slice(), value.as_slice()))
    }

    /// Bytes of all keys and values.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.image.bytes()
    }

    /// Whether changes reach the disk.
    #[must_use]
    pub fn state(&self) -> State {
        match &self.target {
            Target::New | Target::Log(_) => State::Durable,
            Target::Failed { cause, since, .. } => {
                State::Degraded { cause: cause.clone(), since: *since }
            }
        }
    }

    /// Counts since the journal was opened.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The disk, for tests.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }

    /// Ends the journal without writing anything, and returns the disk.
    pub fn into_disk(self) -> D {
        self.disk
    }

    fn is_snapshot_due(&self, log: &OpenLog) -> bool {
        log.bytes > self.config.log_bytes.max(2 * self.counters.snapshot_bytes)
    }

    fn write_at(&self) -> Option<Duration> {
        let since = self.unwritten_since?;
        match self.config.fsync {
            Fsync::Interval(interval) => Some(since + interval),
            Fsync::Always => Some(since),
        }
    }

    fn check_at(&self) -> Duration {
        self.checked_at + self.config.check_interval
    }

    fn write(&mut self, now: Duration) -> Turn {
        let Target::Log(log) = &mut self.target else { return Turn::default() };
        let mut payload = Vec::new();
        for key in &self.unwritten {
            push_entry(&mut payload, key, self.image.get(key).map(Vec::as_slice));
        }
        // A number is used once, whether the batch reaches the disk or not.
        self.number += 1;
        let seal = self.seal.as_deref().map(|seal| seal as &dyn Seal);
        match write::batch(&mut self.disk, log, self.number, payload, seal) {
            Ok(bytes) => {
                self.counters.written_bytes += bytes;
                self.counters.batches += 1;
                self.counters.log_bytes = log.bytes;
                self.note_written();
                Turn { synced: true, ..Turn::default() }
            }
            Err(error) => self.fail(&error, now),
        }
    }

    fn note_written(&mut self) {
        self.unwritten.clear();
        self.unwritten_since = None;
        self.synced = self.pushed;
    }

    fn snapshot(&mut self, now: Duration) -> Turn {
        let was_failed = matches!(self.target, Target::Failed { .. });
        if was_failed || !self.unwritten.is_empty() {
            // The snapshot contains changes that no log has, so the log after it must not continue the log before it.
            self.number += 1;
        }
        // An epoch is used once too, so that no file is written over.
        self.epoch += 1;
        let seal = self.seal.as_deref().map(|seal| seal as &dyn Seal);
        let written = write::snapshot(&mut self.disk, &self.image, self.epoch, self.number, seal);
        let (log, bytes) = match written {
            Ok(written) => written,
            Err(error) => return self.fail(&error, now),
        };
        self.counters.written_bytes += bytes + log.bytes;
        self.counters.snapshots += 1;
        self.counters.snapshot_bytes = bytes;
        self.counters.log_bytes = log.bytes;
        self.target = Target::Log(log);
        self.note_written();
        self.checked_at = now;
        let keep = std::mem::replace(&mut self.base_epoch, self.epoch);
        // A file that stays longer than needed does no harm, and the next snapshot removes it.
        if write::remove_before(&mut self.disk, keep).is_err() {
            self.counters.errors += 1;
        }
        Turn { synced: true, snapshot: true, recovered: was_failed, degraded: false }
    }

    /// Checks what a write does not show.
    fn check(&mut self, now: Duration) -> Turn {
        self.checked_at = now;
        match self.disk.check() {
            Ok(()) => Turn::default(),
            Err(error) => self.fail(&error, now),
        }
    }

    fn retry(&mut self, now: Duration) -> Turn {
        if let Err(error) = self.disk.reopen() {
            return self.fail(&error, now);
        }
        // What is not needed takes room that the new snapshot may need.
        let _removed_later = write::remove_before(&mut self.disk, self.base_epoch).is_err();
        self.snapshot(now)
    }

    /// Nothing reaches the disk until a whole new snapshot is written.
    fn fail(&mut self, error: &io::Error, now: Duration) -> Turn {
        self.counters.errors += 1;
        let cause = error.to_string();
        let (since, wait) = match &self.target {
            Target::Failed { since, wait, .. } => (*since, (2 * *wait).min(self.config.retry_last)),
            Target::New | Target::Log(_) => (now, self.config.retry_first),
        };
        let degraded = !matches!(self.target, Target::Failed { .. });
        self.target = Target::Failed { cause, since, retry_at: now + wait, wait };
        Turn { degraded, ..Turn::default() }
    }
}
