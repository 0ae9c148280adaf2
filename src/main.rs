//! The binary: parses the arguments, loads the configuration, builds and runs the app, and returns the exit status.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::process::ExitCode;

use smg::app::{self, App, Ending};
use smg::config::{self, Loaded, Process, Start};
use smg::console;
use smg::doctor::{self, Order, Severity};
use smg::signals::Signals;
use smg_mock as mock;
use smg_runtime::descriptors;
use smg_runtime::telemetry::{self, Log};
use tracing::{error, warn};

#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit status if the router failed, or aborted requests in flight.
const FAILED: u8 = 1;

fn main() -> ExitCode {
    // A client costs two descriptors, and the usual soft limit is 1024.
    descriptors::raise_limit();
    // Thousands of connections have a few small buffers each, and with huge pages all of each buffer would be resident.
    // An error means that the kernel has no huge pages.
    let _unsupported = rustix::thread::disable_transparent_huge_pages(true).is_err();
    // Not locked: inside a `match` the locks would be held as long as the router runs, and block all other threads that
    // write.
    let start = config::start(&Process::current(), &mut io::stdout(), &mut io::stderr());
    match start {
        Start::Router(loaded) => router(&loaded),
        Start::MockWorkers(configs) => exit_status(block_on(mock::server::run(configs))),
        Start::Demo(args) => exit_status(block_on(app::demo(args))),
        Start::Console(command) => exit_status(block_on(console::run(command, &mut io::stdout()))),
        Start::Probe(loaded) => examination(Order::Probe(&loaded)),
        Start::Doctor(diagnosis) => examination(Order::Examine {
            loaded: diagnosis.examined(),
            config: &diagnosis.loaded.config,
            url: diagnosis.url.as_ref(),
            json: diagnosis.json,
        }),
        Start::Done(status) => ExitCode::from(status),
    }
}

/// The exit status of `smg doctor` and `smg check-config --probe`: 1 if they find more than notes.
fn examination(order: Order<'_>) -> ExitCode {
    let mut worst = None;
    let status = exit_status(block_on(async {
        worst = doctor::run(order, &mut io::stdout(), &mut io::stderr()).await?;
        Ok::<(), console::ConsoleError>(())
    }));
    if worst >= Some(Severity::Warning) { ExitCode::from(FAILED) } else { status }
}

/// The exit status of a command that has no log. A failure is written to standard error.
fn exit_status<E: Display>(ended: anyhow::Result<Result<(), E>>) -> ExitCode {
    let failure = match ended {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => failure.to_string(),
        Err(failure) => format!("{failure:#}"),
    };
    // Standard error may be closed; the exit status shows the failure as well.
    let _unwritten = writeln!(io::stderr(), "error: {failure}").is_err();
    ExitCode::from(FAILED)
}

fn block_on<F: Future>(future: F) -> anyhow::Result<F::Output> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future))
}

fn router(loaded: &Loaded) -> ExitCode {
    // When this guard is dropped, it waits until the last lines are written, at most a second.
    let (log, _last_lines) = match telemetry::init(&loaded.config.telemetry) {
        Ok(set_up) => set_up,
        Err(failure) => return exit_status::<telemetry::TelemetryError>(Ok(Err(failure))),
    };
    for warning in &loaded.warnings {
        warn!("{warning}");
    }
    // The limit belongs to the machine that runs the router, so the configuration check does not include it.
    let max_connections = loaded.config.http.max_connections;
    if let Some(shortfall) = descriptors::shortfall(descriptors::limit(), max_connections) {
        warn!("{shortfall}");
    }
    match block_on(run(loaded, log)).flatten() {
        Ok(Ending::Clean) => ExitCode::SUCCESS,
        Ok(Ending::Cut) => ExitCode::from(FAILED),
        Err(failure) => {
            error!(error = format!("{failure:#}"), "the router could not be started");
            ExitCode::from(FAILED)
        }
    }
}

async fn run(loaded: &Loaded, log: Log) -> anyhow::Result<Ending> {
    let signals = Signals::listen()?;
    let app = App::build(loaded.config.clone())?;
    let reload = app.reload(loaded, log)?;
    let running = app.start()?;
    Ok(running.run(signals.handle(reload)).await)
}
