//! What the tests stand on: routers as processes, workers that do as they are told, clients, patience.

pub(crate) mod client;
pub(crate) mod load;
pub(crate) mod mock;
pub(crate) mod router;
pub(crate) mod worker;

use std::future::Future;
use std::time::{Duration, Instant};

/// Waits until `check` returns `Ok`, up to ten seconds; panics with its last error otherwise.
pub(crate) async fn eventually<T, E, F>(what: &str, check: impl FnMut() -> F) -> T
where
    F: Future<Output = Result<T, E>>,
    E: std::fmt::Debug,
{
    match within(Duration::from_secs(10), check).await {
        Ok(value) => value,
        Err(last) => panic!("{what} did not happen within 10 s; last: {last:?}"),
    }
}

/// Calls `check` until it returns `Ok`, up to `patience`; returns its last error otherwise.
pub(crate) async fn within<T, E, F>(
    patience: Duration,
    mut check: impl FnMut() -> F,
) -> Result<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + patience;
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(last) if Instant::now() > deadline => return Err(last),
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}
