//! The integration tests: the real binary with real arguments, real sockets on free ports, scripted workers.
//!
//! One test binary with a module per topic. No test sleeps for a fixed time: `eventually` waits for a condition with a
//! deadline, and its panic shows the last value.

#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests: an unwrap is an assertion, and they run against the machine's clock"
)]

mod closing;
mod support;

mod access;
mod access_log;
mod addresses;
mod admission;
mod affinity;
mod alone;
mod api;
mod bad_input;
mod demo;
mod deploy;
mod disk;
mod doctor;
mod down;
mod engines;
mod explain;
mod failure;
mod fidelity;
mod floods;
mod follow_ups;
mod forwarded;
mod heartbeat;
mod leader;
mod leaving;
mod limits;
mod loops;
mod mesh;
mod model_facts;
mod models;
mod observe;
mod patience;
mod peers;
mod policies;
mod preference;
mod reload;
mod retries;
mod shortage;
mod shutdown;
mod signals;
mod sinks;
mod strangers;
mod streams;
mod supervisor;
mod tls;
mod tokens;
mod ui;
mod waiting;
mod websocket;
mod worker_tls;
