//! The variables that other routers read.
//!
//! If a variable of this list is set, the start logs one line: what to use instead, or why nothing is needed. The flags
//! of other routers have no variables; here every flag has `SMG_<FLAG>`.

use smg_types::spec::WorkerSpec;

use super::{Routers, SMG, SMG_SGLANG, SMG_VLLM, VLLM};
use crate::config::process::Process;

/// A variable of another router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct PeerVariable {
    /// The variable's name.
    pub(in crate::config) name: &'static str,
    /// The routers that read it.
    pub(in crate::config) routers: Routers,
    /// What to use instead, or why nothing is needed.
    pub(in crate::config) instead: &'static str,
    /// Whether it is a key for a cloud provider, which many shells set anyway. It is reported only if a worker lacks a
    /// key.
    pub(in crate::config) is_provider_key: bool,
}

const NO_STORE: &str = "responses and conversations are not stored here";

const NO_JWT: &str = "JSON web tokens are not checked here: use --admin-api-key, or put an authenticating proxy in front";

const NO_MEDIA: &str = "media are not fetched or processed here: the engine does it";

const NO_TRACES: &str = "traces are not exported here: traceparent passes from client to worker";

const KEY_OF_WORKER: &str =
    "a worker's key is --worker-api-key, or api_key_env in its [[workers]] table";

/// Every variable of the table.
pub(in crate::config) const VARIABLES: &[PeerVariable] = &[
    variable("ATP_WALLET_PATH", SMG_SGLANG, NO_STORE),
    variable("ATP_TNS_ALIAS", SMG_SGLANG, NO_STORE),
    variable("ATP_DSN", SMG_SGLANG, NO_STORE),
    variable("ATP_USER", SMG_SGLANG, NO_STORE),
    variable("ATP_PASSWORD", SMG_SGLANG, NO_STORE),
    variable("ATP_EXTERNAL_AUTH", SMG, NO_STORE),
    variable("ATP_POOL_MIN", SMG_SGLANG, NO_STORE),
    variable("ATP_POOL_MAX", SMG_SGLANG, NO_STORE),
    variable("ATP_POOL_TIMEOUT_SECS", SMG_SGLANG, NO_STORE),
    variable("POSTGRES_DB_URL", SMG_SGLANG, NO_STORE),
    variable("POSTGRES_POOL_MAX", SMG_SGLANG, NO_STORE),
    variable("POSTGRES_OP_TIMEOUT_SECS", SMG, NO_STORE),
    variable("REDIS_URL", SMG_SGLANG, NO_STORE),
    variable("REDIS_POOL_MAX", SMG_SGLANG, NO_STORE),
    variable("REDIS_RETENTION_DAYS", SMG_SGLANG, NO_STORE),
    variable("REDIS_OP_TIMEOUT_SECS", SMG, NO_STORE),
    variable("DB_AUTO_MIGRATE", SMG, NO_STORE),
    variable("JWT_ISSUER", SMG, NO_JWT),
    variable("JWT_AUDIENCE", SMG, NO_JWT),
    variable("JWT_JWKS_URI", SMG, NO_JWT),
    variable("CONTROL_PLANE_API_KEYS", SMG, "keys of administrators are SMG_ADMIN_API_KEY"),
    variable(
        "API_KEY_VALIDATION_URLS",
        VLLM,
        "keys are not checked by another service here: list them in SMG_API_KEY, or put an authenticating proxy in front",
    ),
    variable(
        "VLLM_ROUTER_SLL_SESSION_EXPIRATION_IN_S",
        VLLM,
        "the manual policy forgets an unused session after SMG_SESSION_TTL_SECS",
    ),
    variable("SMG_MM_PROCESSING", SMG, NO_MEDIA),
    variable("SMG_MM_PIXEL_CACHE_MB", SMG, NO_MEDIA),
    variable("SMG_MM_PIXEL_RDMA", SMG, NO_MEDIA),
    variable("SMG_MM_ALLOW_PRIVATE_MEDIA_HOSTS", SMG, NO_MEDIA),
    variable("SMG_RDMA_LISTEN_IP", SMG, NO_MEDIA),
    variable("SMG_RDMA_SLOT_TTL_S", SMG, NO_MEDIA),
    variable("SMG_LOG_MM_TIMING", SMG, NO_MEDIA),
    variable("SMG_VLLM_MM_PROCESSOR", SMG, NO_MEDIA),
    variable("SMG_VIDEO_DECODE_BACKEND", SMG, NO_MEDIA),
    variable("SMG_VIDEO_MAX_DECODED_BYTES", SMG, NO_MEDIA),
    variable("SMG_AUDIO_DECODE_BACKEND", SMG, NO_MEDIA),
    variable("SMG_AUDIO_MAX_DECODED_BYTES", SMG, NO_MEDIA),
    variable("SMG_ZMQ_SOCKET_DIR", SMG, "engines are spoken to over HTTP"),
    variable("OTEL_EXPORTER_OTLP_ENDPOINT", SMG_VLLM, NO_TRACES),
    variable("OTEL_EXPORTER_OTLP_TIMEOUT", SMG_VLLM, NO_TRACES),
    variable("OTEL_RESOURCE_ATTRIBUTES", SMG_VLLM, NO_TRACES),
    variable("OTEL_SERVICE_NAME", SMG_VLLM, NO_TRACES),
    variable("OTEL_TRACES_SAMPLER", SMG_VLLM, NO_TRACES),
    variable("OTEL_TRACES_SAMPLER_ARG", SMG_VLLM, NO_TRACES),
    provider_key("OPENAI_API_KEY"),
    provider_key("ANTHROPIC_API_KEY"),
    provider_key("XAI_API_KEY"),
    provider_key("GEMINI_API_KEY"),
    provider_key("OPENAI_ADMIN_KEY"),
    provider_key("ANTHROPIC_ADMIN_KEY"),
    provider_key("XAI_ADMIN_KEY"),
    provider_key("GEMINI_ADMIN_KEY"),
];

/// One warning per reason, for the variables of other routers that are set.
pub(in crate::config) fn unread_variables(
    process: &Process<'_>,
    workers: &[WorkerSpec],
) -> Vec<String> {
    let a_key_is_missing =
        workers.iter().any(|worker| worker.url.is_secure() && worker.api_key.is_none());
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for variable in VARIABLES {
        let matters = !variable.is_provider_key || a_key_is_missing;
        if !matters || process.variable(variable.name).is_none() {
            continue;
        }
        match reasons.iter_mut().find(|(reason, _)| *reason == variable.instead) {
            Some((_, names)) => names.push(variable.name),
            None => reasons.push((variable.instead, vec![variable.name])),
        }
    }
    reasons
        .into_iter()
        .map(|(reason, names)| match names.as_slice() {
            [one] => format!("variable {one} is not read: {reason}"),
            several => format!("variables {} are not read: {reason}", several.join(", ")),
        })
        .collect()
}

const fn variable(name: &'static str, routers: Routers, instead: &'static str) -> PeerVariable {
    PeerVariable { name, routers, instead, is_provider_key: false }
}

const fn provider_key(name: &'static str) -> PeerVariable {
    PeerVariable { name, routers: SMG, instead: KEY_OF_WORKER, is_provider_key: true }
}
