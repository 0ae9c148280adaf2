//! Sends requests to workers and judges what happens.
//!
//! [`upstream`] owns the connections to workers, [`dispatch`] admits a request, picks a worker, sends, judges the outcome
//! and retries where that is safe, [`usage`] reads from answers how many tokens they cost, and [`prober`] asks workers for
//! their health. Nothing here waits for another router.

mod causes;
pub mod dispatch;
pub mod prober;
pub mod upstream;
pub mod usage;
