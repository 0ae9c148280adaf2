//! Reads what routing needs from a multipart form (RFC 7578): the values of the parts `model` and `stream`.
//!
//! multer does the parsing, so that quoting, parameter order and boundaries follow the RFCs. It gets the form in slices
//! and skips every other part, so a large upload is neither copied as a whole nor parsed in one turn of the thread. The
//! worker receives the bytes that the client sent.

use std::convert::Infallible;
use std::ops::Range;

use bytes::Bytes;
use memchr::memmem;
use multer::{Field, Multipart};

/// The number of bytes of the form that the parser gets at a time.
const SLICE_BYTES: usize = 64 * 1024;

/// The number of slices after which other tasks of the thread get a turn.
const SLICES_PER_TURN: usize = 16;

/// The longest value of `model` or `stream` that is read, in bytes.
const MAX_VALUE_BYTES: usize = 1024;

/// The values of a form that routing needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Form {
    /// The value of the part `model`.
    pub(super) model: Option<String>,
    /// The position of that value in the body.
    pub(super) model_at: Option<Range<usize>>,
    /// Whether the part `stream` asks for a stream.
    pub(super) stream: bool,
    /// Why the form could not be read to its end. A worker may be more lenient, so the request is not refused for this
    /// alone.
    pub(super) defect: Option<String>,
}

/// Why a form is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum FormError {
    /// Two parts name different models, and workers differ in which of them they use.
    #[error("the form has two parts `model` with different values, {0:?} and {1:?}")]
    TwoModels(String, String),
    /// The part `model` is a file.
    #[error("the form's part `model` is a file; it must be a plain value")]
    ModelIsFile,
    /// The part `model` is not a text of valid length.
    #[error("the form's part `model` is not text of at most {MAX_VALUE_BYTES} bytes")]
    ModelNotText,
}

/// Whether `content_type` announces a multipart form.
pub(super) fn is_form(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    kind.eq_ignore_ascii_case("multipart/form-data")
}

/// Reads a form.
///
/// # Errors
/// If its model is ambiguous or not a text.
pub(super) async fn read(body: &Bytes, content_type: &str) -> Result<Form, FormError> {
    let boundary = match multer::parse_boundary(content_type) {
        Ok(boundary) => boundary,
        Err(error) => return Ok(Form { defect: Some(error.to_string()), ..Form::default() }),
    };
    let mut parts = Multipart::new(slices(body.clone()), boundary.clone());
    let mut form = Form::default();
    let mut model_part = None;
    loop {
        let field = match parts.next_field().await {
            Ok(Some(field)) => field,
            Ok(None) => break,
            Err(error) => {
                form.defect = Some(error.to_string());
                break;
            }
        };
        match field.name() {
            Some("model") => {
                if field.file_name().is_some() {
                    return Err(FormError::ModelIsFile);
                }
                let at = field.index();
                let Some(value) = text(field).await else { return Err(FormError::ModelNotText) };
                match form.model.take() {
                    Some(other) if other != value => {
                        return Err(FormError::TwoModels(other, value));
                    }
                    // Of two equal parts, the second can't be renamed alone.
                    Some(_) => model_part = None,
                    None => model_part = Some(at),
                }
                form.model = Some(value);
            }
            Some("stream") => {
                let value = text(field).await.unwrap_or_default().to_ascii_lowercase();
                form.stream = matches!(value.as_str(), "true" | "1" | "on" | "yes");
            }
            // The parser skips the rest of a field that is dropped.
            Some(_) | None => {}
        }
    }
    form.model = form.model.filter(|name| !name.is_empty());
    if let (Some(part), Some(model)) = (model_part, &form.model) {
        form.model_at =
            place(body, &boundary, part).filter(|at| body[at.clone()] == *model.as_bytes());
    }
    Ok(form)
}

/// The value of a short part; `None` if it is too long, incomplete or not UTF-8.
async fn text(mut field: Field<'_>) -> Option<String> {
    let mut value = Vec::new();
    while let Some(piece) = field.chunk().await.ok()? {
        value.extend_from_slice(&piece);
        if value.len() > MAX_VALUE_BYTES {
            return None;
        }
    }
    String::from_utf8(value).ok()
}

/// The body in slices, with turns for other tasks in between.
fn slices(body: Bytes) -> impl tokio_stream::Stream<Item = Result<Bytes, Infallible>> + Send {
    Slices { body, turn: 0 }
}

struct Slices {
    body: Bytes,
    turn: usize,
}

impl tokio_stream::Stream for Slices {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        use std::task::Poll;
        if self.body.is_empty() {
            return Poll::Ready(None);
        }
        self.turn += 1;
        if self.turn.is_multiple_of(SLICES_PER_TURN) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let most = self.body.len().min(SLICE_BYTES);
        Poll::Ready(Some(Ok(self.body.split_to(most))))
    }
}

/// The position of the content of the part with this index.
fn place(body: &[u8], boundary: &str, part: usize) -> Option<Range<usize>> {
    let delimiter = format!("--{boundary}");
    let mut delimiters = memmem::find_iter(body, delimiter.as_bytes())
        .filter(|at| *at == 0 || body[..*at].ends_with(b"\r\n"))
        .skip(part);
    let head = delimiters.next()?;
    let begin = head + memmem::find(&body[head..], b"\r\n\r\n")? + 4;
    let end = delimiters.next()?.checked_sub(2)?;
    (begin <= end).then_some(begin..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &str = "multipart/form-data; boundary=X";

    fn form(parts: &[(&str, &str)]) -> Bytes {
        let mut body = String::new();
        for (head, value) in parts {
            body.push_str(&format!("--X\r\n{head}\r\n\r\n{value}\r\n"));
        }
        body.push_str("--X--\r\n");
        body.into()
    }

    async fn model(head: &str) -> Option<String> {
        let file = "Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\nContent-Type: audio/wav";
        let before = form(&[(head, "whisper"), (file, "RIFF")]);
        let after = form(&[(file, "RIFF"), (head, "whisper")]);
        let (before, after) =
            (read(&before, TYPE).await.unwrap(), read(&after, TYPE).await.unwrap());
        assert_eq!(before.model, after.model, "{head}");
        before.model
    }

    #[tokio::test]
    async fn the_model_is_read_however_its_name_is_written() {
        for head in [
            "Content-Disposition: form-data; name=\"model\"",
            "Content-Disposition: form-data; name=model",
            "content-disposition:form-data;name=model",
            "CONTENT-DISPOSITION: Form-Data; name=\"model\"",
            "Content-Type: text/plain; charset=utf-8\r\nContent-Disposition: form-data; name=model",
            "Content-Disposition: form-data; name=\"model\"\r\nContent-Length: 7",
        ] {
            assert_eq!(model(head).await.as_deref(), Some("whisper"), "{head}");
        }
    }

    #[tokio::test]
    async fn a_file_called_model_names_no_model() {
        for head in [
            "Content-Disposition: form-data; name=\"file\"; filename=\"model\"",
            "Content-Disposition: form-data; filename=\"model\"; name=\"file\"",
            "Content-Disposition: form-data; name=\"file\"; filename=\"name=model\"",
            "Content-Disposition: form-data; name=\"prompt\"",
        ] {
            assert_eq!(model(head).await, None, "{head}");
        }
    }

    #[tokio::test]
    async fn what_looks_like_a_part_inside_a_file_is_none() {
        let inner = "--Y\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nother";
        let head = "Content-Disposition: form-data; name=\"file\"; filename=\"f\"";
        assert_eq!(read(&form(&[(head, inner)]), TYPE).await.unwrap().model, None);
    }

    #[tokio::test]
    async fn the_place_is_that_of_the_value() {
        let mut parts: Vec<(String, String)> = (0..100)
            .map(|n| (format!("Content-Disposition: form-data; name=\"p{n}\""), "x".repeat(n)))
            .collect();
        parts.push(("Content-Disposition: form-data; name=model".to_owned(), "nick".to_owned()));
        let parts: Vec<_> = parts.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        let body = form(&parts);
        let read = read(&body, TYPE).await.unwrap();
        assert_eq!(&body[read.model_at.unwrap()], b"nick");
    }

    #[tokio::test]
    async fn an_ambiguous_model_is_refused() {
        let head = "Content-Disposition: form-data; name=\"model\"";
        let error = read(&form(&[(head, "a"), (head, "b")]), TYPE).await.unwrap_err();
        assert_eq!(error, FormError::TwoModels("a".to_owned(), "b".to_owned()));
        let file = "Content-Disposition: form-data; name=\"model\"; filename=\"m\"";
        assert_eq!(read(&form(&[(file, "a")]), TYPE).await.unwrap_err(), FormError::ModelIsFile);
        let long = "m".repeat(MAX_VALUE_BYTES + 1);
        let error = read(&form(&[(head, &long)]), TYPE).await.unwrap_err();
        assert_eq!(error, FormError::ModelNotText);
    }

    #[tokio::test]
    async fn a_broken_form_says_what_is_wrong() {
        let head = "Content-Disposition: form-data; name=\"model\"";
        let whole = form(&[(head, "a"), ("Content-Disposition: form-data; name=\"x\"", "y")]);
        let cut = whole.slice(..whole.len() - 8);
        let read_cut = read(&cut, TYPE).await.unwrap();
        assert_eq!(read_cut.model.as_deref(), Some("a"));
        assert!(read_cut.defect.is_some());
        let without = read(&whole, "multipart/form-data").await.unwrap();
        assert!(without.model.is_none() && without.defect.is_some());
    }

    #[tokio::test]
    async fn a_large_file_is_read_in_turns() {
        let large = "x".repeat(4 << 20);
        let file = "Content-Disposition: form-data; name=\"file\"; filename=\"f\"";
        let head = "Content-Disposition: form-data; name=\"model\"";
        let body = form(&[(file, &large), (head, "a")]);
        let mut turns = 0;
        let mut reading = std::pin::pin!(read(&body, TYPE));
        let form = std::future::poll_fn(|cx| {
            turns += 1;
            reading.as_mut().poll(cx)
        })
        .await
        .unwrap();
        assert_eq!(form.model.as_deref(), Some("a"));
        assert!(turns >= 4, "{turns} turns");
    }
}
