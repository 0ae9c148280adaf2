//! The further ports for probes and metrics: `--prometheus-port` and `--health-check-port`.

#![expect(
    clippy::disallowed_methods,
    reason = "connections are tasks that end with their connection, counted by a semaphore"
)]

use std::sync::Arc;

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
use super::exchange::State;
use super::{Surface, headers, local};

/// Serves probes and metrics on a further port.
pub(super) async fn serve(
    listener: tokio::net::TcpListener,
    surface: Arc<Surface>,
    mut stopping: watch::Receiver<bool>,
) -> anyhow::Result<()> {
    let router = local::public(Arc::clone(&surface)).fallback(local::nothing);
    let timeouts = Timeouts::of(&surface.config);
    let open = Arc::new(tokio::sync::Semaphore::new(256));
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
        // Nobody needs more than a few connections here.
        let Ok(permit) = Arc::clone(&open).try_acquire_owned() else { continue };
        let router = router.clone();
        let state = State::new(surface.clock);
        let busy = Arc::clone(&state);
        // The exchange says that the head has come: without it, a connection that is kept would be timed out in mid-air.
        let surface = Arc::clone(&surface);
        let service = service_fn(move |request: Request<Incoming>| {
            let exchange = busy.begin();
            let mut chance = SmallRng::from_rng(&mut rand::rng());
            let names = &surface.config.request_id_headers;
            let request_id = headers::request_id(request.headers(), names, &mut chance);
            let answering = router.clone().oneshot(request.map(axum::body::Body::new));
            async move {
                let answered = answering.await;
                answered.map(|mut answer| {
                    answer.headers_mut().insert(headers::X_REQUEST_ID.clone(), request_id);
                    answer.map(|body| Body::axum(body).ending(exchange))
                })
            }
        });
        let closing = stopping.clone();
        tokio::spawn(async move {
            let _permit = permit;
            serve_http1(stream, service, state, timeouts, closing).await;
        });
    }
}
