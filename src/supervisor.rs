//! Reports to the process that supervises this one, in systemd's protocol: one datagram per report to the socket that
//! `NOTIFY_SOCKET` names.
//!
//! Without that variable nothing is sent. A report that can't be sent is logged and changes nothing else: a router that
//! serves requests must not end because its supervisor does not listen.

use std::net::SocketAddr;

use sd_notify::NotifyState;
use tracing::warn;

/// Reports that the router accepts requests on `address`.
pub fn report_ready(address: SocketAddr) {
    let status = format!("serving on {address}");
    report(&[NotifyState::Ready, NotifyState::Status(&status)]);
}

/// Reports that the router has begun to drain.
pub fn report_stopping() {
    report(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

fn report(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "the supervisor that NOTIFY_SOCKET names could not be notified");
    }
}
