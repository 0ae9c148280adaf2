//! `/ui`: the cluster page, one HTML document that contains its style and its script.
//!
//! The document is the same for everybody and contains no data. Its script reads the admin routes of this router, with a key
//! if the router needs one, and works behind a prefix of the path because all its URLs are relative.
//!
//! The content security policy allows exactly this style and this script, by their hashes, and connections to the origin of
//! the page. Text of others (URLs, names of models, errors) can't become a script: there is no other script that may run, and
//! the policy closes the functions that parse HTML.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};

/// The document without its style and its script.
const DOCUMENT: &str = include_str!("ui/page.html");

/// The place of the style in the document.
const STYLE_MARK: &str = "/* page.css */";

/// The place of the script in the document.
const SCRIPT_MARK: &str = "/* scripts */";

const STYLE: &str = include_str!("ui/page.css");

/// The parts of the script, in the order in which they define what the next ones use.
const SCRIPTS: [&str; 9] = [
    include_str!("ui/dom.js"),
    include_str!("ui/table.js"),
    include_str!("ui/api.js"),
    include_str!("ui/events.js"),
    include_str!("ui/routers.js"),
    include_str!("ui/workers.js"),
    include_str!("ui/actions.js"),
    include_str!("ui/state.js"),
    include_str!("ui/main.js"),
];

static CROSS_ORIGIN_OPENER_POLICY: HeaderName =
    HeaderName::from_static("cross-origin-opener-policy");

/// The document and the headers that depend on it.
struct Page {
    text: Bytes,
    tag: HeaderValue,
    policy: HeaderValue,
}

static PAGE: LazyLock<Page> = LazyLock::new(|| {
    let script = SCRIPTS.concat();
    let text = DOCUMENT.replacen(STYLE_MARK, STYLE, 1).replacen(SCRIPT_MARK, &script, 1);
    let policy = format!(
        "default-src 'none'; script-src '{}'; style-src '{}'; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
        source_hash(&script),
        source_hash(STYLE),
    );
    let tag = format!("\"{}\"", source_hash(&text));
    let header = |text: String| HeaderValue::try_from(text).expect("hashes are visible ASCII");
    Page { tag: header(tag), policy: header(policy), text: text.into() }
});

/// The hash of a text as content security policies write it.
fn source_hash(text: &str) -> String {
    format!("sha256-{}", BASE64_STANDARD.encode(digest(&SHA256, text.as_bytes())))
}

/// Answers `GET /ui`.
pub(super) async fn page(headers: HeaderMap) -> Response {
    let page = &*PAGE;
    let is_known = headers.get(header::IF_NONE_MATCH) == Some(&page.tag);
    let mut answer = if is_known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        page.text.clone().into_response()
    };
    let fixed = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        // The browser asks each time whether the page has changed, so that it shows that of this version of the router.
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (CROSS_ORIGIN_OPENER_POLICY.clone(), "same-origin"),
    ];
    let answers = answer.headers_mut();
    for (name, value) in fixed {
        answers.insert(name, HeaderValue::from_static(value));
    }
    answers.insert(header::CONTENT_SECURITY_POLICY, page.policy.clone());
    answers.insert(header::ETAG, page.tag.clone());
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_the_document_has_its_place_once() {
        for mark in [STYLE_MARK, SCRIPT_MARK] {
            assert_eq!(DOCUMENT.matches(mark).count(), 1, "{mark}");
        }
        let text = std::str::from_utf8(&PAGE.text).unwrap();
        // A part that contained its own end would be cut there.
        for end in ["</style", "</script"] {
            assert_eq!(text.matches(end).count(), 1, "{end}");
        }
    }

    #[test]
    fn a_source_hash_is_that_of_the_specification() {
        // Content Security Policy Level 3, section 2.3.1.
        assert_eq!(
            source_hash("alert('Hello, world.');"),
            "sha256-qznLcsROx4GACP2dm0UCKCzCG+HiZ1guq6ZZDob/Tng="
        );
    }
}
