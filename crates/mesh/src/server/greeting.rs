//! The beginning of a connection: the TLS handshake, and the first bytes of HTTP/2.

use std::io::{Cursor, ErrorKind};
use std::sync::Arc;

use smg_runtime::tls::{MeshTls, names_in};
use tokio::io::AsyncReadExt as _;
use tokio_rustls::TlsAcceptor;

use crate::net::Duplex;
use crate::service::OPENING_TIMEOUT;

/// The first bytes of every HTTP/2 connection.
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Why a connection was closed before any HTTP/2 frame.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotGreeted {
    #[error("{0}")]
    Gone(std::io::Error),
    #[error("nothing was received within {OPENING_TIMEOUT:?}")]
    Silent,
    #[error("2/2")]
    OtherProtocol,
}

impl NotGreeted {
    /// A value from a fixed set, for metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Gone(_) => "gone",
            Self::Silent => "silent",
            Self::OtherProtocol => "not_http2",
        }
    }
}

/// Waits for the first bytes of HTTP/2. The server itself would wait for them without a limit, because it starts its
/// pings only after them, and silent connections would in the end occupy all places.
pub(super) async fn greeted(io: Box<dyn Duplex>) -> Result<impl Duplex, NotGreeted> {
    let (mut read, write) = tokio::io::split(io);
    let mut greeting = [0; PREFACE.len()];
    let mut known = 0;
    let greeting = tokio::time::timeout(OPENING_TIMEOUT, async {
        while known < greeting.len() {
            match read.read(&mut greeting[known..]).await.map_err(NotGreeted::Gone)? {
                0 if known == 0 => return Err(NotGreeted::Gone(ErrorKind::UnexpectedEof.into())),
                0 => return Err(NotGreeted::OtherProtocol),
                more => known += more,
            }
            if greeting[..known] != PREFACE[..known] {
                return Err(NotGreeted::OtherProtocol);
            }
        }
        Ok(greeting)
    })
    .await
    .unwrap_or(Err(NotGreeted::Silent))?;
    Ok(tokio::io::join(Cursor::new(greeting).chain(read), write))
}

/// A connection with its TLS handshake done, if there is to be one, and the names in the certificate that it showed.
pub(super) async fn secured(
    stream: Box<dyn Duplex>,
    tls: Option<Arc<MeshTls>>,
) -> Result<(Box<dyn Duplex>, Option<Vec<String>>), String> {
    let Some(tls) = tls else { return Ok((stream, None)) };
    let accepting = TlsAcceptor::from(Arc::clone(&tls.server)).accept(stream);
    let stream = tokio::time::timeout(OPENING_TIMEOUT, accepting)
        .await
        .map_err(|_elapsed| "no TLS handshake in time".to_owned())?
        .map_err(|error| format!("TLS: {error}"))?;
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let names = shown.map(names_in);
    Ok((Box::new(stream), names))
}
