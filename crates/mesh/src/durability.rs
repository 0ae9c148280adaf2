//! Keeps the state of the cluster node on disk, if there is a data folder.
//!
//! The driver hands over what has changed ([`DiskHandle::push`]) and never waits. A thread of its own (`keeper`) writes it:
//! a disk may take seconds for a sync. What waits is a map of keys, so a slow disk costs no more memory than the state has.
//! The ring of shared keys has a file of its own (`vault`), which also holds the key with which the files are sealed. `data`
//! opens the folder and loads what an earlier process has left. `votes` stores the votes on leases, which must not wait in a
//! queue.

mod data;
mod handle;
mod keeper;
mod metrics;
mod vault;
mod votes;

pub(super) use data::Data;
pub(super) use handle::DiskHandle;
pub use handle::{DataConfig, Durability};
pub use metrics::Metrics as DiskMetrics;
