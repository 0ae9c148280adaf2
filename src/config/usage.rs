//! Parses the command line into flags with texts.
//!
//! clap stops at the first mistake. So its parser is used leniently: every setting accepts any text any number of
//! times, and an unknown word is recorded as a mistake and removed, and the rest is parsed again. `layers` checks the
//! texts, together with those of variables and file.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Arg, ArgAction, ArgMatches, FromArgMatches};

use crate::cli::{self, Cli};
use crate::config::mistakes::Mistake;
use crate::config::peers;

/// The action that the command line asks for.
pub(super) enum Asked {
    /// Run the router with the settings of these matches.
    Router(ArgMatches),
    /// Check the settings of these matches and print them.
    CheckConfig(ArgMatches),
    /// Examine the settings of these matches.
    Doctor(ArgMatches),
    /// A subcommand that does not use the router's settings.
    Other(cli::Command),
    /// Print this text: help or the version.
    Text(String),
}

/// Parses the arguments after the program's name. A mistake does not stop the parsing of the rest.
pub(super) fn read(arguments: &[OsString]) -> (Option<Asked>, Vec<Mistake>) {
    let mut words = arguments.to_vec();
    let mut mistakes = Vec::new();
    loop {
        let error = match lenient_command().try_get_matches_from(with_name(&words)) {
            Ok(matches) => {
                let (asked, mistake) = asked(matches, &words);
                mistakes.extend(mistake);
                return (asked, mistakes);
            }
            Err(error) => error,
        };
        if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
            return (Some(Asked::Text(help(arguments, &error))), mistakes);
        }
        mistakes.push(usage_mistake(&error));
        // Each iteration removes a word, so the loop ends. Without its subcommand the rest has no meaning.
        if error.kind() == ErrorKind::InvalidSubcommand || !take_out(&mut words, &error) {
            return (None, mistakes);
        }
    }
}

fn with_name(words: &[OsString]) -> impl Iterator<Item = OsString> {
    std::iter::once(OsString::from("smg")).chain(words.iter().cloned())
}

/// A command line whose settings accept any text any number of times, with the flags of other routers.
fn lenient_command() -> clap::Command {
    let lenient = |arg: Arg| match cli::variable_of(&arg) {
        Some(_) => arg.action(ArgAction::Append).value_parser(clap::value_parser!(String)),
        None => arg,
    };
    let open = |command: clap::Command| command.mut_args(lenient).args(peers::arguments());
    open(cli::command())
        .mut_subcommand("launch", open)
        .mut_subcommand("check-config", open)
        .mut_subcommand("doctor", open)
        .subcommands(peers::subcommands())
}

fn asked(mut matches: ArgMatches, words: &[OsString]) -> (Option<Asked>, Option<Mistake>) {
    let asked = match matches.remove_subcommand() {
        None => Asked::Router(matches),
        Some((name, matches)) if name == "launch" => Asked::Router(matches),
        Some((name, matches)) if name == "check-config" => Asked::CheckConfig(matches),
        Some((name, matches)) if name == "doctor" => Asked::Doctor(matches),
        Some((name, _)) => {
            if let Some(mistake) = peers::refused_subcommand(&name) {
                return (None, Some(mistake));
            }
            let strict = cli::command()
                .try_get_matches_from(with_name(words))
                .and_then(|matches| Cli::from_arg_matches(&matches));
            match strict {
                Ok(cli) => Asked::Other(cli.command.expect("the lenient parser found one")),
                Err(error) => return (None, Some(usage_mistake(&error))),
            }
        }
    };
    (Some(asked), None)
}

/// The requested help or version, with variables and possible values, which the lenient command lacks. Other words of
/// the command line, right or wrong, do not change it.
fn help(arguments: &[OsString], lenient: &clap::Error) -> String {
    let shown = cli::shown_command();
    // The subcommands lead from the whole command to the one whose help is requested.
    let mut at = &shown;
    let mut selects_help = |word: &&OsString| {
        word.to_str().is_some_and(|word| match at.find_subcommand(word) {
            Some(subcommand) => {
                at = subcommand;
                true
            }
            None => matches!(word, "-h" | "--help" | "-V" | "--version" | "help"),
        })
    };
    let words: Vec<OsString> =
        arguments.iter().filter(|word| selects_help(word)).cloned().collect();
    match shown.try_get_matches_from(with_name(&words)) {
        Err(error) if error.kind() == lenient.kind() => error.render().to_string(),
        Ok(_) | Err(_) => lenient.render().to_string(),
    }
}

fn usage_mistake(error: &clap::Error) -> Mistake {
    let context = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let stray = |word: &str| {
        Mistake::new(format!("{word:?} is not the value of a flag"))
            .with_hint(Some("a switch takes its value after =, as in --log-json=false".to_owned()))
    };
    if let (ErrorKind::ArgumentConflict, Some(word)) =
        (error.kind(), context(ContextKind::InvalidSubcommand))
    {
        return if cli::command().find_subcommand(&word).is_some() {
            Mistake::new(format!("subcommand {word} stands after flags"))
                .with_hint(Some(format!("it comes first: smg {word} FLAGS")))
        } else {
            stray(&word)
        };
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let help = error.render().to_string();
        let usage = help.lines().find_map(|line| line.strip_prefix("Usage: "));
        return Mistake::new("a subcommand is missing")
            .with_hint(usage.map(|usage| format!("{usage}; --help lists them")));
    }
    match (error.kind(), context(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(word)) if word.starts_with('-') => {
            Mistake::new(format!("there is no flag {word}")).with_hint(
                context(ContextKind::SuggestedArg)
                    .filter(|flag| peers::is_accepted(flag))
                    .map(|flag| format!("did you mean {flag}?")),
            )
        }
        (ErrorKind::UnknownArgument, Some(word)) => stray(&word),
        (ErrorKind::InvalidValue, Some(word))
            if context(ContextKind::InvalidValue).is_none_or(|v| v.is_empty()) =>
        {
            let flag = word.split_whitespace().next().unwrap_or(&word);
            Mistake::new(format!("flag {flag} needs a value"))
        }
        _ => {
            let text = error.render().to_string();
            let text = text.trim().strip_prefix("error: ").unwrap_or(&text);
            // The mistake and perhaps a tip. Usage and the reference to the help are cut off, because they would follow
            // each mistake.
            let ends = ["\n\nUsage:", "\n\nFor more information"];
            let end = ends.iter().filter_map(|end| text.find(end)).min().unwrap_or(text.len());
            Mistake::new(text[..end].trim())
        }
    }
}

/// Removes the word that caused an error, and the value that may follow a flag. Returns false if there is none.
fn take_out(words: &mut Vec<OsString>, error: &clap::Error) -> bool {
    let context = [ContextKind::InvalidSubcommand, ContextKind::InvalidArg]
        .into_iter()
        .find_map(|kind| error.get(kind));
    let Some(ContextValue::String(named)) = context else { return false };
    let named = named.split_whitespace().next().unwrap_or(named);
    let at = words.iter().position(|word| {
        let word = word.to_string_lossy();
        word == named || word.split_once('=').is_some_and(|(flag, _)| flag == named)
    });
    let Some(at) = at else { return false };
    let removed = words.remove(at);
    let is_flag = named.starts_with("--") && !removed.to_string_lossy().contains('=');
    let next = words.get(at).map(|next| next.to_string_lossy());
    let has_value_apart = match (error.kind(), error.get(ContextKind::InvalidValue)) {
        // The next word may have been meant as the value. For `ArgumentConflict`, the flag may be given only once.
        (ErrorKind::UnknownArgument | ErrorKind::ArgumentConflict, _) => {
            next.is_some_and(|next| !next.starts_with('-'))
        }
        // The value is wrong, so it is removed with the flag.
        (_, Some(ContextValue::String(value))) => next.is_some_and(|next| next == value.as_str()),
        _ => false,
    };
    if is_flag && has_value_apart {
        words.remove(at);
    }
    true
}
