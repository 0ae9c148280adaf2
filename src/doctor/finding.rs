//! What an examination finds, as text and as JSON.

use std::fmt::Write as _;

use serde::Serialize;

/// How severe a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// It works, but one more failure would disturb users.
    Warning,
    /// It does not work, or everyone who reaches a port can change it.
    Error,
}

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How severe it is.
    pub severity: Severity,
    /// A name from a closed set, for scripts.
    pub check: &'static str,
    /// The object that it is about.
    pub subject: String,
    /// What was found.
    pub what: String,
    /// Why that matters.
    pub why: &'static str,
    /// What to do.
    pub advice: String,
}

impl Finding {
    /// A finding about `subject`.
    pub(super) fn new(
        severity: Severity,
        check: &'static str,
        subject: impl Into<String>,
        [what, advice]: [String; 2],
        why: &'static str,
    ) -> Self {
        Self { severity, check, subject: subject.into(), what, why, advice }
    }
}

/// The findings for people, and a last line that counts them.
pub(super) fn as_text(findings: &[Finding]) -> String {
    let mut text = String::new();
    let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
    let (errors, warnings) = (count(Severity::Error), count(Severity::Warning));
    for Finding { severity, check, subject, what, why, advice } in findings {
        let severity = match severity {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        };
        let lines =
            format!("{severity}: {subject}: {what} [{check}]\n  why: {why}\n  do: {advice}\n");
        text.push_str(&printable(&lines));
    }
    let notes = findings.len() - errors - warnings;
    writeln!(text, "{errors} errors, {warnings} warnings, {notes} notes")
        .expect("writing to a string does not fail");
    text
}

/// The text without characters that control a terminal, because parts of it come from routers and workers.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '\u{fffd}' } else { c }).collect()
}

/// The findings for scripts.
pub(super) fn as_json(findings: &[Finding]) -> String {
    format!("{:#}\n", serde_json::json!({ "findings": findings }))
}
