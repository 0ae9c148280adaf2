//! Translates the flags of other routers, on the command line and in the file, into this router's settings.

use std::collections::BTreeMap;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches};

use super::{COMMANDS, Here, PeerCommand, PeerFlag, Takes, VALUES, flag, flags};
use crate::config::mistakes::{Mistake, key_in, shown, variable};

/// An alias that the command line uses for a flag.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct AliasUse {
    /// The alias with its dashes.
    pub(in crate::config) flag: &'static str,
    /// The values that are given with it.
    pub(in crate::config) texts: Vec<String>,
}

/// The meaning of all flags of other routers on a command line.
#[derive(Debug, Default)]
pub(in crate::config) struct Translated {
    /// The aliases used, by the id of the setting that they set.
    pub(in crate::config) aliases: BTreeMap<String, Vec<AliasUse>>,
    /// One line for each flag that has no effect.
    pub(in crate::config) notes: Vec<String>,
    /// One mistake for each flag that is refused.
    pub(in crate::config) mistakes: Vec<Mistake>,
}

/// The flags that only other routers have, for the parser. The help does not show them.
pub(in crate::config) fn arguments() -> impl Iterator<Item = Arg> {
    flags().filter(|flag| !flag.is_ours()).map(|flag| {
        let arg = Arg::new(flag.flag).long(flag.name()).hide(true);
        let values = match (flag.takes, flag.here) {
            (Takes::Nothing, _) => return arg.action(ArgAction::Count),
            // A refused flag is refused without its value, too.
            (Takes::One, Here::Refused(_)) => 0..=1,
            (Takes::One, _) => 1..=1,
            (Takes::Many, _) => 0..=usize::MAX,
        };
        arg.action(ArgAction::Append).num_args(values).allow_negative_numbers(true)
    })
}

/// The subcommands that only other routers have, for the parser. All words after one belong to it.
pub(in crate::config) fn subcommands() -> impl Iterator<Item = clap::Command> {
    COMMANDS.iter().map(|command| {
        clap::Command::new(command.name)
            .hide(true)
            .disable_help_flag(true)
            .arg(Arg::new("rest").num_args(0..).trailing_var_arg(true).allow_hyphen_values(true))
    })
}

/// The mistake for a subcommand of another router; `None` if the name is none.
pub(in crate::config) fn refused_subcommand(name: &str) -> Option<Mistake> {
    let PeerCommand { name, routers, instead } =
        COMMANDS.iter().find(|command| command.name == name)?;
    Some(Mistake::new(format!("subcommand {name} of {} is refused: {instead}", routers.names())))
}

/// Translates the flags of other routers that the matches contain.
pub(in crate::config) fn translate(matches: &ArgMatches) -> Translated {
    let mut translated = Translated::default();
    for flag in flags().filter(|flag| !flag.is_ours()) {
        if matches.value_source(flag.flag) == Some(ValueSource::CommandLine) {
            let texts = match flag.takes {
                Takes::Nothing => Vec::new(),
                Takes::One | Takes::Many => matches
                    .get_many::<String>(flag.flag)
                    .map(|texts| texts.cloned().collect())
                    .unwrap_or_default(),
            };
            translated.take(flag, texts);
        }
    }
    translated
}

impl Translated {
    fn take(&mut self, flag: &PeerFlag, texts: Vec<String>) {
        let name = || format!("flag {} of {}", flag.flag, flag.routers.names());
        match flag.here {
            Here::Same { .. } => unreachable!("a flag of this router is read as its own"),
            Here::Always(why) => {
                self.notes.push(format!("{} changes nothing: {why}", name()));
            }
            Here::Refused(why) => {
                self.mistakes.push(Mistake::new(format!("{} is refused: {why}", name())));
            }
            Here::Only(values, why) => {
                let others = texts.iter().filter(|text| !values.iter().any(|v| is_same(v, text)));
                let others: Vec<String> = others.map(|text| shown(text)).collect();
                if others.is_empty() {
                    self.notes.push(format!("{} changes nothing: {why}", name()));
                } else {
                    let text = format!(
                        "{}: {} is refused, {} changes nothing: {why}",
                        name(),
                        others.join(" and "),
                        values.join(" or ")
                    );
                    self.mistakes.push(Mistake::new(text));
                }
            }
            Here::Alias { of, except, .. } => {
                for (value, why) in except {
                    if texts.iter().any(|text| is_same(value, text)) {
                        self.mistakes.push(Mistake::new(format!("{}: {value} {why}", name())));
                        return;
                    }
                }
                let texts =
                    if flag.takes == Takes::Nothing { vec!["true".to_owned()] } else { texts };
                let texts = if of == "admin-api-key" {
                    texts.iter().map(|text| without_blanks_in_its_name(text)).collect()
                } else {
                    texts
                };
                let alias = AliasUse { flag: flag.flag, texts };
                self.aliases.entry(of.replace('-', "_")).or_default().push(alias);
            }
        }
    }
}

/// Removes the blanks from the name in a key of the form `id:name:role:key`, because lists are split at blanks. The
/// name is not used.
fn without_blanks_in_its_name(text: &str) -> String {
    let mut parts: Vec<String> = text.splitn(4, ':').map(str::to_owned).collect();
    if let [_, name, _, _] = parts.as_mut_slice() {
        *name = name.split([' ', '\t', ',']).collect::<Vec<_>>().join("_");
    }
    parts.join(":")
}

/// Whether two texts mean the same value: equal texts or equal numbers.
fn is_same(one: &str, other: &str) -> bool {
    one == other
        || one.parse::<f64>().is_ok_and(|one| other.parse::<f64>().is_ok_and(|other| one == other))
}

/// The mistake for a key of the file that is named for a flag of another router; `None` if it is none.
pub(in crate::config) fn refused_key(file: &std::path::Path, key: &str) -> Option<Mistake> {
    let flag = flag(&key.replace('_', "-"))?;
    let what = key_in(file, key);
    Some(Mistake::new(format!("{what} {}", instead(flag, |of| of.to_owned())?)))
}

/// The warning for a variable that is named for a flag of another router; `None` if it is none.
pub(in crate::config) fn unread_variable(name: &str) -> Option<String> {
    let flag = flag(&name.strip_prefix("SMG_")?.to_ascii_lowercase().replace('_', "-"))?;
    Some(format!("variable {name} {}", instead(flag, |of| variable(&of.replace('-', "_")))?))
}

/// The name or the explanation to use in place of a name that is valid only as a flag; `None` for a flag of this
/// router.
fn instead(flag: &PeerFlag, name_of: impl Fn(&str) -> String) -> Option<String> {
    let named = format!("is named for {} of {}", flag.flag, flag.routers.names());
    match flag.here {
        Here::Same { .. } => None,
        Here::Alias { of, .. } => Some(format!("{named}: write {}", name_of(of))),
        Here::Always(why) => Some(format!("{named}, which changes nothing: {why}")),
        Here::Only(_, why) | Here::Refused(why) => Some(format!("{named}: {why}")),
    }
}

/// The alternative to a value that only another router knows.
pub(in crate::config) fn hint(id: &str, text: &str) -> Option<String> {
    let flag = id.replace('_', "-");
    let is_rank = |text: &str| {
        let rank = text.rsplit_once('@').map_or("", |(_, rank)| rank);
        !rank.is_empty() && rank.bytes().all(|b| b.is_ascii_digit())
    };
    if flag == "worker-urls" && is_rank(text) {
        return Some(
            "data-parallel ranks are not addressed here: give each engine's URL without @RANK"
                .to_owned(),
        );
    }
    VALUES
        .iter()
        .find(|value| value.flag == flag && text.starts_with(value.value))
        .map(|value| value.instead.to_owned())
}
