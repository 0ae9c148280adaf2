//! Reads the whole body of a request, because it may be sent more than once and routing needs parts of it.

use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::buffered::{Held, Whole};
use super::error::ApiError;

/// The limits of a body's size and speed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// The largest body, in bytes.
    pub(super) most: usize,
    /// The most time between two pieces.
    pub(super) timeout: Duration,
}

/// Reads the whole body of a request. `held` must exist as long as the body.
pub(super) async fn read(
    mut incoming: Incoming,
    headers: &HeaderMap,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok())
        .and_then(|text| text.parse::<usize>().ok());
    if announced.is_some_and(|announced| announced > most) {
        return Err(ApiError::too_large(most));
    }
    let Some(first) = piece(&mut incoming, timeout).await? else {
        return Ok(Bytes::new());
    };
    held.grow(first.len())?;
    if Pin::new(&incoming).is_end_stream() && first.len() <= most {
        // The usual case: the body arrives in one piece, and is not copied.
        return Ok(first);
    }
    // This total limit applies however small the pieces are: a byte per minute must not keep a request open for ever.
    tokio::time::timeout(timeout * PATIENCE, rest(incoming, first, announced, limits, held))
        .await
        .map_err(|_elapsed| ApiError::too_slow())?
}

/// The whole body may take this many times as long as one pause in it.
const PATIENCE: u32 = 10;

/// Reads the rest of the body after its first piece.
async fn rest(
    mut incoming: Incoming,
    first: Bytes,
    announced: Option<usize>,
    limits: Limits,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let Limits { most, timeout } = limits;
    let mut whole = Whole::new(announced.unwrap_or(most));
    let mut next = Some(first);
    while let Some(data) = next {
        if whole.len() + data.len() > most {
            return Err(ApiError::too_large(most));
        }
        whole.push(&data);
        next = piece(&mut incoming, timeout).await?;
        held.grow(next.as_ref().map_or(0, Bytes::len))?;
    }
    Ok(whole.into_bytes())
}

/// The next piece of the body. Trailers are skipped.
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
