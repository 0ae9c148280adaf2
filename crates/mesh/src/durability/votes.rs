//! The votes of this router on leases, in a slot of the data folder, so that it need not abstain after a restart.
//!
//! All votes are one value of some hundred bytes, which is written and synced as a whole. The mesh's thread waits for it, because
//! the answer to a candidate may leave only then (rule L13), but never longer than [`STORE_TIMEOUT`]: a thread of its own
//! writes, and while it waits for a slow disk the voter refuses. Votes are stored a few times per election, and not for a
//! renewal.
//!
//! The file does not count as memory on a network file system, where another process may have written since, or if another
//! router has written it. It can't be noticed that the folder was replaced by an older copy, or that the router has run for a
//! while without it: docs/lease.md excludes both.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use smg_cluster::codec;
use smg_lease::{LeaseName, NotStored, Remembered, StoredVote, Votes};
use smg_persist::{Disk as _, Folder, FolderFiles, Seal, SlotError, Slots};
use smg_types::ids::NodeId;
use tracing::{info, warn};

/// The slot with the votes.
const SLOT: &str = "votes";

/// The longest time for which storing a vote stops the mesh's thread.
const STORE_TIMEOUT: Duration = Duration::from_millis(200);

/// The value of the slot.
#[derive(Debug, Serialize, Deserialize)]
struct SavedVotes {
    /// The process that has stored them.
    voter: NodeId,
    /// The boot of the machine on which it ran.
    boot: Option<String>,
    /// Device and inode of the lock file that it held.
    lock: Option<(u64, u64)>,
    votes: BTreeMap<LeaseName, StoredVote>,
}

/// The votes of this router, in memory and on disk.
#[derive(Debug)]
pub(crate) struct SavedBallots {
    me: NodeId,
    boot: Option<String>,
    votes: BTreeMap<LeaseName, StoredVote>,
    /// `None`: the configured keys do not open the folder.
    folder: Option<Arc<Folder>>,
    /// The slot in it, until a thread writes to it.
    slots: Option<VoteSlot>,
    writer: Option<Writer>,
    has_failed: bool,
}

/// The slot, until the thread has it.
#[derive(Debug)]
pub(super) struct VoteSlot {
    folder: Arc<Folder>,
    slots: Slots<FolderFiles>,
    seal: Option<Box<dyn Seal>>,
}

/// The thread that writes.
#[derive(Debug)]
struct Writer {
    values: SyncSender<Vec<u8>>,
    results: Receiver<io::Result<()>>,
    /// Whether it has not answered in time yet.
    is_late: bool,
}

impl SavedBallots {
    /// The votes of the router `me` in its folder; `None`: the folder can't be opened, so that it never votes.
    pub(super) fn new(me: NodeId, slot: Option<VoteSlot>) -> Self {
        let (votes, boot) = (BTreeMap::new(), boot_id());
        let folder = slot.as_ref().map(|slot| Arc::clone(&slot.folder));
        Self { me, boot, votes, folder, slots: slot, writer: None, has_failed: false }
    }

    /// Reads the slot; `None`: there is nothing that counts.
    fn read(&mut self) -> Option<SavedVotes> {
        let slot = self.slots.as_mut()?;
        let folder = slot.folder.path().display().to_string();
        if let Some(system) = slot.folder.network_file_system() {
            info!(folder, system, "votes on a network file system do not count after a restart");
            return None;
        }
        let seal = slot.seal.as_deref().map(|seal| seal as &dyn Seal);
        let saved = match slot.slots.value(SLOT, seal) {
            Ok(bytes) => codec::decode::<SavedVotes>(&bytes?).map_err(|error| error.to_string()),
            Err(error @ (SlotError::Disk(_) | SlotError::Damaged(_) | SlotError::Sealed(_))) => {
                Err(error.to_string())
            }
        };
        match saved {
            Ok(saved) if saved.voter.name == self.me.name => Some(saved),
            Ok(saved) => {
                let of = saved.voter.name;
                warn!(folder, %of, "the saved votes are those of another router");
                None
            }
            Err(error) => {
                warn!(folder, error, "the saved votes can't be used");
                None
            }
        }
    }

    /// Whether the process that has stored the votes has certainly ended: it held the lock that this process holds now, and the
    /// machine was not started in between. A folder that is a copy or came from another machine has another lock, and a
    /// process may go on with the original. So may one whose lock file was deleted.
    fn has_ended(&self, saved: &SavedVotes) -> bool {
        let lock = self.slots.as_ref().and_then(|slot| slot.folder.lock_id());
        let is_same_lock = lock.is_some() && saved.lock == lock;
        is_same_lock && self.boot.is_some() && saved.boot == self.boot
    }

    fn write(&mut self) -> Result<(), String> {
        let unreadable = || "the data folder can't be read".to_owned();
        if self.writer.is_none() {
            let slot = self.slots.take().ok_or_else(unreadable)?;
            self.writer = Some(Writer::start(slot).map_err(|error| error.to_string())?);
        }
        let saved = SavedVotes {
            voter: self.me.clone(),
            boot: self.boot.clone(),
            lock: self.folder.as_ref().and_then(|folder| folder.lock_id()),
            votes: self.votes.clone(),
        };
        let writer = self.writer.as_mut().ok_or_else(unreadable)?;
        writer.write(codec::encode(&saved))
    }
}

impl Votes for SavedBallots {
    fn load(&mut self) -> Option<Remembered> {
        let saved = self.read()?;
        let ended = self.has_ended(&saved).then(|| saved.voter.clone());
        self.votes.clone_from(&saved.votes);
        let leases = saved.votes.len();
        info!(leases, "this router remembers its votes, so it need not abstain");
        Some(Remembered { votes: saved.votes, ended })
    }

    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored> {
        let before = self.votes.insert(lease.clone(), vote.clone());
        let written = self.write();
        match &written {
            Ok(()) if self.has_failed => info!("votes on leases are stored again"),
            Err(error) if !self.has_failed => {
                warn!(error, "a vote on a lease can't be stored, so this router does not vote");
            }
            Ok(()) | Err(_) => {}
        }
        self.has_failed = written.is_err();
        written.map_err(|error| {
            match before {
                Some(before) => self.votes.insert(lease.clone(), before),
                None => self.votes.remove(lease),
            };
            NotStored(error)
        })
    }
}

impl VoteSlot {
    pub(super) fn new(folder: &Arc<Folder>, seal: Option<Box<dyn Seal>>) -> Self {
        Self { folder: Arc::clone(folder), slots: Slots::new(folder.files()), seal }
    }

    /// Writes the value, if the folder is still that of this process or can be it again.
    fn put(&mut self, value: &[u8]) -> io::Result<()> {
        let disk = self.slots.disk_mut();
        if disk.check().is_err() {
            disk.reopen()?;
            disk.check()?;
        }
        self.slots.put(SLOT, value, self.seal.as_deref().map(|seal| seal as &dyn Seal))
    }
}

impl Writer {
    fn start(mut slot: VoteSlot) -> io::Result<Self> {
        let (values, taken) = sync_channel::<Vec<u8>>(1);
        let (results_tx, results) = sync_channel(1);
        std::thread::Builder::new().name("smg-votes".to_owned()).spawn(move || {
            for value in taken {
                if results_tx.send(slot.put(&value)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { values, results, is_late: false })
    }

    /// Writes the value, and waits until it is on disk. A value that is not on
    /// disk in time may reach it later, but before the next one.
    fn write(&mut self, value: Vec<u8>) -> Result<(), String> {
        if self.is_late {
            match self.results.try_recv() {
                Ok(_of_the_late_one) => self.is_late = false,
                Err(TryRecvError::Empty) => return Err("the disk is slow".to_owned()),
                Err(TryRecvError::Disconnected) => return Err(ended()),
            }
        }
        self.values.try_send(value).map_err(|_| ended())?;
        match self.results.recv_timeout(STORE_TIMEOUT) {
            Ok(written) => written.map_err(|error| error.to_string()),
            Err(RecvTimeoutError::Timeout) => {
                self.is_late = true;
                Err(format!("the disk has not synced it within {STORE_TIMEOUT:?}"))
            }
            Err(RecvTimeoutError::Disconnected) => Err(ended()),
        }
    }
}

fn ended() -> String {
    "the thread that writes votes has ended".to_owned()
}

/// The id of the present boot of the machine; `None`: the system does not show one.
fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let id = id.trim();
    (!id.is_empty()).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use smg_lease::Term;
    use smg_types::ids::Generation;

    use super::*;

    fn node(name: &str, generation: u64) -> NodeId {
        NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
    }

    fn lease(name: &str) -> LeaseName {
        name.parse().unwrap()
    }

    fn vote(term: u64) -> StoredVote {
        let holder = node("b", 7);
        StoredVote {
            promised: Term(term),
            promised_to: Some(holder.clone()),
            voted: Some((Term(term), holder)),
        }
    }

    fn folder(path: &Path) -> Arc<Folder> {
        Folder::open(path, "test").unwrap().0
    }

    fn ballots(folder: &Arc<Folder>, me: NodeId) -> SavedBallots {
        let mut ballots = SavedBallots::new(me, Some(VoteSlot::new(folder, None)));
        ballots.boot = Some("of this machine".to_owned());
        ballots
    }

    #[test]
    fn a_new_folder_has_no_memory_and_later_processes_have_that_of_the_first() {
        let path = tempfile::tempdir().unwrap();
        let folder = folder(path.path());
        let mut first = ballots(&folder, node("a", 1));
        assert_eq!(first.load(), None);
        first.store(&lease("leader"), &vote(3)).unwrap();
        first.store(&lease("other"), &vote(4)).unwrap();
        first.store(&lease("leader"), &vote(5)).unwrap();
        drop(first);
        let expected = BTreeMap::from([(lease("leader"), vote(5)), (lease("other"), vote(4))]);
        let mut second = ballots(&folder, node("a", 2));
        let found = second.load().unwrap();
        assert_eq!(found.votes, expected);
        assert_eq!(found.ended, Some(node("a", 1)), "the folder's lock has passed on");
        // A process that stores one vote keeps the others.
        second.store(&lease("other"), &vote(9)).unwrap();
        let found = ballots(&folder, node("a", 3)).load().unwrap();
        assert_eq!(found.votes[&lease("leader")], vote(5));
        assert_eq!((&found.votes[&lease("other")], found.ended), (&vote(9), Some(node("a", 2))));
    }

    #[test]
    fn votes_of_another_router_and_damaged_ones_do_not_count() {
        let path = tempfile::tempdir().unwrap();
        let folder = folder(path.path());
        ballots(&folder, node("a", 1)).store(&lease("leader"), &vote(3)).unwrap();
        assert_eq!(ballots(&folder, node("c", 1)).load(), None);
        let file = path.path().join("slot-votes");
        let whole = std::fs::read(&file).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            std::fs::write(&file, damaged).unwrap();
            assert_eq!(ballots(&folder, node("a", 2)).load(), None, "byte {at}");
        }
        std::fs::write(&file, &whole[..whole.len() - 1]).unwrap();
        assert_eq!(ballots(&folder, node("a", 2)).load(), None);
        // A sealed folder that the configured keys do not open.
        let mut locked = SavedBallots::new(node("a", 2), None);
        assert_eq!(locked.load(), None);
        assert!(locked.store(&lease("leader"), &vote(9)).is_err());
    }

    #[test]
    fn the_process_before_may_go_on_elsewhere_unless_it_ran_in_this_boot() {
        let path = tempfile::tempdir().unwrap();
        let folder = folder(path.path());
        let mut moved = ballots(&folder, node("a", 1));
        moved.boot = Some("of another machine".to_owned());
        moved.store(&lease("leader"), &vote(3)).unwrap();
        let found = ballots(&folder, node("a", 2)).load().unwrap();
        assert_eq!((found.votes.len(), found.ended), (1, None));
        ballots(&folder, node("a", 2)).store(&lease("leader"), &vote(3)).unwrap();
        let mut unknown = ballots(&folder, node("a", 3));
        unknown.boot = None;
        assert_eq!(unknown.load().unwrap().ended, None);
    }

    #[test]
    fn the_process_before_may_go_on_if_its_lock_file_was_deleted_or_the_folder_is_a_copy() {
        let path = tempfile::tempdir().unwrap();
        let (original, copy) = (path.path().join("data"), path.path().join("copy"));
        let first = folder(&original);
        ballots(&first, node("a", 1)).store(&lease("leader"), &vote(3)).unwrap();
        std::fs::create_dir(&copy).unwrap();
        std::fs::copy(original.join("slot-votes"), copy.join("slot-votes")).unwrap();
        std::fs::remove_file(original.join("LOCK")).unwrap();
        for path in [original, copy] {
            let second = folder(&path);
            let found = ballots(&second, node("a", 2)).load().unwrap();
            assert_eq!((found.votes.len(), found.ended), (1, None), "{path:?}");
        }
    }

    #[test]
    fn a_folder_that_is_removed_is_made_anew_and_has_all_votes() {
        let path = tempfile::tempdir().unwrap();
        let inner = path.path().join("data");
        let folder = folder(&inner);
        let mut first = ballots(&folder, node("a", 1));
        first.store(&lease("leader"), &vote(3)).unwrap();
        std::fs::remove_dir_all(&inner).unwrap();
        assert_eq!(ballots(&folder, node("a", 2)).load(), None, "what was there is lost");
        first.store(&lease("other"), &vote(4)).unwrap();
        assert_eq!(ballots(&folder, node("a", 2)).load().unwrap().votes.len(), 2);
        // Another process has the folder now: its votes must not be replaced.
        std::fs::remove_dir_all(&inner).unwrap();
        let others = Folder::open(&inner, "another").unwrap().0;
        ballots(&others, node("a", 9)).store(&lease("leader"), &vote(8)).unwrap();
        let error = first.store(&lease("leader"), &vote(9)).unwrap_err();
        assert!(error.0.contains("in use by another"), "{error}");
        assert_eq!(ballots(&others, node("a", 10)).load().unwrap().votes.len(), 1);
    }

    #[test]
    fn a_slow_disk_is_waited_for_once_and_then_votes_are_refused_until_it_has_answered() {
        let (values, taken) = sync_channel::<Vec<u8>>(1);
        let (results_tx, results) = sync_channel(1);
        let mut writer = Writer { values, results, is_late: false };
        assert!(writer.write(vec![1]).unwrap_err().contains("200ms"));
        assert!(writer.write(vec![2]).unwrap_err().contains("slow"));
        assert_eq!(taken.recv().unwrap(), [1]);
        results_tx.send(Ok(())).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let value = taken.recv().unwrap();
                results_tx.send(Err(io::Error::other(format!("{value:?}")))).unwrap();
            });
            assert_eq!(writer.write(vec![3]), Err("[3]".to_owned()), "its own answer");
        });
    }
}
