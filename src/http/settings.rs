//! The settings with which this router was started, as `GET /ha/config` shows them. `config` fills them in.

use std::sync::OnceLock;

use serde::Serialize;
use serde_json::{Value, json};

/// One setting as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    /// The key in the configuration file, such as `port`.
    pub name: String,
    /// The heading under which `--help` lists it.
    pub group: String,
    /// The value; `null`: it is not set. A secret is shown as `***`.
    pub value: Value,
    /// The place from which the value came, such as `flag --port`.
    pub source: String,
}

/// All settings as they are shown, once they are known.
#[derive(Debug, Default)]
pub struct ShownSettings(OnceLock<Value>);

impl ShownSettings {
    /// Sets what is shown: the settings, and the tables `workers` and `rate_limits` of the file. Only the first call has an
    /// effect.
    pub fn set(&self, settings: &[Setting], workers: &[Value], rate_limits: &[Value]) {
        let shown = json!({ "settings": settings, "workers": workers, "rate_limits": rate_limits });
        self.0.get_or_init(|| shown);
    }

    /// What is shown. A router that was built without a configuration file and arguments shows no settings.
    pub(super) fn document(&self) -> Value {
        let none = || json!({ "settings": [], "workers": [], "rate_limits": [] });
        self.0.get().cloned().unwrap_or_else(none)
    }
}
