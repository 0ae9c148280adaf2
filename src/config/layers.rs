//! flag > variable > file > default: chooses the text of each setting, and records where it came from.
//!
//! The settings are found by walking the flags that `cli` declares, so nothing is listed twice: a declared flag has its
//! variable, its key, and its place in `check-config` and in the documentation.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, FromArgMatches};
use toml::Table;

use crate::cli::values::MASK;
use crate::cli::{self, Args};
use crate::config::file::ConfigFile;
use crate::config::mistakes::{Mistake, flag, key, key_in, variable};
use crate::config::peers::{self, AliasUse};
use crate::config::process::Process;
use crate::config::variables::is_from_kubernetes;

/// The most elements of a list.
const LONGEST_LIST: usize = 10_000;

/// The settings of all places, the strongest of each: texts for printing, values for use.
pub struct Settings {
    /// The values, all inside their bounds.
    pub args: Args,
    pub(super) given: BTreeMap<String, Given>,
    pub(super) workers: Vec<Table>,
    pub(super) rate_limits: Vec<Table>,
    pub(super) file: PathBuf,
}

impl Settings {
    /// Whether the setting was given; otherwise it has its default.
    pub(super) fn was_given(&self, id: &str) -> bool {
        self.given.get(id).is_some_and(|given| given.origin != Origin::Default)
    }
}

impl fmt::Debug for Settings {
    /// Leaves out the workers' tables, which may contain keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings").field("given", &self.given).finish_non_exhaustive()
    }
}

/// The place that a setting's text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Flag,
    /// The name that another router has for the flag.
    Alias(&'static str),
    Variable,
    File,
    Default,
}

/// The text of a setting, or the texts of a list.
pub(super) struct Given {
    pub(super) texts: Vec<String>,
    pub(super) origin: Origin,
    secret: bool,
}

impl Given {
    /// The texts, with secrets masked.
    pub(super) fn shown(&self) -> impl Iterator<Item = &str> {
        self.texts.iter().map(|text| if self.secret { MASK } else { text.as_str() })
    }
}

impl fmt::Debug for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {:?}", self.shown().collect::<Vec<_>>(), self.origin)
    }
}

/// Chooses the strongest text of each setting and parses it. A wrong value is recorded as a mistake and replaced by its
/// default, so that the rest can be checked. A text that is ignored is recorded as a warning.
pub(super) fn settle(
    matches: &ArgMatches,
    aliases: &BTreeMap<String, Vec<AliasUse>>,
    process: &Process<'_>,
    file: ConfigFile,
    warnings: &mut Vec<String>,
) -> (Settings, Vec<Mistake>) {
    let mut mistakes = Vec::new();
    let mut given = BTreeMap::new();
    for arg in cli::settings_command().get_arguments() {
        let id = arg.get_id().as_str();
        let alias_uses = aliases.get(id).map_or(&[][..], Vec::as_slice);
        let found = of_flag(arg, matches, alias_uses, &mut mistakes)
            .or_else(|| of_variable(arg, process, &mut mistakes))
            .or_else(|| Some((file.settings.get(id)?.clone(), Origin::File)));
        let (texts, origin) = found.unwrap_or_else(|| {
            let texts = arg.get_default_values().iter().map(|v| v.to_string_lossy().into_owned());
            (texts.collect(), Origin::Default)
        });
        let place = match origin {
            Origin::Flag => format!("flag {}", flag(id)),
            Origin::Alias(alias) => format!("flag {alias}"),
            Origin::Variable => format!("variable {}", variable(id)),
            Origin::File => key_in(&file.path, &key(id)),
            Origin::Default => "default".to_owned(),
        };
        let mut texts = if cli::is_list(arg) { elements(arg, &texts) } else { texts };
        if id == "worker_urls" {
            texts.retain(|text| {
                let variable = unset_variable(text);
                warnings.extend(variable.map(|name| {
                    format!(
                        "{place} contains {text}: the variable {name} is not set in the container, so that no worker \
                         comes from it; define it, or register workers at run time"
                    )
                }));
                variable.is_none()
            });
        }
        if texts.len() > LONGEST_LIST {
            let why = format!("is a list of more than {LONGEST_LIST} elements");
            mistakes.push(Mistake::of_settings(&[id], format!("{place} {why}")));
            continue;
        }
        let before = mistakes.len();
        for text in &texts {
            if let Err(why) = judge(arg, text) {
                let shown = if cli::is_secret(arg) { MASK } else { text };
                let is_subcommand =
                    cli::is_list(arg) && cli::command().find_subcommand(text).is_some();
                let hint = is_subcommand
                    .then(|| format!("a subcommand comes first: smg {text} FLAGS"))
                    .or_else(|| peers::hint(id, text));
                mistakes.push(Mistake::of_value(id, &place, shown, &why).with_hint(hint));
            }
        }
        if mistakes.len() == before {
            given.insert(id.to_owned(), Given { texts, origin, secret: cli::is_secret(arg) });
        }
    }
    let args = values(&given);
    let ConfigFile { path: file, workers, rate_limits, .. } = file;
    (Settings { args, given, workers, rate_limits, file }, mistakes)
}

/// The texts given by the flag, or by a name that another router has for it.
fn of_flag(
    arg: &Arg,
    matches: &ArgMatches,
    aliases: &[AliasUse],
    mistakes: &mut Vec<Mistake>,
) -> Option<(Vec<String>, Origin)> {
    let id = arg.get_id().as_str();
    let own = (matches.value_source(id) == Some(ValueSource::CommandLine))
        .then(|| matches.get_many::<String>(id))
        .flatten()
        .map(|texts| (flag(id), Origin::Flag, texts.cloned().collect::<Vec<_>>()));
    let others = aliases
        .iter()
        .map(|alias| (alias.flag.to_owned(), Origin::Alias(alias.flag), alias.texts.clone()));
    let mut given = own.into_iter().chain(others);
    let (name, origin, texts) = given.next()?;
    if let Some((other, ..)) = given.next() {
        let text = format!("flag {name} and flag {other} are the same setting: give one of them");
        mistakes.push(Mistake::of_settings(&[id], text));
    }
    if !cli::is_list(arg) && texts.len() > 1 {
        let text = format!("flag {name} is given {} times", texts.len());
        mistakes.push(Mistake::of_settings(&[id], text));
        return Some((texts.into_iter().take(1).collect(), origin));
    }
    Some((texts, origin))
}

fn of_variable(
    arg: &Arg,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
) -> Option<(Vec<String>, Origin)> {
    let name = cli::variable_of(arg)?;
    if process.variables.get(&name)?.to_str().is_none() {
        let text = format!("variable {name} is not UTF-8");
        mistakes.push(Mistake::of_settings(&[arg.get_id().as_str()], text));
        return None;
    }
    let text = process.variable(&name)?;
    (!is_from_kubernetes(&name, text)).then(|| (vec![text.to_owned()], Origin::Variable))
}

/// The elements of a list, split at commas and blanks, or at the ends of lines if commas and blanks may be parts of them. A text
/// without an element is kept, so that it is reported.
fn elements(arg: &Arg, texts: &[String]) -> Vec<String> {
    let has_whole_lines = cli::is_list_of_texts(arg);
    let separates = |c: char| match has_whole_lines {
        true => matches!(c, '\n' | '\r'),
        false => c == ',' || c.is_whitespace(),
    };
    let cut = |text: &String| {
        let parts: Vec<String> =
            text.split(separates).filter(|part| !part.is_empty()).map(str::to_owned).collect();
        if parts.is_empty() { vec![text.clone()] } else { parts }
    };
    texts.iter().flat_map(cut).collect()
}

/// The variable in `$(NAME)`. The kubelet replaces such a reference in a container's arguments by the value of the
/// variable, and leaves it as it is if the variable is not set.
fn unset_variable(text: &str) -> Option<&str> {
    let name = text.strip_prefix("$(")?.strip_suffix(')')?;
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(is_name)).then_some(name)
}

/// Checks one text with the flag's own parser.
fn judge(arg: &Arg, text: &str) -> Result<(), String> {
    let alone = clap::Command::new("smg")
        .no_binary_name(true)
        .disable_help_flag(true)
        .arg(arg.clone())
        .try_get_matches_from([word(arg, text)]);
    let Err(error) = alone else { return Ok(()) };
    let possible: Vec<String> =
        arg.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect();
    if possible.is_empty() {
        let why = std::error::Error::source(&error);
        Err(why.map_or_else(|| "is not accepted".to_owned(), ToString::to_string))
    } else {
        Err(format!("is none of {}", possible.join(", ")))
    }
}

/// The values of settings whose texts were checked; the default for those that are missing.
fn values(given: &BTreeMap<String, Given>) -> Args {
    let mut command = cli::settings_command();
    let mut words = Vec::new();
    for (id, given) in given {
        if given.texts.is_empty() {
            // An empty list in the file means no elements, not the default.
            command =
                command.mut_arg(id, |arg| arg.default_value(clap::builder::Resettable::Reset));
        }
        let arg = command.get_arguments().find(|arg| arg.get_id() == id.as_str());
        let arg = arg.expect("only declared settings are given");
        words.extend(given.texts.iter().map(|text| word(arg, text)));
    }
    let matches = command.try_get_matches_from(words).expect("each text was checked");
    Args::from_arg_matches(&matches).expect("each text was checked")
}

fn word(arg: &Arg, text: &str) -> String {
    format!("--{}={text}", arg.get_long().expect("a setting has a long flag"))
}
