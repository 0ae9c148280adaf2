//! A tunnel between a client and a worker that have switched to another protocol, such as WebSocket.
//!
//! Each direction has one buffer and reads only after it has written: a side that does not read stops the other. The
//! request counts on its worker, and holds its permit, as long as the tunnel lives; how it ends judges the worker.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use smg_routing::fleet::Outcome;
use smg_routing::policies::Ending;
use smg_runtime::clock::Clock;
use smg_runtime::shortage::Kind;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tracing::debug;

use super::account::Account;
use crate::upstream;

/// The buffer of a direction, in bytes.
const BUFFER: usize = 16 << 10;

/// How long one direction goes on after the other has ended: for the farewell of the other side.
const LINGER: Duration = Duration::from_secs(1);

/// How a tunnel ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TunnelEnd {
    /// The client closed its connection, or lost it.
    ClientLeft,
    /// The worker closed the connection in order.
    WorkerLeft,
    /// The connection to the worker broke.
    WorkerBroke,
    /// Nothing went in either direction for the idle timeout, or one side did not read for so long.
    Idle,
    /// The worker was removed, and its time to finish is over.
    Removed,
}

impl TunnelEnd {
    /// All ends. An end's place is its discriminant.
    pub const ALL: [Self; 5] =
        [Self::ClientLeft, Self::WorkerLeft, Self::WorkerBroke, Self::Idle, Self::Removed];

    /// The value of the metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ClientLeft => "client_left",
            Self::WorkerLeft => "worker_left",
            Self::WorkerBroke => "worker_broke",
            Self::Idle => "idle",
            Self::Removed => "removed",
        }
    }

    /// What it says of the worker, and as what the request is counted.
    const fn judged(self) -> (Ending, Outcome) {
        match self {
            Self::WorkerLeft => (Ending::Complete, Outcome::Success),
            Self::ClientLeft => (Ending::ClientLeft, Outcome::Neutral),
            Self::WorkerBroke => (Ending::Broken, Outcome::Failure),
            Self::Idle | Self::Removed => (Ending::Broken, Outcome::Neutral),
        }
    }
}

/// A request whose worker has switched to another protocol.
#[derive(Debug)]
pub struct Tunnel {
    worker: upstream::Tunnel,
    /// Taken at the end.
    account: Option<Account>,
    clock: Clock,
}

/// When bytes went through a tunnel, in either direction.
struct Activity {
    clock: Clock,
    /// `Clock::mono` in nanoseconds.
    last: AtomicU64,
}

/// A direction broke, at the end from which it reads or at the one to which it writes.
enum Broken {
    Reading(io::Error),
    Writing(io::Error),
}

/// What happened first.
enum First {
    /// From the client to the worker.
    Up(Result<(), Broken>),
    /// From the worker to the client.
    Down(Result<(), Broken>),
}

impl Tunnel {
    pub(super) fn new(worker: upstream::Tunnel, account: Account) -> Self {
        Self { worker, clock: account.clock, account: Some(account) }
    }

    /// Carries bytes between `client` and the worker until one side ends, or nothing has gone through for `idle`. Dropping
    /// the future closes both connections.
    pub async fn run(
        mut self,
        client: impl AsyncRead + AsyncWrite + Unpin,
        idle: Duration,
    ) -> TunnelEnd {
        let end = self.carry(client, idle).await;
        if let Some(account) = self.account.take() {
            let (ending, outcome) = end.judged();
            account.settle(ending, outcome);
        }
        end
    }

    async fn carry(
        &mut self,
        client: impl AsyncRead + AsyncWrite + Unpin,
        idle: Duration,
    ) -> TunnelEnd {
        let (from_client, to_client) = tokio::io::split(client);
        let (from_worker, to_worker) = tokio::io::split(&mut self.worker);
        let activity = Activity { clock: self.clock, last: AtomicU64::new(0) };
        activity.note();
        let mut up = pin!(pump(from_client, to_worker, &activity));
        let mut down = pin!(pump(from_worker, to_client, &activity));
        let mut timer = pin!(tokio::time::sleep(idle));
        let mut in_flight = self.account.as_mut().and_then(|account| account.in_flight.as_mut());
        let mut removed = pin!(std::future::poll_fn(|cx| match &mut in_flight {
            Some(in_flight) => in_flight.poll_abort(cx),
            None => std::task::Poll::Pending,
        }));
        let first = loop {
            tokio::select! {
                biased;
                ended = &mut up => break First::Up(ended),
                ended = &mut down => break First::Down(ended),
                () = &mut removed => return TunnelEnd::Removed,
                () = &mut timer => {
                    let left = idle.saturating_sub(activity.silent_for());
                    if left.is_zero() {
                        return TunnelEnd::Idle;
                    }
                    let at = self.clock.instant_at(self.clock.mono() + left);
                    timer.as_mut().reset(at);
                }
            }
        };
        match first {
            First::Up(Ok(())) => {
                let _late = tokio::time::timeout(LINGER, down).await.is_err();
                TunnelEnd::ClientLeft
            }
            First::Down(Ok(())) => {
                let _late = tokio::time::timeout(LINGER, up).await.is_err();
                TunnelEnd::WorkerLeft
            }
            First::Up(Err(Broken::Reading(error))) | First::Down(Err(Broken::Writing(error))) => {
                debug!(%error, "the client of a tunnel is gone");
                TunnelEnd::ClientLeft
            }
            First::Up(Err(Broken::Writing(error))) | First::Down(Err(Broken::Reading(error))) => {
                debug!(%error, "the worker of a tunnel is gone");
                // The router's own shortage is not the worker's fault.
                if Kind::of(&error).is_some() { TunnelEnd::Removed } else { TunnelEnd::WorkerBroke }
            }
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        if let Some(account) = self.account.take() {
            let (ending, outcome) = TunnelEnd::ClientLeft.judged();
            account.settle(ending, outcome);
        }
    }
}

impl Activity {
    fn note(&self) {
        let now = u64::try_from(self.clock.mono().as_nanos()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn silent_for(&self) -> Duration {
        let last = Duration::from_nanos(self.last.load(Ordering::Relaxed));
        self.clock.mono().saturating_sub(last)
    }
}

/// Carries one direction to its end, which is passed on.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    activity: &Activity,
) -> Result<(), Broken> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = from.read(&mut buffer).await.map_err(Broken::Reading)?;
        if read == 0 {
            return to.shutdown().await.map_err(Broken::Writing);
        }
        activity.note();
        to.write_all(&buffer[..read]).await.map_err(Broken::Writing)?;
        to.flush().await.map_err(Broken::Writing)?;
        activity.note();
    }
}
