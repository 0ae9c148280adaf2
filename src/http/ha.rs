//! `/ha/*`: the cluster as people, load balancers and clients see it. Without a mesh they answer for this one router.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use smg_mesh::{Drift, Happening, Health, MemberState, Status, What, rfc3339};
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::Surface;
use super::error::ApiError;

/// How often a silent stream of events says that it is still there, and looks whether the router ends.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// Heartbeats between two comments on the wire.
const COMMENT_EVERY: u32 = 10;

/// Events that wait for a slow reader of the stream.
const EVENTS: usize = 64;

/// How this router is, with reasons. 200 also when its node has failed: an answer is an answer.
pub(super) async fn health(State(surface): State<Arc<Surface>>) -> Result<Json<Health>, ApiError> {
    Ok(Json(surface.mesh.health().await?))
}

/// The whole cluster, as this router knows it.
pub(super) async fn status(State(surface): State<Arc<Surface>>) -> Result<Json<Status>, ApiError> {
    Ok(Json(surface.mesh.status().await?))
}

/// Which router lacks what.
pub(super) async fn drift(State(surface): State<Arc<Surface>>) -> Result<Json<Drift>, ApiError> {
    Ok(Json(surface.mesh.drift().await?))
}

/// Who is there, for clients that want to know where else to go.
pub(super) async fn routers(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let (version, routers) = surface.mesh.routers();
    Json(json!({ "version": version, "routers": routers }))
}

/// What happens in the cluster, as it happens: server-sent events, the whole list first.
pub(super) async fn events(State(surface): State<Arc<Surface>>) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel(EVENTS);
    let told = Told { receiver: ReceiverStream::new(receiver) };
    let mut answer = Response::new(Body::from_stream(told));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    #[expect(clippy::disallowed_methods, reason = "ends with its reader or with the router")]
    tokio::spawn(tell(surface, sender));
    answer
}

/// A stream that can't fail, as bodies want it.
struct Told {
    receiver: ReceiverStream<Bytes>,
}

impl Stream for Told {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::pin::Pin::new(&mut self.receiver).poll_next(cx).map(|next| next.map(Ok))
    }
}

/// Writes events until the reader is gone, too slow, or the router ends.
async fn tell(surface: Arc<Surface>, reader: tokio::sync::mpsc::Sender<Bytes>) {
    let mut happenings = surface.mesh.happenings();
    let mut last = 0;
    let mut beats = 0;
    // The list comes after the subscription, so that nothing falls between the two.
    let mut due = Some(whole(&surface, last));
    loop {
        if let Some(text) = due.take()
            && reader.try_send(text).is_err()
        {
            // Gone, or too slow for a stream that rarely says anything.
            return;
        }
        due = tokio::select! {
            happened = happenings.recv() => match happened {
                Ok(happening) => {
                    last = happening.number;
                    Some(event(&happening))
                }
                // Some were missed: the whole list again says all that counts.
                Err(RecvError::Lagged(_)) => Some(whole(&surface, last)),
                Err(RecvError::Closed) => return,
            },
            () = tokio::time::sleep(HEARTBEAT) => {
                if surface.lifecycle.is_draining() || reader.is_closed() {
                    return;
                }
                beats += 1;
                (beats % COMMENT_EVERY == 0).then(|| Bytes::from_static(b": still here\n\n"))
            }
        };
    }
}

fn whole(surface: &Surface, number: u64) -> Bytes {
    let (version, routers) = surface.mesh.routers();
    let data = json!({ "version": version, "routers": routers });
    format!("event: routers\nid: {number}\ndata: {data}\n\n").into()
}

fn event(happening: &Happening) -> Bytes {
    let at = rfc3339(happening.at);
    let (name, data) = match &happening.what {
        What::Member { transition, address } => (
            "member",
            json!({
                "at": at,
                "name": transition.node.name,
                "generation": transition.node.generation,
                "from": word(transition.from),
                "to": word(transition.to),
                "address": address,
            }),
        ),
        What::Me { from, to } => {
            ("self", json!({ "at": at, "from": from.as_str(), "to": to.as_str() }))
        }
        What::Renewed => ("refuted", json!({ "at": at })),
        What::Reborn { is } => ("reborn", json!({ "at": at, "generation": is.generation })),
        What::Refused(reason) => ("refused", json!({ "at": at, "reason": reason.to_string() })),
        What::NameContested(by) => ("name_contested", json!({ "at": at, "address": by.address })),
    };
    format!("event: {name}\nid: {}\ndata: {data}\n\n", happening.number).into()
}

fn word(state: Option<MemberState>) -> Option<&'static str> {
    state.map(MemberState::as_str)
}

/// Ends the router, as SIGTERM does.
pub(super) async fn shutdown(State(surface): State<Arc<Surface>>) -> (StatusCode, Json<Value>) {
    surface.lifecycle.ask_to_end();
    (StatusCode::ACCEPTED, Json(json!({ "status": "shutting down" })))
}
