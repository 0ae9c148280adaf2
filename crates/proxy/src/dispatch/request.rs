//! A request as dispatch takes it, and what comes of it: a response with its trace, or an error.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response};
use smg_routing::fleet::Worker;
use smg_routing::limit::{Priority, Rejected};
use smg_routing::policies::Entry;
use smg_routing::policy::{Decision, Hint};
use smg_types::ids::{ModelId, WorkerId};

use super::body::{ResponseBody, StreamEnd};
use crate::upstream::SendError;

/// A request, read as far as routing needs it.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// Path and query as the client sent them.
    pub path_and_query: PathAndQuery,
    /// Its name in the log.
    pub request_id: &'a HeaderValue,
    /// What the worker gets, apart from `host`, `content-length` and its own `authorization`.
    pub headers: HeaderMap,
    /// The body as the client sent it.
    pub body: Bytes,
    /// The parts by which a worker is chosen.
    pub criteria: Criteria<'a>,
    /// Where the model's name lies in the body.
    pub model_at: Option<ModelPlace>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// Whether the client asks to switch to WebSocket.
    pub websocket: bool,
    /// What a stream that breaks ends with.
    pub stream_end: StreamEnd,
    /// Its class in the queue.
    pub priority: Priority,
    /// Set before it is first sent to a worker. A caller that drops the dispatch sees by it whether a worker may have worked.
    pub sent: &'a AtomicBool,
    /// Learns what happens to the request; `None`: nobody wants to know.
    pub observer: Option<&'a dyn Observer>,
}

/// Learns what happens to one request on its way to a worker.
pub trait Observer: std::fmt::Debug + Sync {
    /// The request has a place among those that may be at the workers, for which it waited this long.
    fn admitted(&self, waited: Duration);

    /// An attempt is about to be sent to this worker.
    fn sent(&self, worker: &Worker);
}

/// The parts of a request by which a worker is chosen.
#[derive(Debug, Clone, Copy, Default)]
pub struct Criteria<'a> {
    /// The model that it names.
    pub model: Option<&'a str>,
    /// Session or routing key.
    pub session: Option<&'a [u8]>,
    /// The id of the earlier response, or of the conversation, that the request goes on from.
    pub goes_on_from: Option<&'a str>,
    /// The pieces of the prompt, in the order in which an engine sees them.
    pub prompt: &'a [&'a [u8]],
}

/// Where a body names its model: a worker may call the model by another name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPlace {
    /// A JSON string, quotes included.
    Json(Range<usize>),
    /// Plain text, as in a part of a form.
    Text(Range<usize>),
}

/// A response and how it came to be.
#[derive(Debug)]
pub struct Dispatched {
    /// The worker's response.
    pub response: Response<ResponseBody>,
    /// How it came to be.
    pub trace: Trace,
    /// The entry of the model, under which the request is counted.
    pub entry: Arc<Entry>,
}

/// How a response came to be, for `--debug-headers` and the log.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// The worker that answered.
    pub worker: WorkerId,
    /// The policy that picked it.
    pub policy: &'static str,
    /// Why the policy picked it.
    pub decision: Decision,
    /// Attempts made.
    pub attempts: u32,
    /// Time spent in the router itself before the last attempt was sent, waits included.
    pub overhead: Duration,
}

/// Why a request got no response from a worker.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// No worker serves such a model.
    #[error("the model does not exist or no worker serves it")]
    NoSuchModel,
    /// The last worker of the model was removed not long ago.
    #[error("the model has no worker at present: its last one was removed")]
    ModelDeparted,
    /// Workers are known, but none can take it now.
    #[error("no worker is available")]
    NoneAvailable,
    /// As many requests as allowed are at the workers, and the queue is full.
    #[error("too many requests are being served")]
    Rejected(#[source] Rejected),
    /// It waited in the queue for too long.
    #[error("waited {0:?} for a place")]
    QueueTimeout(Duration),
    /// The last attempt failed.
    #[error("the last of {attempts} attempts failed")]
    Failed {
        /// Attempts made.
        attempts: u32,
        /// What went wrong with the last.
        #[source]
        source: SendError,
    },
}

impl Request<'_> {
    /// The body for a worker that calls the model `model`. This is the only change that is made to a body.
    pub(super) fn body_for(&self, model: &ModelId) -> Bytes {
        let (at, name) = match &self.model_at {
            None => return self.body.clone(),
            Some(ModelPlace::Json(at)) => {
                (at, serde_json::to_vec(model).expect("a string is JSON"))
            }
            Some(ModelPlace::Text(at)) => (at, model.as_str().as_bytes().to_vec()),
        };
        [&self.body[..at.start], &name, &self.body[at.end..]].concat().into()
    }
}

impl<'a> Criteria<'a> {
    /// What the policy of `entry` gets to know of the request. `blocks`: the hashes of the prompt's blocks, if they are known.
    pub(super) fn hint<'h>(&self, blocks: &'h [u64], entry: &Entry) -> Hint<'h>
    where
        'a: 'h,
    {
        let prompt_bytes = self.prompt.iter().map(|piece| piece.len()).sum();
        let model = entry.session_root(self.session, self.model);
        Hint { session: self.session, blocks, prompt_bytes, model }
    }
}
