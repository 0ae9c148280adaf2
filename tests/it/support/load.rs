//! Load: clients that keep their connections and send at a steady pace until they are told to stop.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::Connection;
use super::eventually;

/// Clients at work.
pub(crate) struct Load {
    stop: watch::Sender<bool>,
    clients: JoinSet<Vec<String>>,
    answered: Arc<AtomicUsize>,
}

impl Load {
    /// `clients` clients that together send `per_second` requests each second, as long as answers come in time.
    pub(crate) fn start(
        address: SocketAddr,
        clients: u32,
        per_second: u32,
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
                client(address, pace, body, &stopped, &answered).await
            });
        }
        Self { stop, clients: tasks, answered }
    }

    /// Requests that have got a good answer so far.
    pub(crate) fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for `more` good answers.
    pub(crate) async fn answers(&self, more: usize) {
        let until = self.answered() + more;
        eventually(&format!("{until} answers"), || async {
            let seen = self.answered();
            if seen >= until { Ok(()) } else { Err(seen) }
        })
        .await;
    }

    /// Ends it: each client finishes its request. Returns what went wrong.
    pub(crate) async fn stop(self) -> Vec<String> {
        self.stop.send_replace(true);
        self.clients.join_all().await.into_iter().flatten().collect()
    }
}

/// One client. Returns what went wrong.
async fn client(
    address: SocketAddr,
    pace: Duration,
    body: &'static str,
    stopped: &watch::Receiver<bool>,
    answered: &AtomicUsize,
) -> Vec<String> {
    let mut failed = Vec::new();
    let mut connection = Connection::open(address).await.unwrap();
    let mut tick = tokio::time::interval(pace);
    while !*stopped.borrow() {
        tick.tick().await;
        match connection.post("/v1/chat/completions", &[], body).await {
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
