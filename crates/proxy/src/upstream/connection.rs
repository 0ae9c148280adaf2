//! One connection to a worker: resolve, connect, TLS; then bytes out and bytes in.
//!
//! It has one owner, no task and no buffer of its own: what a thread's connections read, they read into one buffer that
//! they share, and what they write is dropped once it is written. So an open stream that says nothing costs its socket
//! and little else.

use std::future::Future as _;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use http::Method;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use smg_types::spec::WorkerUrl;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::SendError;
use super::head::{Answer, HeadReader, ProtocolError};

/// What one read may give.
const READ: usize = 64 << 10;

/// The buffer that a thread's connections read into.
#[derive(Debug, Default)]
pub(super) struct Scratch(
    // Held for one system call that does not block, and for taking what it gave.
    Mutex<BytesMut>,
);

/// An open connection. Dropping it closes the socket at once, also in the middle of an exchange.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    scratch: Arc<Scratch>,
    sending: Sending,
}

/// How far the request has been written.
#[derive(Debug)]
enum Sending {
    Done,
    /// This is left.
    Left(Request),
    /// The worker takes no more.
    Failed,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// What is left to be written of a request. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Request {
    head: Bytes,
    body: Bytes,
    /// Some of it has been written.
    begun: bool,
}

/// A request could not be written to its end.
#[derive(Debug)]
pub(super) struct BrokeOff {
    /// Not a byte of it was.
    untouched: bool,
}

/// Why an exchange gave no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// Not a byte was sent.
    Unsent,
    /// Closed or reset before the head of the answer was complete.
    Closed,
    /// What came is not HTTP.
    Protocol(ProtocolError),
}

impl Connection {
    /// Connects to a worker, trying its addresses in turn.
    pub(super) async fn open(
        worker: &WorkerUrl,
        tls: Option<&Arc<rustls::ClientConfig>>,
        scratch: &Arc<Scratch>,
    ) -> Result<Self, SendError> {
        let tcp = connect_tcp(worker).await?;
        // Small writes must not wait for acknowledgements: a delayed one costs 40 ms.
        tcp.set_nodelay(true).map_err(SendError::Connect)?;
        let stream = if worker.is_secure() {
            let config = tls.ok_or_else(|| {
                SendError::Tls(io::Error::other("no TLS configuration for workers"))
            })?;
            let name = ServerName::try_from(worker.host().to_owned())
                .map_err(|e| SendError::Tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
            let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
            Stream::Tls(Box::new(connector.connect(name, tcp).await.map_err(SendError::Tls)?))
        } else {
            Stream::Tcp(tcp)
        };
        Ok(Self { stream, scratch: Arc::clone(scratch), sending: Sending::Done })
    }

    /// Whether it is still open and nothing has come over it that nobody asked for. Costs no system call unless
    /// something has.
    pub(super) fn is_idle(&mut self) -> bool {
        match &mut self.stream {
            Stream::Tcp(tcp) => matches!(
                tcp.try_read(&mut [0u8; 1]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock
            ),
            Stream::Tls(tls) => {
                // Something may have come that is for the TLS layer alone.
                let mut byte = [0u8; 1];
                let read = pin!(tls.read(&mut byte));
                read.poll(&mut Context::from_waker(Waker::noop())).is_pending()
            }
        }
    }

    /// Sends a request and reads up to the body of its answer, both at once: a worker may answer before it has read
    /// everything, and may stop reading then.
    pub(super) async fn exchange(
        &mut self,
        request: Request,
        method: &Method,
    ) -> Result<Answer, NoAnswer> {
        self.sending = Sending::Left(request);
        let mut head = HeadReader::default();
        std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(BrokeOff { untouched: true })) = self.poll_send(cx) {
                return Poll::Ready(Err(NoAnswer::Unsent));
            }
            loop {
                match ready!(self.poll_read(cx, |read| head.feed(read, method))) {
                    Ok(Some(Ok(None))) => {}
                    Ok(Some(Ok(Some(answer)))) => return Poll::Ready(Ok(answer)),
                    Ok(Some(Err(error))) => return Poll::Ready(Err(NoAnswer::Protocol(error))),
                    Ok(None) | Err(_) => return Poll::Ready(Err(NoAnswer::Closed)),
                }
            }
        })
        .await
    }

    /// Whether all of the request was sent.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// Writes what is left of the request. What failed once is not tried again.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokeOff>> {
        let Sending::Left(request) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = ready!(match &mut self.stream {
            Stream::Tcp(tcp) => poll_write_all(Pin::new(tcp), cx, request),
            Stream::Tls(tls) => poll_write_all(Pin::new(&mut **tls), cx, request),
        });
        let untouched = !request.begun;
        self.sending = if sent.is_ok() { Sending::Done } else { Sending::Failed };
        Poll::Ready(sent.map_err(|_lost| BrokeOff { untouched }))
    }

    /// Reads once and hands over what came; `None`: the worker has closed.
    pub(super) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut BytesMut) -> T,
    ) -> Poll<io::Result<Option<T>>> {
        let mut scratch = self.scratch.0.lock();
        scratch.clear();
        if scratch.capacity() < READ / 2 {
            scratch.reserve(READ);
        }
        let read = match &mut self.stream {
            Stream::Tcp(tcp) => ready!(pin!(tcp.read_buf(&mut *scratch)).poll(cx))?,
            Stream::Tls(tls) => ready!(pin!(tls.read_buf(&mut *scratch)).poll(cx))?,
        };
        Poll::Ready(Ok((read > 0).then(|| take(&mut scratch))))
    }
}

fn poll_write_all<W: AsyncWrite>(
    mut io: Pin<&mut W>,
    cx: &mut Context<'_>,
    request: &mut Request,
) -> Poll<io::Result<()>> {
    while request.len() > 0 {
        let parts = [IoSlice::new(&request.head), IoSlice::new(&request.body)];
        match ready!(io.as_mut().poll_write_vectored(cx, &parts))? {
            0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            written => request.advance(written),
        }
    }
    // TLS keeps records back until it is told.
    io.poll_flush(cx)
}

impl Request {
    pub(super) const fn new(head: Bytes, body: Bytes) -> Self {
        Self { head, body, begun: false }
    }

    fn len(&self) -> usize {
        self.head.len() + self.body.len()
    }

    fn advance(&mut self, written: usize) {
        self.begun = true;
        let of_head = written.min(self.head.len());
        self.head.advance(of_head);
        self.body.advance(written - of_head);
    }
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
