//! Decodes the framing of an answer's body (RFC 9112, sections 6 and 7). This is plain code: bytes in, payload out. The
//! bytes may be split anywhere, and none are kept between two calls.
//!
//! Chunk extensions and trailers are skipped. Both are bounded, so that a worker can't keep the router reading for
//! ever.

use bytes::{Buf as _, Bytes, BytesMut};

/// The most bytes of chunk extensions in one body.
const MOST_EXTENSIONS: usize = 16 << 10;
/// The most bytes of trailers.
const MOST_TRAILERS: usize = 16 << 10;
/// The most hexadecimal digits of a chunk's size, which is enough for 64 bits.
const MOST_DIGITS: u8 = 16;
/// A read of fewer bytes is copied out of the buffer, so that a small piece does not keep a large buffer allocated.
const COPY_BELOW: usize = 8 << 10;
/// Smaller pieces are joined, because passing each on costs more than the copy.
const JOIN_BELOW: usize = 2 << 10;

/// Why the framing of a body is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FramingError {
    /// A chunk's size is not a hexadecimal number.
    #[error("byte {0:#04x} in the size of a chunk")]
    Size(u8),
    /// A chunk's size does not fit into 64 bits.
    #[error("the size of a chunk has more than 64 bits")]
    TooLarge,
    /// A line of the framing does not end where it must.
    #[error("byte {0:#04x} where a line of the chunked framing must end")]
    LineEnd(u8),
    /// The chunk extensions are too long.
    #[error("more than {MOST_EXTENSIONS} bytes of chunk extensions")]
    Extensions,
    /// The trailers are too long.
    #[error("more than {MOST_TRAILERS} bytes of trailers")]
    Trailers,
}

/// The position within the framing of the body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decoder {
    /// The number of bytes of payload that are left.
    Length(u64),
    /// Chunked transfer coding.
    Chunked(Chunked),
    /// The body ends when the connection closes.
    UntilClose,
    /// The body has ended.
    Done,
}

/// The position within the chunked coding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunked {
    at: At,
    /// The chunk's size while it is read, then what is left of the chunk's payload, in bytes.
    size: u64,
    digits: u8,
    /// The number of bytes of extensions so far.
    extensions: u16,
    /// The number of bytes of trailers so far.
    trailers: u16,
}

/// The kind of the next byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Size,
    Extension,
    SizeLf,
    Payload,
    PayloadCr,
    PayloadLf,
    TrailerStart,
    Trailer,
    TrailerLf,
    EndLf,
}

/// The number of bytes of framing, and then of payload, at the beginning of some input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    framing: usize,
    payload: usize,
}

impl Decoder {
    /// The beginning of a chunked body.
    pub(super) const CHUNKED: Self =
        Self::Chunked(Chunked { at: At::Size, size: 0, digits: 0, extensions: 0, trailers: 0 });

    /// The beginning of a body of `length` bytes.
    pub(super) const fn of_length(length: u64) -> Self {
        if length == 0 { Self::Done } else { Self::Length(length) }
    }

    /// Consumes the beginning of `input`: at most one run of framing and one of payload.
    fn step(&mut self, input: &[u8]) -> Result<Step, FramingError> {
        match self {
            Self::Done => Ok(Step { framing: 0, payload: 0 }),
            Self::UntilClose => Ok(Step { framing: 0, payload: input.len() }),
            Self::Length(left) => {
                let payload = at_most(input.len(), *left);
                *left -= payload as u64;
                if *left == 0 {
                    *self = Self::Done;
                }
                Ok(Step { framing: 0, payload })
            }
            Self::Chunked(chunked) => {
                let mut framing = 0;
                while let Some(&byte) = input.get(framing) {
                    if chunked.at == At::Payload {
                        break;
                    }
                    framing += 1;
                    if chunked.take(byte)? {
                        *self = Self::Done;
                        return Ok(Step { framing, payload: 0 });
                    }
                }
                let payload = match chunked.at {
                    At::Payload => at_most(input.len() - framing, chunked.size),
                    _ => 0,
                };
                chunked.size -= payload as u64;
                if chunked.at == At::Payload && chunked.size == 0 {
                    chunked.at = At::PayloadCr;
                }
                Ok(Step { framing, payload })
            }
        }
    }
}

fn at_most(there: usize, left: u64) -> usize {
    usize::try_from(left).map_or(there, |left| left.min(there))
}

impl Chunked {
    /// Consumes one byte of framing, and returns whether it was the last of the body.
    fn take(&mut self, byte: u8) -> Result<bool, FramingError> {
        self.at = match (self.at, byte) {
            (At::Size, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                if self.digits == MOST_DIGITS {
                    return Err(FramingError::TooLarge);
                }
                self.digits += 1;
                let digit = (byte as char).to_digit(16).unwrap_or_default();
                self.size = self.size << 4 | u64::from(digit);
                At::Size
            }
            // A size needs at least one digit.
            (At::Size, byte) if self.digits == 0 => return Err(FramingError::Size(byte)),
            (At::Size | At::Extension, b'\r') => At::SizeLf,
            (At::Size, b';' | b' ' | b'\t') => At::Extension,
            (At::Size, byte) => return Err(FramingError::Size(byte)),
            (At::Extension, b'\n') => return Err(FramingError::LineEnd(byte)),
            (At::Extension, _) => {
                self.extensions += 1;
                if usize::from(self.extensions) > MOST_EXTENSIONS {
                    return Err(FramingError::Extensions);
                }
                At::Extension
            }
            (At::SizeLf, b'\n') => {
                self.digits = 0;
                if self.size == 0 { At::TrailerStart } else { At::Payload }
            }
            (At::PayloadCr, b'\r') => At::PayloadLf,
            (At::PayloadLf, b'\n') => At::Size,
            (At::TrailerStart, b'\r') => At::EndLf,
            (At::Trailer, b'\r') => At::TrailerLf,
            (At::TrailerLf, b'\n') => At::TrailerStart,
            (At::EndLf, b'\n') => return Ok(true),
            (At::TrailerStart | At::Trailer, b'\n') => return Err(FramingError::LineEnd(byte)),
            (At::TrailerStart | At::Trailer, _) => {
                self.trailers += 1;
                if usize::from(self.trailers) > MOST_TRAILERS {
                    return Err(FramingError::Trailers);
                }
                At::Trailer
            }
            (At::SizeLf | At::PayloadCr | At::PayloadLf | At::TrailerLf | At::EndLf, byte) => {
                return Err(FramingError::LineEnd(byte));
            }
            (At::Payload, _) => unreachable!("payload is not taken byte by byte"),
        };
        Ok(false)
    }
}

/// A body while it is received. The bytes of one read become as few pieces as possible.
#[derive(Debug)]
pub(super) struct Incoming {
    decoder: Decoder,
    /// The payload that was received with the answer's head, until it is taken.
    first: Option<Bytes>,
    /// The rest of a large read.
    rest: Bytes,
    /// An error, which is reported after the payload before it was taken.
    wrong: Option<FramingError>,
    /// Whether bytes followed the body, which belong to no known answer.
    surplus: bool,
}

impl Incoming {
    pub(super) fn new(decoder: Decoder) -> Self {
        Self { decoder, first: None, rest: Bytes::new(), wrong: None, surplus: false }
    }

    /// Adds the bytes that were received with the head.
    pub(super) fn begin(&mut self, read: &mut BytesMut) {
        if !read.is_empty() {
            self.feed(read);
            self.first = self.next_piece();
        }
    }

    /// Adds the bytes of one read and empties `read`. All pieces of the previous read must have been taken.
    pub(super) fn feed(&mut self, read: &mut BytesMut) {
        debug_assert!(
            self.first.is_none() && self.rest.is_empty(),
            "the pieces of the previous read must have been taken"
        );
        if read.len() < COPY_BELOW {
            self.first = self.join(read);
            read.clear();
        } else {
            self.rest = read.split().freeze();
        }
    }

    /// The next piece of received payload; `None` if more must be read, or the body has ended.
    pub(super) fn next_piece(&mut self) -> Option<Bytes> {
        if self.first.is_some() {
            return self.first.take();
        }
        while !self.rest.is_empty() && self.wrong.is_none() {
            if self.decoder == Decoder::Done {
                self.surplus = true;
                self.rest = Bytes::new();
                return None;
            }
            let before = self.decoder;
            let step = match self.decoder.step(&self.rest) {
                Ok(step) => step,
                Err(wrong) => {
                    self.wrong = Some(wrong);
                    break;
                }
            };
            let taken = step.framing + step.payload;
            if step.payload >= JOIN_BELOW || taken == self.rest.len() {
                self.rest.advance(step.framing);
                let piece = self.rest.split_to(step.payload);
                if !piece.is_empty() {
                    return Some(piece);
                }
                continue;
            }
            // The read contains many small chunks.
            self.decoder = before;
            let some = self.rest.split_to(self.rest.len().min(COPY_BELOW));
            if let Some(piece) = self.join(&some) {
                return Some(piece);
            }
        }
        None
    }

    /// Joins all payload of `input` into one piece.
    fn join(&mut self, mut input: &[u8]) -> Option<Bytes> {
        let mut first: &[u8] = &[];
        let mut joined: Vec<u8> = Vec::new();
        while !input.is_empty() {
            if self.decoder == Decoder::Done {
                self.surplus = true;
                break;
            }
            let Step { framing, payload } = match self.decoder.step(input) {
                Ok(step) => step,
                Err(wrong) => {
                    self.wrong = Some(wrong);
                    break;
                }
            };
            let (piece, after) = input[framing..].split_at(payload);
            input = after;
            if first.is_empty() {
                first = piece;
            } else if !piece.is_empty() {
                if joined.is_empty() {
                    joined.reserve_exact(first.len() + piece.len() + after.len());
                    joined.extend_from_slice(first);
                }
                joined.extend_from_slice(piece);
            }
        }
        if !joined.is_empty() {
            return Some(joined.into());
        }
        (!first.is_empty()).then(|| Bytes::copy_from_slice(first))
    }

    /// The framing error, after everything before it was taken.
    pub(super) fn wrong(&self) -> Option<FramingError> {
        self.wrong
    }

    /// Handles the close of the connection. Returns whether the body ends with it; otherwise it is incomplete.
    pub(super) fn close(&mut self) -> bool {
        if self.decoder == Decoder::UntilClose {
            self.decoder = Decoder::Done;
        }
        self.decoder == Decoder::Done
    }

    /// Whether the end of the body has been read.
    pub(super) fn has_ended(&self) -> bool {
        self.decoder == Decoder::Done
    }

    /// Whether all payload has been taken.
    pub(super) fn is_done(&self) -> bool {
        self.has_ended() && self.first.is_none()
    }

    /// Whether the next bytes on the connection belong to the next answer.
    pub(super) fn ends_clean(&self) -> bool {
        self.has_ended() && !self.surplus && self.rest.is_empty()
    }

    /// The number of bytes of payload that are still to be taken, if it is known.
    pub(super) fn left(&self) -> Option<u64> {
        let first = self.first.as_ref().map_or(0, |first| first.len() as u64);
        match self.decoder {
            Decoder::Length(left) => Some(left + first),
            Decoder::Done => Some(first),
            Decoder::Chunked(_) | Decoder::UntilClose => None,
        }
    }
}

#[cfg(test)]
mod tests;
