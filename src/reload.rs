//! SIGHUP: reads certificates, keys and the log level again from their files while the router runs.
//!
//! Each part succeeds or fails by itself. A part that fails keeps its previous value and logs one line at level error;
//! one line at level info names everything that has changed. The rest of the configuration is checked as well, so that
//! a mistake in it shows now and not at the next start, but it is not applied: one warning names the settings that wait
//! for a restart.

use std::sync::Arc;

use parking_lot::Mutex;
use smg_mesh as mesh;
use smg_runtime::telemetry::Log;
use smg_runtime::tls::{self, Live, TlsErrors};
use smg_types::spec::WorkerSpec;
use tracing::{Level, enabled, error, info, warn};

use crate::config::{self, Config, ConfigErrors, Loaded, Process, Reread, Settings};
use crate::http::Surface;

/// The parts of the running router that SIGHUP may change, and where they came from.
#[derive(Debug)]
pub struct Reload {
    pub(crate) log: Log,
    pub(crate) surface: Arc<Surface>,
    pub(crate) listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
    pub(crate) worker_tls: Arc<Live<tls::ClientConfig>>,
    /// The settings that were read at the start.
    pub(crate) settings: Arc<Settings>,
    pub(crate) taken: Mutex<Taken>,
}

/// The values that were applied last.
#[derive(Debug)]
pub(crate) struct Taken {
    workers: Vec<WorkerSpec>,
    mesh_keys: Option<mesh::Ring>,
}

impl Taken {
    pub(crate) fn of(config: &Config) -> Self {
        Self { workers: config.workers.clone(), mesh_keys: mesh_keys(config).cloned() }
    }
}

fn mesh_keys(config: &Config) -> Option<&mesh::Ring> {
    Some(&config.mesh.network.as_ref()?.security.keys)
}

/// The result of reading the files.
struct Found {
    listener: Option<Result<bool, TlsErrors>>,
    workers: Result<bool, TlsErrors>,
    mesh: Option<Result<bool, TlsErrors>>,
    configuration: Result<Reread, ConfigErrors>,
}

impl Reload {
    pub(crate) fn new(
        loaded: &Loaded,
        log: Log,
        surface: Arc<Surface>,
        listener_tls: Option<Arc<Live<tls::ServerConfig>>>,
        worker_tls: Arc<Live<tls::ClientConfig>>,
    ) -> Self {
        let settings = Arc::clone(loaded.settings());
        let taken = Mutex::new(Taken::of(&loaded.config));
        Self { log, surface, listener_tls, worker_tls, settings, taken }
    }

    /// Reads all files again and applies what is valid.
    pub async fn run(&self) {
        let Some(found) = self.read().await else { return };
        let mut changed = Vec::new();
        let mut certificates =
            |part: &'static str, read: Option<Result<bool, TlsErrors>>| match read {
                Some(Ok(true)) => changed.push(part.to_owned()),
                Some(Ok(false)) | None => {}
                Some(Err(error)) => kept(part, &error),
            };
        certificates("listener TLS", found.listener);
        certificates("worker TLS", Some(found.workers));
        certificates("mesh TLS", found.mesh);
        let mut filter = None;
        match found.configuration {
            Err(errors) => kept("configuration: keys and log level", &errors),
            Ok(reread) => {
                self.take_keys(&reread, &mut changed).await;
                filter =
                    Some(reread.config.telemetry.filter).filter(|new| *new != self.log.filter());
                if !reread.needs_restart.is_empty() {
                    let settings = reread.needs_restart.join(", ");
                    warn!(
                        settings,
                        "SIGHUP: these settings have changed and take effect after a restart"
                    );
                }
            }
        }
        changed.extend(filter.iter().map(|filter| format!("log level ({filter})")));
        self.report(&changed.join(", "), filter.as_deref());
    }

    /// Reads the files on a thread that may wait for a disk; `None` if that failed.
    async fn read(&self) -> Option<Found> {
        let (listener, workers) = (self.listener_tls.clone(), Arc::clone(&self.worker_tls));
        let (mesh, settings) = (self.surface.mesh.clone(), Arc::clone(&self.settings));
        let now = self.surface.clock.now();
        let reading = move || Found {
            listener: listener.map(|tls| tls.reload(now)),
            workers: workers.reload(now),
            mesh: mesh.reload_tls(now),
            configuration: config::reread(&settings, &Process::current()),
        };
        let found = tokio::task::spawn_blocking(reading).await;
        found.map_err(|error| error!(%error, "SIGHUP: the files could not be read")).ok()
    }

    /// Applies the keys of clients, administrators, workers and routers.
    async fn take_keys(&self, reread: &Reread, changed: &mut Vec<String>) {
        match self.surface.keys.replace(&reread.config.http) {
            Ok(names) => changed.extend(names.into_iter().map(str::to_owned)),
            Err(error) => kept("keys of clients and administrators", &error),
        }
        let known = std::mem::take(&mut self.taken.lock().workers);
        let rekeyed = config::rekeyed(&known, &reread.config.workers);
        let mut workers = known.clone();
        for worker in rekeyed {
            match self.rekey(worker).await {
                Ok(()) => {
                    changed.push(format!("key of worker {}", worker.url));
                    workers
                        .iter_mut()
                        .filter(|known| known.id() == worker.id())
                        .for_each(|known| known.api_key.clone_from(&worker.api_key));
                }
                Err(error) => kept(&format!("key of worker {}", worker.url), &error),
            }
        }
        self.taken.lock().workers = workers;
        self.take_mesh_keys(reread, changed);
    }

    /// Gives a registered worker its new key, and leaves its other fields as administrators have set them.
    async fn rekey(&self, worker: &WorkerSpec) -> Result<(), crate::bridge::WriteError> {
        let registered = self.surface.fleet.load().worker(worker.id()).map(|w| w.spec.clone());
        let Some(registered) = registered else { return Ok(()) };
        let rekeyed =
            WorkerSpec { api_key: worker.api_key.clone(), ..WorkerSpec::clone(&registered) };
        // The change applies here at once, and is published to the other routers.
        let _written = self.surface.admin.change(rekeyed).await?;
        Ok(())
    }

    /// Applies the routers' shared keys if their files have changed. Otherwise the keys that `/ha/keys` has installed
    /// stay.
    fn take_mesh_keys(&self, reread: &Reread, changed: &mut Vec<String>) {
        let part = "keys of the mesh";
        if let Err(errors) = &reread.mesh_keys {
            return kept(part, errors);
        }
        let Some(keys) = mesh_keys(&reread.config) else { return };
        let mut taken = self.taken.lock();
        if taken.mesh_keys.as_ref() == Some(keys) {
            return;
        }
        if self.surface.mesh.replace_keys(keys.clone()) {
            taken.mesh_keys = Some(keys.clone());
            changed.push(part.to_owned());
        } else {
            kept(part, &"no key is configured, but the mesh was started with one");
        }
    }

    /// Applies the filter, and logs what has changed: before that if the old filter shows the line, otherwise after it.
    fn report(&self, changed: &str, filter: Option<&str>) {
        let changed = if changed.is_empty() { "nothing" } else { changed };
        let log = || info!(changed, "SIGHUP: files were read again");
        let is_shown_before = enabled!(Level::INFO);
        if is_shown_before {
            log();
        }
        if let Some(Err(error)) = filter.map(|filter| self.log.set_filter(filter)) {
            kept("log level", &error);
        }
        if !is_shown_before {
            log();
        }
    }
}

fn kept(part: &str, error: &dyn std::fmt::Display) {
    // One line of log per error, so the hints and further errors of the configuration are joined.
    let error = error.to_string().replace("\n  hint: ", "; ").replace("\nerror: ", "; ");
    let error = error.trim_start_matches("error: ");
    error!(part, error, "SIGHUP: could not be reloaded; the previous value stays in use");
}
