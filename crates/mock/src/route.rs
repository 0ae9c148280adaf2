//! The routes of a worker: what a method and a path request.

use http::Method;
use http::request::Parts;

use crate::answer::Dialect;

/// The meaning of a method and a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Infer(Kind),
    /// A response that `/v1/responses` has stored.
    Stored(StoredAction),
    About(About),
    Mock(Mock),
    /// A WebSocket that echoes.
    Realtime,
    Health,
    WrongMethod(&'static str),
    Unknown,
}

/// An inference request, by the kind of its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Generated(Dialect),
    Embeddings,
    Rerank,
    Classify,
    Score,
    Tokenize,
    Detokenize,
    Images,
    /// Images made of uploaded images.
    ImageForm,
    Speech,
    Moderations,
    CountTokens,
}

impl Kind {
    /// Whether the request is a form with a file.
    pub(super) fn is_form(self) -> bool {
        matches!(
            self,
            Self::Generated(Dialect::Transcription | Dialect::Translation) | Self::ImageForm
        )
    }
}

/// What is requested of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoredAction {
    Read,
    Delete,
    Cancel,
}

/// A route that shows the worker's own state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum About {
    Models,
    ModelInfo,
    ServerInfo,
    Metrics,
    Loads,
    FlushCache,
    IsSleeping,
    Sleep,
    WakeUp,
}

/// A route that only mock workers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mock {
    Stats,
    Last,
    LastBody,
    ReadFaults,
    SetFaults,
}

pub(super) fn route(head: &Parts) -> Route {
    use Dialect::{Chat, Completions, Generate, Messages, Responses, Transcription, Translation};
    let (get, post) = (&[Method::GET, Method::HEAD][..], &[Method::POST][..]);
    let both = &[Method::GET, Method::POST][..];
    let (route, methods) = match head.uri.path() {
        "/v1/chat/completions" => (Route::Infer(Kind::Generated(Chat)), post),
        "/v1/completions" => (Route::Infer(Kind::Generated(Completions)), post),
        "/v1/responses" => (Route::Infer(Kind::Generated(Responses)), post),
        "/v1/messages" => (Route::Infer(Kind::Generated(Messages)), post),
        "/generate" => (Route::Infer(Kind::Generated(Generate)), post),
        "/v1/audio/transcriptions" => (Route::Infer(Kind::Generated(Transcription)), post),
        "/v1/audio/translations" => (Route::Infer(Kind::Generated(Translation)), post),
        "/v1/audio/speech" => (Route::Infer(Kind::Speech), post),
        "/v1/embeddings" => (Route::Infer(Kind::Embeddings), post),
        "/v1/rerank" | "/rerank" => (Route::Infer(Kind::Rerank), post),
        "/v1/classify" => (Route::Infer(Kind::Classify), post),
        "/v1/score" => (Route::Infer(Kind::Score), post),
        "/v1/tokenize" => (Route::Infer(Kind::Tokenize), post),
        "/v1/detokenize" => (Route::Infer(Kind::Detokenize), post),
        "/v1/images/generations" => (Route::Infer(Kind::Images), post),
        "/v1/images/edits" | "/v1/images/variations" => (Route::Infer(Kind::ImageForm), post),
        "/v1/moderations" => (Route::Infer(Kind::Moderations), post),
        "/v1/messages/count_tokens"
        | "/v1/responses/input_tokens"
        | "/v1/chat/completions/input_tokens" => (Route::Infer(Kind::CountTokens), post),
        "/v1/realtime" => (Route::Realtime, get),
        "/health" | "/health_generate" => (Route::Health, get),
        "/v1/models" => (Route::About(About::Models), get),
        "/get_model_info" => (Route::About(About::ModelInfo), get),
        "/get_server_info" => (Route::About(About::ServerInfo), get),
        "/metrics" => (Route::About(About::Metrics), get),
        "/get_loads" => (Route::About(About::Loads), get),
        "/flush_cache" => (Route::About(About::FlushCache), both),
        "/is_sleeping" => (Route::About(About::IsSleeping), get),
        "/sleep" => (Route::About(About::Sleep), post),
        "/wake_up" => (Route::About(About::WakeUp), post),
        "/_mock/stats" => (Route::Mock(Mock::Stats), get),
        "/_mock/last" => (Route::Mock(Mock::Last), get),
        "/_mock/last/body" => (Route::Mock(Mock::LastBody), get),
        "/_mock/faults" if head.method == Method::GET => return Route::Mock(Mock::ReadFaults),
        "/_mock/faults" if head.method == Method::PUT => return Route::Mock(Mock::SetFaults),
        "/_mock/faults" => return Route::WrongMethod("GET, PUT"),
        path => match path.strip_prefix("/v1/responses/") {
            Some(rest) => return stored(&head.method, rest),
            None => return Route::Unknown,
        },
    };
    match methods.first() {
        _ if methods.contains(&head.method) => route,
        Some(&Method::POST) => Route::WrongMethod("POST"),
        _ if methods == both => Route::WrongMethod("GET, POST"),
        _ => Route::WrongMethod("GET"),
    }
}

/// The route of a path that goes on with `rest` after `/v1/responses/`.
fn stored(method: &Method, rest: &str) -> Route {
    let (id, action) = rest.split_once('/').map_or((rest, None), |(id, action)| (id, Some(action)));
    match (action, method) {
        _ if id.is_empty() => Route::Unknown,
        (None, &Method::GET | &Method::HEAD) => Route::Stored(StoredAction::Read),
        (None, &Method::DELETE) => Route::Stored(StoredAction::Delete),
        (None, _) => Route::WrongMethod("GET, DELETE"),
        (Some("cancel"), &Method::POST) => Route::Stored(StoredAction::Cancel),
        (Some("cancel"), _) => Route::WrongMethod("POST"),
        (Some(_), _) => Route::Unknown,
    }
}
