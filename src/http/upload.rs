//! The body of a request, read as a whole: it may be sent more than once, and routing looks into it.

use std::pin::Pin;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::buffered::Held;
use super::error::ApiError;

/// How large a body may be, and how slow.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// In bytes.
    pub(super) most: usize,
    /// Between two pieces.
    pub(super) timeout: Duration,
}

/// Reads a request's body as a whole. `held` is to live as long as the body.
pub(super) async fn read(
    mut incoming: Incoming,
    headers: &HeaderMap,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    let told = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    if told.is_some_and(|told| told > most) {
        return Err(ApiError::too_large(most));
    }
    let Some(first) = piece(&mut incoming, timeout).await? else {
        return Ok(Bytes::new());
    };
    held.grow(first.len())?;
    if Pin::new(&incoming).is_end_stream() && first.len() <= most {
        // The usual case: one piece, and no copy of it.
        return Ok(first);
    }
    // However small its pieces are: a byte a minute does not keep a request open for ever.
    tokio::time::timeout(timeout * PATIENCE, rest(incoming, first, told, limits, held))
        .await
        .map_err(|_elapsed| ApiError::too_slow())?
}

/// A whole body may take this many times as long as one pause in it.
const PATIENCE: u32 = 10;

/// Reads the body on from its first piece.
async fn rest(
    mut incoming: Incoming,
    first: Bytes,
    told: Option<usize>,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    // What a client announces is not reserved before it comes.
    let mut whole = BytesMut::with_capacity(told.unwrap_or(0).min(1 << 20).max(first.len()));
    let mut next = Some(first);
    while let Some(data) = next {
        if whole.len() + data.len() > most {
            return Err(ApiError::too_large(most));
        }
        whole.extend_from_slice(&data);
        next = piece(&mut incoming, timeout).await?;
        held.grow(next.as_ref().map_or(0, Bytes::len))?;
    }
    Ok(whole.freeze())
}

/// The next piece of the body; trailers are passed over.
async fn piece(incoming: &mut Incoming, timeout: Duration) -> Result<Option<Bytes>, ApiError> {
    loop {
        let frame = tokio::time::timeout(timeout, incoming.frame())
            .await
            .map_err(|_elapsed| ApiError::too_slow())?;
        match frame {
            None => return Ok(None),
            Some(Err(_broken)) => return Err(ApiError::body_broken()),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => return Ok(Some(data)),
                Err(_trailers) => {}
            },
        }
    }
}
