//! Prints the resolved settings as a configuration file that resolves to the same, and lists them for `/ha/config`.
//!
//! Secrets are shown as `***`, which is refused when the file is read: a printed file must be completed, and never
//! becomes a router without keys or with a known one.

use std::fmt::Write as _;

use smg_types::spec::WorkerUrl;
use toml::{Table, Value};

use crate::cli;
use crate::cli::values::MASK;
use crate::config::layers::{Given, Origin, Settings};
use crate::config::mistakes::{flag, key, variable};
use crate::http::Setting;

/// The one setting whose meaning depends on whether it was given. Its default is printed as a comment.
const GIVEN_MATTERS: &str = "prometheus_port";

/// The settings as TOML, grouped as in the help, each with its origin.
pub(super) fn as_toml(settings: &Settings) -> String {
    let command = cli::settings_command();
    let mut text = String::new();
    let mut heading = None;
    for arg in command.get_arguments() {
        let id = arg.get_id().as_str();
        if id == "config" {
            continue;
        }
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            let blank = if text.is_empty() { "" } else { "\n" };
            line(&mut text, format_args!("{blank}# {}", heading.unwrap_or_default()));
        }
        let key = key(id);
        let Some(given) = settings
            .given
            .get(id)
            .filter(|given| !given.texts.is_empty() || given.origin != Origin::Default)
        else {
            line(&mut text, format_args!("# {key} is not set"));
            continue;
        };
        let values: Vec<Value> = given.shown().map(|text| value(arg, text)).collect();
        let value = if cli::is_list(arg) {
            Value::Array(values)
        } else {
            values.into_iter().next().expect("a setting that is no list has one text")
        };
        if given.origin == Origin::Default && id == GIVEN_MATTERS {
            line(
                &mut text,
                format_args!("# {key} = {value}  # not set: no error if the port is in use"),
            );
            continue;
        }
        let origin = match given.origin {
            Origin::Flag => format!("  # by {}", flag(id)),
            Origin::Alias(alias) => format!("  # by {alias}"),
            Origin::Variable => format!("  # by {}", variable(id)),
            Origin::File => "  # by the file".to_owned(),
            Origin::Default => String::new(),
        };
        let masked = if cli::is_secret(arg) { ", not shown" } else { "" };
        line(&mut text, format_args!("{key} = {value}{origin}{masked}"));
    }
    if !settings.workers.is_empty() {
        let workers = worker_tables(settings);
        let tables = Table::from_iter([("workers".to_owned(), Value::Array(workers.collect()))]);
        line(&mut text, format_args!("\n{}", tables.to_string().trim_end()));
    }
    if !settings.rate_limits.is_empty() {
        let rules = settings.rate_limits.iter().cloned().map(Value::Table);
        let tables = Table::from_iter([("rate_limits".to_owned(), Value::Array(rules.collect()))]);
        line(&mut text, format_args!("\n{}", tables.to_string().trim_end()));
    }
    text
}

/// The settings one by one, in the order of the help, each with its origin.
pub(super) fn as_list(settings: &Settings) -> Vec<Setting> {
    let command = cli::settings_command();
    let arguments = command.get_arguments().filter(|arg| arg.get_id() != "config");
    let listed = arguments.map(|arg| {
        let id = arg.get_id().as_str();
        let given = settings.given.get(id);
        let values: Vec<_> =
            given.into_iter().flat_map(Given::shown).map(|text| json(&value(arg, text))).collect();
        let source = match given.map_or(Origin::Default, |given| given.origin) {
            Origin::Flag => format!("flag {}", flag(id)),
            Origin::Alias(alias) => format!("flag {alias}"),
            Origin::Variable => format!("variable {}", variable(id)),
            Origin::File => format!("file {}", settings.file.display()),
            Origin::Default => "default".to_owned(),
        };
        let value = if cli::is_list(arg) {
            serde_json::Value::Array(values)
        } else {
            values.into_iter().next().unwrap_or_default()
        };
        let group = arg.get_help_heading().unwrap_or_default().to_owned();
        Setting { name: key(id), group, value, source }
    });
    listed.collect()
}

/// The workers of the file, without their keys.
pub(super) fn workers(settings: &Settings) -> Vec<serde_json::Value> {
    worker_tables(settings).map(|table| json(&table)).collect()
}

/// The limits of the file.
pub(super) fn rate_limits(settings: &Settings) -> Vec<serde_json::Value> {
    settings.rate_limits.iter().map(json).collect()
}

fn worker_tables(settings: &Settings) -> impl Iterator<Item = Value> {
    settings.workers.iter().map(|table| Value::Table(worker_table(table)))
}

fn json(value: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(value).expect("what TOML can hold, JSON can hold")
}

fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string does not fail");
}

/// A text with its TOML type: boolean, number or string.
fn value(arg: &clap::Arg, text: &str) -> Value {
    if cli::is_switch(arg) {
        let yes = cli::values::yes_or_no(text).expect("the text was checked");
        return Value::Boolean(yes);
    }
    let starts_as_number = text.starts_with(|c: char| c.is_ascii_digit() || c == '-');
    match (text.parse::<i64>(), text.parse::<f64>()) {
        _ if cli::is_list(arg) || !starts_as_number => Value::String(text.to_owned()),
        (Ok(whole), _) => Value::Integer(whole),
        (Err(_), Ok(fraction)) => Value::Float(fraction),
        (Err(_), Err(_)) => Value::String(text.to_owned()),
    }
}

/// A worker's table with underscores in its keys, its URL normalised, and its key masked.
fn worker_table(table: &Table) -> Table {
    let mut shown = Table::new();
    for (name, value) in table {
        let name = name.replace('-', "_");
        let value = match (name.as_str(), value) {
            ("api_key", _) => Value::String(MASK.to_owned()),
            ("url", Value::String(url)) => {
                let url = url.parse::<WorkerUrl>().expect("the url was checked");
                Value::String(url.to_string())
            }
            (_, value) => value.clone(),
        };
        shown.insert(name, value);
    }
    shown
}
