//! Flags whose task the engine does, or which are not supported.

use super::Takes::{Many, Nothing, One};
use super::{ALL, PeerFlag, SGLANG, SMG, SMG_SGLANG, VLLM, always, only, refused};

const NO_MEDIA: &str = "media are not fetched or processed here: the engine does it";

const NO_PARSER: &str = "responses pass unchanged here: give the parser to the engine";

const NO_STORE: &str =
    "responses and conversations are not stored here: the engine answers /v1/responses";

const NO_TOKENIZER: &str = "prompts are not tokenized here: the engine does it";

const NO_TRAINING: &str =
    "training control routes are not served here: call the engines themselves";

const NO_WASM: &str =
    "WebAssembly modules are not supported here: put a proxy with filters in front";

/// The flags of this topic.
pub(super) const FLAGS: &[PeerFlag] = &[
    refused("--model-path", SMG_SGLANG, One, NO_TOKENIZER),
    refused("--model", SMG, One, NO_TOKENIZER),
    refused("--tokenizer-path", SMG_SGLANG, One, NO_TOKENIZER),
    refused("--chat-template", SMG_SGLANG, One, NO_TOKENIZER),
    always("--disable-tokenizer-autoload", SMG, Nothing, "no tokenizer is loaded"),
    refused("--tokenizer-cache-enable-l0", SMG_SGLANG, Nothing, NO_TOKENIZER),
    refused("--tokenizer-cache-enable-l1", SMG_SGLANG, Nothing, NO_TOKENIZER),
    refused("--tokenizer-cache-l0-max-entries", SMG_SGLANG, One, NO_TOKENIZER),
    refused("--tokenizer-cache-l0-max-memory", SMG, One, NO_TOKENIZER),
    refused("--tokenizer-cache-l1-max-memory", SMG_SGLANG, One, NO_TOKENIZER),
    refused("--enable-l0-cache", SGLANG, Nothing, NO_TOKENIZER),
    refused("--enable-l1-cache", SGLANG, Nothing, NO_TOKENIZER),
    refused("--l0-max-entries", SGLANG, One, NO_TOKENIZER),
    refused("--l1-max-memory", SGLANG, One, NO_TOKENIZER),
    refused("--parser", SMG, One, NO_PARSER),
    refused("--reasoning-parser", SMG_SGLANG, One, NO_PARSER),
    refused("--tool-call-parser", SMG_SGLANG, One, NO_PARSER),
    refused(
        "--mcp-config-path",
        SMG_SGLANG,
        One,
        "tools are not called here: the engine or the client calls MCP servers",
    ),
    only("--mm-processing", SMG, One, &["worker"], NO_MEDIA),
    refused("--mm-per-request-image-limit", SMG, One, NO_MEDIA),
    only("--mm-pixel-cache-mb", SMG, One, &["0"], NO_MEDIA),
    refused("--mm-pixel-rdma", SMG, Nothing, NO_MEDIA),
    refused("--mm-allowed-media-domains", SMG, One, NO_MEDIA),
    refused("--mm-allow-private-media-hosts", SMG, Nothing, NO_MEDIA),
    refused("--multimodal-tensor-transport", SMG, One, NO_MEDIA),
    refused("--multimodal-shm-min-bytes", SMG, One, NO_MEDIA),
    refused("--multimodal-max-inflight-bytes", SMG, One, NO_MEDIA),
    refused("--rdma-listen-ip", SMG, One, NO_MEDIA),
    refused("--rdma-slot-ttl-s", SMG, One, NO_MEDIA),
    refused("--log-mm-timing", SMG, Nothing, NO_MEDIA),
    only("--history-backend", ALL, One, &["none"], NO_STORE),
    refused("--history-memory-max-responses", SMG, One, NO_STORE),
    refused("--history-memory-max-items", SMG, One, NO_STORE),
    refused("--history-memory-retention-secs", SMG, One, NO_STORE),
    refused("--oracle-wallet-path", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-tns-alias", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-connect-descriptor", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-dsn", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-username", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-user", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-password", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-external-auth", SMG, Nothing, NO_STORE),
    refused("--oracle-pool-min", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-pool-max", SMG_SGLANG, One, NO_STORE),
    refused("--oracle-pool-timeout-secs", SMG_SGLANG, One, NO_STORE),
    refused("--postgres-db-url", SMG_SGLANG, One, NO_STORE),
    refused("--postgres-pool-max", SMG_SGLANG, One, NO_STORE),
    refused("--postgres-pool-max-size", SMG, One, NO_STORE),
    refused("--postgres-op-timeout-secs", SMG, One, NO_STORE),
    refused("--redis-url", SMG_SGLANG, One, NO_STORE),
    refused("--redis-pool-max", SMG_SGLANG, One, NO_STORE),
    refused("--redis-pool-max-size", SMG, One, NO_STORE),
    refused("--redis-retention-days", SMG_SGLANG, One, NO_STORE),
    refused("--redis-op-timeout-secs", SMG, One, NO_STORE),
    refused("--schema-config", SMG, One, NO_STORE),
    refused("--storage-context-headers", SMG, Many, NO_STORE),
    refused("--storage-hook-wasm-path", SMG, One, NO_WASM),
    refused("--enable-wasm", SMG, Nothing, NO_WASM),
    refused("--wasm-middleware", VLLM, One, NO_WASM),
    refused("--wasm-middleware-route", VLLM, One, NO_WASM),
    refused("--wasm-middleware-sha256", VLLM, One, NO_WASM),
    refused("--enable-rl", SMG, Nothing, NO_TRAINING),
    refused("--rl-control-timeout-secs", SMG, One, NO_TRAINING),
    refused("--rl-fanout-concurrency", SMG, One, NO_TRAINING),
];
