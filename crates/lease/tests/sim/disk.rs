//! A voter's memory in the simulator: one that survives restarts or none, and whose writes may fail.

use std::sync::{Arc, Mutex};

use smg_lease::{LeaseName, NotStored, Remembered, StoredVote, Votes};
use smg_types::ids::NodeId;

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    content: Arc<Mutex<Option<Remembered>>>,
    remembers: bool,
    /// The process that uses the disk.
    user: Option<NodeId>,
    /// Writes until one fails; it counts down. `None`: none fails.
    fails_in: Arc<Mutex<Option<u32>>>,
}

impl Disk {
    pub(crate) fn new(remembers: bool) -> Self {
        let fails_in = Arc::new(Mutex::new(remembers.then_some(7)));
        Self { remembers, fails_in, ..Self::default() }
    }

    /// The same disk for a process that starts. The one before has ended.
    pub(crate) fn used_by(&self, user: NodeId) -> Self {
        Self { user: Some(user), ..self.clone() }
    }

    /// From now on, no write fails.
    pub(crate) fn repair(&self) {
        *self.fails_in.lock().unwrap() = None;
    }
}

impl Votes for Disk {
    fn load(&mut self) -> Option<Remembered> {
        self.content.lock().unwrap().clone().filter(|_| self.remembers)
    }

    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored> {
        let mut fails = false;
        if let Some(writes) = self.fails_in.lock().unwrap().as_mut() {
            *writes = writes.checked_sub(1).unwrap_or(7);
            fails = *writes == 0;
        }
        // A write that fails may be there all the same.
        if !fails || vote.promised.0.is_multiple_of(2) {
            let mut content = self.content.lock().unwrap();
            let content = content.get_or_insert_default();
            content.votes.insert(lease.clone(), vote.clone());
            content.ended.clone_from(&self.user);
        }
        if fails { Err(NotStored("the disk is full".to_owned())) } else { Ok(()) }
    }
}
