//! The form of an upload (`/v1/audio/transcriptions`, `/v1/images/edits`), parsed only as far as needed.

use http::HeaderValue;
use serde_json::json;

/// The names under which a form has its file.
const FILES: [&str; 3] = ["file", "image", "image[]"];

/// The fields of a form that a worker needs, as JSON that `ask::Ask` can parse.
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
        let has = |name: &&str| {
            memchr::memmem::find(body, format!("name=\"{name}\"").as_bytes()).is_some()
        };
        if !FILES.iter().any(has) {
            return Err(format!(
                "the form has no file: it has none of the parts {}",
                FILES.join(", ")
            ));
        }
        let mut json = json!({ "stream": field("stream") == Some("true") });
        if let Some(model) = field("model") {
            json["model"] = json!(model);
        }
        if let Some(n) = field("n") {
            let n: usize = n.parse().map_err(|_no_number| format!("n {n:?} is no number"))?;
            json["n"] = json!(n);
        }
        Ok(Self { json: json.to_string() })
    }
}
