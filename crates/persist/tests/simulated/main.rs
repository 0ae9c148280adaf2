//! Plays a journal on a simulated disk through crashes and faults, and checks after each crash that the keys are those of a
//! moment that really was, and not before the last confirmed sync.
//!
//! `SMG_PERSIST_SEEDS=10000` plays more seeds, `SMG_PERSIST_SEED=7` one.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

mod disk;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use disk::{Faults, SimDisk};
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_persist::{Batch, Config, Fsync, Journal, Slots, State};

type Keys = BTreeMap<Vec<u8>, Vec<u8>>;

/// Which faults a run has besides crashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    /// Only crashes: torn writes, lost names.
    Crashes,
    /// Calls fail now and then.
    Failing,
    /// The disk is full, can only be read, or its folder is removed, for a while.
    Unusable,
    /// Bits flip and files lose their ends while no process runs, and calls fail now and then.
    Damaged,
    /// Syncs do nothing.
    Lying,
}

/// One journal, and all that it ever held.
struct Run {
    journal: Option<Journal<SimDisk>>,
    rng: StdRng,
    now: Duration,
    config: Config,
    /// The keys after each batch of this process, the first: as they were recovered.
    states: Vec<Keys>,
    /// The keys of all moments.
    history: BTreeSet<Keys>,
    family: Family,
    bad_since: Option<Duration>,
    /// The number of snapshots when the folder was last removed.
    removed_at: Option<u64>,
}

/// What may be lost at the end of a process, and whether that is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum MayLose {
    Nothing,
    Reported,
    Silently,
}

impl Run {
    fn new(seed: u64, family: Family) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let fsync = match rng.random_bool(0.3) {
            true => Fsync::Always,
            false => Fsync::Interval(Duration::from_millis(50)),
        };
        let config = Config { fsync, log_bytes: 500, ..Config::default() };
        let (journal, found) =
            Journal::open(SimDisk::new(seed), None, config, Duration::from_secs(1));
        assert_eq!(found.keys, 0);
        Self {
            journal: Some(journal),
            rng,
            now: Duration::from_secs(1),
            config,
            states: vec![Keys::new()],
            history: BTreeSet::from([Keys::new()]),
            family,
            bad_since: None,
            removed_at: None,
        }
    }

    fn journal(&mut self) -> &mut Journal<SimDisk> {
        self.journal.as_mut().unwrap()
    }

    fn push(&mut self) {
        let mut keys = self.states.last().unwrap().clone();
        let mut batch = Batch::default();
        for _ in 0..self.rng.random_range(1..4) {
            let key = vec![self.rng.random_range(0..12u8)];
            if self.rng.random_bool(0.3) {
                keys.remove(&key);
                batch.remove(key);
            } else {
                let value = vec![self.rng.random::<u8>(); self.rng.random_range(0..80)];
                keys.insert(key.clone(), value.clone());
                batch.put(key, value);
            }
        }
        let now = self.now;
        let number = self.journal().push(batch, now);
        self.history.insert(keys.clone());
        self.states.push(keys);
        assert_eq!(number as usize, self.states.len() - 1);
    }

    /// Lets time pass until the next deadline, or a part of it, and does what is due.
    fn turn(&mut self) {
        let due = self.journal().next_deadline();
        let jump = Duration::from_millis(self.rng.random_range(0..60));
        self.now = self.now.max(due.min(self.now + jump));
        // A slow disk.
        let delay = if self.rng.random_bool(0.1) { self.rng.random_range(0..300) } else { 0 };
        let now = self.now;
        self.journal().turn(now);
        self.now += Duration::from_millis(delay);
        let synced = self.journal().synced() as usize;
        assert!(synced < self.states.len());
    }

    fn crash(&mut self) {
        let journal = self.journal.take().unwrap();
        let synced = journal.synced() as usize;
        let is_removed = self.removed_at == Some(journal.counters().snapshots);
        let mut disk = journal.into_disk();
        disk.crash();
        let mut may_lose = if is_removed { MayLose::Silently } else { MayLose::Nothing };
        if self.family == Family::Lying {
            may_lose = MayLose::Silently;
        }
        if self.family == Family::Damaged && self.rng.random_bool(0.7) {
            for _ in 0..self.rng.random_range(1..4) {
                // A log that was cut between two batches looks whole.
                let is_cut = self.rng.random_bool(0.3);
                if disk.damage(is_cut) && may_lose != MayLose::Silently {
                    may_lose = if is_cut { MayLose::Silently } else { MayLose::Reported };
                }
            }
        }
        self.recover(disk, synced, may_lose);
    }

    fn recover(&mut self, disk: SimDisk, synced: usize, may_lose: MayLose) {
        let (journal, found) = Journal::open(disk, None, self.config, self.now);
        let keys: Keys = journal.entries().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert_eq!(found.keys, keys.len());
        assert!(self.history.contains(&keys), "never invents: {keys:?} {found:?}");
        let is_recent = self.states[synced..].contains(&keys);
        match may_lose {
            MayLose::Silently => {}
            MayLose::Reported => {
                assert!(is_recent || !found.losses.is_empty(), "a loss is reported: {found:?}");
            }
            MayLose::Nothing => {
                assert!(is_recent, "lost what was synced: {found:?}, synced {synced}");
            }
        }
        self.states = vec![keys];
        self.journal = Some(journal);
        // A removed folder is created again at the next start.
        (self.bad_since, self.removed_at) = (None, None);
        let disk = self.journal().disk_mut();
        disk.faults = Faults { lying: disk.faults.lying, ..Faults::default() };
    }

    fn change_faults(&mut self) {
        let ends = self.bad_since.is_some();
        let kind = self.rng.random_range(0..3);
        let now = self.now;
        let family = self.family;
        let percent = self.rng.random_range(1..60);
        let lies = self.rng.random_bool(0.5);
        let disk = self.journal().disk_mut();
        match family {
            Family::Crashes => return,
            Family::Failing | Family::Damaged => {
                disk.faults.failing = if ends { 0 } else { percent }
            }
            Family::Lying => disk.faults.lying = lies,
            Family::Unusable if ends => {
                (disk.faults.full, disk.faults.read_only) = (false, false);
            }
            Family::Unusable => match kind {
                0 => disk.faults.full = true,
                1 => disk.faults.read_only = true,
                _ => {
                    disk.remove_folder();
                    self.removed_at = Some(self.journal().counters().snapshots);
                }
            },
        }
        self.bad_since = (!ends).then_some(now);
    }

    /// A disk that stays unusable is reported within 5 s.
    fn check_report(&mut self) {
        let Some(since) = self.bad_since else { return };
        let now = self.now;
        let faults = self.journal().disk_mut().faults;
        let is_bad = faults.full || faults.read_only || faults.removed;
        if is_bad && now > since + Duration::from_secs(5) {
            assert!(matches!(self.journal().state(), State::Degraded { .. }), "{faults:?}");
        }
    }

    fn play(&mut self) {
        for _ in 0..self.rng.random_range(20..150) {
            match self.rng.random_range(0..100) {
                0..35 => self.push(),
                35..85 => self.turn(),
                85..90 => self.change_faults(),
                90..94 => self.crash(),
                _ => {
                    let until = self.now + Duration::from_secs(self.rng.random_range(0..8));
                    while self.now < until {
                        self.turn();
                        self.now += Duration::from_millis(200);
                        self.check_report();
                    }
                }
            }
            self.check_report();
        }
        self.end();
    }

    /// The disk works again: within a minute all is durable, and nothing is lost by the next crash.
    fn end(&mut self) {
        self.journal().disk_mut().faults = Faults { removed: false, ..Faults::default() };
        self.bad_since = None;
        let until = self.now + Duration::from_secs(60);
        while self.now < until {
            self.now = self.journal().next_deadline().max(self.now + Duration::from_millis(1));
            let now = self.now;
            self.journal().turn(now);
        }
        assert_eq!(self.journal().state(), State::Durable);
        assert_eq!(self.journal().synced() as usize, self.states.len() - 1);
        let latest = self.states.last().unwrap().clone();
        let mut disk = self.journal.take().unwrap().into_disk();
        disk.crash();
        if self.family == Family::Lying {
            return;
        }
        let (journal, _) = Journal::open(disk, None, self.config, self.now);
        let keys: Keys = journal.entries().map(|(k, v)| (k.to_vec(), v.to_vec())).collect();
        assert_eq!(keys, latest);
    }
}

fn seeds() -> Vec<u64> {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    match number("SMG_PERSIST_SEED") {
        Some(seed) => vec![seed],
        None => (0..number("SMG_PERSIST_SEEDS").unwrap_or(300)).collect(),
    }
}

fn play(family: Family) {
    for seed in seeds() {
        let played = std::panic::catch_unwind(|| Run::new(seed, family).play());
        if let Err(panic) = played {
            eprintln!("{family:?} fails with SMG_PERSIST_SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn crashes() {
    play(Family::Crashes);
}

#[test]
fn failing() {
    play(Family::Failing);
}

#[test]
fn unusable() {
    play(Family::Unusable);
}

#[test]
fn damaged() {
    play(Family::Damaged);
}

#[test]
fn lying() {
    play(Family::Lying);
}

/// A slot has its old value or the new one, and the new one once `put` has returned.
#[test]
fn slots() {
    for seed in seeds() {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut slots = Slots::new(SimDisk::new(seed));
        let mut expected = vec![None];
        for _ in 0..40 {
            slots.disk_mut().faults.failing = if rng.random_bool(0.2) { 30 } else { 0 };
            let value = vec![rng.random::<u8>(); rng.random_range(0..100)];
            match slots.put("vote", &value, None) {
                Ok(()) => expected = vec![Some(value)],
                Err(_) => expected.push(Some(value)),
            }
            if rng.random_bool(0.2) {
                slots.disk_mut().crash();
                slots.disk_mut().faults.failing = 0;
                let found = slots.value("vote", None).unwrap();
                assert!(expected.contains(&found), "seed {seed}");
                expected = vec![found];
            }
        }
    }
}
