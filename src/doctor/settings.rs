//! Examines a configuration that has no mistakes. Pure: the limits of the machine are arguments.

use std::net::IpAddr;

use smg_mesh::{JoinAddress, NetworkConfig};
use smg_runtime::descriptors;

use super::finding::{Finding, Severity};
use crate::config::Config;

const THIS: &str = "configuration";

/// The findings about a configuration on a machine where a process may have `max_descriptors` files open.
pub(super) fn examine(config: &Config, max_descriptors: Option<u64>) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(open_files(config, max_descriptors));
    findings.extend(access(config));
    findings.extend(workers(config));
    if let Some(network) = &config.mesh.network {
        findings.extend(routers(config, network));
        findings.extend(protection(network));
        if config.mesh.data.is_none() {
            findings.push(Finding::new(
                Severity::Warning,
                "no_data_folder",
                THIS,
                [
                    "the state of the cluster is in memory only: --data-dir is not set".to_owned(),
                    "set --data-dir to a folder that survives a restart".to_owned(),
                ],
                "workers, policies and limits that administrators have set are lost when all routers stop at once",
            ));
        }
    }
    findings.extend(data_folder(config));
    findings
}

fn open_files(config: &Config, max_descriptors: Option<u64>) -> Option<Finding> {
    let what = descriptors::shortfall(max_descriptors, config.http.max_connections)?;
    Some(Finding::new(
        Severity::Warning,
        "open_files",
        "this machine",
        [what, "raise the hard limit on open files, or lower --max-connections".to_owned()],
        "clients beyond that number are refused although --max-connections allows them",
    ))
}

fn access(config: &Config) -> Option<Finding> {
    let http = &config.http;
    let is_open = http.admin_open && http.api_keys.is_empty() && http.admin_api_keys.is_empty();
    is_open.then(|| {
        Finding::new(
            Severity::Error,
            "admin_open",
            THIS,
            [
                "--admin-open is set and there is no key: everybody may change the router".to_owned(),
                "set --admin-api-key".to_owned(),
            ],
            "whoever reaches the port can add a worker of their own, which then gets the prompts of clients",
        )
    })
}

fn workers(config: &Config) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let [only] = &config.workers[..] {
        findings.push(Finding::new(
            Severity::Warning,
            "single_worker",
            only.url.to_string(),
            [
                "it is the only configured worker".to_owned(),
                "configure a second worker for each model".to_owned(),
            ],
            "requests fail as long as it restarts or is down",
        ));
    }
    let places: Option<Vec<u64>> = config
        .workers
        .iter()
        .map(|spec| spec.max_concurrent.map(|most| u64::from(most.get())))
        .collect();
    let places = places.filter(|places| places.len() > 1).unwrap_or_default();
    let without_largest: u64 = places.iter().sum::<u64>() - places.iter().max().unwrap_or(&0);
    let admitted = config.limit.max_concurrent.map(|most| u64::from(most.get()));
    if let Some(admitted) = admitted.filter(|most| !places.is_empty() && *most > without_largest) {
        findings.push(Finding::new(
            Severity::Warning,
            "headroom",
            THIS,
            [
                format!(
                    "--max-concurrent-requests is {admitted}, and without the largest worker there are places for \
                     {without_largest} requests"
                ),
                format!("add a worker, or set --max-concurrent-requests to {without_largest}"),
            ],
            "while one worker is down, requests are admitted for which no worker has a place",
        ));
    }
    findings
}

fn routers(config: &Config, network: &NetworkConfig) -> Vec<Finding> {
    let mut findings = Vec::new();
    if network.join.is_empty() {
        findings.push(Finding::new(
            Severity::Warning,
            "alone",
            THIS,
            [
                "the mesh is on, and --mesh-peer-urls names no other router".to_owned(),
                "list the addresses of all routers in --mesh-peer-urls on each of them".to_owned(),
            ],
            "this router finds no other one; only routers that name it can join it",
        ));
    }
    let expected = config.limits.engine.expected;
    findings.extend(expected.and_then(|count| even(u64::from(count), "--mesh-expected-replicas")));
    findings
}

/// The finding about an even number of routers.
pub(super) fn even(count: u64, source: &str) -> Option<Finding> {
    (count > 0 && count.is_multiple_of(2)).then(|| {
        Finding::new(
            Severity::Warning,
            "even_voters",
            source,
            [
                format!("the number of routers is even: {count}"),
                format!("run {} or {} routers", count - 1, count + 1),
            ],
            "a majority of an even number is larger than half, so that an even number survives no more failures than one router fewer, and a cut \
             in two halves leaves no majority: no leader, and limits that are strict stop",
        )
    })
}

fn protection(network: &NetworkConfig) -> Option<Finding> {
    let is_protected = network.security.tls.is_some() || !network.security.keys.is_empty();
    if is_protected {
        return None;
    }
    let is_local = |address: &JoinAddress| {
        let ip = address.host().parse::<IpAddr>();
        address.host() == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
    };
    let is_inside = network.listen.ip().is_loopback() && network.join.iter().all(is_local);
    let severity = if is_inside { Severity::Info } else { Severity::Error };
    Some(Finding::new(
        severity,
        "mesh_unprotected",
        network.listen.to_string(),
        [
            "the mesh port has neither a key nor certificates".to_owned(),
            "give all routers --mesh-encryption-key-file, or --mesh-tls-cert, --mesh-tls-key and --mesh-tls-ca".to_owned(),
        ],
        "whoever reaches the port can join the cluster, read the keys of workers and change everything",
    ))
}

fn data_folder(config: &Config) -> Option<Finding> {
    let folder = &config.mesh.data.as_ref()?.folder;
    let what = match std::fs::metadata(folder) {
        Ok(found) if !found.is_dir() => "it is no folder".to_owned(),
        Ok(found) if found.permissions().readonly() => "it is read-only".to_owned(),
        Ok(_) => return None,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Some(Finding::new(
                Severity::Info,
                "data_folder",
                folder.display().to_string(),
                [
                    "the data folder does not exist yet".to_owned(),
                    "nothing, if this router has not run before; otherwise mount its volume"
                        .to_owned(),
                ],
                "the router creates it and starts without a state, also when a volume is not mounted",
            ));
        }
        Err(error) => error.to_string(),
    };
    Some(Finding::new(
        Severity::Error,
        "data_folder",
        folder.display().to_string(),
        [
            format!("the data folder can't be used: {what}"),
            "give the user of the router a folder that it may write to".to_owned(),
        ],
        "the router keeps what administrators set in memory only, or does not start",
    ))
}
