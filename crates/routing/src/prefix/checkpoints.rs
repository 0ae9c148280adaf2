//! Which prefixes of a prompt the index stores.
//!
//! A prompt has a hash for each of its blocks, but a prompt of a megabyte must not fill the index with four thousand entries. The
//! index therefore stores every prefix of up to [`DENSE_BLOCKS`] blocks, and beyond that *checkpoints* at growing distances:
//! [`PER_LEVEL`] of them each time that the length doubles, so that the distance between two is less than a hundredth of the
//! length. The depths of checkpoints depend on nothing but the depth, so the next turn of a conversation has the same ones.
//!
//! Behind its last checkpoint a prompt also stores up to [`FINE_BLOCKS`] prefixes one block apart. They tell apart prompts that
//! share a long head and differ in a short tail. A look-up finds the last known checkpoint, and then looks behind it.

/// Each prefix of up to this number of blocks is stored: 128 KiB.
pub(super) const DENSE_BLOCKS: usize = 512;
/// Checkpoints in each doubling of the length.
const PER_LEVEL: usize = 128;
/// Most prefixes that are stored behind the last checkpoint.
const FINE_BLOCKS: usize = 64;

/// The prefixes of one prompt that the index stores, by their position: 1 is the shortest one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    blocks: &'a [u64],
    checkpoints: usize,
}

impl<'a> Stored<'a> {
    /// The stored prefixes of a prompt whose blocks have these hashes.
    pub(super) fn new(blocks: &'a [u64]) -> Self {
        Self { blocks, checkpoints: checkpoints_within(blocks.len()) }
    }

    /// The number of checkpoints: those at positions `1..=checkpoints`.
    pub(super) fn checkpoints(self) -> usize {
        self.checkpoints
    }

    /// The number of stored prefixes.
    pub(super) fn len(self) -> usize {
        let behind = self.blocks.len() - depth_of(self.checkpoints);
        self.checkpoints + behind.min(FINE_BLOCKS)
    }

    /// The number of blocks of the prefix at `position`.
    pub(super) fn depth(self, position: usize) -> usize {
        let checkpoint = position.min(self.checkpoints);
        depth_of(checkpoint) + (position - checkpoint)
    }

    /// The hash of the prefix at `position`; 0 for position 0.
    pub(super) fn key(self, position: usize) -> u64 {
        match self.depth(position) {
            0 => 0,
            depth => self.blocks[depth - 1],
        }
    }

    /// The same for a prompt that ends with the checkpoint at `position`, as far as this prompt goes on: so the prefixes behind
    /// that checkpoint are those that an earlier, shorter prompt has stored.
    pub(super) fn up_to(self, position: usize) -> Self {
        let checkpoint = position.min(self.checkpoints);
        let next = depth_of(checkpoint + 1);
        Self { blocks: &self.blocks[..self.blocks.len().min(next - 1)], checkpoints: checkpoint }
    }

    /// The hashes of the stored prefixes behind `position`, shortest first.
    pub(super) fn keys_behind(
        self,
        position: usize,
    ) -> impl ExactSizeIterator<Item = u64> + use<'a> {
        (position..self.len()).map(move |at| self.key(at + 1))
    }
}

/// The depth of the checkpoint at `position`, in blocks.
pub(super) fn depth_of(position: usize) -> usize {
    let Some(beyond) = position.checked_sub(DENSE_BLOCKS) else { return position };
    let (level, within) = (beyond / PER_LEVEL, beyond % PER_LEVEL);
    let begin = DENSE_BLOCKS << level;
    begin + within * (begin / PER_LEVEL)
}

/// The position of the last checkpoint that is at most `blocks` deep.
fn checkpoints_within(blocks: usize) -> usize {
    if blocks < DENSE_BLOCKS {
        return blocks;
    }
    let level = (blocks / DENSE_BLOCKS).ilog2() as usize;
    let begin = DENSE_BLOCKS << level;
    DENSE_BLOCKS + level * PER_LEVEL + (blocks - begin) / (begin / PER_LEVEL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_depths_are_inverse() {
        let mut last = 0;
        for position in 1..4000 {
            let depth = depth_of(position);
            assert!(depth > last, "position {position}");
            assert_eq!(checkpoints_within(depth), position);
            assert_eq!(checkpoints_within(depth - 1), position - 1);
            assert!(depth - last == 1 || (depth - last) * 100 <= depth, "position {position}");
            last = depth;
        }
    }

    #[test]
    fn half_a_gigabyte_has_about_two_thousand_prefixes() {
        let most = (512 << 20) / super::super::BLOCK_BYTES;
        assert_eq!(checkpoints_within(most), DENSE_BLOCKS + 12 * PER_LEVEL);
    }

    #[test]
    fn a_short_prompt_stores_each_block_and_a_long_one_its_checkpoints_and_its_tail() {
        let blocks: Vec<u64> = (1..=5000).collect();
        for len in [0, 1, 511, 512] {
            let stored = Stored::new(&blocks[..len]);
            assert_eq!((stored.len(), stored.checkpoints()), (len, len));
            assert!((1..=len).all(|at| stored.key(at) == at as u64 && stored.depth(at) == at));
        }
        let stored = Stored::new(&blocks[..521]);
        assert_eq!((stored.len(), stored.checkpoints()), (512 + 2 + 1, 514));
        assert_eq!(stored.keys_behind(511).collect::<Vec<_>>(), [512, 516, 520, 521]);
        let stored = Stored::new(&blocks);
        assert_eq!(stored.checkpoints(), 512 + 3 * 128 + (5000 - 4096) / 32);
        assert_eq!(stored.depth(stored.len()), 5000);
    }

    #[test]
    fn the_tail_of_an_earlier_turn_is_found_behind_its_last_checkpoint() {
        let blocks: Vec<u64> = (1..=5000).collect();
        let earlier = Stored::new(&blocks[..4110]);
        let later = Stored::new(&blocks).up_to(earlier.checkpoints());
        assert!(later.len() >= earlier.len());
        assert!((1..=earlier.len()).all(|at| later.key(at) == earlier.key(at)));
    }
}
