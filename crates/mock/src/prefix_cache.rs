//! The prefix cache of an engine: the blocks of prompts that need no prefill.
//!
//! A prompt is split into blocks of fixed size. The hash of a block is chained with that of its parent, so that it
//! identifies everything before it, too. The cache is a bounded set of such hashes, and evicts the least recently used
//! one. Within one prompt the tail counts as used before the head, so that eviction shortens a prefix instead of
//! removing its root, as engines with paged attention do. Unlike in those, generated tokens are not cached until they
//! are part of the next prompt.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use xxhash_rust::xxh3::xxh3_64_with_seed;

/// A bounded set of block hashes in order of use.
#[derive(Debug)]
pub struct PrefixCache {
    capacity: usize,
    /// The index in `blocks` of each hash.
    places: HashMap<u64, u32, BuildHasherDefault<AlreadyHashed>>,
    /// A doubly linked list in a vector. At capacity the oldest element is reused, so nothing is ever freed.
    blocks: Vec<Block>,
    newest: u32,
    oldest: u32,
}

#[derive(Debug, Clone, Copy)]
struct Block {
    hash: u64,
    newer: u32,
    older: u32,
}

/// The index that means "no block": the end of the list.
const NONE: u32 = u32::MAX;

impl PrefixCache {
    /// An empty cache for at most `capacity` blocks (fewer than 2³² of them).
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        let capacity = capacity.min(NONE as usize - 1);
        Self {
            capacity,
            places: HashMap::default(),
            blocks: Vec::new(),
            newest: NONE,
            oldest: NONE,
        }
    }

    /// The number of `prompt`'s first blocks that are cached. Does not change the order of use; [`PrefixCache::insert`]
    /// does.
    #[must_use]
    pub fn matched(&self, prompt: &[u64]) -> usize {
        prompt.iter().take_while(|hash| self.places.contains_key(hash)).count()
    }

    /// Marks `prompt`'s blocks as used now, the first one as the most recent. If the prompt is longer than the cache,
    /// its head is kept.
    pub fn insert(&mut self, prompt: &[u64]) {
        for hash in prompt.iter().take(self.capacity).rev() {
            if let Some(&place) = self.places.get(hash) {
                self.unlink(place);
                self.link_newest(place);
                continue;
            }
            let block = Block { hash: *hash, newer: NONE, older: NONE };
            let place = if self.blocks.len() < self.capacity {
                self.blocks.push(block);
                u32::try_from(self.blocks.len() - 1).expect("capacity is below 2^32")
            } else {
                let place = self.oldest;
                self.unlink(place);
                self.places.remove(&self.blocks[place as usize].hash);
                self.blocks[place as usize] = block;
                place
            };
            self.places.insert(*hash, place);
            self.link_newest(place);
        }
    }

    /// Removes all blocks.
    pub fn clear(&mut self) {
        *self = Self::new(self.capacity);
    }

    /// The number of cached blocks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.blocks.len()
    }

    /// Whether no block is cached.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    fn unlink(&mut self, place: u32) {
        let Block { newer, older, .. } = self.blocks[place as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
    }

    fn link_newest(&mut self, place: u32) {
        let older = self.newest;
        let block = &mut self.blocks[place as usize];
        (block.newer, block.older) = (NONE, older);
        match older {
            NONE => self.oldest = place,
            older => self.blocks[older as usize].newer = place,
        }
        self.newest = place;
    }
}

/// The chained hashes of `prompt`'s full blocks; `seed` keeps the prefixes of different models apart.
#[must_use]
pub fn block_hashes(prompt: &[u8], block_bytes: usize, seed: u64) -> Vec<u64> {
    let chain = |parent: &mut u64, block: &[u8]| {
        *parent = xxh3_64_with_seed(block, *parent);
        Some(*parent)
    };
    prompt.chunks_exact(block_bytes).scan(seed, chain).collect()
}

/// A hasher that returns the key itself, because the keys are hashes already.
#[derive(Debug, Default)]
struct AlreadyHashed(u64);

impl Hasher for AlreadyHashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _bytes: &[u8]) {
        unreachable!("only u64 keys are hashed");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A slow reference implementation of the cache: hashes in order of use, the newest first.
    #[derive(Default)]
    struct Model(Vec<u64>);

    impl Model {
        fn insert(&mut self, prompt: &[u64], capacity: usize) {
            for hash in prompt.iter().take(capacity).rev() {
                self.0.retain(|known| known != hash);
                self.0.insert(0, *hash);
                self.0.truncate(capacity);
            }
        }
    }

    fn order(cache: &PrefixCache) -> Vec<u64> {
        let mut found = Vec::new();
        let mut place = cache.newest;
        while place != NONE {
            found.push(cache.blocks[place as usize].hash);
            place = cache.blocks[place as usize].older;
        }
        found
    }

    proptest! {
        #[test]
        fn the_cache_behaves_like_the_reference(
            capacity in 0_usize..12,
            prompts in prop::collection::vec(prop::collection::vec(0_u64..24, 0..16), 0..60),
        ) {
            let mut cache = PrefixCache::new(capacity);
            let mut model = Model::default();
            for prompt in prompts {
                let matched = prompt.iter().take_while(|hash| model.0.contains(hash)).count();
                prop_assert_eq!(cache.matched(&prompt), matched);
                cache.insert(&prompt);
                model.insert(&prompt, capacity);
                prop_assert_eq!(order(&cache), model.0.clone());
                prop_assert_eq!(cache.len(), model.0.len());
                prop_assert_eq!(cache.places.len(), model.0.len());
            }
        }
    }

    #[test]
    fn eviction_takes_tails_before_heads() {
        let mut cache = PrefixCache::new(4);
        cache.insert(&[1, 2, 3, 4]);
        cache.insert(&[1, 2, 30]);
        assert_eq!(cache.matched(&[1, 2, 3, 4]), 3, "4 was the oldest tail");
        assert_eq!(cache.matched(&[1, 2, 30]), 3);
    }

    #[test]
    fn a_hash_identifies_all_blocks_before_it() {
        let hashes = |text: &str| block_hashes(text.as_bytes(), 4, 7);
        assert_eq!(hashes("aaaabbbbcc").len(), 2, "only full blocks");
        assert_eq!(hashes("aaaabbbb")[0], hashes("aaaacccc")[0]);
        assert_ne!(hashes("aaaabbbb")[1], hashes("ccccbbbb")[1]);
        assert_ne!(
            block_hashes(b"aaaa", 4, 7),
            block_hashes(b"aaaa", 4, 8),
            "models are kept apart"
        );
    }
}
