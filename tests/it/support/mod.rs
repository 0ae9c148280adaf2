//! What the tests stand on: routers as processes, workers that do as they are told, clients, patience.

pub(crate) mod client;
pub(crate) mod load;
pub(crate) mod mock;
pub(crate) mod router;
pub(crate) mod worker;

use std::future::Future;
use std::time::{Duration, Instant};

/// Waits until `check` says `Ok`, up to ten seconds; panics with its last words otherwise.
pub(crate) async fn eventually<T, E, F>(what: &str, mut check: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Debug,
{
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match check().await {
            Ok(value) => return value,
            Err(last) if Instant::now() > deadline => {
                panic!("{what} did not happen within 10 s; last: {last:?}")
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
