//! `/ha/*`: the state of the cluster for users, load balancers and clients. A router without a mesh shows itself alone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};
use serde_json::{Value, json};
use smg_mesh::{ClusterEvent, ClusterEventKind, Drift, Health, MemberState, Status, rfc3339};
use tokio::sync::broadcast::error::RecvError;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;

use super::Surface;
use super::error::ApiError;
use super::reloads::Reloaded;

/// How often a stream of events checks whether the router shuts down or the reader is gone.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The number of heartbeats between two comments that keep a silent stream open.
const COMMENT_EVERY: u32 = 10;

/// The most events that wait for a slow reader of the stream.
const MAX_WAITING_EVENTS: usize = 64;

/// The state of this router, with reasons. The status is 200 also when the cluster node has failed.
pub(super) async fn health(State(surface): State<Arc<Surface>>) -> Result<Json<Health>, ApiError> {
    Ok(Json(surface.mesh.health().await?))
}

/// The members of the cluster and the stores, as this router knows them.
pub(super) async fn status(State(surface): State<Arc<Surface>>) -> Result<Json<Status>, ApiError> {
    Ok(Json(surface.mesh.status().await?))
}

/// How far each router is behind, and the fingerprints of this router's stores.
pub(super) async fn drift(State(surface): State<Arc<Surface>>) -> Result<Json<Drift>, ApiError> {
    Ok(Json(surface.mesh.drift().await?))
}

/// The routers and their URLs, for clients that look for another router.
pub(super) async fn routers(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let (version, routers) = surface.mesh.routers();
    Json(json!({ "version": version, "routers": routers }))
}

/// The settings with which this router was started, without secrets.
pub(super) async fn config(State(surface): State<Arc<Surface>>) -> Json<Value> {
    let mut shown = surface.settings.document();
    shown["node_name"] = surface.config.node_name.clone().into();
    Json(shown)
}

/// Changes of the membership as server-sent events, after the whole list of routers.
pub(super) async fn events(State(surface): State<Arc<Surface>>) -> Response {
    let (sender, receiver) = tokio::sync::mpsc::channel(MAX_WAITING_EVENTS);
    let stream = EventStream { receiver: ReceiverStream::new(receiver) };
    let mut answer = Response::new(Body::from_stream(stream));
    answer
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    answer.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    #[expect(clippy::disallowed_methods, reason = "ends with its reader or with the router")]
    tokio::spawn(stream_events(surface, sender));
    answer
}

/// A stream that can't fail, in the form that a body needs.
struct EventStream {
    receiver: ReceiverStream<Bytes>,
}

impl Stream for EventStream {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        std::pin::Pin::new(&mut self.receiver).poll_next(cx).map(|next| next.map(Ok))
    }
}

/// Writes events until the reader is gone or too slow, or until the router shuts down.
async fn stream_events(surface: Arc<Surface>, reader: tokio::sync::mpsc::Sender<Bytes>) {
    let mut events = surface.mesh.events();
    let mut last = 0;
    let mut beats = 0;
    // The list is made after the subscription, so that no change is lost between the two.
    let mut due = Some(router_list(&surface, last));
    loop {
        if let Some(text) = due.take()
            && reader.try_send(text).is_err()
        {
            // The reader is gone, or too slow for a stream of rare events.
            return;
        }
        due = tokio::select! {
            received = events.recv() => match received {
                Ok(event) => {
                    last = event.number;
                    Some(event_text(&event))
                }
                // Events were missed; the list shows the result of all of them.
                Err(RecvError::Lagged(_)) => Some(router_list(&surface, last)),
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

fn router_list(surface: &Surface, number: u64) -> Bytes {
    let (version, routers) = surface.mesh.routers();
    let data = json!({ "version": version, "routers": routers });
    format!("event: routers\nid: {number}\ndata: {data}\n\n").into()
}

fn event_text(event: &ClusterEvent) -> Bytes {
    let at = rfc3339(event.at);
    let (name, data) = match &event.kind {
        ClusterEventKind::Member { transition, address } => (
            "member",
            json!({
                "at": at,
                "name": transition.node.name,
                "generation": transition.node.generation.to_string(),
                "from": state_name(transition.from),
                "to": state_name(transition.to),
                "address": address,
            }),
        ),
        ClusterEventKind::Me { from, to } => {
            ("self", json!({ "at": at, "from": from.as_str(), "to": to.as_str() }))
        }
        ClusterEventKind::Renewed => ("refuted", json!({ "at": at })),
        ClusterEventKind::Reborn { is } => {
            ("reborn", json!({ "at": at, "generation": is.generation.to_string() }))
        }
        ClusterEventKind::Refused(reason) => {
            ("refused", json!({ "at": at, "reason": reason.to_string() }))
        }
        ClusterEventKind::NameContested(by) => {
            ("name_contested", json!({ "at": at, "address": by.address }))
        }
    };
    format!("event: {name}\nid: {}\ndata: {data}\n\n", event.number).into()
}

fn state_name(state: Option<MemberState>) -> Option<&'static str> {
    state.map(MemberState::as_str)
}

/// Shuts the router down, as SIGTERM does.
pub(super) async fn shutdown(State(surface): State<Arc<Surface>>) -> (StatusCode, Json<Value>) {
    surface.lifecycle.ask_to_end();
    (StatusCode::ACCEPTED, Json(json!({ "status": "shutting down" })))
}

/// Reads the configuration again, as SIGHUP does: 200 with the changes, 206 if some could not be applied, 400 with all mistakes.
pub(super) async fn reload(
    State(surface): State<Arc<Surface>>,
) -> Result<(StatusCode, Json<Reloaded>), ApiError> {
    let Some(reloaded) = surface.reloads.reload().await else {
        let message = "the configuration can't be reloaded now: this program does not read one, or too many requests to \
                       reload wait already";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "reload_unavailable", message));
    };
    let reloaded = reloaded.map_err(|mistakes| {
        let message = format!("nothing has changed: {}", mistakes.join("; "));
        ApiError::bad_request("invalid_configuration", message)
    })?;
    let is_complete = reloaded.failed.is_empty();
    let status = if is_complete { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    Ok((status, Json(reloaded)))
}
