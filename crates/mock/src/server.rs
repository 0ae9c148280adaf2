//! The sockets of mock workers, and the connections on them.
//!
//! This is hyper's HTTP/1 connection without any layers, so that a request costs a benchmark a few microseconds. One
//! future serves everything. Dropping it has the effect of a process that dies: the listener and every connection are
//! closed.

use std::error::Error as _;
use std::future::Future;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::config::Config;
use crate::realtime::{self, Switched};
use crate::service::{self, Cut};
use crate::worker::Worker;

/// The most connections of a worker; further ones wait in the kernel.
const MAX_CONNECTIONS: usize = 65_536;
/// The most connections that may wait to be accepted.
const BACKLOG: u32 = 4096;

/// The bytes that a worker sends instead of an answer if its script requires garbage.
const GARBAGE: &[u8] = b"\x16\x03\x01 this is no answer\r\n\x00\xff\r\n\r\n";

/// A worker with a bound socket.
pub struct Bound {
    listener: TcpListener,
    address: SocketAddr,
    tls: Option<TlsAcceptor>,
    worker: Arc<Worker>,
}

impl std::fmt::Debug for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bound").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Bound {
    /// Binds the socket of a worker. Does not serve yet.
    ///
    /// # Errors
    /// If the address can't be bound, or the certificate or key can't be read. The error names it.
    pub async fn bind(config: Config) -> io::Result<Self> {
        let tls = match &config.tls {
            Some((certificate, key)) => Some(acceptor(certificate, key)?),
            None => None,
        };
        let named = |e: io::Error| {
            io::Error::new(e.kind(), format!("can't listen on {}: {e}", config.listen))
        };
        let listener = listen(config.listen).map_err(named)?;
        let address = listener.local_addr()?;
        let name = config.name.clone().unwrap_or_else(|| format!("mock-{}", address.port()));
        let name = HeaderValue::from_str(&name).map_err(|e| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("worker name {name:?}: {e}"))
        })?;
        if config.models.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a worker needs a model"));
        }
        Ok(Self { listener, address, tls, worker: Arc::new(Worker::new(config, name)) })
    }

    /// The address on which it listens, with the actual port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL under which a router can reach the worker.
    #[must_use]
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.address)
    }

    /// The worker itself, for reading its state and setting faults while it serves.
    #[must_use]
    pub fn worker(&self) -> Arc<Worker> {
        Arc::clone(&self.worker)
    }

    /// Serves until `shutdown` resolves, then closes all connections. Dropping the future does the same.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let mut connections = JoinSet::new();
        let mut shutdown = std::pin::pin!(shutdown);
        loop {
            tokio::select! {
                () = &mut shutdown => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = self.listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                    Ok((stream, _)) => {
                        // A socket that refuses the option is about to fail anyway.
                        let _closed = stream.set_nodelay(true).is_err();
                        let worker = Arc::clone(&self.worker);
                        match self.tls.clone() {
                            None => connections.spawn(serve_connection(worker, stream)),
                            Some(tls) => connections.spawn(async move {
                                if let Ok(stream) = tls.accept(stream).await {
                                    serve_connection(worker, stream).await;
                                }
                            }),
                        };
                    }
                    // No descriptors are left. The pause gives other connections time to close.
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                },
            }
        }
    }
}

/// Runs `smg mock-worker`: binds a worker for each of `configs`, prints a line with each one's URL, and serves until
/// SIGINT or SIGTERM.
///
/// # Errors
/// If a socket can't be bound, a certificate or key can't be read, or standard output is closed.
pub async fn run(configs: Vec<Config>) -> io::Result<()> {
    let mut workers = Vec::with_capacity(configs.len());
    for config in configs {
        workers.push(Bound::bind(config).await?);
    }
    // Printed after all sockets are bound, because a reader of these lines may connect to any of them.
    let lines: String = workers
        .iter()
        .map(|bound| {
            format!(
                "{} serves {} on {}\n",
                bound.worker.name(),
                bound.worker.models().collect::<Vec<_>>().join(", "),
                bound.url()
            )
        })
        .collect();
    {
        let mut stdout = io::stdout().lock();
        stdout.write_all(lines.as_bytes())?;
        stdout.flush()?;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut serving: JoinSet<()> =
        workers.into_iter().map(|bound| bound.serve(std::future::pending())).collect();
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    serving.shutdown().await;
    Ok(())
}

async fn serve_connection<S>(worker: Arc<Worker>, stream: S)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Boxed, so that the connection can be taken apart at its end.
    let switched = Switched::default();
    let service = service_fn(|request| Box::pin(service::serve(&worker, request, &switched)));
    let mut connection =
        http1::Builder::new().writev(false).serve_connection(TokioIo::new(stream), service);
    let ended = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let parts = connection.into_parts();
    let mut stream = parts.io.into_inner();
    if let Some(job) = switched.take() {
        realtime::echo(stream, parts.read_buf.into(), job).await;
        return;
    }
    let cut =
        ended.as_ref().err().and_then(|e| e.source()).and_then(|source| source.downcast_ref());
    if cut == Some(&Cut::Garbage) {
        // The peer may be gone, which ends the connection as well.
        let _gone = stream.write_all(GARBAGE).await.is_err();
    }
    if ended.is_ok() || cut == Some(&Cut::Garbage) {
        // TLS sends its closing message, unless the script requires a broken connection.
        let _gone = stream.shutdown().await.is_err();
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn acceptor(certificate: &Path, key: &Path) -> io::Result<TlsAcceptor> {
    let invalid = |file: &Path, e: &dyn std::fmt::Display| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("{}: {e}", file.display()))
    };
    let chain: Vec<_> = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect)
        .map_err(|e| invalid(certificate, &e))?;
    if chain.is_empty() {
        return Err(invalid(certificate, &"no certificate in it"));
    }
    let private = PrivateKeyDer::from_pem_file(key).map_err(|e| invalid(key, &e))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, private))
        .map_err(|e| invalid(certificate, &e))?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

#[cfg(test)]
mod tests;
