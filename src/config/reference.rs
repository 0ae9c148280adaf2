//! Generates `docs/configuration.md` from the flags.

use std::fmt::Write as _;

use clap::Arg;

use crate::cli;
use crate::config::mistakes::{flag, key, variable};
use crate::config::peers;

const HEAD: &str = include_str!("reference_head.md");

/// The whole page as Markdown.
#[must_use]
pub fn reference() -> String {
    let command = cli::settings_command();
    let mut page = HEAD.to_owned();
    let mut heading = None;
    for arg in command.get_arguments() {
        if arg.get_help_heading() != heading {
            heading = arg.get_help_heading();
            row(&mut page, format_args!("\n## {}\n", heading.unwrap_or_default()));
            row(&mut page, format_args!("| flag | variable | key | default | meaning |"));
            row(&mut page, format_args!("|---|---|---|---|---|"));
        }
        let id = arg.get_id().as_str();
        let key = if id == "config" { "–".to_owned() } else { format!("`{}`", key(id)) };
        row(
            &mut page,
            format_args!(
                "| `{}` | `{}` | {key} | {} | {} |",
                flag(id),
                variable(id),
                default(arg),
                meaning(arg)
            ),
        );
    }
    page
}

fn row(page: &mut String, row: std::fmt::Arguments<'_>) {
    writeln!(page, "{row}").expect("writing to a string does not fail");
}

fn default(arg: &Arg) -> String {
    let defaults = arg.get_default_values();
    if defaults.is_empty() {
        return "–".to_owned();
    }
    let texts: Vec<_> =
        defaults.iter().map(|text| format!("`{}`", text.to_string_lossy())).collect();
    texts.join(", ")
}

fn meaning(arg: &Arg) -> String {
    let help =
        arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut text = help.split_whitespace().collect::<Vec<_>>().join(" ");
    if !text.ends_with('.') {
        text.push('.');
    }
    let values = arg.get_possible_values();
    if !values.is_empty() {
        let values = values.iter().map(|value| match value.get_help() {
            Some(help) => format!("`{}` ({help})", value.get_name()),
            None => format!("`{}`", value.get_name()),
        });
        let values: Vec<_> = values.collect();
        write!(text, " One of {}.", values.join(", ")).expect("writing to a string does not fail");
    }
    let names: Vec<String> = peers::aliases(&key(arg.get_id().as_str()))
        .map(|alias| format!("`{}` ({})", alias.flag, alias.routers.names()))
        .collect();
    if !names.is_empty() {
        write!(text, " Also as {}.", names.join(", ")).expect("writing to a string does not fail");
    }
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}
