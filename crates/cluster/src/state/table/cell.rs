//! The rows under one key, at most one per writer: the parts of a row, and their hashes.

use serde::Serialize;
use smallvec::SmallVec;

use crate::state::row::{Blob, ContentRef};
use crate::state::table::not_applied::NotAppliedReason;
use crate::state::writers::{Writer, Writers};

/// Buckets of keys per writer and store; audits compare a fingerprint of each.
pub const BUCKETS: usize = 64;

/// The name of a write: its writer and its version in that writer's log. It is the same in every row that carries it.
pub(super) type Dot = (Writer, u64);
/// Dead dots, at most one entry per writer: all dots of that writer up to the version.
pub(super) type Kills = SmallVec<[Dot; 2]>;

/// The part of a row that its own writer wrote.
#[derive(Debug, Clone)]
pub(super) enum Body<V> {
    /// A live value. Its dot is the row's writer and version.
    Live(V),
    /// No live value.
    Dead,
    /// The whole content, in quarantine, with the reason; `None` if there was no room to keep it.
    Opaque(Option<Blob>, NotAppliedReason),
}

/// A write in a row of another writer.
#[derive(Debug, Clone)]
pub(super) struct Carried<V> {
    pub(super) dot: Dot,
    /// The hash of the key's bytes, seeded by the author of the dot.
    pub(super) key_hash: u64,
    pub(super) value: V,
}

/// The parts of a row that few rows have.
#[derive(Debug, Clone)]
pub(super) struct Extras<V> {
    pub(super) kills: Kills,
    pub(super) carried: Vec<Carried<V>>,
}

#[derive(Debug, Clone)]
pub(super) struct Row<V> {
    pub(super) version: u64,
    /// The hash of the key's bytes, seeded by the author of the row.
    pub(super) key_hash: u64,
    /// Length of the encoded key and content.
    pub(super) bytes: u32,
    pub(super) body: Body<V>,
    pub(super) extras: Option<Box<Extras<V>>>,
}

impl<V> Row<V> {
    pub(super) fn kills(&self) -> &[Dot] {
        self.extras.as_ref().map_or(&[], |extras| &extras.kills)
    }

    pub(super) fn carried(&self) -> &[Carried<V>] {
        self.extras.as_ref().map_or(&[], |extras| &extras.carried)
    }

    /// The value that the row's writer wrote, if it is live.
    pub(super) fn own(&self) -> Option<&V> {
        match &self.body {
            Body::Live(value) => Some(value),
            Body::Dead | Body::Opaque(..) => None,
        }
    }

    /// All live writes in the row, each with its dot; `writer` is the row's writer.
    pub(super) fn writes(&self, writer: Writer) -> impl Iterator<Item = (Dot, &V)> {
        let own = self.own().map(|value| ((writer, self.version), value));
        own.into_iter().chain(self.carried().iter().map(|c| (c.dot, &c.value)))
    }

    /// All dots in the row, each with the hash of its key. A row in quarantine counts as its own dot.
    pub(super) fn dots(&self, writer: Writer) -> impl Iterator<Item = (Dot, u64)> {
        let own = !matches!(self.body, Body::Dead);
        let own = own.then_some(((writer, self.version), self.key_hash));
        own.into_iter().chain(self.carried().iter().map(|c| (c.dot, c.key_hash)))
    }

    pub(super) fn has(&self, writer: Writer, dot: Dot) -> bool {
        self.dots(writer).any(|(has, _)| has == dot)
    }

    pub(super) fn is_opaque(&self) -> bool {
        matches!(self.body, Body::Opaque(..))
    }

    /// Whether the row contains a dot.
    pub(super) fn has_dots(&self) -> bool {
        !matches!(self.body, Body::Dead) || !self.carried().is_empty()
    }

    pub(super) fn is_tombstone(&self) -> bool {
        !self.has_dots() || !self.kills().is_empty()
    }

    /// A hash of the row's writer, key and version. The content is not hashed, so that a router that can't decode a newer
    /// content has the same fingerprint.
    pub(super) fn fingerprint(&self) -> u64 {
        fingerprint_of(self.version, self.key_hash)
    }

    pub(super) fn bucket(&self) -> usize {
        bucket_of(self.key_hash)
    }
}

pub(super) fn fingerprint_of(version: u64, key_hash: u64) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(&version.to_le_bytes(), key_hash)
}

pub(super) fn bucket_of(key_hash: u64) -> usize {
    (key_hash % BUCKETS as u64) as usize
}

pub(super) fn key_hash(writers: &Writers, writer: Writer, key: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(key, writers.author(writer).as_u64())
}

pub(super) fn extras<V>(kills: Kills, carried: Vec<Carried<V>>) -> Option<Box<Extras<V>>> {
    (!kills.is_empty() || !carried.is_empty()).then(|| Box::new(Extras { kills, carried }))
}

/// Adds `dots` to `kills`. Of each writer the highest version stays.
pub(super) fn join_kills(kills: &mut Kills, dots: impl IntoIterator<Item = Dot>) {
    for (writer, version) in dots {
        match kills.iter_mut().find(|(w, _)| *w == writer) {
            Some((_, have)) => *have = version.max(*have),
            None => kills.push((writer, version)),
        }
    }
}

pub(super) fn encode_content<V: Serialize>(
    writers: &Writers,
    add: Option<&V>,
    carried: &[Carried<V>],
    kills: &[Dot],
) -> Option<Vec<u8>> {
    let kills = kills.iter().filter_map(|(w, v)| Some((writers.id(*w)?, *v)));
    let kills: SmallVec<[_; 2]> = kills.collect();
    let carried = carried.iter().filter_map(|c| Some((writers.id(c.dot.0)?, c.dot.1, &c.value)));
    let carried: SmallVec<[_; 2]> = carried.collect();
    ContentRef { add, carried: &carried, kills: &kills }.encode()
}

/// The rows under one key, at most one per writer.
pub(super) type Cell<V> = SmallVec<[(Writer, Row<V>); 1]>;

pub(super) fn has_value<V>(cell: &Cell<V>) -> bool {
    cell.iter().any(|(w, row)| row.writes(*w).next().is_some())
}

/// A length as a row keeps it; no row is longer than 4 GiB.
pub(super) fn saturating_u32(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
