//! The configuration file: TOML whose keys are the flags' names, `[[workers]]` and `[[rate_limits]]`.
//!
//! This module only splits the file. It turns each value into the text that the flag would have, so that one parser
//! checks both. An error never shows a line of the file, because the line may contain a key.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

use crate::cli;
use crate::config::mistakes::{Mistake, did_you_mean, key, key_in};
use crate::config::peers;

/// The content of a file, split into settings and workers.
#[derive(Default)]
pub(super) struct ConfigFile {
    /// The path of the file.
    pub(super) path: PathBuf,
    /// The texts of each setting, by the setting's id.
    pub(super) settings: BTreeMap<String, Vec<String>>,
    /// The `[[workers]]` tables.
    pub(super) workers: Vec<Table>,
    /// The `[[rate_limits]]` tables.
    pub(super) rate_limits: Vec<Table>,
}

/// Splits a file. A mistake does not stop the reading of the rest, unless the file is not TOML.
pub(super) fn take_apart(path: &Path, text: &str) -> (Option<ConfigFile>, Vec<Mistake>) {
    let mut file = ConfigFile { path: path.to_owned(), ..ConfigFile::default() };
    let table = match text.parse::<Table>() {
        Ok(table) => table,
        Err(error) => {
            let before = &text[..error.span().map_or(0, |span| span.start.min(text.len()))];
            let line = before.matches('\n').count() + 1;
            let mistake =
                Mistake::new(format!("{}:{line}: {}", path.display(), error.message().trim()));
            return (None, vec![mistake]);
        }
    };
    let command = cli::settings_command();
    let known: Vec<String> =
        command.get_arguments().map(|arg| key(arg.get_id().as_str())).collect();
    let mut mistakes = Vec::new();
    for (name, value) in table {
        let id = name.replace('-', "_");
        if id == "workers" || id == "rate_limits" {
            match tables(&id, value) {
                Ok(tables) if id == "workers" => file.workers = tables,
                Ok(tables) => file.rate_limits = tables,
                Err(why) => mistakes.push(Mistake::new(format!("{} {why}", key_in(path, &name)))),
            }
            continue;
        }
        if id == "config" {
            let text = format!("{}: a file can't name another one", key_in(path, &name));
            mistakes.push(Mistake::of_settings(&["config"], text));
            continue;
        }
        let Some(arg) = command.get_arguments().find(|arg| arg.get_id().as_str() == id) else {
            let names = known.iter().map(String::as_str).chain(["workers", "rate_limits"]);
            mistakes.push(peers::refused_key(path, &name).unwrap_or_else(|| {
                Mistake::new(format!("{} is not known", key_in(path, &name)))
                    .with_hint(did_you_mean(&key(&id), names))
            }));
            continue;
        };
        let texts = match value {
            Value::Array(elements) if cli::is_list(arg) => elements.iter().map(text_of).collect(),
            Value::Array(_) => Err("takes one value, not a list"),
            other => text_of(&other).map(|text| vec![text]),
        };
        match texts {
            Err(why) => {
                let text = format!("{} {why}", key_in(path, &name));
                mistakes.push(Mistake::of_settings(&[&id], text));
            }
            Ok(texts) => {
                if file.settings.insert(id.clone(), texts).is_some() {
                    let text = format!(
                        "{} stands there twice, with dashes and with underscores",
                        key_in(path, &name)
                    );
                    mistakes.push(Mistake::of_settings(&[&id], text));
                }
            }
        }
    }
    (Some(file), mistakes)
}

/// The text that the flag would have.
pub(super) fn text_of(value: &Value) -> Result<String, &'static str> {
    match value {
        Value::String(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(yes) => Ok(yes.to_string()),
        Value::Datetime(_) => Err("is a date, not a text, a number or a boolean"),
        Value::Array(_) => Err("is a list, not a text, a number or a boolean"),
        Value::Table(_) => Err("is a table, not a text, a number or a boolean"),
    }
}

fn tables(name: &str, value: Value) -> Result<Vec<Table>, String> {
    let wrong = || format!("is not a list of tables: write [[{name}]] above each");
    let Value::Array(elements) = value else { return Err(wrong()) };
    elements
        .into_iter()
        .map(|element| match element {
            Value::Table(table) => Ok(table),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Array(_) => Err(wrong()),
        })
        .collect()
}
