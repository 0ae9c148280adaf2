//! Tests of the deployment files: the manifests start the real binary as Kubernetes would, and every alert has a
//! runbook.
//!
//! `tests/golden/document-*` are the blocks of the high-availability document, word for word. `tests/deploy` tests the
//! rendered overlays, and whether dashboard and rules find their metrics in a running cluster. It needs tools that a
//! plain `cargo test` can not rely on.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use expect_test::expect_file;
use serde_json::Value;

use crate::support::{mock, router};

const BASE: &str = "k8s/base/statefulset.yaml";
const RULES: &str = "deploy/prometheus/smg-rules.yml";
const WORKER_URLS: &str = "http://worker1:8000,http://worker2:8000";

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// The first document of a kind in a YAML file.
fn yaml(path: &str, kind: &str) -> Value {
    let documents: Vec<Value> =
        serde_saphyr::from_multiple(&read(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    let mut found = documents.into_iter().filter(|document| document["kind"] == kind);
    let one = found.next().unwrap_or_else(|| panic!("{path}: no {kind}"));
    assert!(found.next().is_none(), "{path}: more than one {kind}");
    one
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is not a string"))
}

/// A container and the pod that Kubernetes would create around it.
struct Pod {
    spec: Value,
    name: &'static str,
    /// Variables that something other than the manifest sets.
    given: Vec<(&'static str, &'static str)>,
}

impl Pod {
    fn of(path: &str, name: &'static str) -> Self {
        let spec = yaml(path, "StatefulSet")["spec"]["template"]["spec"].clone();
        assert_eq!(list(&spec["containers"]).len(), 1, "{path}");
        Self { spec, name, given: Vec::new() }
    }

    fn given(mut self, name: &'static str, value: &'static str) -> Self {
        self.given.push((name, value));
        self
    }

    fn container(&self) -> &Value {
        &self.spec["containers"][0]
    }

    fn port(&self, name: &str) -> &Value {
        let port = list(&self.container()["ports"]).iter().find(|port| port["name"] == name);
        &port.unwrap_or_else(|| panic!("no port {name}"))["containerPort"]
    }

    /// The variables that the container starts with. Secrets are absent unless a test sets them.
    fn variables(&self) -> BTreeMap<String, String> {
        let mut variables: BTreeMap<String, String> = BTreeMap::new();
        for &(name, value) in &self.given {
            variables.insert(name.to_owned(), value.to_owned());
        }
        for variable in list(&self.container()["env"]) {
            let from = &variable["valueFrom"];
            let value = if let Some(value) = variable["value"].as_str() {
                expand(value, &variables)
            } else if let Some(field) = from["fieldRef"]["fieldPath"].as_str() {
                match field {
                    "metadata.name" => self.name.to_owned(),
                    "status.podIP" => "10.244.1.7".to_owned(),
                    other => panic!("no value for the field {other}"),
                }
            } else if let Some(key) = from["configMapKeyRef"]["key"].as_str() {
                literal(text(&from["configMapKeyRef"]["name"]), key)
            } else if let Some(resource) = from["resourceFieldRef"]["resource"].as_str() {
                assert_eq!(resource, "requests.cpu");
                text(&self.container()["resources"]["requests"]["cpu"]).to_owned()
            } else {
                assert_eq!(from["secretKeyRef"]["optional"], true, "{variable}");
                continue;
            };
            variables.insert(text(&variable["name"]).to_owned(), value);
        }
        variables
    }

    fn arguments(&self) -> Vec<String> {
        let variables = self.variables();
        let arguments = list(&self.container()["args"]).iter();
        arguments.map(|argument| expand(text(argument), &variables)).collect()
    }

    async fn configuration(&self) -> Result<(toml::Table, String), String> {
        configuration(&self.arguments(), &self.variables()).await
    }
}

/// The resolved configuration and its warnings, or the mistakes if the router refuses to start.
async fn configuration(
    arguments: &[String],
    variables: &BTreeMap<String, String>,
) -> Result<(toml::Table, String), String> {
    let mut command = router::command();
    let output =
        command.arg("check-config").args(arguments).envs(variables).output().await.unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    if !output.status.success() {
        assert_eq!(output.status.code(), Some(2), "{messages}");
        return Err(messages);
    }
    Ok((String::from_utf8(output.stdout).unwrap().parse().unwrap(), messages))
}

/// A literal that the base's kustomization puts into a ConfigMap.
fn literal(config_map: &str, key: &str) -> String {
    let base = yaml("k8s/base/kustomization.yaml", "Kustomization");
    let mut maps = list(&base["configMapGenerator"]).iter();
    let map = maps.find(|map| map["name"] == config_map).expect("the base makes the ConfigMap");
    let mut literals = list(&map["literals"]).iter().filter_map(|line| text(line).split_once('='));
    let (_, value) = literals.find(|(name, _)| *name == key).expect("the ConfigMap has the key");
    value.to_owned()
}

/// Expands `$(NAME)` as the kubelet does: an unknown name stays as it is, and `$$` is a dollar that expands nothing.
fn expand(text: &str, variables: &BTreeMap<String, String>) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|r| r.split_once(')')) {
            match variables.get(name) {
                Some(value) => out.push_str(value),
                None => write!(out, "$({name})").unwrap(),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out + rest
}

#[test]
fn variables_expand_as_the_kubelet_does_it() {
    let variables = BTreeMap::from([("A".to_owned(), "1".to_owned())]);
    for (text, expanded) in [
        ("--a=$(A)", "--a=1"),
        ("$(A)$(A)", "11"),
        ("$(B)", "$(B)"),
        ("$$(A)", "$(A)"),
        ("$A $(A", "$A $(A"),
        ("a$", "a$"),
    ] {
        assert_eq!(expand(text, &variables), expanded, "{text}");
    }
}

#[tokio::test]
async fn the_documents_manifest_works_unchanged_with_and_without_its_worker_urls() {
    const DOCUMENT: &str = "tests/golden/document-statefulset.yaml";
    for name in ["smg-0", "smg-1", "smg-2"] {
        // A Service named smg exists beside it, and enableServiceLinks is on: then these variables are set, too.
        let pod = Pod::of(DOCUMENT, name)
            .given("WORKER_URLS", WORKER_URLS)
            .given("SMG_PORT", "tcp://10.96.0.7:80")
            .given("SMG_SERVICE_HOST", "10.96.0.7");
        let (config, _) = pod.configuration().await.unwrap();
        assert_eq!(config["enable-mesh"].as_bool(), Some(true));
        assert_eq!(config["mesh-server-name"].as_str(), Some(name));
        let peers = config["mesh-peer-urls"].as_array().unwrap();
        assert_eq!(peers.len(), 3, "{peers:?}");
        assert_eq!(config["worker-urls"].as_array().unwrap().len(), 2);
        for (port, key) in [("http", "port"), ("mesh", "mesh-port")] {
            assert_eq!(config[key].as_integer(), pod.port(port).as_i64(), "{port}");
        }
    }
    // As it stands in the document, without WORKER_URLS: a router without workers, and one warning that says so.
    let (config, warning) = Pod::of(DOCUMENT, "smg-0").configuration().await.unwrap();
    assert_eq!(config["worker-urls"].as_array().unwrap().len(), 0);
    assert_eq!(warning.lines().count(), 1, "{warning}");
    assert!(warning.contains("--worker-urls contains $(WORKER_URLS)"), "{warning}");

    // The names in the peer URLs are those that the Service gives to the pods.
    let service = yaml("tests/golden/document-service.yaml", "Service");
    let set = yaml(DOCUMENT, "StatefulSet");
    assert_eq!(service["metadata"]["name"], set["spec"]["serviceName"]);
    assert_eq!(service["spec"]["selector"], set["spec"]["template"]["metadata"]["labels"]);
}

#[tokio::test]
async fn our_manifest_starts_the_router_and_gives_it_enough_time_to_shut_down() {
    let pod = Pod::of(BASE, "smg-1");
    let (config, warnings) = pod.configuration().await.unwrap();
    assert_eq!(warnings, "");
    assert_eq!(config["mesh-server-name"].as_str(), Some("smg-1"));
    assert_eq!(config["threads"].as_integer(), Some(1), "as many as CPUs are requested");
    for (port, key) in [
        ("http", "port"),
        ("probes", "health-check-port"),
        ("metrics", "prometheus-port"),
        ("mesh", "mesh-port"),
    ] {
        assert_eq!(config[key].as_integer(), pod.port(port).as_i64(), "{port}");
    }

    let keyed = Pod::of(BASE, "smg-1")
        .given("SMG_API_KEY", "k")
        .given("SMG_ADMIN_API_KEY", "a")
        .given("SMG_MESH_ENCRYPTION_KEY", "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=");
    assert_eq!(keyed.configuration().await.unwrap().1, "", "and so with all keys");
    let known = keyed.variables();
    for variable in list(&keyed.container()["env"]) {
        let name = text(&variable["name"]);
        assert!(known.contains_key(name), "{name} was tested with a value");
    }

    let seconds = |key: &str| config[key].as_integer().unwrap();
    let settle = seconds("drain-settle-secs");
    let grace = pod.spec["terminationGracePeriodSeconds"].as_i64().unwrap();
    let needed = settle + seconds("shutdown-grace-period-secs");
    assert!(
        grace >= needed + 10,
        "{grace} s are too short: the router may take {needed} s to drain, and then leaves the cluster"
    );

    let container = pod.container();
    for (probe, path) in [
        ("startupProbe", "/liveness"),
        ("readinessProbe", "/readiness"),
        ("livenessProbe", "/liveness"),
    ] {
        assert_eq!(container[probe]["httpGet"]["path"], path, "{probe}");
        assert_eq!(container[probe]["httpGet"]["port"], "probes", "{probe}");
    }
    let readiness = &container["readinessProbe"];
    let noticed = readiness["periodSeconds"].as_i64().unwrap()
        * readiness["failureThreshold"].as_i64().unwrap();
    assert!(noticed <= settle, "not ready is noticed after {noticed} s, it settles for {settle} s");
}

#[tokio::test]
async fn the_mock_workers_of_the_dev_overlay_start() {
    let pod = Pod::of("k8s/overlays/dev/mock-worker.yaml", "mock-worker-0");
    let arguments = pod.arguments();
    assert_eq!(arguments[0], "mock-worker");
    // The port is replaced by one that is free here.
    let own = format!("--port={}", pod.port("http"));
    assert!(arguments.contains(&own), "{arguments:?}");
    let arguments: Vec<&str> =
        arguments[1..].iter().map(|a| if *a == own { "--port=0" } else { a }).collect();
    let worker = mock::Process::start(&arguments).await;
    assert!(worker.url.starts_with("http://0.0.0.0:"), "{}", worker.url);
}

#[tokio::test]
async fn the_routers_and_workers_of_the_compose_file_start() {
    let compose: Value = serde_saphyr::from_str(&read("deploy/compose.yml")).unwrap();
    let services = compose["services"].as_object().unwrap();
    let ours = services.iter().filter(|(_, service)| service["image"] == "smg");
    let (mut routers, mut workers) = (Vec::new(), Vec::new());
    for (name, service) in ours {
        let arguments: Vec<String> =
            list(&service["command"]).iter().map(|word| text(word).to_owned()).collect();
        if arguments[0] == "mock-worker" {
            let arguments = arguments[1..].iter();
            let arguments: Vec<&str> =
                arguments.map(|a| if a == "--port=8000" { "--port=0" } else { a }).collect();
            mock::Process::start(&arguments).await;
            workers.push(format!("http://{name}:8000"));
            continue;
        }
        let variables = service["environment"].as_object().unwrap().iter();
        let variables = variables.map(|(name, value)| (name.clone(), text(value).to_owned()));
        let (config, warnings) = configuration(&arguments, &variables.collect()).await.unwrap();
        assert_eq!(warnings, "", "{name}");
        // The containers reach each other by these names.
        assert_eq!(config["mesh-server-name"].as_str(), Some(name.as_str()));
        routers.push((name.clone(), config));
    }
    assert_eq!((routers.len(), workers.len()), (3, 2));
    let peers: Vec<String> = routers.iter().map(|(name, _)| format!("{name}:39527")).collect();
    for (name, config) in &routers {
        let listed = |key: &str| config[key].clone().try_into::<Vec<String>>().unwrap();
        assert_eq!(listed("mesh-peer-urls"), peers, "{name}");
        assert_eq!(listed("worker-urls"), workers, "{name}");
        let target = format!("- {name}:{}\n", config["prometheus-port"]);
        assert!(read("deploy/prometheus/prometheus.yml").contains(&target), "{target}");
    }
}

/// The alerts of the rules, by name.
fn alerts() -> BTreeMap<String, Value> {
    let rules: Value = serde_saphyr::from_str(&read(RULES)).unwrap();
    let rules = list(&rules["groups"]).iter().flat_map(|group| list(&group["rules"]));
    let alerts = rules.map(|rule| (text(&rule["alert"]).to_owned(), rule.clone()));
    alerts.collect()
}

const DOCUMENTS_ALERTS: [&str; 2] = ["SMGClusterDegraded", "SMGNodeDown"];

#[test]
fn the_documents_alerts_are_included_byte_by_byte() {
    let rules = read(RULES);
    let groups = &rules[rules.find("groups:").unwrap()..];
    assert!(groups.starts_with(&read("tests/golden/document-alerts.yml")));
    for name in DOCUMENTS_ALERTS {
        assert_eq!(rules.matches(&format!("alert: {name}\n")).count(), 1, "{name}");
    }
}

#[test]
fn the_prometheus_rule_is_made_from_the_rules() {
    let rules = read(RULES);
    let mut rule = "\
# Made from deploy/prometheus/smg-rules.yml: change it there, then run
# UPDATE_EXPECT=1 cargo test --test it deploy
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: smg
  labels:
    app.kubernetes.io/name: smg
    app.kubernetes.io/instance: smg
spec:
"
    .to_owned();
    for line in rules[rules.find("groups:").unwrap()..].lines() {
        let indent = if line.is_empty() { "" } else { "  " };
        writeln!(rule, "{indent}{line}").unwrap();
    }
    expect_file!["../../k8s/components/monitoring/prometheusrule.yaml"].assert_eq(&rule);
}

#[test]
fn every_alert_has_a_runbook() {
    let mut without = Vec::new();
    for (name, alert) in alerts() {
        // The document's own alerts name no runbook, and stay as they are.
        let page = if DOCUMENTS_ALERTS.contains(&name.as_str()) {
            "docs/runbooks/mesh.md"
        } else {
            let url = text(&alert["annotations"]["runbook_url"]);
            let (page, anchor) = url.split_once('#').expect("a heading of a page");
            assert_eq!(anchor, name.to_lowercase());
            page
        };
        if !read(page).lines().any(|line| line == format!("## {name}")) {
            without.push(name);
        }
    }
    assert!(without.is_empty(), "no runbook: {without:?}");
    for page in ["mesh", "router"] {
        for heading in read(&format!("docs/runbooks/{page}.md")).lines() {
            // Headings of other procedures are sentences.
            if let Some(name) = heading.strip_prefix("## ").filter(|name| !name.contains(' ')) {
                assert!(alerts().contains_key(name), "{page}.md: there is no alert {name}");
            }
        }
    }
}

#[test]
fn every_alert_has_a_test_that_it_fires_and_one_that_it_does_not() {
    let tests: Value = serde_saphyr::from_str(&read("tests/deploy/rules.test.yml")).unwrap();
    let cases = || list(&tests["tests"]).iter().flat_map(|test| list(&test["alert_rule_test"]));
    for (name, _) in alerts() {
        let of_alert = || cases().filter(|case| case["alertname"] == name.as_str());
        for silent in [false, true] {
            let found = of_alert().any(|case| list(&case["exp_alerts"]).is_empty() == silent);
            assert!(found, "{name} is never tested to be {}", if silent { "silent" } else { "on" });
        }
    }
}
