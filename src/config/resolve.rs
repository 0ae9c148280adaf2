//! Turns settings into the [`Config`], one part per module, and finds settings that contradict each other.
//!
//! Every value is within its own bounds already. This module checks what only several settings together show.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use smg_proxy::dispatch;
use smg_proxy::upstream;
use smg_routing::fleet;
use smg_routing::limit;
use smg_routing::policy;
use smg_routing::prefix;
use smg_runtime::telemetry;
use smg_runtime::tls;
use smg_types::spec::{WorkerNetworks, WorkerSpec};

use crate::bridge;
use crate::cli::values::DOCUMENTED;
use crate::cli::{AccessLogFormat, Args, LogLevel, Measure, MinorityWrites};
use crate::config::checks;
use crate::config::cluster::{mesh_config, node_name};
use crate::config::layers::Settings;
use crate::config::limits::limits_config;
use crate::config::mistakes::{Mistake, flag, shown};
use crate::config::process::Process;
use crate::config::{Config, workers};
use crate::http;

/// The configuration of the settings, and the contradictions between them.
pub(super) fn resolve(
    settings: &Settings,
    process: &Process<'_>,
    warnings: &mut Vec<String>,
) -> (Config, Vec<Mistake>) {
    let args = &settings.args;
    let mut mistakes = Vec::new();
    check_access(args, &mut mistakes, warnings);
    check_ports(settings, &mut mistakes);
    mistakes.extend(checks::contradictions(args));
    let (described, wrong) = workers::read(&settings.workers, &settings.file, process);
    mistakes.extend(wrong);
    check_places(args, &described, &mut mistakes);
    let config = Config {
        http: http_config(settings, process, &mut mistakes),
        policy: policy_config(args),
        prefix: prefix::Config { max_entries: args.routing.max_tree_size },
        limit: limit::Config {
            max_concurrent: args.admission.max_concurrent_requests.0,
            queue_size: args.admission.queue_size,
        },
        fleet: fleet_config(args),
        upstream: upstream_config(args, &mut mistakes),
        dispatch: dispatch_config(args),
        workers: all_workers(args, described),
        mesh: mesh_config(settings, process, &mut mistakes, warnings),
        bridge: bridge_config(&settings.args),
        limits: limits_config(settings, &mut mistakes),
        telemetry: telemetry_config(args, process, &mut mistakes),
    };
    (config, mistakes)
}

fn http_config(
    settings: &Settings,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
) -> http::Config {
    let Args { listen, tls, access, probes, observe, routing, shutdown, timeouts, .. } =
        &settings.args;
    let health_listen = (probes.health_check_port != 0)
        .then(|| SocketAddr::new(listen.host, probes.health_check_port));
    let metrics_listen = (observe.prometheus_port != 0).then(|| http::MetricsListen {
        address: SocketAddr::new(observe.prometheus_host, observe.prometheus_port),
        asked_for: settings.was_given("prometheus_port"),
    });
    let identity =
        pair(("tls_cert_path", &tls.tls_cert_path), ("tls_key_path", &tls.tls_key_path), mistakes);
    if tls.client_ca_path.is_some() && tls.tls_cert_path.is_none() {
        mistakes.push(Mistake::of_settings(
            &["tls_cert_path", "client_ca_path"],
            "--client-ca-path asks clients for certificates, which needs TLS: --tls-cert-path is missing",
        ));
    }
    let max_buffered_bytes = max_buffered_bytes(listen.max_buffered_bytes, process.memory);
    http::Config {
        listen: SocketAddr::new(listen.host, listen.port),
        metrics_listen,
        health_listen,
        tls: identity.map(|(certificate, key)| tls::ServerConfig {
            certificate,
            key,
            client_ca: tls.client_ca_path.clone(),
        }),
        api_keys: access.api_key.clone(),
        tenants: access
            .tenant_api_key
            .iter()
            .map(|tenant| http::Tenant { id: tenant.id.clone(), key: tenant.key.clone() })
            .collect(),
        admin_api_keys: access
            .admin_api_key
            .iter()
            .map(|admin| http::AdminKey {
                id: admin.id.clone(),
                role: if admin.writes { http::AdminRole::Admin } else { http::AdminRole::User },
                key: admin.key.clone(),
            })
            .collect(),
        admin_open: access.admin_open,
        // A larger body would never find room.
        max_body_bytes: listen.max_payload_size.min(max_buffered_bytes),
        forwarded_headers: !listen.disable_forwarded_headers,
        decompress_requests: listen.decompress_requests,
        max_buffered_bytes,
        header_timeout: listen.header_timeout_secs,
        idle_timeout: listen.idle_connection_timeout_secs,
        body_timeout: listen.body_timeout_secs,
        stream_heartbeat: unless_zero(timeouts.stream_heartbeat_secs),
        meter_streams: settings.args.observe.meter_streams,
        access_log: access_log(&settings.args, mistakes),
        max_client_priority: settings.args.admission.max_client_priority,
        pass_through: pass_through(&access.pass_through),
        tunnel_idle: timeouts.idle_timeout_secs,
        worker_networks: worker_networks(&settings.args),
        max_connections: listen.max_connections,
        threads: if listen.threads == 0 { process.cpus } else { listen.threads },
        min_ready_workers: probes.min_ready_workers,
        session_headers: routing.session_header.clone(),
        request_id_headers: listen.request_id_headers.clone(),
        debug_headers: routing.debug_headers,
        cors_allowed_origins: listen.cors_allowed_origins.clone(),
        drain_settle: shutdown.drain_settle_secs,
        shutdown_grace: shutdown.shutdown_grace_period_secs,
        node_name: node_name(&settings.args.mesh, process)
            .map_or_else(|_| process.host_name.clone(), |name| name.to_string()),
    }
}

fn pass_through(paths: &[String]) -> http::PassThrough {
    http::PassThrough {
        documented: paths.iter().any(|path| path == DOCUMENTED),
        prefixes: paths.iter().filter(|path| *path != DOCUMENTED).cloned().collect(),
    }
}

fn access_log(args: &Args, mistakes: &mut Vec<Mistake>) -> Option<http::AccessConfig> {
    let file = args.observe.access_log_file.clone();
    let format = match args.observe.access_log {
        AccessLogFormat::Text => http::AccessFormat::Text,
        AccessLogFormat::Json => http::AccessFormat::Json,
        AccessLogFormat::Off => {
            if file.is_some() {
                mistakes.push(Mistake::of_settings(
                    &["access_log_file", "access_log"],
                    "--access-log-file needs --access-log text or json",
                ));
            }
            return None;
        }
    };
    Some(http::AccessConfig { format, file })
}

fn worker_networks(args: &Args) -> WorkerNetworks {
    WorkerNetworks::permitting(args.workers.allow_worker_cidr.clone())
}

/// The memory for bodies of requests: as `given`, or if that is 0 the share of `memory` that leaves room for everything else.
fn max_buffered_bytes(given: usize, memory: Option<u64>) -> usize {
    const MOST: u64 = 2 << 30;
    const LEAST: u64 = 8 << 20;
    // For the router itself. Of the rest, a body takes up to three times its length for a moment: allocators give memory back
    // late (`tests/chaos/test_memory.py` measures it).
    const BASE: u64 = 96 << 20;
    if given > 0 {
        return given;
    }
    let share = memory.map_or(MOST, |memory| (memory.saturating_sub(BASE) / 6).clamp(LEAST, MOST));
    usize::try_from(share).unwrap_or(usize::MAX)
}

fn policy_config(args: &Args) -> policy::Config {
    let routing = &args.routing;
    policy::Config {
        kind: routing.policy,
        cache_aware_by: match routing.cache_aware_by {
            Measure::Time => policy::Measure::Time,
            Measure::Requests => policy::Measure::Requests,
        },
        cache_threshold: routing.cache_threshold.unwrap_or(match routing.cache_aware_by {
            Measure::Time => 0.0,
            Measure::Requests => 0.3,
        }),
        balance_abs_threshold: routing.balance_abs_threshold,
        balance_rel_threshold: routing.balance_rel_threshold,
        session_ttl: routing.session_ttl_secs,
        max_sessions: routing.max_sessions,
        agree_across_routers: args.mesh.enable_mesh,
        ignored: Arc::new(
            prefix::Ignored::new(routing.prefix_ignore.iter().map(String::as_str))
                .expect("each pattern was checked"),
        ),
    }
}

fn bridge_config(args: &Args) -> bridge::Config {
    bridge::Config {
        health_probers: args.mesh.health_probers,
        join_timeout: args.mesh.mesh_join_timeout,
        rejects_minority_writes: args.mesh.mesh_minority_writes == MinorityWrites::Reject,
        has_others: args.mesh.enable_mesh && !args.mesh.mesh_peer_urls.is_empty(),
    }
}

fn fleet_config(args: &Args) -> fleet::Config {
    let Args { health, breaker, workers, admission, routing, .. } = args;
    fleet::Config {
        place: fleet::Place {
            region: routing.node_region.clone(),
            zone: routing.node_zone.clone(),
        },
        health: fleet::HealthConfig {
            endpoint: health.health_check_endpoint.clone(),
            interval: health.health_check_interval_secs,
            timeout: health.health_check_timeout_secs,
            failure_threshold: health.health_failure_threshold,
            success_threshold: health.health_success_threshold,
            disabled: health.disable_health_check,
        },
        breaker: fleet::BreakerConfig {
            failure_threshold: breaker.cb_failure_threshold,
            success_threshold: breaker.cb_success_threshold,
            timeout: breaker.cb_timeout_duration_secs,
            window: breaker.cb_window_duration_secs,
            disabled: breaker.disable_circuit_breaker,
        },
        max_ejection_percent: breaker.max_ejection_percent,
        drain_timeout: workers.drain_timeout_secs,
        aliases: workers
            .model_alias
            .iter()
            .map(|named| (named.alias.clone(), named.model.clone()))
            .collect(),
        model_memory: admission.model_memory_secs,
    }
}

fn upstream_config(args: &Args, mistakes: &mut Vec<Mistake>) -> upstream::Config {
    let Args { timeouts, tls, .. } = args;
    upstream::Config {
        connect_timeout: timeouts.connect_timeout_secs,
        head_timeout: timeouts.response_head_timeout_secs,
        idle_timeout: timeouts.idle_timeout_secs,
        total_timeout: unless_zero(timeouts.request_timeout_secs),
        stream_timeout: unless_zero(timeouts.stream_timeout_secs),
        max_idle: timeouts.worker_max_idle_connections,
        keep_alive: timeouts.worker_keep_alive_secs,
        tls: tls::ClientConfig {
            ca: tls.worker_tls_ca.clone(),
            identity: pair(
                ("worker_tls_cert", &tls.worker_tls_cert),
                ("worker_tls_key", &tls.worker_tls_key),
                mistakes,
            ),
        },
    }
}

fn unless_zero(time: Duration) -> Option<Duration> {
    (!time.is_zero()).then_some(time)
}

fn dispatch_config(args: &Args) -> dispatch::Config {
    let Args { retry, admission, breaker, .. } = args;
    dispatch::Config {
        max_retries: if retry.disable_retries { 0 } else { retry.retry_max_retries },
        initial_backoff: retry.retry_initial_backoff_ms,
        max_backoff: retry.retry_max_backoff_ms,
        backoff_multiplier: retry.retry_backoff_multiplier,
        backoff_jitter: retry.retry_jitter_factor,
        budget_ratio: retry.retry_budget_ratio,
        budget_floor: retry.retry_budget_floor,
        push_back_statuses: breaker.push_back_statuses.iter().filter_map(|s| s.0).collect(),
        queue_timeout: admission.queue_timeout_secs,
        max_expected_wait: unless_zero(admission.max_expected_wait),
        no_worker_wait: admission.no_worker_wait_secs,
    }
}

fn telemetry_config(
    args: &Args,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
) -> telemetry::Config {
    let of_flag = match args.observe.log_level {
        LogLevel::Error => "error",
        LogLevel::Warn => "warn",
        LogLevel::Info => "info",
        LogLevel::Debug => "debug",
    };
    let mut filter = of_flag;
    if let Some(of_variable) = process.variable("RUST_LOG") {
        match telemetry::check_filter(of_variable) {
            Ok(()) => filter = of_variable,
            Err(error) => mistakes.push(Mistake::new(format!("variable RUST_LOG: {error}"))),
        }
    }
    telemetry::Config {
        filter: filter.to_owned(),
        json: args.observe.log_json,
        // The convention of no-color.org: any text but an empty one turns colours off.
        colour: process.variable("NO_COLOR").is_none(),
    }
}

/// The workers of the tables, then those of the list that have no table. Each without a key gets the common one, if
/// there is one.
fn all_workers(args: &Args, described: Vec<WorkerSpec>) -> Vec<WorkerSpec> {
    let mut known: BTreeSet<_> = described.iter().map(WorkerSpec::id).collect();
    let mut workers = described;
    workers.extend(
        args.workers
            .worker_urls
            .iter()
            .filter(|url| known.insert(url.id()))
            .map(|url| WorkerSpec::new(url.clone())),
    );
    for worker in &mut workers {
        if worker.api_key.is_none() {
            worker.api_key.clone_from(&args.workers.worker_api_key);
        }
    }
    workers
}

/// Two paths of files of which neither is valid without the other.
fn pair(
    (first_id, first): (&str, &Option<PathBuf>),
    (second_id, second): (&str, &Option<PathBuf>),
    mistakes: &mut Vec<Mistake>,
) -> Option<(PathBuf, PathBuf)> {
    let mut missing = |missing: &str, present: &str, path: &Path| {
        let text = format!(
            "{} is missing: {} is {}",
            flag(missing),
            flag(present),
            shown(&path.to_string_lossy())
        );
        mistakes.push(Mistake::of_settings(&[missing, present], text));
    };
    match (first, second) {
        (Some(first), Some(second)) => return Some((first.clone(), second.clone())),
        (Some(path), None) => missing(second_id, first_id, path),
        (None, Some(path)) => missing(first_id, second_id, path),
        (None, None) => {}
    }
    None
}

fn check_access(args: &Args, mistakes: &mut Vec<Mistake>, warnings: &mut Vec<String>) {
    let access = &args.access;
    let mut owners: BTreeMap<&str, &str> = BTreeMap::new();
    for tenant in &access.tenant_api_key {
        let before = owners.insert(tenant.key.expose(), &tenant.id);
        if let Some(other) = before.filter(|other| *other != tenant.id) {
            mistakes.push(Mistake::of_settings(
                &["tenant_api_key"],
                format!("tenants {other} and {} have the same key", tenant.id),
            ));
        }
    }
    for key in &access.api_key {
        if let Some(tenant) = owners.get(key.expose()) {
            mistakes.push(Mistake::of_settings(
                &["tenant_api_key", "api_key"],
                format!("the key of tenant {tenant} is one of --api-key too"),
            ));
        }
    }
    // Otherwise every client that has the key could add and remove workers, and shut the router down.
    let mut shared_with = |id: &str, whose: &str| {
        mistakes.push(Mistake::of_settings(
            &["admin_api_key", id],
            format!("--admin-api-key is {whose} too: give administrators a key of their own"),
        ));
    };
    for admin in &access.admin_api_key {
        if access.api_key.contains(&admin.key) {
            shared_with("api_key", "one of --api-key");
        }
        if let Some(tenant) = owners.get(admin.key.expose()) {
            shared_with("tenant_api_key", &format!("the key of tenant {tenant}"));
        }
    }
    let has_keys = !access.admin_api_key.is_empty() || !access.api_key.is_empty();
    if access.admin_open && has_keys {
        mistakes.push(Mistake::of_settings(
            &["admin_open"],
            "--admin-open has no effect beside --admin-api-key or --api-key: leave one of them out"
                .to_owned(),
        ));
    } else if access.admin_open {
        warnings.push(
            "--admin-open: everyone who reaches this port can change workers and policies"
                .to_owned(),
        );
    }
}

fn check_ports(settings: &Settings, mistakes: &mut Vec<Mistake>) {
    let Args { listen, probes, observe, .. } = &settings.args;
    let mut listeners = vec![("port", SocketAddr::new(listen.host, listen.port))];
    if settings.args.mesh.enable_mesh {
        let mesh = &settings.args.mesh;
        listeners.push(("mesh_port", SocketAddr::new(mesh.mesh_host, mesh.mesh_port)));
    }
    listeners.push(("health_check_port", SocketAddr::new(listen.host, probes.health_check_port)));
    if settings.was_given("prometheus_port") {
        let address = SocketAddr::new(observe.prometheus_host, observe.prometheus_port);
        listeners.push(("prometheus_port", address));
    }
    listeners.retain(|(_, address)| address.port() != 0);
    for (i, (first, a)) in listeners.iter().enumerate() {
        for (second, b) in &listeners[i + 1..] {
            let overlap = a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified();
            if a.port() == b.port() && overlap {
                let text = format!("{} and {} are both {}", flag(second), flag(first), a.port());
                mistakes.push(Mistake::of_settings(&[second, first], text));
            }
        }
    }
}

/// Workers at addresses where none is expected.
fn check_places(args: &Args, described: &[WorkerSpec], mistakes: &mut Vec<Mistake>) {
    let networks = worker_networks(args);
    let listed = args.workers.worker_urls.iter();
    for url in described.iter().map(|worker| &worker.url).chain(listed) {
        if let Err(error) = networks.check_url(url) {
            mistakes.push(Mistake::of_settings(&["worker_urls"], format!("worker {url}: {error}")));
        }
    }
}
