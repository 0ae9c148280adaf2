//! `smg doctor` and `smg check-config --probe`: looks for what is configured or running in a way that will fail one day.
//!
//! `settings` examines a configuration, `probe` reaches the workers and routers that it names, and `cluster` examines a
//! running cluster by the answers of its routers. Each of them returns findings; only this file prints.

mod cluster;
mod finding;
mod probe;
mod settings;

use std::io::Write;

use smg_runtime::descriptors;
use smg_types::spec::WorkerUrl;

pub use finding::{Finding, Severity};

use crate::config::{Config, Loaded};
use crate::console::ConsoleError;

/// What to examine.
#[derive(Debug)]
pub enum Order<'a> {
    /// Print the settings of a configuration, then reach what it names (`smg check-config --probe`).
    Probe(&'a Loaded),
    /// Examine a configuration and a running cluster (`smg doctor`).
    Examine {
        /// The configuration; `None`: none was given.
        loaded: Option<&'a Loaded>,
        /// The configuration or the defaults, for the keys.
        config: &'a Config,
        /// A router of the cluster.
        url: Option<&'a WorkerUrl>,
        /// Whether to print JSON.
        json: bool,
    },
}

/// Examines, and prints the findings to `out`. Returns the most severe one's severity; `None` without a finding.
///
/// # Errors
/// If the TLS configuration can't be used or the findings can't be printed. A router that can't be asked is a finding.
pub async fn run(
    order: Order<'_>,
    out: &mut (dyn Write + Send),
    err: &mut (dyn Write + Send),
) -> Result<Option<Severity>, ConsoleError> {
    let (findings, text) = match order {
        Order::Probe(loaded) => {
            out.write_all(loaded.to_toml().as_bytes())?;
            for warning in &loaded.warnings {
                writeln!(err, "warning: {warning}")?;
            }
            let findings = probe::reach(&loaded.config).await?;
            let text = finding::as_text(&findings);
            err.write_all(text.as_bytes())?;
            (findings, String::new())
        }
        Order::Examine { loaded, config, url, json } => {
            let mut findings = Vec::new();
            if let Some(loaded) = loaded {
                findings.extend(settings::examine(&loaded.config, descriptors::limit()));
            }
            if let Some(url) = url {
                findings.extend(cluster::examine(url, config).await?);
            }
            findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
            let text = match json {
                true => finding::as_json(&findings),
                false => finding::as_text(&findings),
            };
            (findings, text)
        }
    };
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(findings.iter().map(|finding| finding.severity).max())
}
