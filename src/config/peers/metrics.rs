//! The metrics of other routers, and the metrics here that show the same.

use super::{Routers, SMG, SMG_SGLANG, VLLM};

/// A metric of another router.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct PeerMetric {
    /// The metric's name.
    pub(in crate::config) name: &'static str,
    /// The routers that have it.
    pub(in crate::config) routers: Routers,
    /// The metrics here that show the same; empty if there are none.
    pub(in crate::config) ours: &'static [&'static str],
    /// How to read them, or why there are none.
    pub(in crate::config) note: &'static str,
}

const ENGINE: &str =
    "the engine's own metrics show it: /engine_metrics merges those of all workers";

const BY_OUTCOME: &str = "by the label outcome";

/// Every metric of the table.
pub(in crate::config) const METRICS: &[PeerMetric] = &[
    metric(
        "smg_http_requests_total",
        SMG_SGLANG,
        &["smg_http_requests_total"],
        "labels route and status in place of path and method",
    ),
    metric(
        "smg_http_responses_total",
        SMG_SGLANG,
        &["smg_http_requests_total"],
        "by the label status",
    ),
    metric(
        "smg_http_request_duration_seconds",
        SMG_SGLANG,
        &["smg_http_request_duration_seconds"],
        "",
    ),
    metric("smg_http_connections_active", SMG_SGLANG, &["smg_http_connections"], ""),
    metric(
        "smg_http_inflight_request_age_count",
        SMG_SGLANG,
        &[],
        "smg_worker_in_flight shows how many are in flight, not for how long",
    ),
    metric(
        "smg_http_rate_limit_total",
        SMG_SGLANG,
        &["smg_admission_rejected_total"],
        "rejections only",
    ),
    metric("smg_admission_inflight", SMG, &["smg_admission_in_use"], ""),
    metric(
        "smg_router_requests_total",
        SMG_SGLANG,
        &["smg_router_requests_total"],
        "labels model and outcome",
    ),
    metric(
        "smg_router_request_duration_seconds",
        SMG_SGLANG,
        &["smg_router_request_duration_seconds"],
        "",
    ),
    metric(
        "smg_router_request_errors_total",
        SMG_SGLANG,
        &["smg_router_requests_total", "smg_router_send_errors_total"],
        BY_OUTCOME,
    ),
    metric(
        "smg_router_upstream_responses_total",
        SMG_SGLANG,
        &["smg_worker_requests_total"],
        BY_OUTCOME,
    ),
    metric(
        "smg_router_ttft_seconds",
        SMG_SGLANG,
        &["smg_router_first_byte_seconds"],
        "for streams",
    ),
    metric("smg_router_tpot_seconds", SMG_SGLANG, &[], ENGINE),
    metric(
        "smg_router_tokens_total",
        SMG_SGLANG,
        &["smg_tokens_total"],
        "by tenant, model and kind",
    ),
    metric("smg_router_generation_duration_seconds", SMG_SGLANG, &[], ENGINE),
    metric("smg_router_stage_duration_seconds", SMG_SGLANG, &[], "there is one stage"),
    metric(
        "smg_worker_pool_size",
        SMG_SGLANG,
        &["smg_workers"],
        "by the label state; ready ones serve",
    ),
    metric(
        "smg_worker_connections_active",
        SMG_SGLANG,
        &[],
        "smg_worker_in_flight shows the requests",
    ),
    metric("smg_worker_requests_active", SMG_SGLANG, &["smg_worker_in_flight"], ""),
    metric(
        "smg_worker_requests_total",
        SMG,
        &["smg_worker_requests_total"],
        "labels worker and outcome",
    ),
    metric(
        "smg_worker_health",
        SMG_SGLANG,
        &["smg_worker_state"],
        "1 for the label state=\"ready\"",
    ),
    metric(
        "smg_worker_health_checks_total",
        SMG_SGLANG,
        &["smg_worker_state"],
        "probes show in the state",
    ),
    metric(
        "smg_worker_selection_total",
        SMG_SGLANG,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric("smg_worker_errors_total", SMG_SGLANG, &["smg_router_send_errors_total"], ""),
    metric("smg_worker_cb_state", SMG_SGLANG, &["smg_worker_breaker_state"], "the same values"),
    metric(
        "smg_worker_cb_transitions_total",
        SMG_SGLANG,
        &["smg_worker_breaker_state"],
        "changes of the gauge",
    ),
    metric("smg_worker_cb_outcomes_total", SMG_SGLANG, &["smg_worker_requests_total"], BY_OUTCOME),
    metric(
        "smg_worker_cb_consecutive_failures",
        SMG_SGLANG,
        &["smg_worker_requests_total"],
        BY_OUTCOME,
    ),
    metric(
        "smg_worker_cb_consecutive_successes",
        SMG_SGLANG,
        &["smg_worker_requests_total"],
        BY_OUTCOME,
    ),
    metric(
        "smg_worker_retries_total",
        SMG_SGLANG,
        &["smg_router_retries_total"],
        "by what went wrong before",
    ),
    metric(
        "smg_worker_retries_exhausted_total",
        SMG_SGLANG,
        &["smg_router_requests_total"],
        BY_OUTCOME,
    ),
    metric("smg_worker_retry_backoff_seconds", SMG_SGLANG, &[], "the pauses follow from --retry-*"),
    metric(
        "smg_cache_aware_policy_branch_total",
        SMG,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric(
        "smg_cache_aware_match_ratio",
        SMG,
        &["smg_prefix_hits_total", "smg_prefix_misses_total"],
        "",
    ),
    metric(
        "smg_manual_policy_branch_total",
        SMG_SGLANG,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric(
        "smg_consistent_hashing_policy_branch_total",
        SMG_SGLANG,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric(
        "smg_prefix_hash_policy_branch_total",
        SMG_SGLANG,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric("smg_discovery_workers_discovered", SMG_SGLANG, &["smg_workers"], ""),
    metric("smg_allocator_resident_bytes", SMG, &["process_resident_memory_bytes"], ""),
    metric("router_mesh_peer_connections", SMG, &["smg_mesh_connections"], ""),
    metric("router_mesh_peer_reconnects_total", SMG, &["smg_mesh_connection_failures_total"], ""),
    metric("router_mesh_batches_total", SMG, &["smg_mesh_gossip_messages_total"], ""),
    metric("router_mesh_bytes_total", SMG, &["smg_mesh_deltas_bytes_total"], ""),
    metric("router_mesh_convergence_ms", SMG, &["smg_mesh_sync_latency_seconds"], "in seconds"),
    metric("router_mesh_snapshot_trigger_total", SMG, &["smg_mesh_snapshots_total"], ""),
    metric(
        "smg_db_*, smg_mcp_*, smg_tokenizer_*",
        SMG_SGLANG,
        &[],
        "nothing is stored, called or tokenized here",
    ),
    metric("vllm_router_requests_total", VLLM, &["smg_http_requests_total"], "by the label route"),
    metric(
        "vllm_router_request_duration_seconds",
        VLLM,
        &["smg_http_request_duration_seconds"],
        "",
    ),
    metric(
        "vllm_router_generate_duration_seconds",
        VLLM,
        &["smg_router_request_duration_seconds"],
        "",
    ),
    metric("vllm_router_request_errors_total", VLLM, &["smg_router_requests_total"], BY_OUTCOME),
    metric(
        "vllm_router_processed_requests_total",
        VLLM,
        &["smg_worker_requests_total"],
        "by the label worker",
    ),
    metric(
        "vllm_router_active_workers",
        VLLM,
        &["smg_workers"],
        "by the label state; ready ones serve",
    ),
    metric(
        "vllm_router_worker_health",
        VLLM,
        &["smg_worker_state"],
        "1 for the label state=\"ready\"",
    ),
    metric("vllm_router_policy_decisions_total", VLLM, &["smg_policy_decisions_total"], ""),
    metric(
        "vllm_router_load_balancing_events_total",
        VLLM,
        &["smg_policy_decisions_total"],
        "by policy and reason",
    ),
    metric("vllm_router_max_load", VLLM, &["smg_worker_in_flight"], "the largest"),
    metric("vllm_router_min_load", VLLM, &["smg_worker_in_flight"], "the smallest"),
    metric("vllm_router_cache_hits_total", VLLM, &["smg_prefix_hits_total"], ""),
    metric("vllm_router_cache_misses_total", VLLM, &["smg_prefix_misses_total"], ""),
    metric("vllm_router_cb_state", VLLM, &["smg_worker_breaker_state"], "the same values"),
    metric(
        "vllm_router_cb_state_transitions_total",
        VLLM,
        &["smg_worker_breaker_state"],
        "changes of the gauge",
    ),
    metric("vllm_router_cb_outcomes_total", VLLM, &["smg_worker_requests_total"], BY_OUTCOME),
    metric("vllm_router_retries_total", VLLM, &["smg_router_retries_total"], ""),
    metric("vllm_router_retries_exhausted_total", VLLM, &["smg_router_requests_total"], BY_OUTCOME),
    metric(
        "vllm_router_retry_backoff_duration_seconds",
        VLLM,
        &[],
        "the pauses follow from --retry-*",
    ),
    metric(
        "vllm_router_pd_*, vllm_router_agent_aware_*",
        VLLM,
        &[],
        "disaggregation and program scheduling are not supported",
    ),
];

const fn metric(
    name: &'static str,
    routers: Routers,
    ours: &'static [&'static str],
    note: &'static str,
) -> PeerMetric {
    PeerMetric { name, routers, ours, note }
}
