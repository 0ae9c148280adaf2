//! The users of the demo: each has one chat after the other, over connections that are kept open.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::clock::Clock;
use tokio::sync::watch;

use crate::client::{Connection, ExchangeError, request};
use crate::demo::board::Board;
use crate::traffic::{Chats, Session, answer_text};

/// How long a request may take before it counts as failed.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A user, and the routers that it sends requests to.
#[derive(Debug)]
pub(super) struct User {
    pub(super) number: u32,
    pub(super) routers: Vec<SocketAddr>,
    pub(super) chats: Chats,
    pub(super) seed: u64,
    pub(super) clock: Clock,
    pub(super) board: Arc<Mutex<Board>>,
    pub(super) stopping: watch::Receiver<bool>,
}

/// Chats until the demo stops. Waits for the answer that is on its way then.
pub(super) async fn chat(mut user: User) {
    let mut connections: Vec<Option<Connection>> = user.routers.iter().map(|_| None).collect();
    let mut asked = user.number as usize;
    for nth in 0_u64.. {
        let seed = user.seed.wrapping_mul(1_000_003) ^ (u64::from(user.number) << 32 | nth);
        let mut session = Session::start(&user.chats, seed);
        while let Some(body) = session.ask() {
            if user.waits(session.think()).await {
                return;
            }
            let router = asked % user.routers.len();
            asked += 1;
            let address = user.routers[router];
            match user.ask(&mut connections[router], address, &body).await {
                Ok(answer) => session.answered(&answer_text(&answer)),
                Err(problem) => {
                    user.board.lock().failed(problem);
                    connections[router] = None;
                    break;
                }
            }
        }
    }
}

impl User {
    /// Waits for `time`, or until the demo stops. Returns whether it stops.
    async fn waits(&mut self, time: Duration) -> bool {
        let stopped = self.stopping.wait_for(|stop| *stop);
        tokio::time::timeout(time, stopped).await.is_ok()
    }

    async fn ask(
        &self,
        connection: &mut Option<Connection>,
        address: SocketAddr,
        body: &str,
    ) -> Result<Vec<u8>, String> {
        let host = address.to_string();
        let request = request("POST", "/v1/chat/completions", &host, "", body.as_bytes());
        let begin = self.clock.mono();
        let mut first_token = None;
        let mut answer = Vec::new();
        let exchange = async {
            let open = match connection {
                Some(open) => open,
                None => connection.insert(Connection::open(address).await?),
            };
            open.exchange(&request, |piece| {
                first_token.get_or_insert_with(|| self.clock.mono());
                answer.extend_from_slice(piece);
            })
            .await
        };
        let ended = tokio::time::timeout(TIMEOUT, exchange).await;
        let (head, reusable) = match ended {
            Ok(Ok(ended)) => ended,
            Ok(Err(ExchangeError::Io(e))) => return Err(format!("{address}: {e}")),
            Ok(Err(e)) => return Err(format!("{address}: {e}")),
            Err(_) => return Err(format!("{address}: no whole answer in {} s", TIMEOUT.as_secs())),
        };
        if !reusable {
            *connection = None;
        }
        if head.status != 200 {
            let body = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
            return Err(format!("{address}: status {}: {body}", head.status));
        }
        if !answer.ends_with(b"data: [DONE]\n\n") {
            return Err(format!("{address}: the stream has no end"));
        }
        let now = self.clock.mono();
        let first_token = first_token.unwrap_or(now).saturating_sub(begin);
        self.board.lock().answered(now, now.saturating_sub(begin), first_token);
        Ok(answer)
    }
}
