//! Mistakes in a configuration, and their texts.
//!
//! A mistake is one line with the place of the value, the value itself, and the flag, variable and key that set it, and
//! maybe a second line with a hint. Mistakes are collected, never returned one by one: all of them are shown at once.

use std::fmt;
use std::path::Path;

/// All mistakes in a configuration; at least one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.0))]
pub struct ConfigErrors(Vec<Mistake>);

impl ConfigErrors {
    /// The errors of one mistake alone.
    pub(super) fn one(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }

    /// `Err` with these mistakes, unless there are none.
    pub(super) fn unless_empty(mistakes: Vec<Mistake>) -> Result<(), Self> {
        if mistakes.is_empty() { Ok(()) } else { Err(Self(mistakes)) }
    }

    /// The mistakes, in the order in which they were found.
    #[must_use]
    pub fn mistakes(&self) -> &[Mistake] {
        &self.0
    }
}

impl From<Mistake> for ConfigErrors {
    fn from(mistake: Mistake) -> Self {
        Self(vec![mistake])
    }
}

fn lines(mistakes: &[Mistake]) -> String {
    mistakes.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

/// One mistake, with its hint and the settings that it concerns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    text: String,
    hint: Option<String>,
    /// The ids of the settings that the mistake concerns.
    settings: Vec<String>,
}

impl Mistake {
    /// A mistake that concerns no setting in particular.
    pub fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), hint: None, settings: Vec::new() }
    }

    /// A mistake in the value of one setting: `origin: "value" why (names)`.
    pub(super) fn of_value(id: &str, origin: &str, value: &str, why: &str) -> Self {
        Self {
            text: format!("{origin}: {} ({})", value_and_reason(value, why), names(id)),
            hint: None,
            settings: vec![id.to_owned()],
        }
    }

    /// A contradiction between settings; the first one is the one to change.
    pub(super) fn of_settings(ids: &[&str], text: impl fmt::Display) -> Self {
        let first = ids.first().expect("a mistake of settings names one");
        Self {
            text: format!("{text} ({})", names(first)),
            hint: None,
            settings: ids.iter().map(|&id| id.to_owned()).collect(),
        }
    }

    /// The mistake in one line, with its hint and without the word "error".
    #[must_use]
    pub fn line(&self) -> String {
        match &self.hint {
            Some(hint) => format!("{} ({hint})", self.text),
            None => self.text.clone(),
        }
    }

    /// Adds a hint, if there is one.
    pub(super) fn with_hint(mut self, hint: Option<String>) -> Self {
        self.hint = hint;
        self
    }

    /// Whether the mistake concerns at least one of these settings.
    pub(super) fn is_about(&self, ids: &[String]) -> bool {
        self.settings.iter().any(|id| ids.contains(id))
    }

    /// The ids of the settings that the mistake concerns.
    pub(super) fn settings(&self) -> &[String] {
        &self.settings
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.text)?;
        match &self.hint {
            Some(hint) => write!(f, "\n  hint: {hint}"),
            None => Ok(()),
        }
    }
}

/// The flag, variable and key of a setting.
pub(super) fn names(id: &str) -> String {
    format!("flag {}, variable {}, key {}", flag(id), variable(id), key(id))
}

/// The flag's name: `--like-this`.
pub(super) fn flag(id: &str) -> String {
    format!("--{}", key(id))
}

/// The variable's name: `SMG_LIKE_THIS`.
pub(super) fn variable(id: &str) -> String {
    format!("SMG_{}", id.to_ascii_uppercase())
}

/// The key's name: `like-this`.
pub(super) fn key(id: &str) -> String {
    id.replace('_', "-")
}

/// A key of the file, with the file's path.
pub(super) fn key_in(file: &Path, key: &str) -> String {
    format!("key {key} in {}", file.display())
}

/// A value and what is wrong with it. A reason that contains the value itself stands alone.
pub(super) fn value_and_reason(value: &str, why: &str) -> String {
    if why.starts_with("worker url") { why.to_owned() } else { format!("{} {why}", shown(value)) }
}

/// A value as an error may show it: quoted, shortened, and without the password that a URL may contain.
pub(super) fn shown(value: &str) -> String {
    const LONGEST: usize = 200;
    if value.contains("://") && value.contains('@') {
        return "a url with credentials".to_owned();
    }
    match value.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{:?}…", &value[..end]),
        None => format!("{value:?}"),
    }
}

/// The hint for an unknown name: the most similar known one, if one is similar enough.
pub(super) fn did_you_mean<'a>(
    name: &str,
    known: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    // One edit (a character missing, wrong, additional or swapped) per four characters, but at least one.
    let tolerance = (name.len() / 4).max(1);
    known
        .into_iter()
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, _)| *distance <= tolerance)
        .min()
        .map(|(_, known)| format!("did you mean {known}?"))
}
