//! The configuration that a running router reads again, on SIGHUP or `POST /ha/reload`, and the settings of it that need a
//! restart.
//!
//! Arguments and variables of a process do not change, so a difference comes from the configuration file or from a file
//! that it names.

use std::collections::BTreeSet;
use std::fmt;

use crate::cli::Args;
use crate::config::layers::Settings;
use crate::config::mistakes::{ConfigErrors, key};
use crate::config::process::Process;
use crate::config::{Config, Loaded, load, usage};

/// The settings that a running router always applies. [`is_live`] has those for which that depends on others.
const LIVE: &[&str] = &[
    "log_level",
    "api_key",
    "tenant_api_key",
    "admin_api_key",
    "worker_api_key",
    "worker_urls",
    "worker_tls_ca",
    "worker_tls_cert",
    "worker_tls_key",
    "model_alias",
    "policy",
    "cache_aware_by",
    "cache_threshold",
    "balance_abs_threshold",
    "balance_rel_threshold",
    "rate_limit_requests_per_minute",
    "rate_limit_tokens_per_minute",
];

/// The configuration that a start would load now.
#[derive(Debug)]
pub struct Reread {
    /// The configuration.
    pub config: Config,
    /// Oddities that are no mistakes.
    pub warnings: Vec<String>,
    /// The changed settings that take effect only after a restart.
    pub needs_restart: Vec<Waiting>,
}

/// A setting that takes effect only after a restart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Waiting {
    /// The key of the setting in the configuration file.
    pub setting: String,
    /// The value that is in use, secrets masked.
    pub running: String,
    /// The value that a restart would use, secrets masked.
    pub configured: String,
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} -> {}", self.setting, self.running, self.configured)
    }
}

/// Loads the configuration again, for a router that was started with `started`.
///
/// # Errors
/// All mistakes in the configuration and in the files that it names. The caller must then apply nothing of it.
pub fn reread(started: &Settings, process: &Process<'_>) -> Result<Reread, ConfigErrors> {
    let (asked, mistakes) = usage::read(&process.arguments);
    let Some(usage::Asked::Router(matches)) = asked else {
        unreachable!("the same arguments have started this router")
    };
    let Loaded { config, warnings, settings } = load(&matches, process, mistakes)?;
    let needs_restart = needs_restart(started, &settings);
    Ok(Reread { config, warnings, needs_restart })
}

fn needs_restart(started: &Settings, now: &Settings) -> Vec<Waiting> {
    let texts = |settings: &Settings, id: &str| settings.given.get(id).map(|g| g.texts.clone());
    let shown = |settings: &Settings, id: &str| match settings.given.get(id) {
        Some(given) if !given.texts.is_empty() => given.shown().collect::<Vec<_>>().join(","),
        Some(_) | None => "not set".to_owned(),
    };
    let ids: BTreeSet<&String> = started.given.keys().chain(now.given.keys()).collect();
    ids.into_iter()
        .filter(|id| !is_live(id, &started.args, &now.args))
        .filter(|id| texts(started, id).unwrap_or_default() != texts(now, id).unwrap_or_default())
        .map(|id| Waiting {
            setting: key(id),
            running: shown(started, id),
            configured: shown(now, id),
        })
        .collect()
}

/// Whether a running router that was started with `started` applies a change of the setting `id`.
fn is_live(id: &str, started: &Args, now: &Args) -> bool {
    let both = |is_set: fn(&Args) -> bool| is_set(started) && is_set(now);
    match id {
        // A listener is made with TLS or without.
        "tls_cert_path" | "tls_key_path" | "client_ca_path" => {
            both(|args| args.tls.tls_cert_path.is_some())
        }
        "mesh_peer_urls" => both(|args| args.mesh.enable_mesh),
        "mesh_tls_cert" | "mesh_tls_key" | "mesh_tls_ca" => {
            both(|args| args.mesh.enable_mesh && args.mesh.mesh_tls_cert.is_some())
        }
        // Whether messages are encrypted is decided at the start.
        "mesh_encryption_key" | "mesh_encryption_key_file" => both(|args| {
            let mesh = &args.mesh;
            let has_key =
                mesh.mesh_encryption_key_file.is_some() || !mesh.mesh_encryption_key.is_empty();
            mesh.enable_mesh && has_key
        }),
        _ => LIVE.contains(&id),
    }
}
