//! The faults, and how a plan of them is played.

use std::time::Duration;

use rand::RngExt;
use rand::rngs::StdRng;
use smg_cluster::state::policy::{PolicyRecord, PolicyWrite};
use smg_types::ids::{Generation, ModelId};

use crate::checks::Violation;
use crate::lies::lie;
use crate::world::{Net, World, address_number};

/// A fault, or the end of faults.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// Each frame is lost with this chance.
    Drop(f64),
    /// Each frame arrives twice with this chance.
    Duplicate(f64),
    /// Each frame takes a time between these two.
    Delay(Duration, Duration),
    /// Each frame is held back with this chance, by up to this time.
    Reorder(f64, Duration),
    /// One bit of each frame is flipped with this chance.
    Corrupt(f64),
    /// No frame gets from the first slot to the second.
    CutOneWay(usize, usize),
    /// Slots with different numbers can't reach each other.
    Partition(Vec<u8>),
    /// Frames from the first slot to the second take this much longer.
    SlowLink(usize, usize, Duration),
    /// The network has no fault any more.
    Heal,
    Crash(usize),
    /// A process starts in a slot, unless one runs there.
    Start(usize),
    /// The disk is lost: the next start knows only its clock.
    LoseDisk(usize),
    /// The wall clock of a slot jumps by this many milliseconds.
    ClockJump(usize, i64),
    /// The process is stopped (SIGSTOP), and goes on this much later.
    Stall(usize, Duration),
    /// The process of a slot goes on, or will start, at another address.
    Move(usize, u16),
    /// The process leaves: it is LEAVING for this long, then gone.
    Leave(usize, Duration),
    /// A frame that no honest node sends is sent to a random slot.
    Lie,
    /// Random bytes are sent to a slot.
    Garbage(usize),
    /// A slot writes something random.
    Write(usize),
    /// A slot writes a row that is too large.
    WriteTooMuch(usize),
    /// A process starts with the same name as another slot.
    Namesake {
        of: usize,
        address: u16,
    },
    /// A process of another cluster starts and sends join probes to this cluster.
    Foreigner {
        address: u16,
    },
}

/// Faults, each with its time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    pub faults: Vec<(Duration, Fault)>,
}

impl Plan {
    pub(crate) fn at(&mut self, millis: u64, fault: Fault) {
        self.faults.push((Duration::from_millis(millis), fault));
    }

    /// Adds writes on all slots throughout the plan.
    pub(crate) fn add_writes(&mut self, rng: &mut StdRng, slots: usize) {
        let last = self.faults.iter().map(|(at, _)| *at).max().unwrap_or_default();
        for _ in 0..rng.random_range(10..60) {
            let at = last.mul_f64(rng.random());
            self.faults.push((at, Fault::Write(rng.random_range(0..slots))));
        }
        if rng.random_bool(0.1) {
            self.faults.push((last, Fault::WriteTooMuch(rng.random_range(0..slots))));
        }
    }

    /// Plays the plan. Returns at the time of the last fault.
    pub(crate) fn play(&self, world: &mut World) -> Result<(), Violation> {
        let mut faults = self.faults.clone();
        faults.sort_by_key(|(at, _)| *at);
        for (at, fault) in faults {
            world.run_until(at)?;
            inflict(world, fault)?;
        }
        Ok(())
    }
}

/// Lets one fault happen now.
pub(crate) fn inflict(world: &mut World, fault: Fault) -> Result<(), Violation> {
    if !matches!(fault, Fault::Write(_) | Fault::Lie) {
        world.note(&format!("fault: {fault:?}"));
    }
    match fault {
        Fault::Drop(p) => world.net.drop = p,
        Fault::Duplicate(p) => world.net.duplicate = p,
        Fault::Delay(least, most) => world.net.latency = (least, most),
        Fault::Reorder(p, late) => (world.net.reorder, world.net.late) = (p, late),
        Fault::Corrupt(p) => world.net.corrupt = p,
        Fault::CutOneWay(from, to) => {
            world.net.cut.insert((from, to));
        }
        Fault::Partition(groups) => {
            let group = |slot: usize| groups.get(slot).copied().unwrap_or_default();
            for a in 0..world.slots.len() {
                for b in 0..world.slots.len() {
                    if group(a) != group(b) {
                        world.net.cut.insert((a, b));
                    }
                }
            }
        }
        Fault::SlowLink(from, to, by) => {
            world.net.slow.insert((from, to), by);
        }
        Fault::Heal => world.net = Net::clean(),
        Fault::Crash(slot) => world.crash(slot),
        Fault::Start(slot) => {
            // Two processes can't be bound to one address.
            let address = world.slots[slot].address;
            if world.slots[slot].process.is_none() && !world.is_taken(address, slot) {
                world.start(slot)?;
            }
        }
        Fault::LoseDisk(slot) => world.slots[slot].disk = None,
        Fault::ClockJump(slot, by) => world.slots[slot].clock_error += by,
        Fault::Stall(slot, time) => world.stall(slot, time),
        Fault::Move(slot, address) => {
            if !world.is_taken(address_number(address), slot) {
                world.readdress(slot, address)?;
            }
        }
        Fault::Leave(slot, drain) => world.leave(slot, drain)?,
        Fault::Garbage(slot) => {
            let length = world.rng.random_range(0..2000);
            let bytes = (0..length).map(|_| world.rng.random()).collect();
            let to = world.slots[slot].address;
            world.transmit(slot, address_number(60_000), to, bytes);
        }
        Fault::Lie => {
            // There is nobody to lie to while no node runs.
            let _sent = lie(world).is_some();
        }
        Fault::Write(slot) => world.write_something(slot)?,
        Fault::WriteTooMuch(slot) => {
            let policy = "p".repeat(2 << 20);
            let (parameters, weights) = Default::default();
            let record = PolicyRecord { policy, parameters, weights };
            world
                .write(slot, PolicyWrite { model: ModelId::from("large"), policy: Some(record) })?;
        }
        Fault::Namesake { of, address } => {
            let name = world.slots[of].name.clone();
            let config = world.slots[of].config.clone();
            let slot = world.add(name.as_str(), address, &config);
            world.slots[slot].seeds = world.slots[of].seeds.clone();
            world.start(slot)?;
        }
        Fault::Foreigner { address } => {
            let config = world.slots[0].config.clone();
            let slot = world.add(&format!("foreign{address}"), address, &config);
            world.slots[slot].seeds = world.slots[0].seeds.clone();
            world.slots[slot].cluster = smg_cluster::codec::ClusterId::of("another");
            world.start(slot)?;
        }
    }
    Ok(())
}

/// Gives every slot a disk that keeps generations.
pub(crate) fn with_disks(world: &mut World) {
    for slot in &mut world.slots {
        slot.disk = Some(Generation(0));
    }
}
