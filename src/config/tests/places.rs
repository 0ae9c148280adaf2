//! The places where a setting can be given.

use super::Given;
use crate::config::peers::{PeerFlag, Takes};

/// Where a test gives a setting.
#[derive(Clone, Copy)]
pub(super) enum Place {
    Flag,
    /// The name that another router has for the flag.
    Alias(&'static PeerFlag),
    Variable,
    Key,
    KeyWithUnderscores,
}

/// Gives the value of a flag in this place; `text` is the file.
pub(super) fn put(given: Given, place: Place, flag: &str, value: &str, text: &mut String) -> Given {
    let variable = format!("SMG_{}", flag.to_uppercase().replace('-', "_"));
    let bare = value.parse::<f64>().is_ok() || matches!(value, "true" | "false");
    let quoted = if bare { value.to_owned() } else { format!("'{value}'") };
    match place {
        Place::Flag => given.flags(&[&format!("--{flag}={value}")]),
        Place::Alias(alias) if alias.takes == Takes::Nothing => given.flags(&[alias.flag]),
        Place::Alias(alias) => given.flags(&[alias.flag, value]),
        Place::Variable => given.variable(&variable, value),
        Place::Key => {
            text.push_str(&format!("{flag} = {quoted}\n"));
            given
        }
        Place::KeyWithUnderscores => {
            text.push_str(&format!("{} = {quoted}\n", flag.replace('-', "_")));
            given
        }
    }
}
