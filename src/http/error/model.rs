//! Errors about the model that a request names.

use http::StatusCode;

use super::ApiError;

impl ApiError {
    /// Several models are served and the request names none.
    pub(in crate::http) fn model_missing(form_defect: Option<String>) -> Self {
        let why = form_defect.map(|why| format!(" (the form could not be read: {why})"));
        let message = format!(
            "the request does not name a model, and several models are served: set `model`{}",
            why.unwrap_or_default()
        );
        Self { param: Some("model"), ..Self::bad_request("model_missing", message) }
    }

    /// The model is served by nobody.
    pub(in crate::http) fn no_such_model(model: &str) -> Self {
        let error = Self::new(
            StatusCode::NOT_FOUND,
            "model_not_found",
            "the model does not exist or no worker serves it",
        );
        Self { param: Some("model"), ..error }.about_model(Some(model))
    }

    /// A name that no model can have. `why` is the rest of a sentence that begins with the name.
    pub(in crate::http) fn invalid_model(model: &str, why: &str) -> Self {
        let model: String = model.chars().take(64).collect();
        let error = Self::bad_request("invalid_model", format!("model {model:?} {why}"));
        Self { param: Some("model"), ..error }
    }

    /// The same, naming the model that was asked for, if that is what does not exist.
    pub(in crate::http) fn about_model(mut self, model: Option<&str>) -> Self {
        let why = match self.code {
            "model_not_found" => "does not exist or no worker serves it",
            "model_has_no_worker" => "has no worker at present: its last one was removed",
            _ => return self,
        };
        if let Some(model) = model {
            let model: String = model.chars().take(200).collect();
            self.message = format!("the model {model} {why}");
        }
        self
    }
}
