//! The routes of a worker: what a method and a path request.

use http::Method;
use http::request::Parts;

use crate::answer::Dialect;

/// The meaning of a method and a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    Infer(Kind),
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
    use Dialect::{Chat, Completions, Generate, Messages, Responses, Transcription};
    let (get, post) = (&[Method::GET, Method::HEAD][..], &[Method::POST][..]);
    let both = &[Method::GET, Method::POST][..];
    let (route, methods) = match head.uri.path() {
        "/v1/chat/completions" => (Route::Infer(Kind::Generated(Chat)), post),
        "/v1/completions" => (Route::Infer(Kind::Generated(Completions)), post),
        "/v1/responses" => (Route::Infer(Kind::Generated(Responses)), post),
        "/v1/messages" => (Route::Infer(Kind::Generated(Messages)), post),
        "/generate" => (Route::Infer(Kind::Generated(Generate)), post),
        "/v1/audio/transcriptions" => (Route::Infer(Kind::Generated(Transcription)), post),
        "/v1/embeddings" => (Route::Infer(Kind::Embeddings), post),
        "/v1/rerank" | "/rerank" => (Route::Infer(Kind::Rerank), post),
        "/v1/classify" => (Route::Infer(Kind::Classify), post),
        "/v1/score" => (Route::Infer(Kind::Score), post),
        "/v1/tokenize" => (Route::Infer(Kind::Tokenize), post),
        "/v1/detokenize" => (Route::Infer(Kind::Detokenize), post),
        "/v1/images/generations" => (Route::Infer(Kind::Images), post),
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
        _ => return Route::Unknown,
    };
    match methods.first() {
        _ if methods.contains(&head.method) => route,
        Some(&Method::POST) => Route::WrongMethod("POST"),
        _ if methods == both => Route::WrongMethod("GET, POST"),
        _ => Route::WrongMethod("GET"),
    }
}
