//! Values of a request's JSON whose meaning needs more than their position.

use std::borrow::Cow;

/// The id of something that a worker has stored: a string, or an object with the member `id`.
pub(super) fn stored_id(text: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(serde::Deserialize)]
    #[serde(untagged)]
    enum Stored<'a> {
        Id(#[serde(borrow)] Cow<'a, str>),
        Object { id: String },
    }
    match serde_json::from_slice(text).ok()? {
        Stored::Id(id) => Some(id),
        Stored::Object { id } => Some(Cow::Owned(id)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_string_or_a_member() {
        for (json, expected) in [
            (r#""resp_1""#, Some("resp_1")),
            (r#""resp\u005f1""#, Some("resp_1")),
            (r#"{"id":"conv_3"}"#, Some("conv_3")),
            ("null", None),
            ("7", None),
            ("{}", None),
        ] {
            assert_eq!(stored_id(json.as_bytes()).as_deref(), expected, "{json}");
        }
    }
}
