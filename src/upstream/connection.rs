//! One connection to a worker: resolve, connect, TLS, HTTP/1.1 handshake.

#![expect(
    clippy::disallowed_methods,
    reason = "a connection's task ends with its connection, which owns and aborts it"
)]

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::AbortHandle;
use tracing::debug;

use super::SendError;
use crate::spec::WorkerUrl;

/// What is read at once, and the longest head. A slow client's connection queues up to 16 pieces as large as this.
const MAX_BUFFER: usize = 64 << 10;

/// An open connection. Dropping it closes the socket at once, also in the middle of an exchange.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) sender: http1::SendRequest<Full<Bytes>>,
    task: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Connects to a worker, trying its addresses in turn.
pub(super) async fn connect(
    worker: &WorkerUrl,
    tls: Option<&Arc<rustls::ClientConfig>>,
) -> Result<Connection, SendError> {
    let tcp = connect_tcp(worker).await?;
    // Small writes must not wait for acknowledgements: a delayed one costs 40 ms.
    tcp.set_nodelay(true).map_err(SendError::Connect)?;
    if !worker.is_secure() {
        return handshake(tcp).await;
    }
    let config =
        tls.ok_or_else(|| SendError::Tls(io::Error::other("no TLS configuration for workers")))?;
    let name = ServerName::try_from(worker.host().to_owned())
        .map_err(|e| SendError::Tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
    handshake(connector.connect(name, tcp).await.map_err(SendError::Tls)?).await
}

async fn connect_tcp(worker: &WorkerUrl) -> Result<TcpStream, SendError> {
    let mut refused = None;
    let addresses = tokio::net::lookup_host((worker.host(), worker.port()))
        .await
        .map_err(SendError::Resolve)?;
    for address in addresses {
        match TcpStream::connect(address).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => refused = Some(error),
        }
    }
    Err(SendError::Connect(
        refused.unwrap_or_else(|| io::Error::new(io::ErrorKind::NotFound, "no address")),
    ))
}

async fn handshake<T>(io: T) -> Result<Connection, SendError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, connection) = http1::Builder::new()
        .max_headers(256)
        .max_buf_size(MAX_BUFFER)
        .handshake::<_, Full<Bytes>>(TokioIo::new(io))
        .await
        .map_err(SendError::Protocol)?;
    let task = tokio::spawn(async move {
        if let Err(error) = connection.await {
            debug!(%error, "connection to a worker ended");
        }
    });
    Ok(Connection { sender, task: task.abort_handle() })
}
