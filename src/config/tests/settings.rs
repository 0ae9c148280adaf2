//! Tests that the flag, the variable and the key of each setting set the same field, and that the strongest one
//! applies.

use super::given;
use super::places::{Place, put};
use crate::cli;
use crate::config::Config;
use crate::config::peers;

/// A setting, two values, and how the configuration shows the first one.
struct Row {
    flag: &'static str,
    one: &'static str,
    other: &'static str,
    view: fn(&Config) -> String,
    shown: &'static str,
}

fn row(
    flag: &'static str,
    one: &'static str,
    other: &'static str,
    shown: &'static str,
    view: fn(&Config) -> String,
) -> Row {
    Row { flag, one, other, view, shown }
}

/// Shows a field of the configuration, as `Debug` prints it.
macro_rules! see {
    ($($field:tt)+) => { |config| format!("{:?}", config.$($field)+) };
}

fn rows() -> Vec<Row> {
    let mut rows = workers_and_routing();
    rows.extend(surface());
    rows.extend(access());
    rows.extend(failure());
    rows.extend(mesh());
    rows
}

/// Shows a field of the mesh's configuration.
macro_rules! see_mesh {
    ($($field:tt)+) => {
        |config| format!("{:?}", config.mesh.$($field)+)
    };
}

/// Shows a field of the mesh's network configuration.
macro_rules! see_network {
    ($($field:tt)+) => {
        |config| config.mesh.network.as_ref().map_or("none".to_owned(), |network| format!("{:?}", network.$($field)+))
    };
}

fn see_files(
    config: &Config,
    file: fn(&smg_runtime::tls::MeshFiles) -> &std::path::PathBuf,
) -> String {
    let files = config.mesh.network.as_ref().and_then(|network| network.security.tls.as_ref());
    format!("{:?}", files.map(file))
}

fn see_keys(config: &Config) -> String {
    let ids = config.mesh.network.iter().flat_map(|network| network.security.keys.ids());
    format!("{:?}", ids.collect::<Vec<_>>())
}

fn mesh() -> Vec<Row> {
    vec![
        row("enable-mesh", "true", "false", "true", |c| c.mesh.network.is_some().to_string()),
        row("mesh-server-name", "node1", "node2", "node1", see_mesh!(name)),
        row("mesh-host", "127.0.0.1", "::1", "127.0.0.1", see_network!(listen.ip())),
        row("mesh-port", "7", "8", "7", see_network!(listen.port())),
        row("mesh-peer-urls", "a:1, b", "c", "[\"a:1\", \"b:39527\"]", |c| {
            let join = c.mesh.network.iter().flat_map(|network| &network.join);
            format!("{:?}", join.map(ToString::to_string).collect::<Vec<_>>())
        }),
        row(
            "mesh-advertise-host",
            "10.0.0.1",
            "10.0.0.2",
            "Some(10.0.0.1)",
            see_network!(advertise.flag),
        ),
        row("mesh-expected-replicas", "7", "8", "Some(7)", see!(limits.engine.expected)),
        row("mesh-cluster-id", "one", "two", "\"one\"", see_mesh!(cluster_name)),
        row("mesh-profile", "wan", "lan", "5s", see_mesh!(node.membership.probe_period)),
        row("mesh-probe-interval", "700ms", "2s", "700ms", see_mesh!(node.membership.probe_period)),
        row("mesh-probe-timeout", "70ms", "80ms", "70ms", see_mesh!(node.membership.probe_timeout)),
        row("mesh-suspicion-timeout", "7s", "8s", "7s", see_mesh!(node.membership.suspicion)),
        row("mesh-sync-interval", "7s", "8s", "7s", see_mesh!(node.replication.digest_interval)),
        row("mesh-join-timeout", "7s", "8s", "7s", |c| format!("{:?}", c.bridge.join_timeout)),
        row("mesh-minority-writes", "reject", "accept", "true", |c| {
            c.bridge.rejects_minority_writes.to_string()
        }),
        row("health-probers", "3", "4", "3", |c| c.bridge.health_probers.to_string()),
        row("mesh-forget-after", "7h", "8h", "25200s", see_mesh!(node.membership.forget_after)),
        row("mesh-tls-cert", "CERT", "OTHER_CERT", "Some(\"CERT\")", |c| {
            see_files(c, |f| &f.certificate)
        }),
        row("mesh-tls-key", "KEY", "OTHER_KEY", "Some(\"KEY\")", |c| see_files(c, |f| &f.key)),
        row("mesh-tls-ca", "CERT", "OTHER_CERT", "Some(\"CERT\")", |c| see_files(c, |f| &f.ca)),
        row(
            "mesh-encryption-key",
            "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=",
            "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=",
            "[66687aadf862bd77]",
            see_keys,
        ),
        row("mesh-encryption-key-file", "SHARED", "OTHER_SHARED", "[66687aadf862bd77]", see_keys),
        row("data-dir", "/var/lib/smg", "/tmp/smg", "/var/lib/smg", |c| {
            let folder = c.mesh.data.as_ref().map(|data| data.folder.display().to_string());
            folder.unwrap_or_default()
        }),
        row("persist-fsync", "always", "interval", "Some(Always)", |c| {
            format!("{:?}", c.mesh.data.as_ref().map(|data| data.fsync))
        }),
        row("mesh-encryption", "permissive", "required", "Permissive", see_network!(security.mode)),
    ]
}

fn workers_and_routing() -> Vec<Row> {
    vec![
        row("worker-urls", "http://a", "http://b", "[http://a:80]", |c| {
            format!(
                "{:?}",
                c.workers.iter().map(|w| &w.url).filter(|u| u.host() != "own").collect::<Vec<_>>()
            )
        }),
        row("worker-api-key", "k1", "k2", "Some(\"k1\")", |c| {
            let keys = c.workers.iter().map(|worker| worker.api_key.as_ref());
            format!("{:?}", keys.flatten().next().map(smg_types::spec::Secret::expose))
        }),
        row("model-alias", "a=m b=n", "a=n", "{\"a\": \"m\", \"b\": \"n\"}", see!(fleet.aliases)),
        row(
            "allow-worker-cidr",
            "169.254.7.0/24 fe80::7",
            "169.254.8.0/24",
            "WorkerNetworks { permitted: [169.254.7.0/24, fe80::7/128] }",
            see!(http.worker_networks),
        ),
        row("drain-timeout-secs", "7", "8", "7s", see!(fleet.drain_timeout)),
        row("policy", "prefix_hash", "random", "PrefixHash", see!(policy.kind)),
        row("cache-aware-by", "requests", "time", "Requests", see!(policy.cache_aware_by)),
        row("cache-threshold", "0.75", "0.5", "0.75", see!(policy.cache_threshold)),
        row("balance-abs-threshold", "7", "8", "7", see!(policy.balance_abs_threshold)),
        row("balance-rel-threshold", "7.5", "8", "7.5", see!(policy.balance_rel_threshold)),
        row("max-tree-size", "7000", "8000", "7000", see!(prefix.max_entries)),
        row("prefix-ignore", "at [0-9]+, or", "b+", "[\"at [0-9]+, or\"]", |c| {
            format!("{:?}", c.policy.ignored.patterns().collect::<Vec<_>>())
        }),
        row("session-ttl-secs", "7", "8", "7s", see!(policy.session_ttl)),
        row("max-sessions", "7", "8", "7", see!(policy.max_sessions)),
        row(
            "session-header",
            "x-one, x-two",
            "x-b",
            "[\"x-one\", \"x-two\"]",
            see!(http.session_headers),
        ),
        row("debug-headers", "true", "false", "true", see!(http.debug_headers)),
        row("max-concurrent-requests", "7", "8", "Some(7)", see!(limit.max_concurrent)),
        row("queue-size", "7", "8", "7", see!(limit.queue_size)),
        row(
            "push-back-statuses",
            "429 529",
            "503",
            "[429, 529]",
            see!(dispatch.push_back_statuses),
        ),
        row(
            "rate-limit-requests-per-minute",
            "7",
            "8",
            "[7]",
            see!(limits.rules.iter().map(|rule| rule.meters[0].limit).collect::<Vec<_>>()),
        ),
        row(
            "rate-limit-tokens-per-minute",
            "7",
            "8",
            "[7]",
            see!(limits.rules.iter().map(|rule| rule.meters[0].limit).collect::<Vec<_>>()),
        ),
        row("max-expected-wait", "7", "8", "Some(7s)", see!(dispatch.max_expected_wait)),
        row("queue-timeout-secs", "7", "8", "7s", see!(dispatch.queue_timeout)),
        row("max-client-priority", "bulk", "system", "Bulk", see!(http.max_client_priority)),
        row("no-worker-wait-secs", "7", "8", "7s", see!(dispatch.no_worker_wait)),
        row("model-memory-secs", "7", "8", "7s", see!(fleet.model_memory)),
        row("disable-forwarded-headers", "true", "false", "false", see!(http.forwarded_headers)),
    ]
}

fn surface() -> Vec<Row> {
    let tls = "Some(ServerConfig { certificate: \"CERT\", key: \"KEY\", client_ca: None })";
    vec![
        row("host", "127.0.0.7", "127.0.0.8", "127.0.0.7", |c| c.http.listen.ip().to_string()),
        row("port", "7", "8", "7", |c| c.http.listen.port().to_string()),
        row("max-payload-size", "7000", "8000", "7000", see!(http.max_body_bytes)),
        row("decompress-requests", "true", "false", "true", see!(http.decompress_requests)),
        row("max-buffered-bytes", "7000", "8000", "7000", see!(http.max_buffered_bytes)),
        row("header-timeout-secs", "7", "8", "7s", see!(http.header_timeout)),
        row("idle-connection-timeout-secs", "7", "8", "7s", see!(http.idle_timeout)),
        row(
            "request-id-headers",
            "x-one, x-two",
            "x-b",
            "[\"x-one\", \"x-two\"]",
            see!(http.request_id_headers),
        ),
        row("body-timeout-secs", "7", "8", "7s", see!(http.body_timeout)),
        row("max-connections", "7", "8", "7", see!(http.max_connections)),
        row("threads", "7", "8", "7", see!(http.threads)),
        row(
            "cors-allowed-origins",
            "http://a",
            "http://b",
            "[\"http://a\"]",
            see!(http.cors_allowed_origins),
        ),
        row("tls-cert-path", "CERT", "OTHER_CERT", tls, see!(http.tls)),
        row("tls-key-path", "KEY", "OTHER_KEY", tls, see!(http.tls)),
        row("client-ca-path", "CERT", "OTHER_CERT", "Some(Some(\"CERT\"))", |c| {
            format!("{:?}", c.http.tls.as_ref().map(|tls| &tls.client_ca))
        }),
        row("worker-tls-ca", "CERT", "OTHER_CERT", "Some(\"CERT\")", see!(upstream.tls.ca)),
        row(
            "worker-tls-cert",
            "CERT",
            "OTHER_CERT",
            "Some((\"CERT\", \"KEY\"))",
            see!(upstream.tls.identity),
        ),
        row(
            "worker-tls-key",
            "KEY",
            "OTHER_KEY",
            "Some((\"CERT\", \"KEY\"))",
            see!(upstream.tls.identity),
        ),
    ]
}

fn access() -> Vec<Row> {
    vec![
        row("api-key", "k1,k2", "k3", "k1 k2", |c| {
            c.http
                .api_keys
                .iter()
                .map(smg_types::spec::Secret::expose)
                .collect::<Vec<_>>()
                .join(" ")
        }),
        row("tenant-api-key", "a:k1 b:k2", "c:k3", "a=k1 b=k2", |c| {
            let shown = |t: &crate::http::Tenant| format!("{}={}", t.id, t.key.expose());
            c.http.tenants.iter().map(shown).collect::<Vec<_>>().join(" ")
        }),
        row("admin-api-key", "k1 a:n:user:k2", "k3", "admin/Admin/k1 a/User/k2", |c| {
            let shown = |admin: &crate::http::AdminKey| {
                format!("{}/{:?}/{}", admin.id, admin.role, admin.key.expose())
            };
            c.http.admin_api_keys.iter().map(shown).collect::<Vec<_>>().join(" ")
        }),
        row(
            "pass-through",
            "documented /v1/own/",
            "/other",
            "PassThrough { documented: true, prefixes: [\"/v1/own\"] }",
            see!(http.pass_through),
        ),
        row("admin-open", "true", "false", "true", see!(http.admin_open)),
        row("health-check-port", "7", "8", "Some(0.0.0.0:7)", see!(http.health_listen)),
        row("min-ready-workers", "7", "8", "7", see!(http.min_ready_workers)),
        row("log-level", "debug", "warn", "\"debug\"", see!(telemetry.filter)),
        row("log-json", "true", "false", "true", see!(telemetry.json)),
        row("access-log", "json", "text", "json", |config| {
            config.http.access_log.as_ref().map_or_else(String::new, |log| log.format.to_string())
        }),
        row("access-log-file", "/a", "/b", "Some(\"/a\")", |config| {
            format!("{:?}", config.http.access_log.as_ref().and_then(|log| log.file.as_ref()))
        }),
        row("meter-streams", "true", "false", "true", see!(http.meter_streams)),
        row("prometheus-host", "127.0.0.7", "127.0.0.8", "127.0.0.7", |c| {
            c.http.metrics_listen.map_or_else(String::new, |m| m.address.ip().to_string())
        }),
        row("prometheus-port", "7", "8", "7", |c| {
            c.http.metrics_listen.map_or_else(String::new, |m| m.address.port().to_string())
        }),
        row("drain-settle-secs", "7", "8", "7s", see!(http.drain_settle)),
        row("shutdown-grace-period-secs", "7", "8", "7s", see!(http.shutdown_grace)),
    ]
}

fn failure() -> Vec<Row> {
    vec![
        row("connect-timeout-secs", "7", "8", "7s", see!(upstream.connect_timeout)),
        row("response-head-timeout-secs", "7", "8", "7s", see!(upstream.head_timeout)),
        row("idle-timeout-secs", "7", "8", "7s", see!(upstream.idle_timeout)),
        row("request-timeout-secs", "7", "8", "Some(7s)", see!(upstream.total_timeout)),
        row("stream-timeout-secs", "7", "8", "Some(7s)", see!(upstream.stream_timeout)),
        row("stream-heartbeat-secs", "7", "8", "Some(7s)", see!(http.stream_heartbeat)),
        row("worker-keep-alive-secs", "7", "8", "7s", see!(upstream.keep_alive)),
        row("worker-max-idle-connections", "7", "8", "7", see!(upstream.max_idle)),
        row("retry-max-retries", "7", "8", "7", see!(dispatch.max_retries)),
        row("retry-initial-backoff-ms", "7", "8", "7ms", see!(dispatch.initial_backoff)),
        row("retry-max-backoff-ms", "700", "800", "700ms", see!(dispatch.max_backoff)),
        row("retry-backoff-multiplier", "7.5", "8", "7.5", see!(dispatch.backoff_multiplier)),
        row("retry-jitter-factor", "0.25", "0.5", "0.25", see!(dispatch.backoff_jitter)),
        row("retry-budget-ratio", "0.75", "0.5", "0.75", see!(dispatch.budget_ratio)),
        row("retry-budget-floor", "7", "8", "7.0", see!(dispatch.budget_floor)),
        row("disable-retries", "true", "false", "0", see!(dispatch.max_retries)),
        row("cb-failure-threshold", "7", "8", "7", see!(fleet.breaker.failure_threshold)),
        row("cb-success-threshold", "7", "8", "7", see!(fleet.breaker.success_threshold)),
        row("cb-timeout-duration-secs", "7", "8", "7s", see!(fleet.breaker.timeout)),
        row("cb-window-duration-secs", "7", "8", "7s", see!(fleet.breaker.window)),
        row("disable-circuit-breaker", "true", "false", "true", see!(fleet.breaker.disabled)),
        row("max-ejection-percent", "7", "8", "7", see!(fleet.max_ejection_percent)),
        row("node-zone", "a", "b", "Some(\"a\")", see!(fleet.place.zone)),
        row("node-region", "a", "b", "Some(\"a\")", see!(fleet.place.region)),
        row("health-check-endpoint", "/seven", "/eight", "\"/seven\"", see!(fleet.health.endpoint)),
        row("health-check-interval-secs", "7", "8", "7s", see!(fleet.health.interval)),
        row("health-check-timeout-secs", "7", "8", "7s", see!(fleet.health.timeout)),
        row("health-failure-threshold", "7", "8", "7", see!(fleet.health.failure_threshold)),
        row("health-success-threshold", "7", "8", "7", see!(fleet.health.success_threshold)),
        row("disable-health-check", "true", "false", "true", see!(fleet.health.disabled)),
    ]
}

/// Certificates and keys for the settings that name files, because these are opened.
pub(super) struct Files {
    dir: tempfile::TempDir,
}

impl Files {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Two certificates of one key, so that each of them matches both copies of the key.
        let key = rcgen::KeyPair::generate().unwrap();
        for name in ["CERT", "OTHER_CERT"] {
            let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
            let certificate = params.self_signed(&key).unwrap();
            std::fs::write(dir.path().join(name), certificate.pem()).unwrap();
        }
        for name in ["KEY", "OTHER_KEY"] {
            std::fs::write(dir.path().join(name), key.serialize_pem()).unwrap();
        }
        Self { dir }
    }

    /// Replaces the names of files in a value by paths.
    fn resolve(&self, value: &str) -> String {
        let is_file = value.ends_with("CERT") || value.ends_with("KEY");
        if is_file { self.path(value) } else { value.to_owned() }
    }

    pub(super) fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn hide(&self, text: &str) -> String {
        text.replace(&format!("{}/", self.dir.path().display()), "")
    }
}

/// The settings that a setting needs in order to be valid, as lines of the file, which is the weakest place.
fn companions(flag: &str, files: &Files) -> String {
    let cert = files.path("CERT");
    let key = files.path("KEY");
    match flag {
        "tls-cert-path" => format!("tls-key-path = '{key}'\n"),
        "tls-key-path" => format!("tls-cert-path = '{cert}'\n"),
        "client-ca-path" => format!("tls-cert-path = '{cert}'\ntls-key-path = '{key}'\n"),
        "worker-tls-cert" => format!("worker-tls-key = '{key}'\n"),
        "worker-tls-key" => format!("worker-tls-cert = '{cert}'\n"),
        "access-log-file" => "access-log = 'text'\n".to_owned(),
        "worker-api-key" => "worker-urls = 'http://own'\n".to_owned(),
        "mesh-tls-cert" => {
            format!("enable-mesh = true\nmesh-tls-key = '{key}'\nmesh-tls-ca = '{cert}'\n")
        }
        "mesh-tls-key" => {
            format!("enable-mesh = true\nmesh-tls-cert = '{cert}'\nmesh-tls-ca = '{cert}'\n")
        }
        "mesh-tls-ca" => {
            format!("enable-mesh = true\nmesh-tls-cert = '{cert}'\nmesh-tls-key = '{key}'\n")
        }
        "mesh-encryption" => "enable-mesh = true\nmesh-encryption-key = 'AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE='\n".to_owned(),
        "persist-fsync" => "data-dir = '/var/lib/smg'\n".to_owned(),
        flag if flag.starts_with("mesh-") => "enable-mesh = true\n".to_owned(),
        _ => String::new(),
    }
}

#[test]
fn flag_variable_and_key_set_the_same_field_and_the_strongest_applies() {
    use Place::{Alias, Flag, Key, KeyWithUnderscores, Variable};
    let files = Files::new();
    for row in rows() {
        let one = files.resolve(row.one);
        let other = files.resolve(row.other);
        let shown_with = |places: &[(Place, &str)]| {
            let mut text =
                if places.is_empty() { String::new() } else { companions(row.flag, &files) };
            let shared = given()
                .other_file("SHARED", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n")
                .other_file("OTHER_SHARED", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=\n");
            let given = places.iter().fold(shared, |given, (place, value)| {
                put(given, *place, row.flag, value, &mut text)
            });
            files.hide(&(row.view)(&given.file(&text).config()))
        };
        assert_ne!(shown_with(&[]), row.shown, "--{}: the default shows nothing", row.flag);
        for alias in peers::aliases(row.flag) {
            let places = [(Alias(alias), one.as_str()), (Variable, &other), (Key, &other)];
            assert_eq!(shown_with(&places), row.shown, "--{} by {}", row.flag, alias.flag);
        }
        for places in [
            &[(Flag, one.as_str())][..],
            &[(Variable, &one)],
            &[(Key, &one)],
            &[(KeyWithUnderscores, &one)],
            &[(Flag, &one), (Variable, &other), (Key, &other)],
            &[(Variable, &one), (Key, &other)],
            &[(Flag, &one), (Key, &other)],
        ] {
            let names: Vec<_> = places.iter().map(|(_, value)| value).collect();
            assert_eq!(
                shown_with(places),
                row.shown,
                "--{} by {} in {names:?}",
                row.flag,
                places.len()
            );
        }
        assert_ne!(
            shown_with(&[(Key, &other)]),
            row.shown,
            "--{}: both values look alike",
            row.flag
        );
    }
}

#[test]
fn the_table_has_every_setting() {
    let rows: Vec<_> = rows().iter().map(|row| row.flag).collect();
    let flags: Vec<_> = cli::settings_command()
        .get_arguments()
        .map(|arg| arg.get_long().unwrap().to_owned())
        .filter(|flag| flag != "config")
        .collect();
    for flag in &flags {
        assert_eq!(rows.iter().filter(|row| *row == flag).count(), 1, "--{flag} needs one row");
    }
    assert_eq!(rows.len(), flags.len());
}

#[test]
fn every_number_has_bounds() {
    for row in rows() {
        let is_number = row.one.parse::<f64>().is_ok();
        if !is_number {
            continue;
        }
        for wrong in ["-2", "99999999999999999999", "1e99", "NaN", "seven", "0x7"] {
            let errors = given().flags(&[&format!("--{}={wrong}", row.flag)]).errors();
            assert!(
                errors.contains(&format!("flag --{}: {wrong:?} is not a", row.flag)),
                "--{} {wrong}: {errors}",
                row.flag
            );
        }
    }
}
