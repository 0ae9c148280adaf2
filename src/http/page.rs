//! The page of metrics, which everybody may read, also somebody who reads it slowly or not at all.
//!
//! A page may be long, and over HTTP/2 one connection can ask for a hundred pages and take none of them. So once several
//! pages are held for clients that have not taken them, the last one is given to all who ask, for some seconds: what
//! strangers hold and what they make the router compute does not grow with the number of their requests.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;

/// The most pages that are held for clients before they share one. Scrapes at the same time are few.
const MOST_OWN: usize = 8;

/// How long a page is shared.
const SHARED: Duration = Duration::from_secs(10);

/// The pages that clients have not taken yet.
#[derive(Debug, Default)]
pub struct Pages {
    /// One reference for each page that exists, and this one.
    held: Arc<()>,
    // Locked to copy or replace it, not while a page is made.
    last: Mutex<Option<Last>>,
}

/// The page that was made last.
#[derive(Debug)]
struct Last {
    /// `Clock::mono` when it was made.
    at: Duration,
    text: Bytes,
}

/// The text of a page, and its place among those that are held. It ends when its last reader has taken it.
struct Held {
    text: String,
    _place: Arc<()>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

impl Pages {
    /// A page that `make` makes, or the last one if many are held.
    ///
    /// # Errors
    /// That of `make`.
    pub(super) fn page<E>(
        &self,
        now: Duration,
        make: impl FnOnce() -> Result<String, E>,
    ) -> Result<Bytes, E> {
        if Arc::strong_count(&self.held) > MOST_OWN {
            let last = self.last.lock();
            if let Some(last) = last.as_ref().filter(|last| now.saturating_sub(last.at) < SHARED) {
                return Ok(last.text.clone());
            }
        }
        let held = Held { text: make()?, _place: Arc::clone(&self.held) };
        let text = Bytes::from_owner(held);
        *self.last.lock() = Some(Last { at: now, text: text.clone() });
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_shared_only_while_many_are_held() {
        let pages = Pages::default();
        let mut made = 0;
        let mut page = |seconds: u64| {
            let text = pages.page(Duration::from_secs(seconds), || {
                made += 1;
                Ok::<_, ()>(made.to_string())
            });
            text.unwrap()
        };
        // Each of them is taken before the next.
        for nth in 1..=100 {
            assert_eq!(page(1), nth.to_string());
        }
        let held: Vec<Bytes> = (0..1000).map(|_| page(2)).collect();
        let last = held.last().unwrap();
        assert_eq!(*last, (100 + MOST_OWN).to_string());
        assert_eq!(page(11), *last, "it is shared for some seconds");
        let later = page(12);
        assert_ne!(later, *last, "and no longer");
        assert_eq!(page(13), later);
        drop((held, later));
        let own = [page(13), page(13)];
        assert_ne!(own[0], own[1]);
    }
}
