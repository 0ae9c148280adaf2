//! The radix routing tree: it maps prompt prefixes to the workers that have served them.
//!
//! A prompt is cut into blocks of a fixed number of bytes. The hash of each block is chained with the hash of the block before
//! it, so one 64-bit hash identifies a whole prefix, and the tree is a flat map from hash to workers ([`Index`]). The module
//! knows no text, tokens or models: the chain of a model begins with a hash of its name ([`root`]).
//!
//! The index gives hints. It may have forgotten a prefix that a worker still has, it may remember one that a worker has evicted
//! (it learns from the workers' answers how much their caches hold, and ignores what must have been evicted), and two prefixes may
//! share a hash. Each of these costs a cache hit and nothing else.

mod blocks;
mod capacity;
mod checkpoints;
mod ignored;
mod index;
mod metrics;
mod search;
mod table;
pub(crate) mod workers;

#[cfg(test)]
mod tests;

pub use blocks::{BLOCK_BYTES, chain, root};
pub use capacity::{Evicted, Recall};
pub use ignored::{Hashed, Ignored, MOST_PATTERNS, PatternError, SEARCHED_BYTES};
pub use index::{Index, Unshared};
pub use metrics::Metrics;
pub use search::{Match, Recalls};

/// The bound of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Most blocks that the tree remembers, over all models. It evicts about the least recently used one first. A block costs
    /// up to 72 bytes of memory.
    pub max_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_entries: 1 << 20 }
    }
}
