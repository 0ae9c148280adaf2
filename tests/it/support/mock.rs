//! The realistic worker: inside the test's process, where its state can be read, or as a process that can be killed.

use std::net::SocketAddr;
use std::sync::Arc;

use smg_mock::script::Faults;
use smg_mock::server::Bound;
use smg_mock::worker::Worker;
use smg_mock::{Config, Stats};
use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::router::command;

/// A mock worker in this process. It serves the model `m`, and stops when dropped.
pub(crate) struct Mock {
    worker: Arc<Worker>,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Mock {
    /// Starts a worker with this name that answers without delay.
    pub(crate) async fn start(name: &str) -> Self {
        Self::with(Config { name: Some(name.to_owned()), ..Config::default() }).await
    }

    /// Starts `n` workers with the names w0, w1, ….
    pub(crate) async fn several(n: usize) -> Vec<Self> {
        let mut mocks = Vec::new();
        for at in 0..n {
            mocks.push(Self::start(&format!("w{at}")).await);
        }
        mocks
    }

    /// Starts a worker with this configuration, apart from the model.
    pub(crate) async fn with(config: Config) -> Self {
        let bound = Bound::bind(Config { models: vec!["m".to_owned()], ..config }).await.unwrap();
        let (worker, address) = (bound.worker(), bound.address());
        let serving = tokio::spawn(bound.serve(std::future::pending()));
        Self { worker, address, serving }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn name(&self) -> &str {
        self.worker.name()
    }

    pub(crate) fn stats(&self) -> Stats {
        self.worker.stats()
    }

    /// Puts its engine to sleep, or wakes it up.
    pub(crate) fn sleep(&self, sleeping: bool) {
        self.worker.set_sleeping(sleeping);
    }

    /// Sets the faults for the requests from now on, in the format of `PUT /_mock/faults`.
    pub(crate) fn faults(&self, json: &str) {
        self.worker.set_faults(Faults::parse(json.as_bytes()).unwrap());
    }

    /// Stops the worker as the end of its process would: it no longer listens, and every connection is closed.
    pub(crate) async fn kill(&mut self) {
        if !self.serving.is_finished() {
            self.serving.abort();
            let _cancelled = (&mut self.serving).await.is_err();
        }
    }

    /// Starts the worker again at the same address, with an empty cache.
    pub(crate) async fn restart(&mut self) {
        self.kill().await;
        let name = self.name().to_owned();
        *self = Self::with(Config { listen: self.address, name: Some(name), ..Config::default() })
            .await;
    }
}

impl Drop for Mock {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

pub(crate) fn urls(mocks: &[Mock]) -> Vec<String> {
    mocks.iter().map(Mock::url).collect()
}

/// A process of `smg mock-worker`. It is killed when dropped.
pub(crate) struct Process {
    child: tokio::process::Child,
    pub(crate) url: String,
}

impl Process {
    /// Starts a process that serves the model `m`, and waits until it listens.
    pub(crate) async fn start(arguments: &[&str]) -> Self {
        let mut child =
            command().args(["mock-worker", "--model", "m"]).args(arguments).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.next_line().await.unwrap().expect("the worker prints its address");
        let url = line.rsplit(' ').next().unwrap().to_owned();
        Self { child, url }
    }

    /// Kills the process with SIGKILL.
    pub(crate) async fn kill(&mut self) {
        self.child.kill().await.unwrap();
    }
}
