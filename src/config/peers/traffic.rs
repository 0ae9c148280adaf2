//! Flags of the listener, timeouts, admission, retries and breakers.

use super::Takes::{Nothing, One};
use super::{ALL, Here, PeerFlag, SMG, SMG_SGLANG, alias, always, only, refused, same};

const NO_RATES: &str = "rates per tenant are not limited here: --max-concurrent-requests bounds the requests in flight";

const TENANT_KEYS: &str = "tenants are known by their keys here: --tenant-api-key ID:KEY";

/// The flags of this topic.
pub(super) const FLAGS: &[PeerFlag] = &[
    same("--help", ALL, ""),
    same("--host", ALL, "default 0.0.0.0; vllm-router's 127.0.0.1"),
    same("--port", ALL, "default 8000; theirs 30000"),
    same("--max-payload-size", ALL, ""),
    refused(
        "--max-buffered-request-bytes",
        SMG,
        One,
        "a body is kept until its request can no longer be retried: --max-payload-size bounds one body, --max-buffered-bytes all of them",
    ),
    alias(
        "--header-read-timeout-secs",
        SMG,
        One,
        "header-timeout-secs",
        "0 is refused: a client may not take forever",
    ),
    same("--idle-connection-timeout-secs", SMG, "default 75; theirs 90"),
    alias(
        "--stream-body-stall-timeout-secs",
        SMG,
        One,
        "body-timeout-secs",
        "default 60; theirs 300; it bounds a client that does not read its response too",
    ),
    alias(
        "--sse-keepalive-secs",
        SMG,
        One,
        "stream-heartbeat-secs",
        "default 0, off; theirs 15; comments end with the worker's first byte",
    ),
    same("--request-timeout-secs", ALL, "does not bound streams: --stream-timeout-secs does"),
    same("--shutdown-grace-period-secs", SMG_SGLANG, ""),
    same(
        "--cors-allowed-origins",
        ALL,
        "without it no CORS headers are sent; sglang-router and vllm-router then allow every origin",
    ),
    same("--request-id-headers", ALL, ""),
    refused(
        "--upstream-http2",
        SMG,
        Nothing,
        "the router sends requests to workers over HTTP/1.1 with connections that are kept open: remove the flag",
    ),
    PeerFlag {
        here: Here::Alias {
            of: "worker-keep-alive-secs",
            differs: "",
            except: &[(
                "0",
                "keeps connections for ever in smg but none here: set a time of at most 3600",
            )],
        },
        ..alias("--upstream-pool-idle-timeout-secs", SMG, One, "worker-keep-alive-secs", "")
    },
    same(
        "--max-concurrent-requests",
        ALL,
        "bounds requests in flight, 0 and -1: no bound, which is the default; sglang-router's and vllm-router's is the size of a token bucket",
    ),
    same("--queue-size", ALL, ""),
    same("--queue-timeout-secs", ALL, ""),
    only(
        "--rate-limit-tokens-per-second",
        ALL,
        One,
        &["0"],
        "requests per second are not limited here: --max-concurrent-requests bounds the requests in flight",
    ),
    only(
        "--max-background-responses",
        SMG,
        One,
        &["0"],
        "responses and conversations are not stored here: the engine answers /v1/responses",
    ),
    always(
        "--priority-scheduler-enabled",
        SMG,
        Nothing,
        "requests that wait are ordered by their x-smg-priority header",
    ),
    alias(
        "--priority-scheduler-default-max-class",
        SMG,
        One,
        "max-client-priority",
        "default interactive",
    ),
    refused(
        "--priority-scheduler-config",
        SMG,
        One,
        "the classes system, interactive, default and bulk are fixed: remove the flag",
    ),
    refused(
        "--priority-scheduler-tenant-metric-top-n",
        SMG,
        One,
        "metrics of the queue have no tenant label: remove the flag",
    ),
    refused("--tenant-rate-limit-enabled", SMG, Nothing, NO_RATES),
    refused("--tenant-rate-limit-config", SMG, One, NO_RATES),
    refused("--trust-tenant-header", SMG, Nothing, TENANT_KEYS),
    refused("--tenant-header-name", SMG, One, TENANT_KEYS),
    same(
        "--retry-max-retries",
        ALL,
        "counts attempts after the first, default 3; theirs counts all attempts, default 5",
    ),
    same("--retry-initial-backoff-ms", ALL, ""),
    same("--retry-max-backoff-ms", ALL, "default 5000; theirs 30000"),
    same("--retry-backoff-multiplier", ALL, "default 2; theirs 1.5"),
    same(
        "--retry-jitter-factor",
        ALL,
        "default 1, the whole pause is random; theirs 0.2, which lengthens or shortens the pause",
    ),
    same("--disable-retries", ALL, ""),
    same(
        "--cb-failure-threshold",
        ALL,
        "counts failures within the window; theirs counts failures in a row",
    ),
    same("--cb-success-threshold", ALL, ""),
    same("--cb-timeout-duration-secs", ALL, ""),
    same("--cb-window-duration-secs", ALL, "vllm-router does not use it"),
    same("--disable-circuit-breaker", ALL, ""),
    refused(
        "--job-queue-capacity",
        SMG,
        One,
        "workers are added and removed at once, without a queue of jobs: remove the flag",
    ),
    refused(
        "--job-queue-concurrency",
        SMG,
        One,
        "workers are added and removed at once, without a queue of jobs: remove the flag",
    ),
];
