//! Flags of logs, metrics, TLS, keys and the mesh.

use super::Takes::{Many, Nothing, One};
use super::{ALL, PeerFlag, SMG, SMG_SGLANG, VLLM, alias, refused, same};

const NO_AUDIT: &str = "changes of workers and policies are logged at INFO, without the name of the key: remove the flag";

const NO_JWT: &str = "JSON web tokens are not checked here: use --admin-api-key, or put an authenticating proxy in front";

const NO_TRACES: &str = "traces are not exported here: traceparent passes from client to worker, and requests are logged with their ids";

/// The flags of this topic.
pub(super) const FLAGS: &[PeerFlag] = &[
    same("--log-level", ALL, "also `warning` for warn and `critical` for error"),
    same("--log-json", SMG, ""),
    refused(
        "--log-dir",
        ALL,
        One,
        "logs go to standard error: let the service manager or the container runtime keep and rotate them",
    ),
    same("--prometheus-host", ALL, "default 0.0.0.0; vllm-router's 127.0.0.1"),
    same("--prometheus-port", ALL, "0 closes the port; /metrics is on the main port too"),
    refused(
        "--prometheus-duration-buckets",
        SMG_SGLANG,
        Many,
        "the buckets of histograms are fixed: remove the flag",
    ),
    refused("--enable-trace", ALL, Nothing, NO_TRACES),
    refused("--otlp-traces-endpoint", ALL, One, NO_TRACES),
    refused("--otel-sampling-ratio", VLLM, One, NO_TRACES),
    refused("--otel-excluded-paths", VLLM, Many, NO_TRACES),
    refused(
        "--profile",
        VLLM,
        Nothing,
        "engines are not profiled from here: call the engine's own profiling route",
    ),
    refused(
        "--jemalloc-prof-dir",
        SMG,
        One,
        "heap profiles are not written here: smg_prefix_bytes and process_resident_memory_bytes show memory",
    ),
    same("--health-check-port", SMG, ""),
    same("--tls-cert-path", SMG_SGLANG, ""),
    same("--tls-key-path", SMG_SGLANG, ""),
    alias("--client-cert-path", SMG_SGLANG, One, "worker-tls-cert", ""),
    alias("--client-key-path", SMG_SGLANG, One, "worker-tls-key", ""),
    alias(
        "--ca-cert-paths",
        SMG_SGLANG,
        Many,
        "worker-tls-ca",
        "one PEM file with all of them; they replace the system's; theirs are added to them",
    ),
    alias(
        "--ca-cert-path",
        SMG_SGLANG,
        Many,
        "worker-tls-ca",
        "one PEM file with all of them; they replace the system's; theirs are added to them",
    ),
    same(
        "--api-key",
        ALL,
        "clients must send it, and it is not sent to workers. smg and sglang-router also send it to workers, and vllm-router only does that: use --worker-api-key for it",
    ),
    refused(
        "--api-key-validation-urls",
        VLLM,
        Many,
        "keys are not checked by another service here: list them in --api-key, or put an authenticating proxy in front",
    ),
    same("--tenant-api-key", SMG, ""),
    alias("--control-plane-api-keys", SMG_SGLANG, Many, "admin-api-key", ""),
    refused("--control-plane-audit-enabled", SMG_SGLANG, Nothing, NO_AUDIT),
    refused("--disable-audit-logging", SMG, Nothing, NO_AUDIT),
    refused("--jwt-issuer", SMG_SGLANG, One, NO_JWT),
    refused("--jwt-audience", SMG_SGLANG, One, NO_JWT),
    refused("--jwt-jwks-uri", SMG_SGLANG, One, NO_JWT),
    refused("--jwt-role-claim", SMG, One, NO_JWT),
    refused("--jwt-role-mapping", SMG_SGLANG, Many, NO_JWT),
    same("--enable-mesh", SMG, ""),
    alias("--ha-mesh", SMG, Nothing, "enable-mesh", ""),
    same("--mesh-server-name", SMG, "default the host's name; theirs a random one"),
    same("--mesh-host", SMG, ""),
    same("--mesh-advertise-host", SMG, "needed only where addresses are translated"),
    same("--mesh-port", SMG, ""),
    same(
        "--mesh-peer-urls",
        SMG,
        "every entry is tried, and names are resolved repeatedly; theirs tries the first",
    ),
    alias("--seeds", SMG, Many, "mesh-peer-urls", ""),
    same("--mesh-tls-cert", SMG, ""),
    same("--mesh-tls-key", SMG, ""),
    alias("--mesh-tls-ca-cert", SMG, One, "mesh-tls-ca", ""),
];
