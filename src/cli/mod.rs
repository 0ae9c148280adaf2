//! The command line: its flags, their values, and their meaning.
//!
//! There is one flattened clap group per topic. The groups are the only place that knows a flag's name, bounds, default
//! and meaning. The name of its variable and of its key in the file follow from the flag's name by rule, so `config`
//! finds all three by walking [`command`]. Nothing here reads the process's environment or a file.

use std::path::PathBuf;

use clap::{Arg, CommandFactory, Parser, Subcommand};
use smg_mock as mock;
use smg_types::spec::WorkerUrl;

use crate::console;

mod failure;
mod listen;
mod mesh;
mod observe;
mod routing;
pub mod values;

pub use failure::{BreakerArgs, HealthArgs, RetryArgs, TimeoutArgs};
pub use listen::{AccessArgs, ListenArgs, ProbeArgs, ShutdownArgs, TlsArgs};
pub use mesh::{MeshArgs, MeshEncryption, MeshProfile, MinorityWrites, PersistFsync};
pub use observe::{AccessLogFormat, LogLevel, ObserveArgs};
pub use routing::{AdmissionArgs, Measure, RoutingArgs, WorkerArgs};

/// Routes OpenAI-compatible requests to inference workers.
///
/// Every flag can also be given as a variable (`SMG_` and the flag's name in capitals) or as a key of the same name in
/// a TOML file (`--config`). A flag overrides a variable, a variable the file, the file the default. The values of a
/// list are separated by commas or blanks, or the flag is repeated.
#[derive(Debug, Parser)]
#[command(
    name = "smg",
    version,
    max_term_width = 100,
    args_conflicts_with_subcommands = true,
    subcommand_precedence_over_arg = true,
    after_help = "`smg --worker-urls http://a:8000 http://b:8000` is all that a first run needs.",
    after_long_help = "Exit status: 0 after a clean stop, 1 when something failed at run time, 2 when the \
                       configuration is wrong."
)]
pub struct Cli {
    /// The subcommand; without one, the router runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The router's settings.
    #[command(flatten)]
    pub args: Args,
}

/// The subcommands of `smg`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the router: the same as `smg` without a subcommand.
    #[command(visible_alias = "start")]
    Launch(Box<Args>),
    /// Check a configuration and print the resolved settings.
    ///
    /// Reads flags, variables and the file as the router would, opens the certificates, and binds no port. Prints every
    /// setting as TOML with its origin; secrets are shown as `***`. Exit status 2 if the configuration is invalid.
    CheckConfig(Box<CheckConfigArgs>),
    /// Look for what is configured or running in a way that will fail one day.
    ///
    /// Takes the same settings as the router, and examines them on this machine: run it where the router runs. With --url it
    /// also asks every router of a running cluster. Exit status 1 if there is a warning or an error, 2 if the configuration
    /// is invalid.
    Doctor(Box<DoctorArgs>),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to complete in.
        shell: clap_complete::Shell,
    },
    /// Print the manual page.
    Man,
    /// Run an OpenAI-compatible worker that needs no GPU: for experiments and tests.
    MockWorker(Box<mock::Args>),
    /// Show the cluster that a router belongs to.
    #[command(subcommand)]
    Mesh(console::Command),
    /// Explain limits of requests and tokens.
    #[command(subcommand)]
    Limits(LimitsCommand),
    /// Run a demonstration: routers of one cluster, mock workers, users who chat, and a live screen.
    Demo(mock::demo::Args),
}

/// The arguments of `smg check-config`.
#[derive(Debug, clap::Args)]
pub struct CheckConfigArgs {
    /// The settings to check.
    #[command(flatten)]
    pub args: Args,
    /// Reach each worker and each router that the configuration names; exit status 1 if one can't be reached.
    #[arg(long, help_heading = "Configuration")]
    pub probe: bool,
}

/// The arguments of `smg doctor`.
#[derive(Debug, clap::Args)]
pub struct DoctorArgs {
    /// The settings to examine.
    #[command(flatten)]
    pub args: Args,
    /// Examine the running cluster of this router, too. The first admin key of the settings is shown to it.
    #[arg(long, value_name = "URL", help_heading = "Configuration")]
    pub url: Option<WorkerUrl>,
    /// Print the findings as JSON.
    #[arg(long, help_heading = "Configuration")]
    pub json: bool,
}

/// The subcommands of `smg limits`.
#[derive(Debug, Subcommand)]
pub enum LimitsCommand {
    /// Print what a rule promises in a cluster: its bound, each router's share, and what a partition does.
    Explain {
        /// The rule as JSON, as for PUT /ha/rate-limits: '{"requests": 100, "window": "1m"}'.
        rule: String,
        /// Number of routers in the cluster, 1 to 1024.
        #[arg(long, value_name = "COUNT", default_value = "3", value_parser = values::whole::<u32>(1, 1_024))]
        replicas: u32,
    },
}

/// The router's settings, as given on the command line, in variables or in a file.
#[derive(Debug, Clone, PartialEq, clap::Args)]
#[group(skip)]
pub struct Args {
    /// Read settings from this TOML file.
    ///
    /// Its keys are the flags' names, with dashes or underscores; `[[workers]]` tables describe workers in full. An
    /// unknown key is an error. Read at the start and again on SIGHUP: docs/signals.md lists what changes then.
    #[arg(long, value_name = "FILE", help_heading = "Configuration")]
    pub config: Option<PathBuf>,
    /// The workers that are configured.
    #[command(flatten)]
    pub workers: WorkerArgs,
    /// How the router chooses a worker.
    #[command(flatten)]
    pub routing: RoutingArgs,
    /// How many requests are admitted.
    #[command(flatten)]
    pub admission: AdmissionArgs,
    /// Where the router listens for clients.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// TLS on the connections with clients and workers.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Who may use the router.
    #[command(flatten)]
    pub access: AccessArgs,
    /// How long each phase of a request may take.
    #[command(flatten)]
    pub timeouts: TimeoutArgs,
    /// Which requests are retried.
    #[command(flatten)]
    pub retry: RetryArgs,
    /// When failed requests eject a worker.
    #[command(flatten)]
    pub breaker: BreakerArgs,
    /// When failed probes eject a worker.
    #[command(flatten)]
    pub health: HealthArgs,
    /// How the router answers probes.
    #[command(flatten)]
    pub probes: ProbeArgs,
    /// How several routers form a cluster.
    #[command(flatten)]
    pub mesh: MeshArgs,
    /// Logs and metrics.
    #[command(flatten)]
    pub observe: ObserveArgs,
    /// How the router shuts down.
    #[command(flatten)]
    pub shutdown: ShutdownArgs,
}

/// The whole command line, for parsing.
#[must_use]
pub fn command() -> clap::Command {
    /// Reads `-1` behind a flag as the flag's value, so that a number out of bounds is one mistake and not two: a flag
    /// without a value, and an unknown flag.
    fn with_negative_numbers(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| {
                let takes_value = arg.get_action().takes_values();
                arg.allow_negative_numbers(takes_value)
            })
            .mut_subcommands(with_negative_numbers)
    }
    with_negative_numbers(Cli::command())
}

/// The command line with each flag's variable shown: for help, completions, the manual page and the documentation.
///
/// Parsing uses [`command`], which never reads the environment.
#[must_use]
pub fn shown_command() -> clap::Command {
    fn with_variables(command: clap::Command) -> clap::Command {
        command
            .mut_args(|arg| match variable_of(&arg) {
                Some(variable) => arg.env(variable).hide_env_values(true),
                None => arg,
            })
            .mut_subcommands(with_variables)
    }
    with_variables(command())
}

/// The router's settings alone, as a command without subcommands.
#[must_use]
pub fn settings_command() -> clap::Command {
    <Args as clap::Args>::augment_args(clap::Command::new("smg"))
        .no_binary_name(true)
        .disable_help_flag(true)
}

/// The name of the variable that sets the same value as a flag; `None` for flags that are no settings (`--help`).
#[must_use]
pub fn variable_of(arg: &Arg) -> Option<String> {
    let long = arg.get_long()?;
    let is_setting = !matches!(long, "help" | "version" | "probe" | "url" | "json");
    is_setting.then(|| format!("SMG_{}", long.replace('-', "_").to_ascii_uppercase()))
}

/// Whether a setting is a list.
#[must_use]
pub fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append)
}

/// Whether each text of a list is one element, because commas and blanks may be parts of it. In a variable, its lines are the
/// elements.
#[must_use]
pub fn is_list_of_texts(arg: &Arg) -> bool {
    is_list(arg) && arg.get_num_args().is_none_or(|values| values.max_values() <= 1)
}

/// Whether a setting is yes or no; its flag needs no value.
#[must_use]
pub fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|values| values.min_values() == 0)
}

/// Whether a setting's value must never be shown.
#[must_use]
pub fn is_secret(arg: &Arg) -> bool {
    arg.is_hide_env_values_set()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clap_finds_no_contradiction() {
        command().debug_assert();
        shown_command().debug_assert();
        settings_command().debug_assert();
    }

    #[test]
    fn every_setting_has_a_heading_and_a_help_text() {
        for arg in settings_command().get_arguments() {
            let id = arg.get_id();
            assert!(arg.get_help_heading().is_some(), "{id} has no heading");
            assert!(arg.get_help().is_some_and(|h| h.to_string().len() > 10), "{id} has no help");
            assert_eq!(
                id.as_str().replace('_', "-"),
                arg.get_long().unwrap(),
                "id and flag have the same name"
            );
        }
    }

    #[test]
    fn secrets_are_marked() {
        let secret: Vec<_> = settings_command()
            .get_arguments()
            .filter(|a| is_secret(a))
            .map(|a| a.get_id().to_string())
            .collect();
        assert_eq!(
            secret,
            ["worker_api_key", "api_key", "tenant_api_key", "admin_api_key", "mesh_encryption_key"]
        );
    }
}
