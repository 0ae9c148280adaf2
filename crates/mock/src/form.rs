//! The form of an upload (`/v1/audio/transcriptions`), parsed only as far as needed.

use http::HeaderValue;
use serde_json::json;

/// The two fields of a form that a worker needs, as JSON that `ask::Ask` can parse.
pub(super) struct Multipart {
    pub(super) json: String,
}

impl Multipart {
    pub(super) fn read(content_type: Option<&HeaderValue>, body: &[u8]) -> Result<Self, String> {
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
        let boundary =
            parameters.split(';').find_map(|parameter| parameter.trim().strip_prefix("boundary="));
        let (true, Some(boundary)) = (kind.eq_ignore_ascii_case("multipart/form-data"), boundary)
        else {
            return Err(format!(
                "content-type {content_type:?} is not multipart/form-data with a boundary"
            ));
        };
        let delimiter = format!("--{}", boundary.trim_matches('"'));
        if memchr::memmem::find(body, format!("{delimiter}--").as_bytes()).is_none() {
            return Err(format!("the form does not end with {delimiter}--"));
        }
        let field = |name: &str| {
            let at = memchr::memmem::find(body, format!("name=\"{name}\"").as_bytes())?;
            let value = at + memchr::memmem::find(&body[at..], b"\r\n\r\n")? + 4;
            let end = value + memchr::memmem::find(&body[value..], b"\r\n--")?;
            std::str::from_utf8(&body[value..end]).ok()
        };
        if field("file").is_none() && memchr::memmem::find(body, b"name=\"file\"").is_none() {
            return Err("the form has no file".to_owned());
        }
        let mut json = json!({ "stream": field("stream") == Some("true") });
        if let Some(model) = field("model") {
            json["model"] = json!(model);
        }
        Ok(Self { json: json.to_string() })
    }
}
