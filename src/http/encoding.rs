//! Compressed request bodies (`content-encoding`): they are refused with a list of the supported encodings, or decoded
//! if `--decompress-requests` is set. The decoded size is bounded by the payload limit, so that a small body which
//! expands without end is refused early.

use std::pin::Pin;

use async_compression::tokio::bufread::{
    BrotliDecoder, DeflateDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder,
};
use bytes::Bytes;
use http::{HeaderMap, header};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::buffered::{Held, Whole};
use super::error::ApiError;

/// The encodings that are decoded, in the format of `accept-encoding`.
const DECODED: &str = "gzip, zstd, br, deflate";

/// The most encodings that may be applied one on top of the other.
const MAX_LAYERS: usize = 3;

/// Room for decoded bytes at each step.
const READ_BYTES: usize = 16 * 1024;

/// The number of decoded bytes after which other tasks of the thread get a turn.
const TURN_BYTES: usize = 1 << 20;

/// A supported encoding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Encoding {
    Gzip,
    Zstd,
    Brotli,
    Deflate,
}

/// Decodes `body` if its headers name an encoding, and removes `content-encoding` from the headers. If `decode` is off,
/// an encoded body is refused.
///
/// # Errors
/// 415 with the name of an encoding that is not decoded; 413 if the decoded body exceeds `most` bytes; 400 if the body
/// does not have its encoding; 503 if the bodies of all requests leave no room.
pub(super) async fn decoded(
    body: Bytes,
    headers: &mut HeaderMap,
    decode: bool,
    most: usize,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    // The usual case: the body is not encoded.
    if !headers.contains_key(header::CONTENT_ENCODING) {
        return Ok(body);
    }
    let layers = layers(headers, decode)?;
    let mut body = body;
    // The encoding that was applied last is decoded first.
    for encoding in layers.into_iter().rev() {
        body = one(encoding, body, most, held).await?;
    }
    headers.remove(header::CONTENT_ENCODING);
    Ok(body)
}

/// The encodings in the order in which they were applied.
fn layers(headers: &HeaderMap, decode: bool) -> Result<Vec<Encoding>, ApiError> {
    let mut layers = Vec::new();
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let text = value.to_str().unwrap_or("?");
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let encoding = match name.to_ascii_lowercase().as_str() {
                "identity" => continue,
                "gzip" | "x-gzip" => Some(Encoding::Gzip),
                "zstd" => Some(Encoding::Zstd),
                "br" => Some(Encoding::Brotli),
                "deflate" => Some(Encoding::Deflate),
                _ => None,
            };
            match encoding {
                Some(encoding) if decode && layers.len() < MAX_LAYERS => layers.push(encoding),
                Some(_) | None => {
                    return Err(ApiError::encoding_refused(name, decode.then_some(DECODED)));
                }
            }
        }
    }
    Ok(layers)
}

async fn one(
    encoding: Encoding,
    body: Bytes,
    most: usize,
    held: &mut Held,
) -> Result<Bytes, ApiError> {
    let source = &body[..];
    let mut decoder: Pin<Box<dyn AsyncRead + Send + '_>> = match encoding {
        Encoding::Gzip => {
            let mut gzip = GzipDecoder::new(source);
            // RFC 1952, 2.2: a file may consist of several members.
            gzip.multiple_members(true);
            Box::pin(gzip)
        }
        Encoding::Zstd => {
            let mut zstd = ZstdDecoder::new(source);
            zstd.multiple_members(true);
            Box::pin(zstd)
        }
        Encoding::Brotli => Box::pin(BrotliDecoder::new(source)),
        // RFC 9110, 8.4.1.2 means zlib's format; some senders leave its two bytes of header out.
        Encoding::Deflate if is_zlib(source) => Box::pin(ZlibDecoder::new(source)),
        Encoding::Deflate => Box::pin(DeflateDecoder::new(source)),
    };
    let mut whole = Whole::new(most);
    let mut since_turn = 0;
    loop {
        let room = whole.room(READ_BYTES);
        let read = decoder
            .read_buf(room)
            .await
            .map_err(|error| ApiError::bad_encoding(&error.to_string()))?;
        if read == 0 {
            return Ok(whole.into_bytes());
        }
        if whole.len() > most {
            return Err(ApiError::too_large(most));
        }
        held.grow(read)?;
        since_turn += read;
        if since_turn >= TURN_BYTES {
            since_turn = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// RFC 1950, 2.2: method 8, and the two bytes are a multiple of 31.
fn is_zlib(bytes: &[u8]) -> bool {
    matches!(bytes, [a, b, ..] if a & 0x0f == 8 && (u16::from(*a) << 8 | u16::from(*b)) % 31 == 0)
}
