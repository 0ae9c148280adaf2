//! The binary: arguments → configuration → runtime → `App::build` → run → exit code; nothing else.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use smg::app::{self, App, Ending};
use smg::config::{self, Loaded, Process, Start};
use smg::console;
use smg_mock as mock;
use smg_runtime::{descriptors, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tracing::{error, warn};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The router failed, or cut what was in flight.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // A client costs two descriptors, and the usual soft limit is 1024.
    descriptors::raise_limit();
    // Thousands of connections with a few small buffers each: huge pages would make all of each buffer resident. A
    // kernel that can't turn them off has none.
    let _unsupported = rustix::thread::disable_transparent_huge_pages(true).is_err();
    // Not locked: in a `match` the locks would live as long as the router, and who logs from another thread would wait.
    let start = config::start(&Process::current(), &mut io::stdout(), &mut io::stderr());
    match start {
        Start::Router(loaded) => match run(*loaded) {
            Ok(Ending::Clean) => ExitCode::SUCCESS,
            Ok(Ending::Cut) => ExitCode::from(FAILED),
            Err(failure) => {
                error!(error = format!("{failure:#}"), "the router could not run");
                ExitCode::from(FAILED)
            }
        },
        Start::MockWorkers(configs) => told(block_on(mock::worker::run(configs))),
        Start::Demo(args) => told(block_on(app::demo(args))),
        Start::Console(command) => told(block_on(console::run(command, &mut io::stdout()))),
        Start::Done(status) => ExitCode::from(status),
    }
}

/// The exit status of a command that has no log: what failed goes to standard error.
fn told<E: Display>(ended: anyhow::Result<Result<(), E>>) -> ExitCode {
    let failure = match ended {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.to_string(),
        Err(failure) => format!("{failure:#}"),
    };
    // Standard error may be closed: the exit status says it as well.
    let _unheard = writeln!(io::stderr(), "error: {failure}").is_err();
    ExitCode::from(FAILED)
}

fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

fn run(loaded: Loaded) -> anyhow::Result<Ending> {
    telemetry::init(&loaded.config.telemetry)?;
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    // Of the machine that runs the router: no part of the configuration, which may be checked on another.
    let max_connections = loaded.config.http.max_connections;
    if let Some(shortfall) = descriptors::shortfall(descriptors::limit(), max_connections) {
        warn!("{shortfall}");
    }
    block_on(async {
        let stops = count_signals()?;
        let running = App::build(loaded.config)?.start()?;
        Ok(running.run(stops).await)
    })?
}

/// Counts requests to end: SIGTERM and SIGINT.
fn count_signals() -> anyhow::Result<watch::Receiver<u32>> {
    let (count, counted) = watch::channel(0);
    for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
        let mut signals = signal(kind)?;
        let count = count.clone();
        #[expect(clippy::disallowed_methods, reason = "lives as long as the process")]
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                count.send_modify(|count| *count += 1);
            }
        });
    }
    Ok(counted)
}
