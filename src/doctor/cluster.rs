//! Examines a running cluster: asks every router that one of them lists, and judges the answers.
//!
//! Asking and judging are separate, so that the judgement is tested without a socket.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use smg_types::spec::{Secret, WorkerUrl};

use super::finding::{Finding, Severity};
use super::settings::even;
use crate::config::Config;
use crate::console::{Asker, ConsoleError};

/// A difference of wall clocks that is worth a warning, in milliseconds.
const SKEW_MS: i64 = 500;

/// A difference of wall clocks from which routers correct their time, in milliseconds.
const LARGE_SKEW_MS: i64 = 5_000;

/// A round trip between routers that is worth a warning, in milliseconds. A router is suspected if a probe takes longer than
/// `--mesh-probe-timeout`.
const RTT_MS: f64 = 100.0;

/// The answers of one router.
#[derive(Debug, Clone, Default)]
struct Answers {
    /// `/health`
    about: Value,
    /// `/ha/health`
    health: Value,
    /// `/ha/leader`
    leader: Value,
    /// `/workers`
    workers: Value,
}

/// What the routers of a cluster answer.
#[derive(Debug, Default)]
struct Seen {
    /// The status of each router, as the router that was asked first sees it.
    statuses: BTreeMap<String, String>,
    /// The answers of the present routers by name, or why there is none.
    answers: BTreeMap<String, Result<Answers, String>>,
}

/// The findings about the cluster of the router at `url`. The keys of `config` are shown to the routers.
pub(super) async fn examine(
    url: &WorkerUrl,
    config: &Config,
) -> Result<Vec<Finding>, ConsoleError> {
    let http = &config.http;
    let admin = http.admin_api_keys.first().map(|admin| &admin.key);
    let key: Option<Secret> = admin.or_else(|| http.api_keys.first()).cloned();
    let asker = Asker::new(config.upstream.tls.clone(), key)?;
    match ask(&asker, url).await {
        Ok(seen) => Ok(judge(&seen)),
        Err(error) => Ok(vec![Finding::new(
            Severity::Error,
            "router_reached",
            url.to_string(),
            [
                format!("it can't be asked: {error}"),
                "check the URL; give a key by --admin-api-key or --config if the router needs one"
                    .to_owned(),
            ],
            "nothing is known of the cluster",
        )]),
    }
}

async fn ask(asker: &Asker, url: &WorkerUrl) -> Result<Seen, ConsoleError> {
    let list = asker.ask(url, "/ha/routers").await?;
    let mut seen = Seen::default();
    for router in list["routers"].as_array().into_iter().flatten() {
        let name = text(&router["name"]);
        let status = text(&router["status"]);
        let is_present = matches!(&*status, "ALIVE" | "SUSPECTED");
        let is_self = router["is_self"] == true;
        seen.statuses.insert(name.clone(), status);
        if !is_present && !is_self {
            continue;
        }
        let own = is_self.then(|| url.clone());
        let other = || router["url"].as_str().and_then(|url| url.parse().ok());
        let answers = match own.or_else(other) {
            Some(url) => answers(asker, &url).await.map_err(|error| error.to_string()),
            None => Err("its address for clients is not known".to_owned()),
        };
        seen.answers.insert(name, answers);
    }
    Ok(seen)
}

async fn answers(asker: &Asker, url: &WorkerUrl) -> Result<Answers, ConsoleError> {
    Ok(Answers {
        about: asker.ask(url, "/health").await?,
        health: asker.ask(url, "/ha/health").await?,
        leader: asker.ask(url, "/ha/leader").await?,
        workers: asker.ask(url, "/workers").await?,
    })
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The findings about what the routers have answered.
fn judge(seen: &Seen) -> Vec<Finding> {
    let mut findings = members(seen);
    let present =
        || seen.answers.iter().filter_map(|(name, answer)| Some((name, answer.as_ref().ok()?)));
    for (name, answers) in present() {
        findings.extend(own_state(name, &answers.health));
        findings.extend(peers(name, &answers.health));
    }
    findings.extend(versions(present().map(|(name, answers)| (name.as_str(), &answers.about))));
    findings.extend(lease(seen, present().map(|(name, answers)| (name.as_str(), &answers.leader))));
    if let Some((_, answers)) = present().next() {
        findings.extend(workers(&answers.workers));
    }
    findings
}

fn members(seen: &Seen) -> Vec<Finding> {
    let mut findings = Vec::new();
    let staying = seen.statuses.values().filter(|status| *status != "LEAVING").count();
    findings.extend(even(staying as u64, "the cluster"));
    for (name, status) in &seen.statuses {
        if matches!(&**status, "SUSPECTED" | "DOWN") {
            findings.push(Finding::new(
                Severity::Error,
                "router_down",
                name.as_str(),
                [
                    format!("the other routers see it as {status}"),
                    "restart it, or look for what cuts it off from the others".to_owned(),
                ],
                "the cluster tolerates fewer failures of other routers",
            ));
        }
    }
    for (name, answer) in &seen.answers {
        if let Err(error) = answer {
            findings.push(Finding::new(
                Severity::Error,
                "router_reached",
                name.as_str(),
                [
                    format!("it can't be asked: {error}"),
                    "check that clients can reach it at the URL in /ha/routers, and that it has the same keys".to_owned(),
                ],
                "the other routers see it, and clients may not reach it",
            ));
        }
    }
    findings
}

/// What a router says of itself.
fn own_state(name: &str, health: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let joins = health["join"].as_array().map(Vec::as_slice).unwrap_or_default();
    let has_peers = health["peers"].as_array().is_some_and(|peers| !peers.is_empty());
    if health["ha_mode"] != "standalone" && !has_peers {
        findings.push(Finding::new(
            Severity::Error,
            "alone",
            name,
            [
                "the mesh is on, and this router knows no other one".to_owned(),
                "check --mesh-peer-urls, the mesh port, firewalls, and that all routers have the same cluster id and key"
                    .to_owned(),
            ],
            "it shares neither workers nor limits, and admits as much as all routers together",
        ));
    }
    for join in joins.iter().filter(|join| join["reached"] == false) {
        let error = join["error"].as_str().unwrap_or("no router answers there");
        findings.push(Finding::new(
            Severity::Warning,
            "join_address",
            name,
            [
                format!("its join address {} is not reached: {error}", text(&join["address"])),
                "correct the address, or remove it from --mesh-peer-urls".to_owned(),
            ],
            "after a restart the router may not find the others",
        ));
    }
    let durability = &health["durability"];
    match durability["state"].as_str() {
        Some("degraded") => findings.push(Finding::new(
            Severity::Error,
            "data_folder",
            name,
            [
                format!("its data folder can't be written: {}", text(&durability["cause"])),
                "free space or mend the disk; the router tries again by itself".to_owned(),
            ],
            "what administrators set now is lost if all routers stop",
        )),
        Some("memory") => findings.push(Finding::new(
            Severity::Warning,
            "no_data_folder",
            name,
            [
                "its state is in memory only".to_owned(),
                "set --data-dir to a folder that survives a restart".to_owned(),
            ],
            "workers, policies and limits that administrators have set are lost when all routers stop at once",
        )),
        Some(_) | None => {}
    }
    findings
}

/// What a router measures of the others.
fn peers(name: &str, health: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    for peer in health["peers"].as_array().into_iter().flatten() {
        if !matches!(peer["status"].as_str(), Some("ALIVE" | "SUSPECTED")) {
            continue;
        }
        let subject = format!("{name} to {}", text(&peer["name"]));
        let ahead = peer["clock_ahead_ms"].as_i64().unwrap_or_default();
        if ahead.abs() >= SKEW_MS {
            let severity =
                if ahead.abs() >= LARGE_SKEW_MS { Severity::Error } else { Severity::Warning };
            findings.push(Finding::new(
                severity,
                "clock_skew",
                &*subject,
                [
                    format!("their wall clocks differ by {ahead} ms"),
                    "run a time service (chrony, systemd-timesyncd) on both machines".to_owned(),
                ],
                "the later of two writes is decided by time, and windows of limits begin at different moments",
            ));
        }
        if let Some(rtt) = peer["rtt_ms"].as_f64().filter(|rtt| *rtt >= RTT_MS) {
            findings.push(Finding::new(
                Severity::Warning,
                "round_trip",
                &*subject,
                [
                    format!("a round trip takes {rtt:.0} ms"),
                    "put the routers of a cluster near to each other, or set --mesh-profile wan on all".to_owned(),
                ],
                "a router that answers late is suspected, and what routers learn arrives later",
            ));
        }
        for (lane, connection) in peer["connections"].as_object().into_iter().flatten() {
            if connection["up"] == false {
                let error = connection["error"].as_str().unwrap_or("no reason is known");
                findings.push(Finding::new(
                    Severity::Error,
                    "connection_down",
                    &*subject,
                    [
                        format!("the connection for {lane} is down: {error}"),
                        "check the mesh port in this direction, certificates and keys".to_owned(),
                    ],
                    "membership and state take detours over other routers, or do not arrive",
                ));
            }
        }
    }
    findings
}

fn versions<'a>(abouts: impl Iterator<Item = (&'a str, &'a Value)>) -> Option<Finding> {
    let mut by_version: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, about) in abouts {
        by_version.entry(text(&about["version"])).or_default().push(name);
    }
    let listed: Vec<String> = by_version
        .iter()
        .map(|(version, names)| format!("{version} on {}", names.join(", ")))
        .collect();
    (by_version.len() > 1).then(|| {
        Finding::new(
            Severity::Warning,
            "mixed_versions",
            "the cluster",
            [
                format!("the routers have different versions: {}", listed.join("; ")),
                "finish the upgrade".to_owned(),
            ],
            "state that only the newer version knows is not replicated by the older one",
        )
    })
}

/// What the routers say of the leader.
fn lease<'a>(seen: &Seen, leaders: impl Iterator<Item = (&'a str, &'a Value)>) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut named: BTreeSet<(String, String)> = BTreeSet::new();
    for (name, leadership) in leaders {
        if leadership["ha_mode"] == "standalone" {
            continue;
        }
        if leadership["quorum"] == false {
            findings.push(Finding::new(
                Severity::Error,
                "no_quorum",
                name,
                [
                    "it reaches no majority of the configured routers".to_owned(),
                    "restart the missing routers; if the cluster has shrunk for good, lower --mesh-expected-replicas".to_owned(),
                ],
                "no router can lead, and limits whose mode is strict refuse requests",
            ));
            continue;
        }
        let Some(leader) = leadership["leader"].as_str() else {
            findings.push(Finding::new(
                Severity::Warning,
                "no_leader",
                name,
                [
                    "it reaches a majority and knows no leader".to_owned(),
                    "wait ten seconds and ask again; if it stays, look for lease in the logs"
                        .to_owned(),
                ],
                "jobs that one router does for all wait",
            ));
            continue;
        };
        named.insert((leader.to_owned(), leadership["term"].to_string()));
        if seen.statuses.get(leader).is_none_or(|status| status == "DOWN") {
            findings.push(Finding::new(
                Severity::Warning,
                "stale_lease",
                name,
                [
                    format!("it names {leader} as the leader, which is not present"),
                    "wait ten seconds and ask again: the lease of a dead router expires".to_owned(),
                ],
                "jobs that one router does for all wait until the lease has expired",
            ));
        }
    }
    if named.len() > 1 {
        let listed: Vec<String> =
            named.iter().map(|(leader, term)| format!("{leader} in term {term}")).collect();
        findings.push(Finding::new(
            Severity::Warning,
            "stale_lease",
            "the cluster",
            [
                format!("routers name different leaders: {}", listed.join(", ")),
                "ask again: this is normal for a moment after a change of the leader".to_owned(),
            ],
            "if it stays, routers do not exchange their state",
        ));
    }
    findings
}

/// What the workers are like, as one router sees them.
fn workers(list: &Value) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut by_model: BTreeMap<String, Vec<&Value>> = BTreeMap::new();
    for worker in list["workers"].as_array().into_iter().flatten() {
        let url = text(&worker["spec"]["url"]);
        if url.trim_end_matches('/').ends_with("/v1") {
            findings.push(Finding::new(
                Severity::Error,
                "worker_url",
                &*url,
                [
                    "the worker's URL ends in /v1".to_owned(),
                    "remove the worker and register it without /v1".to_owned(),
                ],
                "the router adds the path of each request itself, so that the engine gets /v1/v1/…",
            ));
        }
        if worker["state"] != "ready" {
            let error = &worker["last_error"];
            let advice = error["advice"].as_str().unwrap_or("look into the log of the worker");
            let cause = error["cause"].as_str().map(|cause| format!(": {cause}"));
            findings.push(Finding::new(
                Severity::Warning,
                "worker_down",
                &*url,
                [
                    format!("it is {}{}", text(&worker["state"]), cause.unwrap_or_default()),
                    advice.to_owned(),
                ],
                "the other workers carry its load",
            ));
            continue;
        }
        for model in worker["models"].as_array().into_iter().flatten() {
            by_model.entry(text(model)).or_default().push(worker);
        }
    }
    for (model, workers) in &by_model {
        findings.extend(headroom(model, workers));
    }
    findings
}

/// Whether the load of a model fits on its workers without the largest one.
fn headroom(model: &str, workers: &[&Value]) -> Option<Finding> {
    let subject = format!("model {model}");
    let advice = "add a worker for this model".to_owned();
    if let [only] = workers {
        let what = format!("one ready worker serves it: {}", text(&only["spec"]["url"]));
        let why = "requests for it fail as long as that worker restarts or is down";
        return Some(Finding::new(Severity::Warning, "headroom", subject, [what, advice], why));
    }
    let places: Vec<u64> = workers
        .iter()
        .map(|worker| worker["spec"]["max_concurrent"].as_u64())
        .collect::<Option<_>>()?;
    let load: u64 = workers.iter().filter_map(|worker| worker["load"].as_u64()).sum();
    let without_largest = places.iter().sum::<u64>() - places.iter().max().unwrap_or(&0);
    (load > without_largest).then(|| {
        let what = format!(
            "{load} requests are in flight, and without its largest worker there are places for {without_largest}"
        );
        let why = "if that worker fails now, requests wait or are refused";
        Finding::new(Severity::Warning, "headroom", subject, [what, advice], why)
    })
}

#[cfg(test)]
mod tests;
