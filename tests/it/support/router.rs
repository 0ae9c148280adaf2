//! A router as a process: the real binary with real arguments, on ports that the system chose.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::process::{Child, Command};

use super::client::{self, Answer};
use super::eventually;

/// A running router. It is killed when dropped.
pub(crate) struct Router {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
}

/// A command for the binary, without the variables of `smg` in its environment.
pub(crate) fn command() -> Command {
    command_in(&[])
}

/// The same command, started by another program. The binary and its arguments follow the arguments of that program.
fn command_in(wrapper: &[&str]) -> Command {
    let smg = env!("CARGO_BIN_EXE_smg");
    let mut command = match wrapper {
        [] => Command::new(smg),
        [program, arguments @ ..] => {
            let mut command = Command::new(program);
            command.args(arguments).arg(smg);
            command
        }
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| name.starts_with("SMG_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
    }
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}

impl Router {
    /// Starts a router on a free port and waits until it serves. It drains without the pause for load balancers.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        Self::start_in(&[], arguments).await
    }

    /// Starts a router through another program, such as a shell that sets a limit and then becomes the router.
    pub(crate) async fn start_in(wrapper: &[&str], arguments: &[&str]) -> Self {
        let mut command = command_in(wrapper);
        command.args(["--host", "127.0.0.1", "--port", "0", "--log-json"]);
        if !arguments.contains(&"--prometheus-port") {
            command.args(["--prometheus-port", "0"]);
        }
        if !arguments.contains(&"--drain-settle-secs") {
            command.args(["--drain-settle-secs", "0"]);
        }
        command.args(arguments);
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, address) = tokio::sync::oneshot::channel();
        let mut found = Some(found);
        let kept = Arc::clone(&log);
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                let event: serde_json::Value = serde_json::from_str(&line).unwrap_or_default();
                if event["message"] == "serving"
                    && let Some(found) = found.take()
                {
                    let address: SocketAddr = event["address"].as_str().unwrap().parse().unwrap();
                    let _test_gone = found.send(address).is_err();
                }
                kept.lock().unwrap().push(line);
            }
        });
        let address = tokio::time::timeout(Duration::from_secs(20), address).await;
        let address = address.ok().and_then(Result::ok);
        let Some(address) = address else {
            panic!("the router did not start; its log:\n{}", log.lock().unwrap().join("\n"));
        };
        Self { child, address, log }
    }

    /// Starts a router for `workers`, and waits until all of them are ready.
    pub(crate) async fn before(workers: &[String], arguments: &[&str]) -> Self {
        let mut all: Vec<&str> = vec!["--worker-urls"];
        all.extend(workers.iter().map(String::as_str));
        all.extend(arguments);
        let router = Self::start(&all).await;
        router.knows_ready(workers.len()).await;
        router
    }

    /// Waits until exactly `ready` workers are ready.
    pub(crate) async fn knows_ready(&self, ready: usize) {
        eventually(&format!("{ready} workers are ready"), || async {
            let answer = self.get("/readiness").await;
            let seen = answer.json()["healthy_workers"].as_u64();
            if seen == Some(ready as u64) { Ok(()) } else { Err(answer.text()) }
        })
        .await;
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        client::send(self.address, "GET", path, &[], b"").await
    }

    pub(crate) async fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Answer {
        client::send(
            self.address,
            "POST",
            path,
            &[("content-type", "application/json")],
            body.as_ref(),
        )
        .await
    }

    pub(crate) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Answer {
        client::send(self.address, method, path, headers, body).await
    }

    /// The value of the metric whose line begins with `series`; 0 if there is none.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let text = self.get("/metrics").await.text();
        let line = text
            .lines()
            .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.map_or(0.0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// Everything that the router has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().join("\n")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id().expect("the router runs")
    }

    /// Sends the router a signal by name (`TERM`, `KILL`, `STOP`, `CONT`).
    pub(crate) fn signal(&self, name: &str) {
        let status = std::process::Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.pid().to_string())
            .status()
            .unwrap();
        assert!(status.success(), "kill -{name}");
    }

    /// Waits until the router exits, and returns its exit status.
    pub(crate) async fn ended(&mut self) -> i32 {
        let status = tokio::time::timeout(Duration::from_secs(60), self.child.wait()).await;
        status.expect("the router ends within a minute").unwrap().code().unwrap_or(-1)
    }

    /// The resident memory in bytes.
    pub(crate) fn memory(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
    }
}
