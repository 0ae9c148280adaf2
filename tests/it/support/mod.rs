//! The support code of the tests: routers as processes, scripted workers, clients, and waiting for conditions.

pub(crate) mod client;
pub(crate) mod load;
pub(crate) mod mock;
pub(crate) mod router;
pub(crate) mod worker;

use std::future::Future;
use std::time::{Duration, Instant};

/// Waits until `check` returns `Ok`, for at most ten seconds; then panics with its last error.
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

/// Calls `check` until it returns `Ok`, for at most `patience`; then returns its last error.
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
