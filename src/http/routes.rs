//! The table of all routes: their access, their handler, and the name under which they are counted.

use http::Method;

/// The access that a route needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Every caller: probes and metrics.
    Public,
    /// Clients, with a key if keys are configured.
    Client,
    /// Clients and administrators, with the key of either if keys are configured: what both read of the cluster.
    Reader,
    /// Administrators, and users for reads.
    Admin,
    /// Administrators and users: a read with a body.
    Inspect,
    /// Callers that may shut the router down: administrators with a key; without a key, only this machine.
    Operator,
}

/// The part that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    /// A worker; broken streams end in OpenAI's format.
    Worker,
    /// A worker; broken streams end in Anthropic's format.
    AnthropicWorker,
    /// A worker, over WebSocket only.
    Socket,
    /// Any worker, because the request concerns no particular model.
    AnyWorker,
    /// All workers, with a list of their answers.
    AllWorkers,
    /// The router itself.
    Local,
}

impl Serves {
    /// Whether one worker answers.
    pub(super) const fn is_worker(self) -> bool {
        match self {
            Self::Worker | Self::AnthropicWorker | Self::AnyWorker | Self::Socket => true,
            Self::AllWorkers | Self::Local => false,
        }
    }
}

/// A method and a path. A segment in braces matches anything, and `{model}` matches all that follows, because the names
/// of models contain slashes.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// The method, such as `GET`.
    pub method: &'static str,
    /// The path under which requests are counted.
    pub path: &'static str,
    /// The access that the route needs.
    pub access: Access,
    pub(super) serves: Serves,
}

const fn infer(path: &'static str) -> Route {
    Route { method: "POST", path, access: Access::Client, serves: Serves::Worker }
}

const fn ask(path: &'static str) -> Route {
    Route { method: "GET", path, access: Access::Client, serves: Serves::Worker }
}

const fn any(path: &'static str) -> Route {
    Route { method: "GET", path, access: Access::Client, serves: Serves::AnyWorker }
}

/// A path that changes an engine, or shows its internals: for administrators, and forwarded to every worker.
const fn control(method: &'static str, path: &'static str) -> Route {
    Route { method, path, access: Access::Admin, serves: Serves::AllWorkers }
}

const fn local(method: &'static str, path: &'static str, access: Access) -> Route {
    Route { method, path, access, serves: Serves::Local }
}

/// All routes. Those with the most traffic come first, because the table is searched from the beginning.
pub const ROUTES: &[Route] = &[
    infer("/v1/chat/completions"),
    infer("/v1/completions"),
    Route { serves: Serves::AnthropicWorker, ..infer("/v1/messages") },
    infer("/v1/responses"),
    infer("/generate"),
    infer("/v1/embeddings"),
    infer("/v1/rerank"),
    infer("/rerank"),
    infer("/v1/classify"),
    infer("/v1/audio/transcriptions"),
    infer("/v1/tokenize"),
    infer("/v1/detokenize"),
    infer("/v1/score"),
    infer("/v1/images/generations"),
    local("GET", "/v1/models", Access::Client),
    local("GET", "/v1/models/{model}", Access::Client),
    // The other inference paths that vLLM, SGLang and llama.cpp document: see docs/engines.md.
    Route { serves: Serves::AnthropicWorker, ..infer("/v1/messages/count_tokens") },
    infer("/v1/responses/input_tokens"),
    infer("/v1/chat/completions/input_tokens"),
    infer("/v1/chat/completions/batch"),
    infer("/v1/chat/completions/render"),
    infer("/v1/completions/render"),
    infer("/v1/audio/translations"),
    infer("/v1/audio/speech"),
    infer("/v1/images/edits"),
    infer("/v1/images/variations"),
    infer("/v1/moderations"),
    infer("/v1/reranking"),
    infer("/v2/rerank"),
    infer("/v2/embed"),
    infer("/reranking"),
    infer("/pooling"),
    infer("/score"),
    infer("/classify"),
    infer("/encode"),
    infer("/tokenize"),
    infer("/detokenize"),
    infer("/invocations"),
    infer("/inference/v1/generate"),
    infer("/completion"),
    infer("/infill"),
    infer("/embedding"),
    infer("/apply-template"),
    infer("/parse_function_call"),
    infer("/separate_reasoning"),
    infer("/api/chat"),
    infer("/api/generate"),
    Route { serves: Serves::Socket, ..ask("/v1/realtime") },
    ask("/tokenizer_info"),
    ask("/props"),
    any("/health_generate"),
    any("/ping"),
    any("/version"),
    ask("/get_model_info"),
    ask("/model_info"),
    // A stored response is at one of the workers, and only that one knows it.
    local("GET", "/v1/responses/{id}", Access::Client),
    local("DELETE", "/v1/responses/{id}", Access::Client),
    local("POST", "/v1/responses/{id}/cancel", Access::Client),
    // SGLang's answer contains the engine's own keys.
    Route { access: Access::Admin, ..ask("/get_server_info") },
    local("GET", "/liveness", Access::Public),
    local("GET", "/readiness", Access::Public),
    local("GET", "/health", Access::Public),
    local("GET", "/metrics", Access::Public),
    local("GET", "/openapi.yaml", Access::Public),
    local("GET", "/ui", Access::Public),
    local("GET", "/engine_metrics", Access::Admin),
    local("GET", "/get_loads", Access::Admin),
    local("POST", "/flush_cache", Access::Admin),
    local("GET", "/list_workers", Access::Admin),
    local("POST", "/add_worker", Access::Admin),
    local("POST", "/remove_worker", Access::Admin),
    control("POST", "/v1/load_lora_adapter"),
    control("POST", "/v1/unload_lora_adapter"),
    control("POST", "/load_lora_adapter"),
    control("POST", "/unload_lora_adapter"),
    control("GET", "/lora-adapters"),
    control("POST", "/lora-adapters"),
    control("POST", "/sleep"),
    control("POST", "/wake_up"),
    control("GET", "/is_sleeping"),
    control("POST", "/pause"),
    control("POST", "/resume"),
    control("GET", "/is_paused"),
    control("POST", "/pause_generation"),
    control("POST", "/continue_generation"),
    control("POST", "/abort_request"),
    control("POST", "/abort_requests"),
    control("POST", "/reset_prefix_cache"),
    control("POST", "/reset_mm_cache"),
    control("POST", "/reset_encoder_cache"),
    control("POST", "/clear_hicache_storage_backend"),
    control("POST", "/start_profile"),
    control("POST", "/stop_profile"),
    control("POST", "/release_memory_occupation"),
    control("POST", "/resume_memory_occupation"),
    control("POST", "/update_weights_from_disk"),
    control("POST", "/update_weight_version"),
    control("POST", "/freeze_gc"),
    control("POST", "/slow_down"),
    control("POST", "/configure_logging"),
    control("POST", "/models/load"),
    control("POST", "/models/unload"),
    control("GET", "/slots"),
    control("GET", "/server_info"),
    control("GET", "/load"),
    local("GET", "/workers", Access::Admin),
    local("POST", "/workers", Access::Admin),
    local("GET", "/workers/{id}", Access::Admin),
    local("PUT", "/workers/{id}", Access::Admin),
    local("PATCH", "/workers/{id}", Access::Admin),
    local("DELETE", "/workers/{id}", Access::Admin),
    local("POST", "/workers/{id}/drain", Access::Admin),
    local("DELETE", "/workers/{id}/drain", Access::Admin),
    local("POST", "/workers/{id}/override", Access::Admin),
    local("DELETE", "/workers/{id}/override", Access::Admin),
    local("GET", "/ha/health", Access::Admin),
    local("GET", "/ha/status", Access::Admin),
    local("GET", "/ha/drift", Access::Admin),
    local("GET", "/ha/workers", Access::Admin),
    local("GET", "/ha/workers/{id}", Access::Admin),
    local("POST", "/ha/explain", Access::Inspect),
    local("GET", "/ha/policies", Access::Admin),
    local("GET", "/ha/policies/{model}", Access::Admin),
    local("PUT", "/ha/policies/{model}", Access::Admin),
    local("DELETE", "/ha/policies/{model}", Access::Admin),
    local("GET", "/ha/rate-limits", Access::Admin),
    local("GET", "/ha/rate-limits/{id}", Access::Admin),
    local("PUT", "/ha/rate-limits/{id}", Access::Admin),
    local("DELETE", "/ha/rate-limits/{id}", Access::Admin),
    local("GET", "/ha/rate-limit", Access::Admin),
    local("POST", "/ha/rate-limit", Access::Admin),
    local("GET", "/ha/rate-limit/stats", Access::Admin),
    local("GET", "/ha/routers", Access::Reader),
    local("GET", "/ha/events", Access::Reader),
    local("GET", "/ha/view", Access::Admin),
    local("GET", "/ha/views", Access::Admin),
    local("GET", "/ha/config", Access::Admin),
    local("GET", "/ha/leader", Access::Admin),
    local("POST", "/ha/leader/transfer", Access::Operator),
    local("POST", "/ha/leader/step-down", Access::Operator),
    local("POST", "/ha/shutdown", Access::Operator),
    local("POST", "/ha/reload", Access::Operator),
    local("GET", "/ha/keys", Access::Operator),
    local("POST", "/ha/keys", Access::Operator),
    local("PUT", "/ha/keys/{id}", Access::Operator),
    local("DELETE", "/ha/keys/{id}", Access::Operator),
];

/// The route of a path that is not in the table and that `--pass-through` opens.
pub(super) const PASSED: Route =
    Route { method: "*", path: "pass_through", access: Access::Client, serves: Serves::Worker };

/// The result of looking up a request's method and path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The route with this index in the table.
    At(usize),
    /// The path is not in the table, and `--pass-through` opens it: see [`PASSED`].
    Passed,
    /// The path exists, but not with this method.
    OtherMethod,
    /// There is no such path.
    Nothing,
}

/// Looks a request up. A path with doubled or trailing slashes is looked up without them if it is for a worker; the
/// engine gets the path unchanged and decides what it means.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let found = find_exact(method, path);
    if found != Found::Nothing || !(path.contains("//") || path.ends_with('/')) {
        return found;
    }
    let plain = plain(path);
    match find_exact(method, &plain) {
        Found::At(at) if ROUTES[at].serves.is_worker() => Found::At(at),
        Found::At(_) | Found::Passed | Found::OtherMethod | Found::Nothing => Found::Nothing,
    }
}

/// A path without empty segments.
fn plain(path: &str) -> String {
    let segments = path.split('/').filter(|segment| !segment.is_empty());
    segments.fold(String::new(), |path, segment| path + "/" + segment)
}

/// The path that a request for `path` probably means, for its 404. Base URLs without `/v1` are a common mistake.
pub(super) fn suggestion(path: &str) -> Option<String> {
    let plain = plain(path);
    let with = format!("/v1{plain}");
    let without = plain.strip_prefix("/v1").unwrap_or(&plain);
    [with, without.to_owned(), plain.clone()]
        .into_iter()
        .find(|other| other != path && ROUTES.iter().any(|route| leads_to(other, route.path)))
}

/// The objects that a path is about, if neither the router nor any engine has such objects. OpenAI's and Anthropic's own
/// services store them.
pub(super) fn unsupported(path: &str) -> Option<&'static str> {
    const OBJECTS: [(&str, &str); 15] = [
        ("messages/batches", "batches"),
        ("batches", "batches"),
        ("files", "files"),
        ("uploads", "uploads"),
        ("fine_tuning", "fine-tuning jobs"),
        ("assistants", "assistants"),
        ("threads", "threads"),
        ("vector_stores", "vector stores"),
        ("conversations", "conversations"),
        ("containers", "containers"),
        ("evals", "evaluations"),
        ("videos", "videos"),
        ("skills", "skills"),
        ("organization", "organizations"),
        ("organizations", "organizations"),
    ];
    let plain = plain(path);
    let rest = plain.strip_prefix("/v1/")?;
    let is_below = |name: &str| {
        rest.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    OBJECTS.iter().find(|(name, _)| is_below(name)).map(|(_, objects)| *objects)
}

fn find_exact(method: &Method, path: &str) -> Found {
    let mut found = Found::Nothing;
    for (at, route) in ROUTES.iter().enumerate() {
        if !leads_to(path, route.path) {
            continue;
        }
        // HEAD is GET without the body (RFC 9110, section 9.3.2).
        if route.method == method.as_str() || (route.method == "GET" && method == Method::HEAD) {
            return Found::At(at);
        }
        found = Found::OtherMethod;
    }
    found
}

/// The methods that a path accepts, in the format of an `allow` header.
pub(super) fn methods_of(path: &str) -> String {
    let methods =
        ROUTES.iter().filter(|route| leads_to(path, route.path)).map(|route| route.method);
    let with_head = |method| if method == "GET" { "GET, HEAD" } else { method };
    methods.map(with_head).collect::<Vec<_>>().join(", ")
}

fn leads_to(path: &str, pattern: &str) -> bool {
    if !pattern.contains('{') {
        return path == pattern;
    }
    let (mut path, mut pattern) = (path.split('/'), pattern.split('/'));
    loop {
        match (path.next(), pattern.next()) {
            (None, None) => return true,
            (Some(first), Some("{model}")) => return !first.is_empty(),
            (Some(segment), Some(wanted))
                if segment == wanted || (wanted.starts_with('{') && !segment.is_empty()) => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finds(method: &Method, path: &str) -> Option<(&'static str, &'static str)> {
        match find(method, path) {
            Found::At(at) => Some((ROUTES[at].method, ROUTES[at].path)),
            Found::Passed | Found::OtherMethod | Found::Nothing => None,
        }
    }

    #[test]
    fn a_request_finds_its_route() {
        assert_eq!(finds(&Method::POST, "/v1/messages"), Some(("POST", "/v1/messages")));
        assert_eq!(finds(&Method::PATCH, "/workers/w-1"), Some(("PATCH", "/workers/{id}")));
        for path in ["/ha/policies/m", "/ha/policies/org/m"] {
            assert_eq!(finds(&Method::PUT, path), Some(("PUT", "/ha/policies/{model}")));
        }
        assert_eq!(find(&Method::PUT, "/ha/policies/"), Found::Nothing);
        assert_eq!(
            finds(&Method::POST, "/workers/w-1/drain"),
            Some(("POST", "/workers/{id}/drain"))
        );
        assert_eq!(finds(&Method::HEAD, "/health"), Some(("GET", "/health")));
        assert_eq!(find(&Method::GET, "/v1/messages"), Found::OtherMethod);
        assert_eq!(find(&Method::GET, "/workers/"), Found::Nothing);
        assert_eq!(finds(&Method::GET, "/v1/models/org/x"), Some(("GET", "/v1/models/{model}")));
        for path in ["/v1/chat/completions/", "//v1/chat//completions"] {
            assert_eq!(finds(&Method::POST, path), Some(("POST", "/v1/chat/completions")));
        }
        assert_eq!(find(&Method::POST, "//workers"), Found::Nothing);
    }

    #[test]
    fn a_path_without_its_version_is_recognised() {
        for (path, meant) in [
            ("/chat/completions", Some("/v1/chat/completions")),
            ("/v1/v1/chat/completions", Some("/v1/chat/completions")),
            ("/messages", Some("/v1/messages")),
            ("/v1/generate", Some("/generate")),
            ("/workers/", Some("/workers")),
            ("/nowhere", None),
        ] {
            assert_eq!(suggestion(path).as_deref(), meant, "{path}");
        }
    }

    #[test]
    fn a_path_tells_its_methods() {
        assert_eq!(methods_of("/workers"), "GET, HEAD, POST");
        assert_eq!(methods_of("/workers/w-1/drain"), "POST, DELETE");
    }

    #[test]
    fn no_route_stands_twice() {
        for (at, route) in ROUTES.iter().enumerate() {
            let twin = ROUTES[..at]
                .iter()
                .find(|other| (other.method, other.path) == (route.method, route.path));
            assert!(twin.is_none(), "{route:?}");
        }
    }
}
