//! A disk in memory that does what real ones do at the worst moment.

use std::collections::BTreeMap;
use std::io;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use smg_persist::Disk;

/// What is wrong with the disk at present.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// The share of calls that fail, in percent.
    pub(crate) failing: u32,
    /// No more bytes fit. An append writes a part of its bytes first.
    pub(crate) full: bool,
    /// Nothing can be written.
    pub(crate) read_only: bool,
    /// The folder was removed with all files; open files can still be written.
    pub(crate) removed: bool,
    /// A sync does nothing.
    pub(crate) lying: bool,
}

#[derive(Debug, Clone, Default)]
struct SimFile {
    /// What a reader sees.
    data: Vec<u8>,
    /// What is on disk for certain.
    durable: Vec<u8>,
    /// A sync has failed: what had not been synced then is never written, although later syncs succeed.
    dropped_up_to: usize,
}

#[derive(Debug, Clone)]
enum NameChange {
    Link(String, usize),
    Unlink(String),
}

/// A disk in memory.
#[derive(Debug)]
pub(crate) struct SimDisk {
    pub(crate) faults: Faults,
    files: Vec<SimFile>,
    names: BTreeMap<String, usize>,
    durable_names: BTreeMap<String, usize>,
    /// Changes of names that are not synced yet, in their order. A crash keeps the first ones.
    name_changes: Vec<Vec<NameChange>>,
    open: BTreeMap<String, usize>,
    rng: StdRng,
}

impl SimDisk {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            faults: Faults::default(),
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            name_changes: Vec::new(),
            open: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The process and the machine end. What was not synced is lost, whole or in part.
    pub(crate) fn crash(&mut self) {
        let kept = self.rng.random_range(0..=self.name_changes.len());
        for change in self.name_changes.drain(..).take(kept).flatten() {
            apply(&mut self.durable_names, change);
        }
        self.names = self.durable_names.clone();
        self.open.clear();
        for file in &mut self.files {
            let rest = file.data.get(file.durable.len()..).unwrap_or_default();
            match self.rng.random_range(0..4) {
                0 => {}
                1 => {
                    // The length reached the disk, the bytes did not.
                    let length = self.rng.random_range(0..=rest.len());
                    file.durable.resize(file.durable.len() + length, 0);
                }
                _ => {
                    let length = self.rng.random_range(0..=rest.len());
                    file.durable.extend(&rest[..length]);
                }
            }
            file.data.clone_from(&file.durable);
            file.dropped_up_to = 0;
        }
    }

    /// Flips a bit of any file, or cuts off its end; returns whether there was one.
    pub(crate) fn damage(&mut self, is_cut: bool) -> bool {
        let candidates: Vec<usize> =
            self.names.values().copied().filter(|id| !self.files[*id].data.is_empty()).collect();
        if candidates.is_empty() {
            return false;
        }
        let file = &mut self.files[candidates[self.rng.random_range(0..candidates.len())]];
        let at = self.rng.random_range(0..file.data.len());
        if is_cut {
            file.data.truncate(at);
        } else {
            file.data[at] ^= 1 << self.rng.random_range(0..8u32);
        }
        file.durable.clone_from(&file.data);
        true
    }

    /// Removes the folder with all that is in it.
    pub(crate) fn remove_folder(&mut self) {
        self.faults.removed = true;
        self.names.clear();
        self.durable_names.clear();
        self.name_changes.clear();
    }

    fn may_fail(&mut self) -> io::Result<()> {
        if self.rng.random_range(0..100) < self.faults.failing {
            return Err(io::Error::other("the disk fails"));
        }
        Ok(())
    }

    fn may_write(&mut self) -> io::Result<()> {
        self.may_fail()?;
        if self.faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        Ok(())
    }

    fn may_name(&mut self) -> io::Result<()> {
        self.may_write()?;
        if self.faults.removed {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(())
    }

    fn change_names(&mut self, changes: Vec<NameChange>) {
        for change in &changes {
            apply(&mut self.names, change.clone());
        }
        self.name_changes.push(changes);
    }

    fn id(&self, name: &str) -> io::Result<usize> {
        self.names.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn open_id(&self, name: &str) -> io::Result<usize> {
        self.open.get(name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn apply(names: &mut BTreeMap<String, usize>, change: NameChange) {
    match change {
        NameChange::Link(name, id) => names.insert(name, id),
        NameChange::Unlink(name) => names.remove(&name),
    };
}

impl Disk for SimDisk {
    fn names(&mut self) -> io::Result<Vec<String>> {
        if self.faults.removed {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(self.names.keys().cloned().collect())
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        let id = self.id(name)?;
        Ok(self.files[id].data.clone())
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        self.may_name()?;
        let id = self.files.len();
        self.files.push(SimFile::default());
        self.change_names(vec![NameChange::Link(name.to_owned(), id)]);
        self.open.insert(name.to_owned(), id);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let id = self.open_id(name)?;
        let written = match self.may_write() {
            Ok(()) if !self.faults.full => bytes.len(),
            Ok(()) | Err(_) => self.rng.random_range(0..=bytes.len()),
        };
        if self.faults.read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.files[id].data.extend(&bytes[..written]);
        if written < bytes.len() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        let id = self.open_id(name)?;
        let result = self.may_write();
        let file = &mut self.files[id];
        if result.is_err() {
            file.dropped_up_to = file.data.len();
            return result;
        }
        if !self.faults.lying {
            let from = file.durable.len();
            file.durable.clone_from(&file.data);
            for at in from..file.dropped_up_to {
                file.durable[at] = 0;
            }
        }
        Ok(())
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        self.may_name()?;
        let id = self.id(from)?;
        let changes =
            vec![NameChange::Unlink(from.to_owned()), NameChange::Link(to.to_owned(), id)];
        self.change_names(changes);
        if let Some(id) = self.open.remove(from) {
            self.open.insert(to.to_owned(), id);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.may_name()?;
        self.id(name)?;
        self.change_names(vec![NameChange::Unlink(name.to_owned())]);
        self.open.remove(name);
        Ok(())
    }

    fn sync_names(&mut self) -> io::Result<()> {
        self.may_name()?;
        if !self.faults.lying {
            self.durable_names = self.names.clone();
            self.name_changes.clear();
        }
        Ok(())
    }

    fn check(&mut self) -> io::Result<()> {
        let Faults { full, read_only, removed, .. } = self.faults;
        let is_there = |(name, id): (&String, &usize)| self.names.get(name) == Some(id);
        if removed || !self.open.iter().all(is_there) {
            return Err(io::ErrorKind::NotFound.into());
        }
        if read_only {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        if full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.may_write()?;
        self.open.clear();
        self.faults.removed = false;
        Ok(())
    }
}
