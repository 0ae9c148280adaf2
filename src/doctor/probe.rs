//! Reaches the workers and the routers that a configuration names.

use std::time::Duration;

use http::Method;
use smg_proxy::upstream::{self, Client};
use smg_runtime::clock::Clock;
use smg_runtime::dial::Dialer;
use smg_runtime::tls::Live;
use smg_types::spec::WorkerSpec;
use tokio::task::JoinSet;

use super::finding::{Finding, Severity};
use crate::config::Config;
use crate::console::{ConsoleError, reason};

/// How long a worker or router may take to answer.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The largest answer that is read, in bytes.
const MAX_ANSWER_BYTES: usize = 1 << 20;

/// The most workers and routers that are asked at the same time.
const AT_ONCE: usize = 64;

/// One finding per worker and router: a note about those that answer, an error about the others.
pub(super) async fn reach(config: &Config) -> Result<Vec<Finding>, ConsoleError> {
    let clock = Clock::start();
    let upstream = upstream::Config {
        connect_timeout: config.upstream.connect_timeout.min(TIMEOUT),
        ..config.upstream.clone()
    };
    let tls = std::sync::Arc::new(Live::read(config.upstream.tls.clone(), clock.now())?);
    let client =
        std::sync::Arc::new(Client::new(upstream, Some(tls), Dialer::simple(clock), clock));
    let mut findings = Vec::new();
    let mut asking = JoinSet::new();
    for spec in config.workers.iter().cloned() {
        if asking.len() >= AT_ONCE {
            findings.extend(asking.join_next().await.and_then(Result::ok));
        }
        let path = spec.health.endpoint.clone();
        let path = path.unwrap_or_else(|| config.fleet.health.endpoint.clone());
        let client = std::sync::Arc::clone(&client);
        asking.spawn(async move { worker(&client, &spec, &path).await });
    }
    for address in config.mesh.network.iter().flat_map(|network| network.join.iter().cloned()) {
        if asking.len() >= AT_ONCE {
            findings.extend(asking.join_next().await.and_then(Result::ok));
        }
        asking.spawn(async move {
            let target = (address.host().to_owned(), address.port());
            let connecting = tokio::time::timeout(TIMEOUT, tokio::net::TcpStream::connect(target));
            let error = match connecting.await {
                Ok(Ok(_connected)) => None,
                Ok(Err(error)) => Some(error.to_string()),
                Err(_elapsed) => Some(format!("no answer within {TIMEOUT:?}")),
            };
            router(&address.to_string(), error)
        });
    }
    while let Some(finding) = asking.join_next().await {
        findings.extend(finding.ok());
    }
    findings.sort_by(|a, b| (b.severity, &a.subject).cmp(&(a.severity, &b.subject)));
    Ok(findings)
}

async fn worker(client: &Client, spec: &WorkerSpec, path: &str) -> Finding {
    let key = spec.api_key.as_ref();
    let answered = client.fetch(spec, Method::GET, path, key, TIMEOUT, MAX_ANSWER_BYTES).await;
    let (severity, what, advice) = match answered {
        Ok((status, _)) if status.is_success() => {
            (Severity::Info, format!("{path} answers {}", status.as_u16()), "nothing".to_owned())
        }
        Ok((status, _)) => {
            let advice = match status.as_u16() {
                401 | 403 => "check the key of the worker (api_key, --worker-api-key)".to_owned(),
                404 => {
                    "check the URL and --health-check-endpoint: another program may answer there"
                        .to_owned()
                }
                _ => "look into the log of the worker".to_owned(),
            };
            (Severity::Error, format!("{path} answers {}", status.as_u16()), advice)
        }
        Err(error) => (
            Severity::Error,
            format!("no answer: {}", reason(&error)),
            "check the URL, and that the worker runs and can be reached from here".to_owned(),
        ),
    };
    let why = "a worker whose health path does not answer with success gets no requests";
    Finding::new(severity, "worker_reached", spec.url.to_string(), [what, advice], why)
}

fn router(address: &str, error: Option<String>) -> Finding {
    let why = "routers that can't reach each other do not share workers, limits and caches";
    let (severity, what, advice) = match error {
        None => {
            (Severity::Info, "its mesh port accepts connections".to_owned(), "nothing".to_owned())
        }
        Some(error) => (
            Severity::Error,
            format!("its mesh port can't be reached: {error}"),
            "check name and port, that the router runs, and firewalls between the two".to_owned(),
        ),
    };
    Finding::new(severity, "router_reached", address, [what, advice], why)
}
