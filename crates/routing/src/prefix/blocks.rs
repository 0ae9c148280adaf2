//! Hashes a prompt in blocks without copying it.
//!
//! The prompt is the concatenation of its segments (tools, system, messages) and is read as one run of bytes. Only a block that
//! spans two segments is copied, to the stack. Each block has exactly [`BLOCK_BYTES`] bytes, so the fraction of matched blocks is
//! the fraction of matched bytes. The boundary between two segments is not hashed: segments are JSON values, which delimit
//! themselves, and a confusion would cost a cache hit at most.
//!
//! `link(parent, block) = xxh3_64(le64(parent) ++ le64(xxh3_64(block)))`. Neither hash has a seed, because with a seed xxh3
//! derives a new secret for each input above 240 bytes. The hash of the block does not depend on the parent, so the processor
//! works on several blocks at once.

use smg_types::ids::ModelId;
use xxhash_rust::xxh3::xxh3_64;

/// Size of a block in bytes.
pub const BLOCK_BYTES: usize = 256;

/// The hash that the chains of a model begin with: equal on all routers, different for each model.
#[must_use]
pub fn root(model: &ModelId) -> u64 {
    xxh3_64(model.as_str().as_bytes())
}

/// Replaces the content of `blocks` by the chained hashes of the prompt made of `segments`, head first.
///
/// The incomplete block at the end is dropped, because the next turn of the conversation does not contain it: that turn
/// continues where this prompt has its closing bracket. A prompt shorter than one block is hashed whole, as one block. A prompt
/// without bytes has no blocks. None of the hashes is 0.
pub fn chain(root: u64, segments: &[&[u8]], blocks: &mut Vec<u64>) {
    blocks.clear();
    let mut parent = root;
    let mut straddling = [0; BLOCK_BYTES];
    let mut held = 0;
    for segment in segments {
        let mut rest = *segment;
        if held > 0 {
            let take = rest.len().min(BLOCK_BYTES - held);
            straddling[held..held + take].copy_from_slice(&rest[..take]);
            held += take;
            rest = &rest[take..];
            if held < BLOCK_BYTES {
                continue;
            }
            parent = link(parent, &straddling);
            blocks.push(parent);
        }
        let (full, tail) = rest.as_chunks::<BLOCK_BYTES>();
        for block in full {
            parent = link(parent, block);
            blocks.push(parent);
        }
        straddling[..tail.len()].copy_from_slice(tail);
        held = tail.len();
    }
    if blocks.is_empty() && held > 0 {
        blocks.push(link(parent, &straddling[..held]));
    }
}

/// The hash of the prefix that ends with `block` and continues the prefix with the hash `parent`.
fn link(parent: u64, block: &[u8]) -> u64 {
    let mut pair = [0; 16];
    pair[..8].copy_from_slice(&parent.to_le_bytes());
    pair[8..].copy_from_slice(&xxh3_64(block).to_le_bytes());
    // The table marks a free slot by the key 0.
    xxh3_64(&pair).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks_of(segments: &[&[u8]]) -> Vec<u64> {
        let mut blocks = vec![7];
        chain(root(&ModelId::from("m")), segments, &mut blocks);
        blocks
    }

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i * i % 251) as u8).collect()
    }

    #[test]
    fn a_longer_prompt_begins_with_the_blocks_of_its_head() {
        let long = text(8192);
        let all = blocks_of(&[&long]);
        assert_eq!(all.len(), 32);
        for len in [256, 300, 511, 512, 5000, 8191] {
            let head = blocks_of(&[&long[..len]]);
            assert_eq!(head.len(), len / BLOCK_BYTES);
            assert_eq!(head[..], all[..head.len()], "{len} bytes");
        }
    }

    #[test]
    fn segments_are_one_run_of_bytes() {
        let whole = text(2000);
        let expected = blocks_of(&[&whole]);
        for (a, b) in
            [(0, 0), (1, 2), (255, 256), (256, 512), (100, 1999), (700, 701), (2000, 2000)]
        {
            let cut = blocks_of(&[&whole[..a], &whole[a..b], &whole[b..]]);
            assert_eq!(cut, expected, "cut at {a} and {b}");
        }
    }

    #[test]
    fn the_tail_of_an_earlier_segment_is_hashed() {
        let messages = text(1000);
        assert_ne!(blocks_of(&[b"tools A", &messages]), blocks_of(&[b"tools B", &messages]));
    }

    #[test]
    fn a_prompt_without_a_full_block_is_hashed_whole() {
        assert_eq!(blocks_of(&[]), Vec::<u64>::new());
        assert_eq!(blocks_of(&[b"", b""]), Vec::<u64>::new());
        assert_eq!(blocks_of(&[b"hello"]).len(), 1);
        assert_eq!(blocks_of(&[b"hel", b"lo"]), blocks_of(&[b"hello"]));
        assert_ne!(blocks_of(&[b"hello"]), blocks_of(&[b"hullo"]));
        assert_eq!(blocks_of(&[&text(255)]).len(), 1);
    }

    #[test]
    fn one_changed_byte_changes_all_blocks_from_there() {
        let mut prompt = text(4096);
        let before = blocks_of(&[&prompt]);
        prompt[5 * BLOCK_BYTES] ^= 1;
        let after = blocks_of(&[&prompt]);
        assert_eq!(before[..5], after[..5]);
        assert!(before[5..].iter().zip(&after[5..]).all(|(a, b)| a != b));
    }

    #[test]
    fn models_do_not_share_prefixes() {
        let (mut a, mut b) = (Vec::new(), Vec::new());
        let prompt = text(512);
        chain(root(&ModelId::from("a")), &[&prompt], &mut a);
        chain(root(&ModelId::from("b")), &[&prompt], &mut b);
        assert!(a.iter().zip(&b).all(|(a, b)| a != b));
    }

    #[test]
    fn the_hashes_are_the_same_in_every_version() {
        let prompt = text(600);
        let blocks = blocks_of(&[&prompt]);
        assert_eq!(format!("{blocks:016x?}"), "[9791dd1b81c319ae, 7f9cdd6f7fe42f14]");
    }
}
