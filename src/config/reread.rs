//! The part of the configuration that a running router applies again, on SIGHUP: keys and the log level.
//!
//! Arguments and variables of a process do not change, so a difference comes from the configuration file or from a file
//! of keys. Certificates are not read here: the modules that use them read them again and report their mistakes.

use std::collections::BTreeSet;

use smg_types::spec::WorkerSpec;

use crate::config::layers::Settings;
use crate::config::mistakes::{ConfigErrors, key};
use crate::config::process::Process;
use crate::config::{Config, Loaded, usage};

/// The settings that a running router applies.
const APPLIED: &[&str] =
    &["log_level", "api_key", "tenant_api_key", "admin_api_key", "worker_api_key"];

/// The settings of the keys that routers share. Their mistakes are reported separately, because their file is another
/// one.
const MESH_KEYS: &[&str] = &["mesh_encryption_key", "mesh_encryption_key_file", "mesh_encryption"];

/// The settings that name certificates.
const MESH_TLS: &[&str] = &["mesh_tls_cert", "mesh_tls_key", "mesh_tls_ca"];

/// The configuration that a start would load now.
#[derive(Debug)]
pub struct Reread {
    /// The configuration. Its keys of the mesh are valid only if `mesh_keys` is `Ok`.
    pub config: Config,
    /// The mistakes in the keys that routers share, if there are any.
    pub mesh_keys: Result<(), ConfigErrors>,
    /// The changed keys of the file whose values take effect only after a restart.
    pub needs_restart: Vec<String>,
}

/// Loads the configuration again, for a router that was started with `started`.
///
/// # Errors
/// All mistakes in the configuration. The caller must then apply nothing of it.
pub fn reread(started: &Settings, process: &Process<'_>) -> Result<Reread, ConfigErrors> {
    let (asked, mut mistakes) = usage::read(&process.arguments);
    let Some(usage::Asked::Router(matches)) = asked else {
        unreachable!("the same arguments have started this router")
    };
    let (loaded, _) = super::load_all_but_certificates(&matches, process, &mut mistakes);
    let Loaded { config, settings, .. } = loaded;
    mistakes.retain(|mistake| !mistake.is_only_about(MESH_TLS));
    let (mesh, rest) =
        mistakes.into_iter().partition::<Vec<_>, _>(|mistake| mistake.is_only_about(MESH_KEYS));
    ConfigErrors::unless_empty(rest)?;
    Ok(Reread {
        config,
        mesh_keys: ConfigErrors::unless_empty(mesh),
        needs_restart: needs_restart(started, &settings),
    })
}

fn needs_restart(started: &Settings, now: &Settings) -> Vec<String> {
    let texts = |settings: &Settings, id: &str| settings.given.get(id).map(|g| g.texts.clone());
    let taken = |id: &str| APPLIED.contains(&id) || id == MESH_KEYS[0] || id == MESH_KEYS[1];
    let ids: BTreeSet<&String> = started.given.keys().chain(now.given.keys()).collect();
    let mut differ: Vec<String> = ids
        .into_iter()
        .filter(|id| !taken(id) && texts(started, id) != texts(now, id))
        .map(|id| key(id))
        .collect();
    // A worker may get its key from another place, and thus another key, without a restart.
    let without_keys = |settings: &Settings| {
        let mut tables = settings.workers.clone();
        for table in &mut tables {
            table.retain(|name, _| !name.starts_with("api"));
        }
        tables
    };
    if without_keys(started) != without_keys(now) {
        differ.push("workers".to_owned());
    }
    if started.rate_limits != now.rate_limits {
        differ.push("rate_limits".to_owned());
    }
    differ
}

/// A worker's specification without its key.
fn described(worker: &WorkerSpec) -> WorkerSpec {
    WorkerSpec { api_key: None, ..worker.clone() }
}

/// The workers of `now` whose specification differs from that in `before` only in the key.
pub fn rekeyed<'a>(before: &[WorkerSpec], now: &'a [WorkerSpec]) -> Vec<&'a WorkerSpec> {
    let is_rekeyed = |worker: &&WorkerSpec| {
        before.iter().any(|old| {
            old.id() == worker.id()
                && old.api_key != worker.api_key
                && described(old) == described(worker)
        })
    };
    now.iter().filter(is_rekeyed).collect()
}
