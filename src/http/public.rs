//! The additional ports for probes and metrics: `--prometheus-port` and `--health-check-port`. Each has its own limit
//! of connections, so that neither clients nor the users of the other port can use up its connections.

#![expect(
    clippy::disallowed_methods,
    reason = "connections are tasks that end with their connection, counted by a semaphore"
)]

use std::sync::Arc;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use smg_runtime::tasks::turned_on;
use tokio::sync::watch;
use tower::ServiceExt as _;

use super::accept::pause_after;
use super::body::Body;
use super::connection::{Timeouts, serve_http1};
use super::error::ApiError;
use super::exchange::State;
use super::idle::{GivesWay, IdleConnections};
use super::{Surface, headers, local};

/// The most connections of one port, which needs only a few.
const MOST_CONNECTIONS: usize = 256;

/// How long a connection without a request is kept although others wait for its place.
const GRACE: Duration = Duration::from_millis(100);

/// How long a new connection waits for the place of one that is being closed.
const CLOSING: Duration = Duration::from_millis(100);

/// Serves probes and metrics on an additional port.
pub(super) async fn serve(
    listener: tokio::net::TcpListener,
    surface: Arc<Surface>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let router = local::public(Arc::clone(&surface)).fallback(local::nothing);
    let timeouts = Timeouts::of(&surface.config);
    let places = Arc::new(tokio::sync::Semaphore::new(MOST_CONNECTIONS));
    let idle = IdleConnections::new(surface.clock, GivesWay::BetweenRequests, GRACE);
    loop {
        let (stream, _peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    pause_after(&error, "accepting a probe", &surface.dialer).await;
                    continue;
                }
            },
            () = turned_on(&mut stopping) => return Ok(()),
        };
        if places.available_permits() == 0 && idle.close_oldest() {
            surface.metrics.connections_closed_idle.inc();
        }
        let permit = Arc::clone(&places).acquire_owned();
        let Ok(Ok(permit)) = tokio::time::timeout(CLOSING, permit).await else {
            surface.metrics.connections_refused.inc();
            continue;
        };
        let router = router.clone();
        let place = idle.add();
        let state = State::new(surface.clock, Arc::clone(&place));
        let busy = Arc::clone(&state);
        // The exchange records that the head was received. Without it, a kept connection would time out during the
        // answer.
        let surface = Arc::clone(&surface);
        let service = service_fn(move |request: Request<Incoming>| {
            let exchange = busy.begin();
            let mut chance = SmallRng::from_rng(&mut rand::rng());
            let names = &surface.config.request_id_headers;
            let request_id = headers::request_id(request.headers(), names, &mut chance);
            let is_valid = headers::has_valid_host(request.version(), request.headers());
            let answering = router.clone().oneshot(request.map(axum::body::Body::new));
            async move {
                let refused =
                    || Ok(ApiError::invalid_host().into_response(false).map(axum::body::Body::new));
                let answered = if is_valid { answering.await } else { refused() };
                answered.map(|mut answer| {
                    answer.headers_mut().insert(headers::X_REQUEST_ID.clone(), request_id);
                    answer.map(|body| Body::axum(body).ending(exchange))
                })
            }
        });
        let closing = stopping.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::select! {
                biased;
                () = serve_http1(stream, service, state, timeouts, closing) => {}
                () = place.gives_way() => {}
            }
        });
    }
}
