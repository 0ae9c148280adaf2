//! Limits the memory of request bodies: each body is bounded, and so is the sum of all.

use bytes::Bytes;

use super::error::ApiError;
use super::metrics::Metrics;

/// The bytes that one request's body holds in memory. Released when dropped.
#[derive(Debug)]
pub(super) struct Held {
    metrics: Metrics,
    bytes: usize,
    most: usize,
}

impl Held {
    /// A count of zero. All requests together may hold at most `most` bytes.
    pub(super) fn new(metrics: &Metrics, most: usize) -> Self {
        Self { metrics: metrics.clone(), bytes: 0, most }
    }

    /// The bytes that it holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds bytes to the count.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), ApiError> {
        // The bytes are counted first, so that two requests can't both use the last room. At worst neither can.
        self.metrics.buffered.add(count(bytes));
        self.bytes += bytes;
        if self.metrics.buffered.get() <= count(self.most) {
            return Ok(());
        }
        self.metrics.buffered_refused.inc();
        Err(ApiError::no_room())
    }
}

/// A body that grows, in one piece of memory.
///
/// A body beyond [`Whole::SMALL`] is moved only once, into room for all that it may become, so that it never takes twice its
/// size. The system gives a page of that room when it is first written to, so room that stays unused costs nothing.
#[derive(Debug)]
pub(super) struct Whole {
    bytes: Vec<u8>,
    most: usize,
}

impl Whole {
    /// Bodies up to this many bytes grow by doubling.
    const SMALL: usize = 1 << 20;

    /// An empty body that will have at most `most` bytes.
    pub(super) fn new(most: usize) -> Self {
        Self { bytes: Vec::new(), most }
    }

    /// The bytes so far.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Appends `data`.
    pub(super) fn push(&mut self, data: &[u8]) {
        self.room(data.len()).extend_from_slice(data);
    }

    /// The body, with room for `more` bytes after it.
    pub(super) fn room(&mut self, more: usize) -> &mut Vec<u8> {
        let needed = self.bytes.len().saturating_add(more);
        if needed > self.bytes.capacity() {
            let missing = self.most.max(needed) - self.bytes.len();
            if needed <= Self::SMALL || self.bytes.try_reserve_exact(missing).is_err() {
                self.bytes.reserve(more);
            }
        }
        &mut self.bytes
    }

    /// The whole body.
    pub(super) fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.buffered.sub(count(self.bytes));
    }
}

fn count(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_body_is_moved_once() {
        let mut whole = Whole::new(8 << 20);
        let piece = vec![7; 100_000];
        let mut places = std::collections::BTreeSet::new();
        for _ in 0..80 {
            whole.push(&piece);
            if whole.len() > Whole::SMALL {
                places.insert(whole.bytes.as_ptr() as usize);
            }
        }
        assert_eq!(whole.len(), 8_000_000);
        assert!(places.len() <= 2, "it was moved {} times", places.len() - 1);
        let before = whole.bytes.as_ptr();
        assert_eq!(whole.into_bytes().as_ptr(), before, "and is not copied in the end");
    }

    #[test]
    fn a_body_may_become_larger_than_announced() {
        let mut whole = Whole::new(2);
        whole.push(&[1; 3 << 20]);
        whole.push(&[2; 5]);
        assert_eq!(whole.into_bytes().len(), (3 << 20) + 5);
    }

    #[test]
    fn the_sum_is_bounded_and_given_back() {
        let metrics = Metrics::register(&prometheus::Registry::new()).unwrap();
        let mut one = Held::new(&metrics, 100);
        let mut other = Held::new(&metrics, 100);
        assert!(one.grow(60).is_ok() && other.grow(40).is_ok());
        assert_eq!(other.grow(1).unwrap_err().code, "no_room_for_body");
        drop(other);
        assert!(one.grow(40).is_ok());
        drop(one);
        assert_eq!((metrics.buffered.get(), metrics.buffered_refused.get()), (0, 1));
    }
}
