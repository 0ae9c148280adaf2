//! An HTTP client with almost no cost: one connection, one request after the other, bytes in and bytes out.
//!
//! A load generator must not dominate its measurement, and a test needs the exact bytes of an answer. So this is
//! HTTP/1.1 on a socket, without pool, redirects and header map. The end of an answer is found by `content-length`, by
//! chunks or by the end of the connection.

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The largest head of an answer, in bytes.
const MAX_HEAD_BYTES: usize = 64 << 10;
const BUFFER_BYTES: usize = 64 << 10;

/// A connection that is kept open between requests.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    buffer: Box<[u8]>,
}

/// The head of an answer, as far as callers need it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    framing: Framing,
    closes: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// Why no complete answer arrived.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// The socket reported an error.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended before the first byte of an answer.
    #[error("closed before the answer")]
    ClosedBeforeHead,
    /// The connection ended before the end of the answer.
    #[error("closed within the answer")]
    ClosedWithinBody,
    /// The answer is not HTTP/1.1.
    #[error("not HTTP/1.1: {0:?}")]
    NotHttp(String),
}

impl Connection {
    /// Opens a connection.
    ///
    /// # Errors
    /// If the connection is refused or fails.
    pub async fn open(address: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        Ok(Self::with_buffer(stream, BUFFER_BYTES))
    }

    /// Opens a connection with a small buffer, for tests that hold thousands of them.
    ///
    /// # Errors
    /// If the connection is refused or fails.
    pub async fn open_small(address: SocketAddr) -> io::Result<Self> {
        Ok(Self::with_buffer(TcpStream::connect(address).await?, 2048))
    }

    fn with_buffer(stream: TcpStream, bytes: usize) -> Self {
        Self { stream, buffer: vec![0; bytes].into_boxed_slice() }
    }

    /// Sends `request` unchanged and passes the answer's body to `body`, piece by piece, without the framing. The
    /// second result is whether the connection can be used for another request.
    ///
    /// # Errors
    /// If no complete answer arrived; the connection can't be used any more then.
    pub async fn exchange(
        &mut self,
        request: &[u8],
        mut body: impl FnMut(&[u8]),
    ) -> Result<(Head, bool), ExchangeError> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        let (head, head_bytes) = loop {
            match self.stream.read(&mut self.buffer[filled..]).await? {
                0 if filled == 0 => return Err(ExchangeError::ClosedBeforeHead),
                0 => return Err(ExchangeError::ClosedWithinBody),
                more => filled += more,
            }
            let end = memchr::memmem::find(&self.buffer[..filled], b"\r\n\r\n").map(|at| at + 4);
            match end {
                Some(end) => break (parse_head(&self.buffer[..end])?, end),
                None if filled == self.buffer.len().min(MAX_HEAD_BYTES)
                    || !starts_well(&self.buffer[..filled]) =>
                {
                    return Err(not_http(&self.buffer[..filled]));
                }
                None => {}
            }
        };
        let mut framer = Framer::new(head.framing);
        let mut piece = head_bytes..filled;
        loop {
            let done = framer.feed(&self.buffer[piece], &mut body)?;
            if done {
                return Ok((head, !head.closes && head.framing != Framing::UntilClose));
            }
            match self.stream.read(&mut self.buffer).await? {
                0 if head.framing == Framing::UntilClose => return Ok((head, false)),
                0 => return Err(ExchangeError::ClosedWithinBody),
                more => piece = 0..more,
            }
        }
    }
}

/// A request as bytes. `headers` are complete lines with their line ends.
#[must_use]
pub fn request(method: &str, target: &str, host: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let length = body.len();
    let mut request = format!(
        "{method} {target} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n{headers}content-length: {length}\r\n\r\n"
    )
    .into_bytes();
    request.extend_from_slice(body);
    request
}

fn starts_well(bytes: &[u8]) -> bool {
    let expected = b"HTTP/1.";
    let compared = bytes.len().min(expected.len());
    bytes[..compared] == expected[..compared]
}

fn not_http(bytes: &[u8]) -> ExchangeError {
    ExchangeError::NotHttp(String::from_utf8_lossy(&bytes[..bytes.len().min(80)]).into_owned())
}

fn parse_head(head: &[u8]) -> Result<Head, ExchangeError> {
    let status = head.get(9..12).and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    let (true, Some(status)) = (starts_well(head), status) else { return Err(not_http(head)) };
    let mut framing =
        if matches!(status, 204 | 304) { Framing::Length(0) } else { Framing::UntilClose };
    let mut closes = false;
    for line in head.split(|byte| *byte == b'\n').skip(1) {
        let Some(colon) = memchr::memchr(b':', line) else { continue };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        if name.eq_ignore_ascii_case(b"content-length") {
            let length = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            framing = Framing::Length(length.ok_or_else(|| not_http(line))?);
        } else if name.eq_ignore_ascii_case(b"transfer-encoding")
            && value.eq_ignore_ascii_case(b"chunked")
        {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case(b"connection") {
            closes = value.eq_ignore_ascii_case(b"close");
        }
    }
    Ok(Head { status, framing, closes })
}

/// Finds the body in the bytes after the head.
#[derive(Debug)]
enum Framer {
    Length {
        left: u64,
    },
    UntilClose,
    ChunkSize {
        size: u64,
    },
    /// The rest of the line with a chunk's size: extensions and the line end.
    ChunkSizeEnd {
        size: u64,
    },
    Chunk {
        left: u64,
    },
    /// The line end after a chunk.
    ChunkEnd,
    /// A line of the trailer. An empty one is the end.
    Trailer {
        empty: bool,
    },
    Done,
}

impl Framer {
    fn new(framing: Framing) -> Self {
        match framing {
            Framing::Length(0) => Self::Done,
            Framing::Length(left) => Self::Length { left },
            Framing::Chunked => Self::ChunkSize { size: 0 },
            Framing::UntilClose => Self::UntilClose,
        }
    }

    /// Passes the body in `bytes` on, and returns whether that was its end.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        body: &mut impl FnMut(&[u8]),
    ) -> Result<bool, ExchangeError> {
        while let Some(&next) = bytes.first() {
            match self {
                Self::UntilClose => {
                    body(bytes);
                    return Ok(false);
                }
                Self::Length { left } | Self::Chunk { left } => {
                    let here = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                    body(&bytes[..here]);
                    *left -= here as u64;
                    bytes = &bytes[here..];
                    match self {
                        Self::Length { left: 0 } => *self = Self::Done,
                        Self::Chunk { left: 0 } => *self = Self::ChunkEnd,
                        _ => {}
                    }
                    continue;
                }
                Self::ChunkSize { size } => match char::from(next).to_digit(16) {
                    Some(digit) if *size < 1 << 56 => *size = *size << 4 | u64::from(digit),
                    Some(_) => return Err(not_http(bytes)),
                    None => {
                        *self = Self::ChunkSizeEnd { size: *size };
                        continue;
                    }
                },
                Self::ChunkSizeEnd { size } => {
                    if next == b'\n' {
                        *self = if *size == 0 {
                            Self::Trailer { empty: true }
                        } else {
                            Self::Chunk { left: *size }
                        };
                    }
                }
                Self::ChunkEnd => {
                    if next == b'\n' {
                        *self = Self::ChunkSize { size: 0 };
                    }
                }
                Self::Trailer { empty } => match next {
                    b'\n' if *empty => *self = Self::Done,
                    b'\n' => *empty = true,
                    b'\r' => {}
                    _ => *empty = false,
                },
                // There is one request at a time, so bytes after an answer are an error.
                Self::Done => return Err(not_http(bytes)),
            }
            bytes = &bytes[1..];
        }
        Ok(matches!(self, Self::Done))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(framing: Framing, pieces: &[&[u8]]) -> Result<(String, bool), ExchangeError> {
        let mut framer = Framer::new(framing);
        let mut body = Vec::new();
        let mut done = false;
        for piece in pieces {
            done = framer.feed(piece, &mut |data| body.extend_from_slice(data))?;
        }
        Ok((String::from_utf8(body).unwrap(), done))
    }

    #[test]
    fn chunks_may_be_split_anywhere() {
        let wire = b"5\r\nhello\r\nA;name=value\r\n 0123 5678\r\n0\r\nx-trailer: 1\r\n\r\n";
        let expected = ("hello 0123 5678".to_owned(), true);
        assert_eq!(feed(Framing::Chunked, &[wire]).unwrap(), expected);
        let bytes: Vec<&[u8]> = wire.chunks(1).collect();
        assert_eq!(feed(Framing::Chunked, &bytes).unwrap(), expected);
        let without_end = &wire[..wire.len() - 1];
        assert!(!feed(Framing::Chunked, &[without_end]).unwrap().1);
    }

    #[test]
    fn a_length_ends_the_body_and_more_bytes_are_an_error() {
        assert_eq!(feed(Framing::Length(5), &[b"he", b"llo"]).unwrap(), ("hello".to_owned(), true));
        assert!(feed(Framing::Length(5), &[b"hello!"]).is_err());
        assert!(!feed(Framing::UntilClose, &[b"hello"]).unwrap().1);
    }

    #[test]
    fn heads_give_status_framing_and_whether_the_connection_closes() {
        let head = |text: &str| parse_head(text.as_bytes());
        let close = head(
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 7\r\n\r\n",
        );
        assert_eq!(close.unwrap(), Head { status: 503, framing: Framing::Length(7), closes: true });
        let chunked = head("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
        assert_eq!(
            chunked.unwrap(),
            Head { status: 200, framing: Framing::Chunked, closes: false }
        );
        assert!(head("HTTP/1.1 abc\r\n\r\n").is_err());
        assert!(head("\x16\x03\x01 what\r\n\r\n").is_err());
    }
}
