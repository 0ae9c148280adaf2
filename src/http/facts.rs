//! The properties of an inference request that routing needs: what is read of its body and of its headers.

use std::borrow::Cow;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use smg_proxy::dispatch::ModelPlace;
use smg_routing::fleet::{Fleet, Listed};
use smg_types::ids::ModelId;

use super::error::ApiError;
use super::form;
use super::peek::{self, Peek};

static X_SMG_ROUTING_KEY: HeaderName = HeaderName::from_static("x-smg-routing-key");

/// The properties of a request that routing needs.
#[derive(Default)]
pub(super) struct Facts {
    pub(super) peek: Peek<'static>,
    pub(super) model_at: Option<ModelPlace>,
    /// Why a form could not be read to its end.
    form_defect: Option<String>,
}

impl Facts {
    /// Reads a form, the query of a request without a body, or else JSON.
    pub(super) async fn read(
        method: &Method,
        query: Option<&str>,
        headers: &HeaderMap,
        body: &Bytes,
    ) -> Result<Self, ApiError> {
        let content_type = headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default();
        if form::is_form(content_type) {
            let form = form::read(body, content_type).await?;
            let peek =
                Peek { model: form.model.map(Into::into), stream: form.stream, ..Peek::default() };
            let model_at = form.model_at.map(ModelPlace::Text);
            return Ok(Self { peek, model_at, form_defect: form.defect });
        }
        if body.is_empty() && *method != Method::POST {
            let model = model_of_query(query);
            return Ok(Self { peek: Peek { model, ..Peek::default() }, ..Self::default() });
        }
        let mut peek = peek::read(body).await?;
        // An empty name counts as none.
        peek.model = peek.model.filter(|name| !name.is_empty());
        let model_at = peek.model_at.take().map(ModelPlace::Json);
        Ok(Self { peek, model_at, form_defect: None })
    }

    /// The model for a request that names none: the only one that the workers list. `any_model`: the request concerns no
    /// particular model.
    ///
    /// # Errors
    /// If several models are served and the request concerns one of them.
    pub(super) fn sole_model(
        &self,
        fleet: &Fleet,
        any_model: bool,
    ) -> Result<Option<ModelId>, ApiError> {
        if self.peek.model.is_some() {
            return Ok(None);
        }
        match fleet.load().listed() {
            Listed::None => Ok(None),
            Listed::One(model) => Ok(Some(model.clone())),
            // A health request for the engine concerns no model. Everything else might go to a worker of the wrong
            // model.
            Listed::Several if any_model => Ok(None),
            Listed::Several => Err(ApiError::model_missing(self.form_defect.clone())),
        }
    }
}

/// The key of the session in the headers: the routing header, else a session header. Without one, the body may have a key.
pub(super) fn session_header(headers: &HeaderMap, names: &[HeaderName]) -> Option<HeaderValue> {
    std::iter::once(&X_SMG_ROUTING_KEY)
        .chain(names)
        .find_map(|name| headers.get(name).filter(|key| !key.is_empty()).cloned())
}

/// The value of the parameter `model`.
fn model_of_query(query: Option<&str>) -> Option<Cow<'static, str>> {
    let pairs: Vec<(String, String)> =
        axum::extract::Query::try_from_uri(&format!("/?{}", query?).parse().ok()?).ok()?.0;
    let model = pairs.into_iter().find(|(name, _)| name == "model")?.1;
    (!model.is_empty()).then_some(Cow::Owned(model))
}
