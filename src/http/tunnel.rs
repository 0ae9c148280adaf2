//! WebSocket requests (RFC 6455): over HTTP/1.1 they become a tunnel to a worker once the worker agrees.
//!
//! The tunnel runs in the task of its connection, which counts among the open ones until the tunnel ends: a shutdown waits
//! for it as long as for a stream. Its exchange lives as long, so that the connection is busy.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Method, Request, Version, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use smg_proxy::dispatch;
use tracing::debug;

use super::access_log::End;
use super::exchange::Exchange;
use super::metrics::Metrics;

/// What is to become a tunnel when the client's connection has switched.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) client: OnUpgrade,
    pub(super) worker: dispatch::Tunnel,
    pub(super) exchange: Exchange,
}

/// The tunnel that a connection becomes, if any. Shared between the connection and its service.
#[derive(Debug, Clone, Default)]
// Held to put or take it, once per connection.
pub(super) struct Slot(Arc<Mutex<Option<Pending>>>);

impl Slot {
    /// Notes what the connection becomes after the response under way.
    pub(super) fn put(&self, pending: Pending) {
        *self.0.lock() = Some(pending);
    }

    /// Runs the tunnel, if the connection has become one, to its end.
    pub(super) async fn run(self, idle: Duration, metrics: &Metrics) {
        let Some(Pending { client, worker, exchange }) = self.0.lock().take() else { return };
        let client = match client.await {
            Ok(client) => client,
            Err(error) => {
                debug!(%error, "the client left before its connection had switched");
                return;
            }
        };
        let _open = metrics.open_tunnel();
        let end = worker.run(TokioIo::new(client), idle).await;
        metrics.tunnels_ended[end as usize].inc();
        exchange.ticket().note_end(End::Complete);
        drop(exchange);
    }
}

/// Whether a request asks to switch to WebSocket. Over other versions than HTTP/1.1 nothing can be switched.
pub(super) fn is_websocket<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && has_token(request.headers(), &header::CONNECTION, "upgrade")
        && has_token(request.headers(), &header::UPGRADE, "websocket")
}

fn has_token(headers: &HeaderMap, name: &header::HeaderName, token: &str) -> bool {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case(token))
}

/// The fields of the answer that are for one hop: this one has the same as the worker's.
pub(super) fn confirm(headers: &mut HeaderMap) {
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
}
