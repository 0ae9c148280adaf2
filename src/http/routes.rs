//! The one table of routes: what there is, for whom, and what it is counted as.

use http::Method;

/// Who may use a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everyone: probes and metrics.
    Public,
    /// Clients with a key, if keys are asked for.
    Client,
    /// Administrators.
    Admin,
    /// Whoever may end the router: administrators with a key; without one, only this machine.
    Operator,
}

/// What answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Serves {
    /// A worker; broken streams in OpenAI's shape.
    Worker,
    /// A worker; broken streams in Anthropic's shape.
    AnthropicWorker,
    /// The router itself.
    Local,
}

/// A method and a path. Segments in braces stand for anything; `{model}` for all that follows, since models' names have slashes.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    /// `GET`, `POST`, …
    pub method: &'static str,
    /// The path as it is counted.
    pub path: &'static str,
    /// For whom.
    pub access: Access,
    pub(super) serves: Serves,
}

const fn infer(path: &'static str) -> Route {
    Route { method: "POST", path, access: Access::Client, serves: Serves::Worker }
}

const fn ask(path: &'static str) -> Route {
    Route { method: "GET", path, access: Access::Client, serves: Serves::Worker }
}

const fn local(method: &'static str, path: &'static str, access: Access) -> Route {
    Route { method, path, access, serves: Serves::Local }
}

/// All routes. Those with most traffic come first: the table is searched from its head.
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
    ask("/health_generate"),
    ask("/get_model_info"),
    // SGLang's tells the engine's own keys.
    Route { access: Access::Admin, ..ask("/get_server_info") },
    local("GET", "/liveness", Access::Public),
    local("GET", "/readiness", Access::Public),
    local("GET", "/health", Access::Public),
    local("GET", "/metrics", Access::Public),
    local("GET", "/openapi.yaml", Access::Public),
    local("GET", "/engine_metrics", Access::Admin),
    local("GET", "/get_loads", Access::Admin),
    local("POST", "/flush_cache", Access::Admin),
    local("GET", "/list_workers", Access::Admin),
    local("POST", "/add_worker", Access::Admin),
    local("POST", "/remove_worker", Access::Admin),
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
    local("GET", "/ha/policies", Access::Admin),
    local("GET", "/ha/policies/{model}", Access::Admin),
    local("PUT", "/ha/policies/{model}", Access::Admin),
    local("DELETE", "/ha/policies/{model}", Access::Admin),
    local("GET", "/ha/routers", Access::Client),
    local("GET", "/ha/events", Access::Client),
    local("POST", "/ha/shutdown", Access::Operator),
    local("GET", "/ha/keys", Access::Operator),
    local("POST", "/ha/keys", Access::Operator),
    local("PUT", "/ha/keys/{id}", Access::Operator),
    local("DELETE", "/ha/keys/{id}", Access::Operator),
];

/// What a request's method and path lead to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    /// The route at this place in the table.
    At(usize),
    /// The path is there, not with this method.
    OtherMethod,
    /// Nothing.
    Nothing,
}

/// Looks a request up.
pub(super) fn find(method: &Method, path: &str) -> Found {
    let mut found = Found::Nothing;
    for (at, route) in ROUTES.iter().enumerate() {
        if !leads_to(path, route.path) {
            continue;
        }
        // HEAD is GET without the body (RFC 9110, 9.3.2).
        if route.method == method.as_str() || (route.method == "GET" && method == Method::HEAD) {
            return Found::At(at);
        }
        found = Found::OtherMethod;
    }
    found
}

/// The methods that a path takes, as an `allow` header lists them.
pub(super) fn methods_of(path: &str) -> String {
    let methods: Vec<_> = ROUTES
        .iter()
        .filter(|route| leads_to(path, route.path))
        .map(|route| route.method)
        .collect();
    methods.join(", ")
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
            Found::OtherMethod | Found::Nothing => None,
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
        assert_eq!(find(&Method::GET, "/v1/models/x"), Found::Nothing);
    }

    #[test]
    fn a_path_tells_its_methods() {
        assert_eq!(methods_of("/workers"), "GET, POST");
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
