//! Generates `docs/migrating.md` from the table.

use std::fmt::Write as _;

use super::metrics::METRICS;
use super::{COMMANDS, Here, PeerFlag, ROUTERS, Routers, VALUES, VARIABLES, flags};

const HEAD: &str = include_str!("page_head.md");
const API: &str = include_str!("page_api.md");

/// The whole page as Markdown.
#[must_use]
pub fn migrating() -> String {
    let mut page = HEAD.to_owned();
    for (router, name) in ROUTERS {
        flags_of(&mut page, router, name);
    }
    values(&mut page);
    variables(&mut page);
    page.push_str(API);
    metrics(&mut page);
    page
}

fn line(page: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(page, "{line}").expect("writing to a string does not fail");
}

fn flags_of(page: &mut String, router: Routers, name: &str) {
    line(page, format_args!("\n## Flags of {name}\n"));
    line(page, format_args!("| flag | here | remarks |"));
    line(page, format_args!("|---|---|---|"));
    let mut flags: Vec<&PeerFlag> = flags().filter(|flag| flag.routers.contains(router)).collect();
    flags.sort_by_key(|flag| flag.flag);
    for flag in flags {
        let (here, note) = match flag.here {
            Here::Same { differs } => (format!("`{}`", flag.flag), differs.to_owned()),
            Here::Alias { of, differs, except } => {
                let except = except.iter().map(|(value, why)| format!("{value} {why}"));
                let notes: Vec<String> = [differs.to_owned()]
                    .into_iter()
                    .chain(except)
                    .filter(|n| !n.is_empty())
                    .collect();
                (format!("another name of `--{of}`"), notes.join("; "))
            }
            Here::Always(why) => ("accepted, changes nothing".to_owned(), why.to_owned()),
            Here::Only(values, why) => {
                let values: Vec<String> = values.iter().map(|value| format!("`{value}`")).collect();
                (format!("only {}, changes nothing", values.join(", ")), why.to_owned())
            }
            Here::Refused(why) => ("refused".to_owned(), why.to_owned()),
        };
        line(page, format_args!("| `{}` | {here} | {} |", flag.flag, cell(&note)));
    }
}

fn values(page: &mut String) {
    line(page, format_args!("\n## Values and subcommands\n"));
    line(page, format_args!("| there | router | here |"));
    line(page, format_args!("|---|---|---|"));
    for value in VALUES {
        let routers = value.routers.names();
        let instead = cell(value.instead);
        line(
            page,
            format_args!("| `--{} {}` | {routers} | refused: {instead} |", value.flag, value.value),
        );
    }
    for command in COMMANDS {
        let instead = cell(command.instead);
        line(
            page,
            format_args!(
                "| `{}` | {} | refused: {instead} |",
                command.name,
                command.routers.names()
            ),
        );
    }
}

fn variables(page: &mut String) {
    line(page, format_args!("\n## Variables\n"));
    line(
        page,
        format_args!(
            "Each flag here has a variable of its own, `SMG_` and the flag's name in capitals. `RUST_LOG` is read as there. \
             One of these that is set makes one line at start; keys of providers do so only when a worker behind https:// has \
             no key.\n"
        ),
    );
    line(page, format_args!("| variable | router | here |"));
    line(page, format_args!("|---|---|---|"));
    for variable in VARIABLES {
        line(
            page,
            format_args!(
                "| `{}` | {} | not read: {} |",
                variable.name,
                variable.routers.names(),
                cell(variable.instead)
            ),
        );
    }
}

fn metrics(page: &mut String) {
    line(page, format_args!("\n## Metrics\n"));
    line(
        page,
        format_args!("On the same port, 29000, and on `/metrics` of the main port as well.\n"),
    );
    line(page, format_args!("| metric there | router | metric here | how to read it |"));
    line(page, format_args!("|---|---|---|---|"));
    for metric in METRICS {
        let names: Vec<String> = metric.ours.iter().map(|name| format!("`{name}`")).collect();
        let names = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
        line(
            page,
            format_args!(
                "| `{}` | {} | {names} | {} |",
                metric.name,
                metric.routers.names(),
                cell(metric.note)
            ),
        );
    }
}

/// A text with the characters escaped that would end a cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('<', "&lt;").replace('*', "\\*")
}
