//! A voter's memory in the simulator: one that survives restarts or none, and whose writes may fail.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use smg_lease::{LeaseName, NotStored, StoredVote, Votes};

#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    content: Arc<Mutex<Option<BTreeMap<LeaseName, StoredVote>>>>,
    remembers: bool,
    /// Writes until one fails; it counts down. `None`: none fails.
    fails_in: Arc<Mutex<Option<u32>>>,
}

impl Disk {
    pub(crate) fn new(remembers: bool) -> Self {
        let fails_in = Arc::new(Mutex::new(remembers.then_some(7)));
        Self { remembers, fails_in, ..Self::default() }
    }

    /// From now on, no write fails.
    pub(crate) fn repair(&self) {
        *self.fails_in.lock().unwrap() = None;
    }
}

impl Votes for Disk {
    fn load(&mut self) -> Option<BTreeMap<LeaseName, StoredVote>> {
        self.content.lock().unwrap().clone().filter(|_| self.remembers)
    }

    fn store(&mut self, lease: &LeaseName, vote: &StoredVote) -> Result<(), NotStored> {
        if let Some(writes) = self.fails_in.lock().unwrap().as_mut() {
            *writes = writes.checked_sub(1).unwrap_or(7);
            if *writes == 0 {
                return Err(NotStored("the disk is full".to_owned()));
            }
        }
        let mut content = self.content.lock().unwrap();
        content.get_or_insert_default().insert(lease.clone(), vote.clone());
        Ok(())
    }
}
