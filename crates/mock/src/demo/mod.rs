//! `smg demo`: workers, routers and chats in one process, and a screen that shows where requests go.
//!
//! The caller provides the routers, so that this module depends on no part of them: it passes the workers' URLs and
//! gets addresses. On a terminal the demo runs until `q` or Ctrl-C. Elsewhere, and with `--once`, it runs for a limited
//! time, prints a line at intervals, and fails if any request failed.

mod board;
mod screen;
mod users;

use std::error::Error;
use std::future::Future;
use std::io::{self, IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use smg_runtime::clock::Clock;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Rate, Share};
use crate::demo::board::{Board, View};
use crate::demo::screen::Screen;
use crate::server::Bound;
use crate::traffic::Chats;

/// The number of workers.
const WORKERS: u16 = 4;
/// The time between two updates of the screen.
const FRAME: Duration = Duration::from_millis(250);
/// The time between two lines in a run without a screen.
const LINE: Duration = Duration::from_secs(2);
/// How long the last answers may take to arrive, and a router to stop.
const PATIENCE: Duration = Duration::from_secs(10);

/// Flags of `smg demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Run for --seconds without a screen, print a summary, and fail if any request failed.
    #[arg(long)]
    pub once: bool,
    /// How long --once runs.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub seconds: u32,
    /// Users that chat at the same time.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub users: u32,
    /// Routers in front of the workers. Several form a cluster, and the users send requests to all of them in turn.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub routers: u8,
    /// Seed of the users' texts and of the workers' times.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// A running router, or several of one cluster.
pub struct RunningRouter {
    /// The addresses for clients, at least one. The turns of a chat go to all of them in turn.
    pub addresses: Vec<SocketAddr>,
    /// Stops the routers, and resolves when they have stopped.
    pub stop: Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl std::fmt::Debug for RunningRouter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningRouter").field("addresses", &self.addresses).finish_non_exhaustive()
    }
}

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// A worker could not be started.
    #[error("a mock worker can't start: {0}")]
    Worker(io::Error),
    /// The router could not be started.
    #[error("the router can't start: {0}")]
    Router(Box<dyn Error + Send + Sync>),
    /// The router was started, but has no address.
    #[error("the router serves at no address")]
    NoAddress,
    /// The terminal, stdout or a signal handler failed.
    #[error("the terminal failed: {0}")]
    Terminal(#[from] io::Error),
    /// Some requests failed.
    #[error("{failed} of {requests} requests failed, the first one: {first}")]
    Failed {
        /// The number of failed requests.
        failed: u64,
        /// The number of all requests.
        requests: u64,
        /// The error of the first one.
        first: String,
    },
    /// No request was answered.
    #[error("no request was answered")]
    Silence,
    /// A user's task panicked.
    #[error("a user's task panicked: {0}")]
    User(tokio::task::JoinError),
}

/// Runs the demo. `start_router` receives the workers' URLs.
///
/// # Errors
/// If a part can't start or the terminal fails; in a run without a screen also if a request failed.
pub async fn run<F, Fut>(args: Args, start_router: F) -> Result<(), DemoError>
where
    F: FnOnce(Vec<String>) -> Fut,
    Fut: Future<Output = Result<RunningRouter, Box<dyn Error + Send + Sync>>>,
{
    let mut leave = Leave::listen()?;
    let mut serving = JoinSet::new();
    let mut workers = Vec::new();
    let mut urls = Vec::new();
    for nth in 0..WORKERS {
        let bound = Bound::bind(worker_config(nth, args.seed)).await.map_err(DemoError::Worker)?;
        workers.push(bound.worker());
        urls.push(bound.url());
        serving.spawn(bound.serve(std::future::pending()));
    }
    let router = tokio::select! {
        started = start_router(urls) => started.map_err(DemoError::Router)?,
        () = leave.asked() => return Ok(()),
    };
    let Some(first) = router.addresses.first().copied() else { return Err(DemoError::NoAddress) };

    let clock = Clock::start();
    let board = Arc::new(Mutex::new(Board::default()));
    let (stop, stopping) = watch::channel(false);
    let mut users = JoinSet::new();
    for number in 0..args.users {
        users.spawn(users::chat(users::User {
            number,
            routers: router.addresses.clone(),
            chats: Chats::default(),
            seed: args.seed,
            clock,
            board: Arc::clone(&board),
            stopping: stopping.clone(),
        }));
    }
    let routers = router.addresses.len();
    let view = || board.lock().view(clock.mono(), routers, &workers);
    let on_screen = !args.once && io::stdout().is_terminal();
    let shown = if on_screen {
        watch_screen(&view, first, &mut leave, &mut users).await
    } else {
        let seconds = Duration::from_secs(args.seconds.into());
        print_lines(&view, first, seconds, &mut leave, &mut users).await
    };

    // In any case, the users stop first, so that no request is aborted, then the router, then the workers.
    stop.send_replace(true);
    let ended =
        tokio::time::timeout(PATIENCE, async { while users.join_next().await.is_some() {} });
    let late = ended.await.is_err();
    users.shutdown().await;
    let view = view();
    let router_late = tokio::time::timeout(PATIENCE, router.stop).await.is_err();
    serving.shutdown().await;

    shown?;
    let mut summary = view.table();
    if late || router_late {
        summary += &format!("Not all parts stopped within {} s.\n", PATIENCE.as_secs());
    }
    print(&summary)?;
    match view.first_error {
        Some(first) if !on_screen => Err(DemoError::Failed {
            failed: view.failed,
            requests: view.requests + view.failed,
            first,
        }),
        _ if view.requests == 0 && !on_screen => Err(DemoError::Silence),
        _ => Ok(()),
    }
}

/// Times like those of a small model on one large GPU, with a cache that a few dozen chats fill.
fn worker_config(nth: u16, seed: u64) -> Config {
    Config {
        name: Some(format!("worker-{}", nth + 1)),
        prefill: Rate::new(8000.0).expect("a rate"),
        decode: Rate::new(100.0).expect("a rate"),
        jitter: Share::new(0.2).expect("a share"),
        seed: seed.wrapping_add(nth.into()),
        slots: NonZeroUsize::new(16),
        cache_blocks: 4096,
        ..Config::default()
    }
}

/// Prints a text. Returns false if the reader has closed the pipe, which is no failure.
fn print(text: &str) -> io::Result<bool> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error),
    }
}

/// The command with which a viewer can join in.
fn curl(router: SocketAddr) -> String {
    format!(
        "curl -N http://{router}/v1/chat/completions -H 'content-type: application/json' \
         -d '{{\"model\":\"mock-model\",\"stream\":true,\"messages\":[{{\"role\":\"user\",\"content\":\"Hello\"}}]}}'"
    )
}

async fn watch_screen(
    view: &impl Fn() -> View,
    router: SocketAddr,
    leave: &mut Leave,
    users: &mut JoinSet<()>,
) -> Result<(), DemoError> {
    let mut screen = Screen::open()?;
    let mut frames = tokio::time::interval(FRAME);
    loop {
        tokio::select! {
            () = leave.asked() => return Ok(()),
            Some(Err(e)) = users.join_next() => return Err(DemoError::User(e)),
            _ = frames.tick() => {
                screen.show(&view(), &curl(router))?;
                if Screen::quit_was_pressed()? {
                    return Ok(());
                }
            }
        }
    }
}

async fn print_lines(
    view: &impl Fn() -> View,
    router: SocketAddr,
    seconds: Duration,
    leave: &mut Leave,
    users: &mut JoinSet<()>,
) -> Result<(), DemoError> {
    let mut is_read = print(&format!("Join in:\n  {}\n\n", curl(router)))?;
    let end = tokio::time::sleep(seconds);
    tokio::pin!(end);
    let mut lines = tokio::time::interval(LINE);
    lines.tick().await;
    loop {
        tokio::select! {
            () = leave.asked() => return Ok(()),
            () = &mut end => return Ok(()),
            Some(Err(e)) = users.join_next() => return Err(DemoError::User(e)),
            _ = lines.tick(), if is_read => is_read = print(&format!("{}\n", view().line()))?,
        }
    }
}

/// The signals that end the demo: SIGINT and SIGTERM.
#[derive(Debug)]
struct Leave {
    interrupt: Signal,
    terminate: Signal,
}

impl Leave {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests;
