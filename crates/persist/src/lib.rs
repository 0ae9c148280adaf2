//! Keeps a small set of keys and values on disk, so that a router that was killed finds them at its next start.
//!
//! A [`Journal`] holds all keys in memory and writes each change into a log. The changes of 50 ms are one *batch*, which is
//! written and synced at once (group commit). When the log has grown, the journal writes a *snapshot* of all keys and begins
//! a new log. [`Slots`] keep single small values, each of which is on disk when the call returns. Both work on a [`Disk`],
//! which is a folder ([`Folder`]) or a simulation in tests. The journal is a state machine: time is an argument, and a
//! thread of the router calls it.
//!
//! **Guaranteed.** After any crash, the recovered keys are those of one moment of the past, and that moment is not before the
//! last sync. A torn or damaged batch ends the log: all batches before it are kept, none after it. The journal always opens.
//! If the disk fails, the journal goes on in memory and reports the cause; when the disk works again, it writes a new
//! snapshot. It never syncs a file again on which a sync has failed, because the system may have dropped the data by then.
//!
//! **Not guaranteed.** A disk that confirms a sync that it has not done loses what was written since. A byte that changes on
//! disk loses the batches after it in the newest log. A byte that changes in the newest snapshot loses nothing, because the
//! snapshot and the log before it are kept.
//!
//! # Why plain files
//!
//! The state is at most some tens of MB, it is in memory anyway, and it is read once, at the start. What matters is what a
//! fault does to it. The statements below are from the libraries' documentation and sources; nothing of them was tried here.
//!
//! * `redb` 4 keeps everything in the pages of one file. A damaged page makes the database unusable as a whole, so nothing of
//!   it can be kept, and after an I/O error it refuses all use until it is opened again. Each commit writes the changed
//!   pages of several trees, which is several times a change of 300 bytes (not measured here).
//! * `fjall` 3 opens its files by itself, so no test can make the disk fail; it allocates 64 MiB for each journal, has threads
//!   of its own for compaction, and is of no use after a failed sync.
//! * `sled` has had no stable release since 2021.
//!
//! Ranges, transactions and memory that is smaller than the data, which these libraries are made for, are not needed here.
//!
//! # Files
//!
//! `snapshot-N` has all keys at one moment, `log-N` the batches since. N grows with each snapshot. The two of the snapshot
//! before stay as well. `slot-NAME` is a slot, `LOCK` the lock with the name of its holder. A name that ends with `.tmp` is
//! that of a file whose writing was not finished. `unreadable-…` is a file that another version or key has written; it is
//! kept until an operator removes it. All files have mode 0600, the folder has 0700.

mod disk;
mod folder;
mod frame;
mod image;
mod journal;
mod names;
mod network;
mod recovery;
mod seal;
mod slots;
mod state;
mod write;

pub use disk::Disk;
pub use folder::{Folder, FolderError, FolderFiles};
pub use image::Batch;
pub use journal::{Config, Fsync, Journal};
pub use network::network_file_system;
pub use recovery::{Loss, Recovered};
pub use seal::{KeyId, NO_KEY, Seal};
pub use slots::{SlotError, Slots};
pub use state::{Counters, State, Turn};
