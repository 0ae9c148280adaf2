//! The radix routing tree: which workers have served which prompt prefix.
//!
//! A prompt is cut into fixed blocks of bytes; each block's 64-bit hash is chained with its parent's, so that one number
//! names a whole prefix and the tree is a flat map from number to workers ([`Index`]). Nothing here knows text, tokens
//! or models: a model is the number that a chain begins with ([`root`]).
//!
//! What the index says is a hint. It may have forgotten what a worker still has, it may remember what a worker has
//! dropped, and two prompts may share a number; each of these costs a cache hit and nothing else.

mod blocks;
mod index;
mod metrics;
mod table;
pub(crate) mod workers;

#[cfg(test)]
mod tests;

pub use blocks::{BLOCK_BYTES, MAX_BLOCKS, chain, root};
pub use index::{Index, Match};
pub use metrics::Metrics;

/// Bounds of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Blocks that are remembered at most, over all models; least recently used out first. One costs up to 52 bytes.
    pub max_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_entries: 1 << 20 }
    }
}
