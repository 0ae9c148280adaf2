//! Reads the configuration again while the router runs, on SIGHUP and on `POST /ha/reload`.
//!
//! First all files are read and checked. If there is any mistake, nothing changes, and one line at level error lists all
//! mistakes. Otherwise everything that can change in a running router is applied at once, and one line at level info lists
//! the changes; one warning names the settings that wait for a restart. No connection is closed.

use std::sync::Arc;

use prometheus::{Gauge, IntCounterVec, IntGauge, Opts, Registry};
use smg_mesh as mesh;
use smg_runtime::telemetry::Log;
use smg_runtime::tls::{self, Live, MeshFiles, Prepared};
use tokio::sync::mpsc;
use tracing::{Level, enabled, error, info, warn};

use crate::bridge::Declared;
use crate::config::{self, Config, Loaded, Mistake, Process, Reread, Settings, Waiting};
use crate::http::{NeedsRestart, NotReloaded, ReloadRequest, Reloaded, Surface};

/// The most changes that one line of the log names.
const MOST_NAMED: usize = 20;

/// What caused a reload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// The signal SIGHUP.
    Signal,
    /// `POST /ha/reload`.
    Request,
}

impl Cause {
    const fn name(self) -> &'static str {
        match self {
            Self::Signal => "SIGHUP",
            Self::Request => "POST /ha/reload",
        }
    }
}

/// The parts of the running router that a reload may change, and where they came from.
#[derive(Debug)]
pub struct Reload {
    log: Log,
    surface: Arc<Surface>,
    listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
    worker_tls: Arc<Live<tls::ClientConfig>>,
    /// The settings that were read at the start.
    settings: Arc<Settings>,
    taken: Taken,
    metrics: Metrics,
}

/// The values that were applied last.
#[derive(Debug)]
struct Taken {
    declared: Declared,
    mesh_keys: Option<mesh::Ring>,
    warnings: Vec<String>,
}

/// How the last reloads ended.
#[derive(Debug)]
struct Metrics {
    reloads: IntCounterVec,
    last_succeeded: IntGauge,
    last_success: Gauge,
}

/// How a reload ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ending {
    Applied,
    Unchanged,
    Invalid,
    Incomplete,
}

impl Ending {
    const ALL: [Self; 4] = [Self::Applied, Self::Unchanged, Self::Invalid, Self::Incomplete];

    const fn name(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Unchanged => "unchanged",
            Self::Invalid => "invalid",
            Self::Incomplete => "incomplete",
        }
    }

    const fn is_success(self) -> bool {
        match self {
            Self::Applied | Self::Unchanged => true,
            Self::Invalid | Self::Incomplete => false,
        }
    }
}

impl Metrics {
    fn register(registry: &Registry) -> prometheus::Result<Self> {
        let help = "Reloads of the configuration by SIGHUP or POST /ha/reload, by their result: applied, unchanged, invalid \
                    (the configuration has mistakes, nothing changed), incomplete (a part could not be applied).";
        let reloads = IntCounterVec::new(Opts::new("smg_config_reload_total", help), &["result"])?;
        for ending in Ending::ALL {
            reloads.with_label_values(&[ending.name()]);
        }
        let last_succeeded = IntGauge::new(
            "smg_config_last_reload_successful",
            "Whether the last reload of the configuration, or the start, was successful: 1 or 0.",
        )?;
        last_succeeded.set(1);
        let last_success = Gauge::new(
            "smg_config_last_reload_success_timestamp_seconds",
            "When the configuration was last read successfully, by a reload or the start, in seconds since 1970.",
        )?;
        registry.register(Box::new(reloads.clone()))?;
        registry.register(Box::new(last_succeeded.clone()))?;
        registry.register(Box::new(last_success.clone()))?;
        Ok(Self { reloads, last_succeeded, last_success })
    }
}

/// All that was read and checked, and that can be applied.
struct Ready {
    config: Config,
    warnings: Vec<String>,
    needs_restart: Vec<Waiting>,
    listener: Option<Prepared<tls::ServerConfig>>,
    workers: Prepared<tls::ClientConfig>,
    mesh: Option<Prepared<MeshFiles>>,
}

impl Reload {
    pub(crate) fn new(
        loaded: &Loaded,
        log: Log,
        surface: Arc<Surface>,
        listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
        worker_tls: Arc<Live<tls::ClientConfig>>,
    ) -> prometheus::Result<Self> {
        let metrics = Metrics::register(&surface.registry)?;
        metrics.last_success.set(surface.clock.now().wall.as_secs_f64());
        let taken = Taken {
            declared: declared(&loaded.config),
            mesh_keys: mesh_keys(&loaded.config).cloned(),
            warnings: loaded.warnings.clone(),
        };
        let settings = Arc::clone(loaded.settings());
        Ok(Self { log, surface, listener_tls, worker_tls, settings, taken, metrics })
    }

    /// The requests of `POST /ha/reload`; `None` if they are received already.
    pub(crate) fn requests(&self) -> Option<mpsc::Receiver<ReloadRequest>> {
        self.surface.reloads.requests()
    }

    /// Reads all files again and applies them, if none has a mistake. The error is the list of all mistakes.
    ///
    /// # Errors
    /// If there is a mistake. Then nothing has changed.
    pub async fn run(&mut self, cause: Cause) -> Result<Reloaded, Vec<String>> {
        let cause = cause.name();
        let reloaded = match self.read().await {
            Ok(ready) => Ok(self.apply(ready, cause).await),
            Err(mistakes) => {
                let error = mistakes.join("; ");
                error!(
                    cause,
                    mistakes = mistakes.len(),
                    error,
                    "the configuration has mistakes: nothing of it was applied, and everything stays as it was"
                );
                Err(mistakes)
            }
        };
        let ending = match &reloaded {
            Err(_) => Ending::Invalid,
            Ok(reloaded) if !reloaded.failed.is_empty() => Ending::Incomplete,
            Ok(reloaded) if reloaded.changed.is_empty() => Ending::Unchanged,
            Ok(_) => Ending::Applied,
        };
        self.metrics.reloads.with_label_values(&[ending.name()]).inc();
        self.metrics.last_succeeded.set(ending.is_success().into());
        if ending.is_success() {
            self.metrics.last_success.set(self.surface.clock.now().wall.as_secs_f64());
        }
        reloaded
    }

    /// Reads and checks the files, on a thread that may wait for a disk.
    async fn read(&self) -> Result<Ready, Vec<String>> {
        let (surface, settings) = (Arc::clone(&self.surface), Arc::clone(&self.settings));
        let has_listener_tls = self.listener_tls.is_some();
        let reading = move || prepare(&surface, &settings, has_listener_tls);
        match tokio::task::spawn_blocking(reading).await {
            Ok(prepared) => prepared,
            Err(error) => Err(vec![format!("the files could not be read: {error}")]),
        }
    }

    /// Applies what was read and checked.
    async fn apply(&mut self, ready: Ready, cause: &'static str) -> Reloaded {
        let Ready { config, warnings, needs_restart, listener, workers, mesh } = ready;
        for warning in warnings.iter().filter(|warning| !self.taken.warnings.contains(warning)) {
            warn!(cause, "{warning}");
        }
        self.taken.warnings = warnings;
        if let Some(log) = &self.surface.access_log {
            log.reopen();
        }
        let mut reloaded = Reloaded::default();
        let live = self.listener_tls.as_ref().zip(listener);
        let changes = [
            ("listener TLS", live.is_some_and(|(live, prepared)| live.apply(prepared))),
            ("worker TLS", self.worker_tls.apply(workers)),
            ("mesh TLS", mesh.is_some_and(|prepared| self.surface.mesh.replace_tls(prepared))),
        ];
        reloaded.changed.extend(
            changes.iter().filter(|(_, differs)| *differs).map(|(part, _)| (*part).to_owned()),
        );
        match self.surface.keys.replace(&config.http) {
            Ok(names) => reloaded.changed.extend(names.into_iter().map(str::to_owned)),
            Err(error) => reloaded.fail("keys of clients and administrators", &error),
        }
        self.apply_mesh(&config, &mut reloaded);
        if self.surface.fleet.set_aliases(config.fleet.aliases.clone()) {
            reloaded.changed.push("model aliases".to_owned());
        }
        let policy = config.policy.kind;
        let snapshot = self.surface.fleet.snapshot();
        if self.surface.policies.set_default(&config.policy, &snapshot) {
            reloaded.changed.push(format!("default policy ({policy})"));
        }
        self.apply_declared(&config, &mut reloaded).await;
        reloaded.needs_restart = needs_restart.iter().map(needs_restart_document).collect();
        let filter = config.telemetry.filter;
        let filter = (filter != self.log.filter()).then_some(filter);
        reloaded.changed.extend(filter.iter().map(|filter| format!("log level ({filter})")));
        self.report(cause, &mut reloaded, &needs_restart, filter.as_deref());
        reloaded
    }

    /// Applies the addresses of other routers, and the shared keys if they have changed in the file. Otherwise the keys that
    /// `/ha/keys` has installed stay.
    fn apply_mesh(&mut self, config: &Config, reloaded: &mut Reloaded) {
        let Some(network) = &config.mesh.network else { return };
        if self.surface.mesh.replace_join_addresses(network.join.clone()) {
            reloaded.changed.push("addresses of other routers".to_owned());
        }
        let keys = &network.security.keys;
        // Whether the mesh has keys at all is changed by a restart.
        if keys.is_empty()
            || self.taken.mesh_keys.as_ref().is_none_or(|taken| taken.is_empty() || taken == keys)
        {
            return;
        }
        let part = "keys of the mesh";
        if self.surface.mesh.replace_keys(keys.clone()) {
            self.taken.mesh_keys = Some(keys.clone());
            reloaded.changed.push(part.to_owned());
        } else {
            reloaded.fail(part, &"no key is configured, and messages must be encrypted");
        }
    }

    /// Writes the workers and the rules that have changed in the file into the shared state.
    async fn apply_declared(&mut self, config: &Config, reloaded: &mut Reloaded) {
        let wanted = declared(config);
        let before = self.taken.declared.clone();
        match self.surface.admin.redeclare(before, wanted.clone()).await {
            Ok(redeclared) => {
                self.taken.declared = wanted;
                reloaded.changed.extend(redeclared.changed);
                let kept = redeclared.kept.into_iter();
                reloaded.kept.extend(kept.map(|(part, reason)| NotReloaded { part, reason }));
            }
            Err(error) => reloaded.fail("workers and rules of limits", &error),
        }
    }

    /// Applies the filter of the log, and logs what has changed: before that if the old filter shows the line, otherwise
    /// after it.
    fn report(
        &self,
        cause: &'static str,
        reloaded: &mut Reloaded,
        needs_restart: &[Waiting],
        filter: Option<&str>,
    ) {
        if !needs_restart.is_empty() {
            let settings = shortened(needs_restart.iter().map(ToString::to_string));
            warn!(
                cause,
                settings,
                "these settings have changed in the configuration and take effect after a restart"
            );
        }
        for NotReloaded { part, reason } in &reloaded.kept {
            warn!(
                cause,
                part, reason, "the configuration of this has changed, and it stays as it was"
            );
        }
        let changed = shortened(reloaded.changed.iter().cloned());
        let log = || info!(cause, changed, "the configuration was read again");
        let is_shown_before = enabled!(Level::INFO);
        if is_shown_before {
            log();
        }
        if let Some(Err(error)) = filter.map(|filter| self.log.set_filter(filter)) {
            reloaded.fail("log level", &error);
        }
        if !is_shown_before {
            log();
        }
        for NotReloaded { part, reason } in &reloaded.failed {
            error!(cause, part, reason, "could not be reloaded; the next reload tries again");
        }
    }
}

trait Fail {
    fn fail(&mut self, part: &str, reason: &dyn std::fmt::Display);
}

impl Fail for Reloaded {
    fn fail(&mut self, part: &str, reason: &dyn std::fmt::Display) {
        self.failed.push(NotReloaded { part: part.to_owned(), reason: reason.to_string() });
    }
}

/// Reads the configuration and the files that it names, and checks what only the running router knows.
fn prepare(
    surface: &Surface,
    settings: &Settings,
    has_listener_tls: bool,
) -> Result<Ready, Vec<String>> {
    let now = surface.clock.now();
    let reread = config::reread(settings, &Process::current());
    let Reread { config, warnings, needs_restart } =
        reread.map_err(|errors| errors.mistakes().iter().map(Mistake::line).collect::<Vec<_>>())?;
    let mut mistakes: Vec<String> = Vec::new();
    // They were checked a moment ago, and may have changed since.
    let mut wrong_files = |errors: tls::TlsErrors| {
        mistakes.extend(errors.into_iter().map(|error| error.to_string()));
    };
    let listener = config.http.tls.clone().filter(|_| has_listener_tls);
    let listener = listener.map(|files| Live::prepare(files, now)).transpose();
    let listener = listener.map_err(&mut wrong_files).ok().flatten();
    let workers = Live::prepare(config.upstream.tls.clone(), now).map_err(&mut wrong_files).ok();
    let network = config.mesh.network.as_ref().filter(|_| surface.mesh.is_networked());
    let mesh = network.and_then(|network| network.security.tls.clone());
    let mesh = mesh.map(|files| Live::prepare(files, now)).transpose();
    let mesh = mesh.map_err(&mut wrong_files).ok().flatten();
    if let Err(error) = surface.keys.check(&config.http) {
        mistakes.push(error.to_string());
    }
    let loops =
        config.workers.iter().filter_map(|spec| surface.own_addresses.check(&spec.url).err());
    mistakes.extend(loops.map(|error| error.to_string()));
    match workers {
        Some(workers) if mistakes.is_empty() => {
            Ok(Ready { config, warnings, needs_restart, listener, workers, mesh })
        }
        Some(_) | None => Err(mistakes),
    }
}

fn declared(config: &Config) -> Declared {
    Declared { workers: config.workers.clone(), rules: config.limits.rules.clone() }
}

fn mesh_keys(config: &Config) -> Option<&mesh::Ring> {
    Some(&config.mesh.network.as_ref()?.security.keys)
}

fn needs_restart_document(waiting: &Waiting) -> NeedsRestart {
    let Waiting { setting, running, configured } = waiting.clone();
    NeedsRestart { setting, running, configured }
}

/// A list for a line of the log: the first elements, and how many more there are.
fn shortened(elements: impl ExactSizeIterator<Item = String>) -> String {
    let count = elements.len();
    let mut named: Vec<String> = elements.take(MOST_NAMED).collect();
    match count {
        0 => return "nothing".to_owned(),
        count if count > MOST_NAMED => named.push(format!("and {} more", count - MOST_NAMED)),
        _ => {}
    }
    named.join(", ")
}
