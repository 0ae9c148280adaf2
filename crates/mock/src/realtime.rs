//! `/v1/realtime`: a WebSocket (RFC 6455) that sends every message back.

use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{self, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use crate::body::Body;
use crate::engine::Job;
use crate::reply::error;
use crate::worker::{Last, Worker};

/// The job of a connection that switches to WebSocket after the present answer. It counts as running as long as the socket is
/// open. `None`: the connection does not switch.
#[derive(Debug, Default)]
pub(super) struct Switched(Mutex<Option<Job>>);

impl Switched {
    pub(super) fn take(&self) -> Option<Job> {
        self.0.lock().take()
    }
}

/// Answers the handshake.
pub(super) fn accept(worker: &Worker, head: Parts, switched: &Switched) -> Response<Body> {
    let asks = head.headers.get(header::UPGRADE).is_some_and(|upgrade| upgrade == "websocket");
    let key = head.headers.get(header::SEC_WEBSOCKET_KEY).filter(|_| asks);
    let Some(accept) = key.map(|key| derive_accept_key(key.as_bytes())) else {
        return error(StatusCode::UPGRADE_REQUIRED, "this path takes WebSocket only");
    };
    let mut response = Response::new(Body::full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let accept = HeaderValue::try_from(accept).expect("base64 is a header");
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    worker.remember(Last { head, body: bytes::Bytes::new() });
    *switched.0.lock() = Some(worker.engine().begin());
    response
}

/// Sends every message back until the client closes. `first`: what came behind the handshake.
pub(super) async fn echo<S>(stream: S, first: Vec<u8>, job: Job)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut socket = WebSocketStream::from_partially_read(stream, first, Role::Server, None).await;
    while let Some(Ok(message)) = socket.next().await {
        if (message.is_text() || message.is_binary()) && socket.send(message).await.is_err() {
            break;
        }
    }
    job.complete();
}
