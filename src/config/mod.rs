//! The configuration: defaults < file < `SMG_*` < flags. All mistakes are reported together.
//!
//! Data flows in one direction: arguments, variables and the file become `Settings` (the given values, each within its
//! bounds), and these become a [`Config`] (one part per module, checked as a whole). A [`Config`] that exists is valid.
//! Only [`Process::current`] reads from the process; everything else takes a [`Process`] as an argument.

use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;

use clap::ArgMatches;
use smg_mock as mock;
use smg_runtime::tls;
use smg_types::spec::WorkerUrl;

use crate::cli;
use crate::console;
use crate::http::ShownSettings;

mod checks;
mod cluster;
mod file;
mod layers;
mod limits;
mod mistakes;
mod parts;
mod peers;
mod process;
mod reference;
mod reread;
mod resolve;
mod show;
mod usage;
mod variables;
mod workers;

pub use layers::Settings;
pub use limits::Config as Limits;
pub use mistakes::{ConfigErrors, Mistake};
pub use parts::Config;
pub use peers::migrating;
pub use process::Process;
pub use reference::reference;
pub use reread::{Reread, Waiting, reread};

use file::ConfigFile;
use usage::Asked;

/// The exit status if the configuration is invalid.
pub const STATUS_WRONG: u8 = 2;

/// The exit status if the output could not be written.
pub const STATUS_FAILED: u8 = 1;

/// A configuration with its warnings and its origin.
#[derive(Debug)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// Oddities that are no mistakes. The caller logs them after the log is set up.
    pub warnings: Vec<String>,
    /// The given values and where each came from.
    settings: Arc<Settings>,
}

impl Loaded {
    /// The settings as a file that resolves to the same configuration; secrets are masked.
    #[must_use]
    pub fn to_toml(&self) -> String {
        show::as_toml(&self.settings)
    }

    /// Fills in what the router shows of its settings; secrets are masked.
    pub fn show(&self, shown: &ShownSettings) {
        shown.set(
            &show::as_list(&self.settings),
            &show::workers(&self.settings),
            &show::rate_limits(&self.settings),
        );
    }

    /// The given values and where each came from.
    #[must_use]
    pub const fn settings(&self) -> &Arc<Settings> {
        &self.settings
    }
}

/// The action that the command line asks for.
#[derive(Debug)]
pub enum Start {
    /// Run the router with this configuration.
    Router(Box<Loaded>),
    /// Run mock workers with these configurations.
    MockWorkers(Vec<mock::Config>),
    /// Run the demo with these arguments.
    Demo(mock::demo::Args),
    /// Run a command of `smg mesh`.
    Console(console::Command),
    /// Print this configuration, then reach the workers and routers that it names.
    Probe(Box<Loaded>),
    /// Examine a configuration and a running cluster.
    Doctor(Diagnosis),
    /// Nothing: the output has been printed. Holds the exit status.
    Done(u8),
}

/// What `smg doctor` examines.
#[derive(Debug)]
pub struct Diagnosis {
    /// The configuration.
    pub loaded: Box<Loaded>,
    /// A router of the running cluster.
    pub url: Option<WorkerUrl>,
    /// Whether to print JSON.
    pub json: bool,
}

impl Diagnosis {
    /// The configuration, unless only a running cluster is to be examined: then no setting but keys was given.
    #[must_use]
    pub fn examined(&self) -> Option<&Loaded> {
        let settings = &self.loaded.settings;
        let keys = ["admin_api_key", "api_key", "worker_tls_ca"];
        let has_settings = !settings.workers.is_empty()
            || settings.given.keys().any(|id| settings.was_given(id) && !keys.contains(&&**id));
        (self.url.is_none() || has_settings).then_some(&*self.loaded)
    }
}

/// Reads the command line. Prints what is asked for, such as help, to `out`, and mistakes and the warnings of
/// `check-config` to `err`.
pub fn start(process: &Process<'_>, out: &mut dyn Write, err: &mut dyn Write) -> Start {
    let printed = match answer(process) {
        Ok(Answer::Router(loaded)) => return Start::Router(loaded),
        Ok(Answer::MockWorkers(configs)) => return Start::MockWorkers(configs),
        Ok(Answer::Demo(args)) => return Start::Demo(args),
        Ok(Answer::Console(command)) => return Start::Console(command),
        Ok(Answer::Probe(loaded)) => return Start::Probe(loaded),
        Ok(Answer::Doctor(diagnosis)) => return Start::Doctor(diagnosis),
        Ok(Answer::Print { text, warnings }) => {
            let warnings: String =
                warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
            (text, warnings, 0)
        }
        Err(errors) => (Vec::new(), format!("{errors}\n"), STATUS_WRONG),
    };
    let (text, messages, status) = printed;
    // If the messages can't be written, the exit status still shows the result.
    let _unread = err.write_all(messages.as_bytes()).is_err();
    match out.write_all(&text).and_then(|()| out.flush()) {
        // A reader that closes the pipe (`smg --help | head`) is no failure.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Start::Done(STATUS_FAILED),
        Ok(()) | Err(_) => Start::Done(status),
    }
}

/// The action that the command line asks for, before anything is printed.
enum Answer {
    Router(Box<Loaded>),
    MockWorkers(Vec<mock::Config>),
    Demo(mock::demo::Args),
    Console(console::Command),
    Probe(Box<Loaded>),
    Doctor(Diagnosis),
    Print { text: Vec<u8>, warnings: Vec<String> },
}

fn answer(process: &Process<'_>) -> Result<Answer, ConfigErrors> {
    let (asked, mistakes) = usage::read(&process.arguments);
    match asked {
        Some(Asked::Router(matches)) => {
            Ok(Answer::Router(Box::new(load(&matches, process, mistakes)?)))
        }
        Some(Asked::CheckConfig(matches)) => {
            let loaded = load(&matches, process, mistakes)?;
            if matches.get_flag("probe") {
                return Ok(Answer::Probe(Box::new(loaded)));
            }
            let text = loaded.to_toml().into_bytes();
            Ok(Answer::Print { text, warnings: loaded.warnings })
        }
        Some(Asked::Doctor(matches)) => {
            let loaded = Box::new(load(&matches, process, mistakes)?);
            let url = matches.get_one::<WorkerUrl>("url").cloned();
            Ok(Answer::Doctor(Diagnosis { loaded, url, json: matches.get_flag("json") }))
        }
        Some(Asked::Other(command)) => {
            ConfigErrors::unless_empty(mistakes)?;
            other(command)
        }
        Some(Asked::Text(text)) => {
            Ok(Answer::Print { text: text.into_bytes(), warnings: Vec::new() })
        }
        None => {
            ConfigErrors::unless_empty(mistakes)?;
            unreachable!("a command line that is not parsed has at least one mistake")
        }
    }
}

fn other(command: cli::Command) -> Result<Answer, ConfigErrors> {
    let mut text = Vec::new();
    match command {
        cli::Command::MockWorker(args) => {
            return match args.configs() {
                Ok(configs) => Ok(Answer::MockWorkers(configs)),
                Err(error) => Err(ConfigErrors::one(Mistake::new(error.to_string()))),
            };
        }
        cli::Command::Demo(args) => return Ok(Answer::Demo(args)),
        cli::Command::Mesh(command) => return Ok(Answer::Console(command)),
        cli::Command::Limits(cli::LimitsCommand::Explain { rule, replicas }) => {
            text = limits::explanation(&rule, replicas).map_err(ConfigErrors::one)?.into_bytes();
        }
        cli::Command::Completions { shell } => {
            clap_complete::generate(shell, &mut cli::shown_command(), "smg", &mut text);
        }
        cli::Command::Man => {
            let page = clap_mangen::Man::new(cli::shown_command());
            page.render(&mut text).expect("writing to memory does not fail");
        }
        cli::Command::Launch(_) | cli::Command::CheckConfig(_) | cli::Command::Doctor(_) => {
            unreachable!("these subcommands are parsed leniently")
        }
    }
    Ok(Answer::Print { text, warnings: Vec::new() })
}

/// Loads and checks the whole configuration; `mistakes` holds those of the command line.
fn load(
    matches: &ArgMatches,
    process: &Process<'_>,
    mut mistakes: Vec<Mistake>,
) -> Result<Loaded, ConfigErrors> {
    let (loaded, file_is_understood) = load_all_but_certificates(matches, process, &mut mistakes);
    let wrong: Vec<String> = mistakes.iter().flat_map(Mistake::settings).cloned().collect();
    let is_own = |mistake: &Mistake| file_is_understood && !mistake.is_about(&wrong);
    mistakes.extend(wrong_files(&loaded.config, process).into_iter().filter(is_own));
    ConfigErrors::unless_empty(mistakes)?;
    Ok(loaded)
}

/// Loads everything but certificates. A wrong value is recorded as a mistake and replaced by its default. The second
/// result is whether the configuration file, if there is one, could be parsed.
fn load_all_but_certificates(
    matches: &ArgMatches,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
) -> (Loaded, bool) {
    let file = read_file(matches, process, mistakes);
    let file_is_understood = file.is_some();
    let translated = peers::translate(matches);
    mistakes.extend(translated.mistakes);
    let file = file.unwrap_or_default();
    let mut warnings = translated.notes;
    let (settings, wrong_values) =
        layers::settle(matches, &translated.aliases, process, file, &mut warnings);
    mistakes.extend(wrong_values);
    warnings.extend(variables::warnings(process));
    let (config, wrong_together) = resolve::resolve(&settings, process, &mut warnings);
    warnings.extend(peers::unread_variables(process, &config.workers));
    // A default that replaces a wrong value may contradict other settings; that is no mistake of its own. Nor is a
    // missing counterpart that may stand in a file which could not be parsed.
    let wrong: Vec<String> = mistakes.iter().flat_map(Mistake::settings).cloned().collect();
    let is_own = |mistake: &Mistake| file_is_understood && !mistake.is_about(&wrong);
    mistakes.extend(wrong_together.into_iter().filter(is_own));
    let loaded = Loaded { config, warnings, settings: Arc::new(settings) };
    (loaded, file_is_understood)
}

/// Reads the file named by the flag, else by the variable. Returns an empty one if none is named, and `None` if it
/// can't be parsed.
fn read_file(
    matches: &ArgMatches,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Option<ConfigFile> {
    let of_flag = matches.get_many::<String>("config").and_then(|mut paths| paths.next());
    let (origin, path) = match (of_flag, process.variable("SMG_CONFIG")) {
        (Some(path), _) => ("flag --config", path.as_str()),
        (None, Some(path)) => ("variable SMG_CONFIG", path),
        (None, None) => return Some(ConfigFile::default()),
    };
    let text = (process.read)(Path::new(path))
        .map_err(|error| {
            let why = format!("can't be read: {error}");
            mistakes.push(Mistake::of_value("config", origin, path, &why));
        })
        .ok()?;
    let (file, wrong) = file::take_apart(Path::new(path), &text);
    mistakes.extend(wrong);
    file
}

/// The mistakes that show only when certificates and keys are opened.
fn wrong_files(config: &Config, process: &Process<'_>) -> Vec<Mistake> {
    let of_server = config
        .http
        .tls
        .as_ref()
        .map_or(Ok(()), |server| tls::server(server, process.now).map(drop));
    let of_client = tls::check_client(&config.upstream.tls, process.now);
    [of_server, of_client]
        .into_iter()
        .filter_map(Result::err)
        .flatten()
        .map(|error| Mistake::of_settings(&[error.file.setting()], &error))
        .collect()
}

#[cfg(test)]
mod tests;
