//! Limits the memory of request bodies: each body is bounded, and so is the sum of all.

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
