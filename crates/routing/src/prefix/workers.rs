//! Small handles for workers. All handles of a worker can be invalidated at once.
//!
//! Searching a table of a million entries when a worker leaves would take too long. So entries hold a [`Handle`]: the index of a
//! slot, and the generation that the slot had. Forgetting a worker increases the generation of its slot, which makes all handles
//! to it dead. Slots are reused, so their number is bounded by the number of workers that are known at once.

use std::collections::HashMap;
use std::sync::Arc;

use smg_types::ids::WorkerId;

use super::capacity::Cache;

/// A reference to a worker in 4 bytes. The default is always dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Handle(u32);

impl Handle {
    /// Refers to no worker; the default.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self(0);

    const fn new(slot: u16, generation: u16) -> Self {
        Self((generation as u32) << 16 | slot as u32)
    }

    const fn slot(self) -> usize {
        (self.0 & 0xffff) as usize
    }

    const fn generation(self) -> u16 {
        (self.0 >> 16) as u16
    }
}

/// The handles of all known workers.
#[derive(Debug, Default)]
pub(crate) struct WorkerHandles {
    slots: Vec<Slot>,
    by_id: HashMap<WorkerId, u16>,
    free: Vec<u16>,
}

#[derive(Debug)]
struct Slot {
    worker: WorkerId,
    cache: Arc<Cache>,
    /// Never 0, so that no handle equals the default. It wraps after 65,535 workers of one slot were forgotten; a handle
    /// that old has been swept or evicted long before.
    generation: u16,
    /// The slot belongs to a known worker.
    taken: bool,
}

impl WorkerHandles {
    /// Most workers that can be known at once. Further workers get no handle.
    const MAX: usize = 1 << 16;

    /// The handle of `worker`, if it has one.
    pub(crate) fn handle(&self, worker: WorkerId) -> Option<Handle> {
        let slot = *self.by_id.get(&worker)?;
        Some(Handle::new(slot, self.slots[usize::from(slot)].generation))
    }

    /// The handle of `worker`, a new one if it had none; `None` if there are too many workers.
    pub(crate) fn get_or_assign(&mut self, worker: WorkerId) -> Option<Handle> {
        if let Some(known) = self.handle(worker) {
            return Some(known);
        }
        let slot = match self.free.pop() {
            Some(slot) => {
                let reused = &mut self.slots[usize::from(slot)];
                reused.worker = worker;
                reused.cache = Arc::default();
                reused.taken = true;
                slot
            }
            None if self.slots.len() < Self::MAX => {
                self.slots.push(Slot { worker, cache: Arc::default(), generation: 1, taken: true });
                u16::try_from(self.slots.len() - 1).expect("fewer slots than MAX")
            }
            None => return None,
        };
        self.by_id.insert(worker, slot);
        self.handle(worker)
    }

    /// Invalidates all handles of `worker`. Returns whether it had one.
    pub(crate) fn forget(&mut self, worker: WorkerId) -> bool {
        let Some(slot) = self.by_id.remove(&worker) else { return false };
        let left = &mut self.slots[usize::from(slot)];
        left.generation = left.generation.checked_add(1).unwrap_or(1);
        left.taken = false;
        self.free.push(slot);
        true
    }

    /// The worker that `handle` refers to; `None` if the handle is dead.
    pub(crate) fn id_of(&self, handle: Handle) -> Option<WorkerId> {
        self.slot(handle).map(|slot| slot.worker)
    }

    /// The worker that `handle` refers to and its cache; `None` if the handle is dead.
    pub(crate) fn cache_of(&self, handle: Handle) -> Option<(WorkerId, &Arc<Cache>)> {
        self.slot(handle).map(|slot| (slot.worker, &slot.cache))
    }

    fn slot(&self, handle: Handle) -> Option<&Slot> {
        let slot = self.slots.get(handle.slot())?;
        (slot.taken && slot.generation == handle.generation()).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId::from_u64(1);
    const B: WorkerId = WorkerId::from_u64(2);

    #[test]
    fn a_forgotten_worker_has_no_living_handle() {
        let mut workers = WorkerHandles::default();
        let old = workers.get_or_assign(A).unwrap();
        assert_eq!(workers.get_or_assign(A), Some(old));
        assert_eq!(workers.id_of(old), Some(A));
        assert!(workers.forget(A) && !workers.forget(A));
        assert_eq!((workers.id_of(old), workers.handle(A)), (None, None));
        let taken_over = workers.get_or_assign(B).unwrap();
        let back = workers.get_or_assign(A).unwrap();
        assert_eq!((workers.id_of(taken_over), workers.id_of(back)), (Some(B), Some(A)));
        assert_eq!(workers.id_of(old), None);
        assert_eq!(workers.slots.len(), 2, "the slot was not reused");
    }

    #[test]
    fn the_handle_of_no_worker_is_dead_and_generations_wrap_without_it() {
        let mut workers = WorkerHandles::default();
        for _ in 0..70_000 {
            let handle = workers.get_or_assign(A).unwrap();
            assert_ne!(handle, Handle::NONE);
            workers.forget(A);
            assert_eq!(workers.id_of(handle), None);
            assert_eq!(workers.id_of(Handle::NONE), None);
        }
    }

    #[test]
    fn workers_above_the_bound_get_no_handle() {
        let mut workers = WorkerHandles::default();
        for id in 0..WorkerHandles::MAX as u64 {
            assert!(workers.get_or_assign(WorkerId::from_u64(id)).is_some());
        }
        assert_eq!(workers.get_or_assign(WorkerId::from_u64(u64::MAX)), None);
        workers.forget(WorkerId::from_u64(5));
        assert!(workers.get_or_assign(WorkerId::from_u64(u64::MAX)).is_some());
    }
}
