//! The radix routing tree: which workers have served which prompt prefix.
//!
//! A prompt is cut into fixed blocks of bytes; each block's 64-bit hash is chained with its parent's, so that one number
//! names a whole prefix and the tree is a flat map from number to workers.

/// Bounds of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Blocks that are remembered at most, over all models; least recently used out first.
    pub max_entries: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { max_entries: 1 << 20 }
    }
}
