//! Load: clients that keep their connections open and send requests at a steady rate until they are stopped.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::Connection;
use super::eventually;

/// A group of running clients.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<String>>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    /// Starts `clients` clients that together send `per_second` requests per second, as long as the answers arrive in
    /// time.
    pub(crate) fn start(
        address: SocketAddr,
        clients: u32,
        per_second: u32,
        body: &'static str,
    ) -> Self {
        Self::with_headers(address, clients, per_second, &[], body)
    }

    /// Starts clients that send these headers with each request.
    pub(crate) fn with_headers(
        address: SocketAddr,
        clients: u32,
        per_second: u32,
        headers: &'static [(&'static str, &'static str)],
        body: &'static str,
    ) -> Self {
        let (stop, stopped) = watch::channel(false);
        let answered = Arc::new(AtomicUsize::new(0));
        let pace = Duration::from_secs(1) * clients / per_second;
        let mut tasks = JoinSet::new();
        for nth in 0..clients {
            let (stopped, answered) = (stopped.clone(), Arc::clone(&answered));
            let late = pace * nth / clients;
            tasks.spawn(async move {
                tokio::time::sleep(late).await;
                client(address, pace, headers, body, &stopped, &answered).await
            });
        }
        Self { stop, clients: tasks, answered }
    }

    /// The number of successful answers so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for `more` successful answers.
    pub(crate) async fn answers(&self, more: usize) {
        let until = self.answered() + more;
        eventually(&format!("{until} answers"), || async {
            let seen = self.answered();
            if seen >= until { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Stops the clients after their current requests. Returns the failures.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop.send_replace(true);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

/// Runs one client. Returns its failures.
async fn client(
    address: SocketAddr,
    pace: Duration,
    headers: &[(&str, &str)],
    body: &'static str,
    stopped: &watch::Receiver<bool>,
    answered: &AtomicUsize,
) -> Vec<String> {
    let mut failed = Vec::new();
    let mut connection = Connection::open(address).await.unwrap();
    let mut tick = tokio::time::interval(pace);
    while !*stopped.borrow() {
        tick.tick().await;
        match connection.post("/v1/chat/completions", headers, body).await {
            Ok(answer) if answer.status == 200 => {
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(answer) => failed.push(format!("{} {}", answer.status, answer.text())),
            Err(error) => {
                failed.push(error.to_string());
                connection = Connection::open(address).await.unwrap();
            }
        }
    }
    failed
}
