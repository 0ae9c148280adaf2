//! Parses the head of an answer. This is plain code. The head determines the framing of the body (RFC 9112, section
//! 6.3) and whether the connection can be used again (section 9.3).

use std::mem::MaybeUninit;

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};

use super::decode::{Decoder, Incoming};

/// The most fields in the head of an answer.
const MOST_FIELDS: usize = 256;
/// The most bytes of an answer before its body, informational answers included.
const MOST_BYTES: usize = 64 << 10;

/// Why an answer is not valid HTTP/1.1.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// The head can't be parsed.
    #[error("the head of the answer cannot be read")]
    Head(#[source] httparse::Error),
    /// The head is too long.
    #[error("the head of the answer has more than {MOST_BYTES} bytes")]
    TooLong,
    /// The status is not in 100..=999, or a field is not valid.
    #[error("the head of the answer has an impossible status or field")]
    Field,
    /// The worker switched to another protocol, although the request did not ask for it.
    #[error("the worker switched to another protocol")]
    Switched,
    /// The length of the body is not a single number.
    #[error("the answer's content-length is {0:?}")]
    Length(String),
}

/// The head of an answer, and the part of its body that was received with it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The fields as received, apart from the framing: there is at most one length, and none beside a transfer coding.
    pub(super) headers: HeaderMap,
    pub(super) incoming: Incoming,
    /// Whether the connection can be used after the body.
    pub(super) keeps: bool,
}

/// Reads an answer up to the beginning of its body.
#[derive(Debug, Default)]
pub(super) struct HeadReader {
    /// The part of the head that was received so far.
    partial: BytesMut,
    /// The length of `partial` when it was last parsed, in bytes.
    parsed: usize,
    /// The number of bytes of informational answers.
    passed_over: usize,
    /// Whether the request asks the worker to switch to another protocol.
    switches: bool,
}

impl HeadReader {
    /// Reads the answer to a request. `switches`: the request asks for another protocol, and 101 is an answer to it.
    pub(super) fn new(switches: bool) -> Self {
        Self { switches, ..Self::default() }
    }

    /// Whether any part of an answer was received, informational answers included.
    pub(super) fn has_begun(&self) -> bool {
        self.passed_over > 0 || !self.partial.is_empty()
    }

    /// Adds the bytes of one read and empties `read`. Returns `None` if the head is not complete.
    pub(super) fn feed(
        &mut self,
        read: &mut BytesMut,
        method: &Method,
    ) -> Result<Option<Answer>, ProtocolError> {
        if self.partial.is_empty() {
            return self.take(read, method);
        }
        let mut whole = std::mem::take(&mut self.partial);
        whole.extend_from_slice(read);
        read.clear();
        // A worker that sends its head byte by byte must not cause a parse per byte.
        if !has_blank_line(&whole[self.parsed.saturating_sub(3)..])
            && whole.len() < 2 * self.parsed
            && whole.len() < MOST_BYTES
        {
            self.partial = whole;
            return Ok(None);
        }
        self.take(&mut whole, method)
    }

    fn take(
        &mut self,
        read: &mut BytesMut,
        method: &Method,
    ) -> Result<Option<Answer>, ProtocolError> {
        loop {
            let mut fields = [const { MaybeUninit::uninit() }; MOST_FIELDS];
            let mut head = httparse::Response::new(&mut []);
            let parsed = httparse::ParserConfig::default()
                .parse_response_with_uninit_headers(&mut head, read, &mut fields)
                .map_err(ProtocolError::Head)?;
            let length = match parsed {
                httparse::Status::Complete(length) => length,
                httparse::Status::Partial => read.len(),
            };
            if self.passed_over + length > MOST_BYTES {
                return Err(ProtocolError::TooLong);
            }
            if parsed.is_partial() {
                self.parsed = read.len();
                self.partial.extend_from_slice(read);
                read.clear();
                return Ok(None);
            }
            let status = head.code.and_then(|code| StatusCode::from_u16(code).ok());
            let status = status.ok_or(ProtocolError::Field)?;
            let has_switched = status == StatusCode::SWITCHING_PROTOCOLS;
            if has_switched && !self.switches {
                return Err(ProtocolError::Switched);
            }
            if status.is_informational() && !has_switched {
                self.passed_over += length;
                read.advance(length);
                continue;
            }
            let mut headers = copied(&read[..length], head.headers)?;
            let is_old = head.version == Some(0);
            let (decoder, keeps) = if has_switched {
                // What follows is no body: the connection is the other protocol's.
                (Decoder::UntilClose, false)
            } else {
                framing(method, status, is_old, &mut headers)?
            };
            read.advance(length);
            let mut incoming = Incoming::new(decoder);
            incoming.begin(read);
            return Ok(Some(Answer { status, headers, incoming, keeps }));
        }
    }
}

/// Whether a head ends within these bytes.
fn has_blank_line(bytes: &[u8]) -> bool {
    memchr::memchr_iter(b'\n', bytes).any(|at| {
        let after = &bytes[at + 1..];
        after.starts_with(b"\n") || after.starts_with(b"\r\n")
    })
}

/// The fields, with values that are slices of one copy of the head.
fn copied(head: &[u8], fields: &[httparse::Header<'_>]) -> Result<HeaderMap, ProtocolError> {
    let copy = Bytes::copy_from_slice(head);
    let mut headers = HeaderMap::with_capacity(fields.len());
    for field in fields {
        let name = HeaderName::from_bytes(field.name.as_bytes());
        // An empty value may lie outside of the head.
        let value = if field.value.is_empty() {
            Ok(HeaderValue::from_static(""))
        } else {
            let at = field.value.as_ptr() as usize - head.as_ptr() as usize;
            HeaderValue::from_maybe_shared(copy.slice(at..at + field.value.len()))
        };
        let (Ok(name), Ok(value)) = (name, value) else { return Err(ProtocolError::Field) };
        headers.append(name, value);
    }
    Ok(headers)
}

/// The framing of the body, and whether the connection can be used after it.
fn framing(
    method: &Method,
    status: StatusCode,
    is_old: bool,
    headers: &mut HeaderMap,
) -> Result<(Decoder, bool), ProtocolError> {
    let has_option = |word: &str| {
        headers.get_all(header::CONNECTION).iter().any(|value| has_token(value.as_bytes(), word))
    };
    let keeps = !has_option("close") && (!is_old || has_option("keep-alive"));
    let length = length(headers)?;
    let last_coding = headers.get_all(header::TRANSFER_ENCODING).iter().next_back().map(|value| {
        let last = value.as_bytes().rsplit(|byte| *byte == b',').next().unwrap_or_default();
        last.trim_ascii().eq_ignore_ascii_case(b"chunked")
    });
    if last_coding.is_some() {
        // The coding overrides the length, which must not be forwarded.
        headers.remove(header::CONTENT_LENGTH);
    } else if let Some(length) = length
        && is_repeated(headers)
    {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let bodiless = *method == Method::HEAD
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    Ok(match (last_coding, length) {
        _ if bodiless => (Decoder::Done, keeps),
        // A length beside a coding, or a coding in HTTP/1.0, may be an attempt to have the answer read in two ways.
        (Some(true), length) => (Decoder::CHUNKED, keeps && length.is_none() && !is_old),
        (None, Some(length)) => (Decoder::of_length(length), keeps),
        (Some(false), _) | (None, None) => (Decoder::UntilClose, false),
    })
}

/// The length of the body, if it is given. Repetitions are allowed if they are equal.
fn length(headers: &HeaderMap) -> Result<Option<u64>, ProtocolError> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_LENGTH) {
        for part in value.as_bytes().split(|byte| *byte == b',') {
            let digits = part.trim_ascii();
            let number = digits
                .iter()
                .all(u8::is_ascii_digit)
                .then(|| std::str::from_utf8(digits).ok()?.parse::<u64>().ok())
                .flatten();
            if number.is_none() || found.is_some_and(|found| Some(found) != number) {
                let shown = headers.get_all(header::CONTENT_LENGTH).iter();
                let shown: Vec<_> =
                    shown.map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
                return Err(ProtocolError::Length(shown.join(", ").chars().take(64).collect()));
            }
            found = number;
        }
    }
    Ok(found)
}

/// Whether the length is given more than once.
fn is_repeated(headers: &HeaderMap) -> bool {
    let mut all = headers.get_all(header::CONTENT_LENGTH).iter();
    all.next().is_some_and(|first| first.as_bytes().contains(&b',')) || all.next().is_some()
}

/// Whether a list of tokens contains this one.
fn has_token(list: &[u8], token: &str) -> bool {
    list.split(|byte| *byte == b',')
        .any(|word| word.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn answer(bytes: &[u8]) -> Result<Option<Answer>, ProtocolError> {
        HeadReader::default().feed(&mut BytesMut::from(bytes), &Method::POST)
    }

    /// The framing of an answer with these fields.
    fn framed(
        method: &Method,
        start: &str,
        fields: &str,
    ) -> Result<(Decoder, bool), ProtocolError> {
        let head = format!("HTTP/{start} X\r\n{fields}\r\n");
        HeadReader::default().feed(&mut BytesMut::from(head.as_bytes()), method).map(|answer| {
            let answer = answer.expect("the head is complete");
            let decoder = match (answer.incoming.is_done(), answer.incoming.left()) {
                (true, _) => Decoder::Done,
                (false, Some(left)) => Decoder::Length(left),
                (false, None) if { answer.incoming }.close() => Decoder::UntilClose,
                (false, None) => Decoder::CHUNKED,
            };
            (decoder, answer.keeps)
        })
    }

    #[test]
    fn the_framing_follows_rfc_9112() {
        use Decoder::{Done, Length, UntilClose};
        const CHUNKED: Decoder = Decoder::CHUNKED;
        let cases = [
            ("1.1 200", "content-length: 5\r\n", Length(5), true),
            ("1.1 200", "content-length: 0\r\n", Done, true),
            ("1.1 200", "Content-Length: 5\r\ncontent-length: 5\r\n", Length(5), true),
            ("1.1 200", "content-length: 5, 5\r\n", Length(5), true),
            ("1.1 200", "", UntilClose, false),
            ("1.1 200", "transfer-encoding: chunked\r\n", CHUNKED, true),
            ("1.1 200", "transfer-encoding: gzip, Chunked\r\n", CHUNKED, true),
            ("1.1 200", "transfer-encoding: gzip\r\ntransfer-encoding: chunked\r\n", CHUNKED, true),
            ("1.1 200", "transfer-encoding: chunked, gzip\r\n", UntilClose, false),
            ("1.1 200", "transfer-encoding: identity\r\n", UntilClose, false),
            ("1.1 200", "transfer-encoding: chunked\r\ncontent-length: 5\r\n", CHUNKED, false),
            ("1.0 200", "transfer-encoding: chunked\r\n", CHUNKED, false),
            ("1.0 200", "content-length: 5\r\n", Length(5), false),
            ("1.0 200", "content-length: 5\r\nconnection: Keep-Alive\r\n", Length(5), true),
            ("1.1 200", "content-length: 5\r\nconnection: x, Close\r\n", Length(5), false),
            ("1.1 200", "content-length: 5\r\nconnection: closed\r\n", Length(5), true),
            (
                "1.1 200",
                "content-length: 5\r\nconnection: a\r\nconnection: close\r\n",
                Length(5),
                false,
            ),
            ("1.1 204", "content-length: 5\r\n", Done, true),
            ("1.1 304", "transfer-encoding: chunked\r\n", Done, true),
        ];
        for (start, fields, decoder, keeps) in cases {
            assert_eq!(
                framed(&Method::POST, start, fields),
                Ok((decoder, keeps)),
                "{start} {fields}"
            );
        }
        assert_eq!(framed(&Method::HEAD, "1.1 200", "content-length: 5\r\n"), Ok((Done, true)));
    }

    #[test]
    fn an_invalid_or_ambiguous_length_is_refused() {
        for fields in [
            "content-length: 5\r\ncontent-length: 6\r\n",
            "content-length: 5, 6\r\n",
            "content-length: +5\r\n",
            "content-length: 0x5\r\n",
            "content-length: \r\n",
            "content-length: 5,\r\n",
            "content-length: 99999999999999999999\r\n",
            "content-length: 5\r\ncontent-length: 6\r\ntransfer-encoding: chunked\r\n",
        ] {
            let refused = framed(&Method::POST, "1.1 200", fields);
            assert!(matches!(refused, Err(ProtocolError::Length(_))), "{fields} {refused:?}");
        }
    }

    #[test]
    fn the_forwarded_length_is_the_one_that_applies() {
        let forwarded = |fields: &str| {
            let head = format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
            let headers = answer(head.as_bytes()).unwrap().unwrap().headers;
            headers.get_all("content-length").iter().cloned().collect::<Vec<_>>()
        };
        assert_eq!(forwarded("content-length: 5\r\ncontent-length: 5\r\n"), ["5"]);
        assert_eq!(forwarded("content-length: 5,5\r\n"), ["5"]);
        assert!(forwarded("content-length: 5\r\ntransfer-encoding: chunked\r\n").is_empty());
    }

    #[test]
    fn informational_answers_are_skipped() {
        let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n\
                      HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx: 1\r\n\r\nok";
        let mut answer = answer(bytes).unwrap().unwrap();
        assert_eq!((answer.status.as_u16(), &answer.headers["x"]), (200, &"1".parse().unwrap()));
        assert!(!answer.headers.contains_key("link"));
        assert_eq!(answer.incoming.next_piece().unwrap(), "ok");
        let switched = framed(&Method::POST, "1.1 101", "upgrade: x\r\n");
        assert_eq!(switched, Err(ProtocolError::Switched));
    }

    #[test]
    fn what_is_not_http_is_refused() {
        for bytes in ["SSH-2.0-x\r\n", "HTTP/2 200 OK\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n"] {
            assert!(matches!(answer(bytes.as_bytes()), Err(ProtocolError::Head(_))), "{bytes}");
        }
        let fields = |n: usize| format!("HTTP/1.1 200 OK\r\n{}\r\n", "a: b\r\n".repeat(n));
        assert_eq!(answer(fields(256).as_bytes()).unwrap().unwrap().headers.len(), 256);
        let refused = answer(fields(257).as_bytes()).unwrap_err();
        assert_eq!(refused, ProtocolError::Head(httparse::Error::TooManyHeaders));
    }

    #[test]
    fn a_head_without_end_is_refused() {
        let start = b"HTTP/1.1 200 OK\r\nx: ";
        let mut reader = HeadReader::default();
        reader.feed(&mut BytesMut::from(&start[..]), &Method::POST).unwrap();
        let mut refused = None;
        for _ in 0..70 {
            match reader.feed(&mut BytesMut::from(&[b'x'; 1024][..]), &Method::POST) {
                Ok(answer) => assert!(answer.is_none()),
                Err(error) => refused = Some(error),
            }
            if refused.is_some() {
                break;
            }
        }
        assert_eq!(refused, Some(ProtocolError::TooLong));
        let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(4000);
        assert_eq!(answer(endless.as_bytes()).unwrap_err(), ProtocolError::TooLong);
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_head(at in prop::collection::vec(0..130usize, 0..12)) {
            let bytes: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\
                                 x-a:  1 \r\nx-empty:\r\nx-a: 2\r\n\r\nabc";
            let mut at = at;
            at.extend([0, bytes.len()]);
            at.retain(|at| *at <= bytes.len());
            at.sort_unstable();
            at.dedup();
            let mut reader = HeadReader::default();
            let mut pieces = at.windows(2).map(|ends| BytesMut::from(&bytes[ends[0]..ends[1]]));
            let mut answer = loop {
                let mut piece = pieces.next().expect("the head ends before the bytes do");
                if let Some(answer) = reader.feed(&mut piece, &Method::POST).unwrap() {
                    break answer;
                }
            };
            let mut body = Vec::new();
            loop {
                while let Some(piece) = answer.incoming.next_piece() {
                    body.extend_from_slice(&piece);
                }
                match pieces.next() {
                    Some(mut piece) => answer.incoming.feed(&mut piece),
                    None => break,
                }
            }
            prop_assert_eq!(body, b"abc");
            let values: Vec<_> = answer.headers.get_all("x-a").iter().collect();
            prop_assert_eq!(values, ["1", "2"]);
            prop_assert_eq!(&answer.headers["x-empty"], "");
        }

        #[test]
        fn garbage_is_refused_without_a_panic(
            bytes in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..200),
                "HTTP/1\\.[01] [0-9]{3} [a-z]{0,3}\r\n([a-z:, 0-9\r\n]{0,40}\r\n){0,5}\r\n"
                    .prop_map(String::into_bytes),
            ],
        ) {
            let _read = answer(&bytes).is_ok();
        }
    }
}
