//! One connection to a worker: TCP, perhaps TLS, and the bytes sent and received.
//!
//! A connection has one owner, and neither a task nor a buffer of its own: all connections of a thread read into one
//! shared buffer, and a request is dropped after it was written. So an open stream that is silent costs its socket and
//! little else.

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use http::Method;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use smg_runtime::clock::Clock;
use smg_runtime::descriptors::Counted;
use smg_runtime::dial::Dialer;
use smg_runtime::shortage::{Kind, Shortage, Shortages};
use smg_runtime::tls::{ClientConfig, Live, for_worker};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::{Delivery, SendError};
use super::head::{Answer, HeadReader, ProtocolError};
use super::target::Target;

/// The most bytes that one read may return.
const READ: usize = 64 << 10;

/// How long to wait, after a worker has closed, for the reset which shows that it did not receive the request: a round
/// trip, with some margin.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// The time between two checks for that reset.
const REFUSAL_CHECK_INTERVAL: Duration = Duration::from_millis(5);

/// The state that all connections of one thread share.
#[derive(Debug)]
pub(super) struct Shared {
    // Locked for one system call that does not block, and while its bytes are taken.
    buffer: Mutex<BytesMut>,
    shortages: Shortages,
}

impl Shared {
    pub(super) fn new(shortages: Shortages) -> Self {
        Self { buffer: Mutex::default(), shortages }
    }
}

/// An open connection. Dropping it closes the socket at once, also in the middle of an exchange.
#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    shared: Arc<Shared>,
    sending: Sending,
    _descriptor: Counted,
}

/// How much of the request has been written.
#[derive(Debug)]
enum Sending {
    Done,
    /// This part of the request is left.
    Left(Request),
    /// Writing has failed, so nothing more is written.
    Failed,
}

#[derive(Debug)]
enum Stream {
    Tcp(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

/// The part of a request that is still to be written. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Request {
    head: Bytes,
    body: Bytes,
    /// Whether some of it has been written.
    begun: bool,
}

/// The request could not be written to its end.
#[derive(Debug)]
pub(super) struct BrokeOff {
    /// Whether not a byte of it was written.
    untouched: bool,
    error: io::Error,
}

/// Why an exchange gave no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The connection was lost before the head of the answer was complete.
    Lost(Delivery),
    /// The answer is not HTTP.
    Protocol(ProtocolError),
    /// The router lacks a resource of its own.
    Shortage(Shortage, Delivery),
}

/// How an exchange ended without an answer.
#[derive(Debug)]
enum Broken {
    /// Not a byte could be written.
    Untouched(io::Error),
    /// The worker closed the connection (`None`), or the connection broke.
    Unanswered(Option<io::Error>),
    Protocol(ProtocolError),
}

impl Connection {
    /// Connects to a worker within `timeout`, name resolution and TLS included.
    pub(super) async fn open(
        worker: Target<'_>,
        dialer: &Dialer,
        timeout: Duration,
        tls: Option<&Live<ClientConfig>>,
        shared: &Arc<Shared>,
        clock: Clock,
    ) -> Result<Self, SendError> {
        let Target { url: worker, tls: checks } = worker;
        let began = clock.mono();
        let (tcp, descriptor) = dialer.dial(worker.host(), worker.port(), timeout).await?;
        // Small writes must not wait for delayed acknowledgements, which take up to 40 ms.
        tcp.set_nodelay(true).map_err(SendError::Connect)?;
        let stream = if worker.is_secure() {
            let tls = tls.ok_or_else(|| {
                SendError::Tls(io::Error::other("no TLS configuration for workers"))
            })?;
            let name = ServerName::try_from(worker.host().to_owned())
                .map_err(|e| SendError::Tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
            let connector = tokio_rustls::TlsConnector::from(for_worker(tls.current(), checks));
            let left = (began + timeout).saturating_sub(clock.mono());
            let secured = tokio::time::timeout(left, connector.connect(name, tcp)).await;
            let secured = secured.map_err(|_elapsed| {
                let why = format!("the handshake was not finished within {timeout:?}");
                SendError::Tls(io::Error::new(io::ErrorKind::TimedOut, why))
            })?;
            Stream::Tls(Box::new(secured.map_err(handshake_error)?))
        } else {
            Stream::Tcp(tcp)
        };
        let shared = Arc::clone(shared);
        Ok(Self { stream, shared, sending: Sending::Done, _descriptor: descriptor })
    }

    fn tcp(&self) -> &TcpStream {
        match &self.stream {
            Stream::Tcp(tcp) => tcp,
            Stream::Tls(tls) => tls.get_ref().0,
        }
    }

    /// Whether the connection is open and has received nothing unexpected. Asks the system, which knows of a close or
    /// of stray bytes before the runtime does.
    pub(super) fn is_idle(&mut self) -> bool {
        if let Stream::Tls(tls) = &mut self.stream {
            // The bytes that were received may concern only the TLS layer, such as a session ticket.
            let mut byte = [0u8; 1];
            let read = pin!(tls.read(&mut byte));
            if read.poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return false;
            }
        }
        let peeked = SockRef::from(self.tcp()).peek(&mut [MaybeUninit::uninit(); 1]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether the connection is still open after `time`.
    pub(super) async fn stays_open(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.tcp().readable()).await.is_err() || self.is_idle()
    }

    /// Sends a request and reads up to the body of its answer, both at the same time: a worker may answer before it has read
    /// everything, and may stop reading then. `switches`: the request asks for another protocol.
    pub(super) async fn exchange(
        &mut self,
        request: Request,
        method: &Method,
        switches: bool,
    ) -> Result<Answer, NoAnswer> {
        self.sending = Sending::Left(request);
        let mut head = HeadReader::new(switches);
        let broken = std::future::poll_fn(|cx| {
            if let Poll::Ready(Err(BrokeOff { untouched: true, error })) = self.poll_send(cx) {
                return Poll::Ready(Err(Broken::Untouched(error)));
            }
            loop {
                match ready!(self.poll_read(cx, |read| head.feed(read, method))) {
                    Ok(Some(Ok(None))) => {}
                    Ok(Some(Ok(Some(answer)))) => return Poll::Ready(Ok(answer)),
                    Ok(Some(Err(error))) => return Poll::Ready(Err(Broken::Protocol(error))),
                    Ok(None) => return Poll::Ready(Err(Broken::Unanswered(None))),
                    Err(error) => return Poll::Ready(Err(Broken::Unanswered(Some(error)))),
                }
            }
        });
        let broken = match broken.await {
            Ok(answer) => return Ok(answer),
            Err(broken) => broken,
        };
        Err(match broken {
            Broken::Protocol(error) => NoAnswer::Protocol(error),
            Broken::Untouched(error) => lost(Some(error), Delivery::Nothing),
            Broken::Unanswered(error) => {
                let evidence = Evidence {
                    sent_whole: self.is_sent(),
                    answered: head.has_begun(),
                    refused: error.is_none() && self.is_refused().await,
                };
                lost(error, evidence.delivery())
            }
        })
    }

    /// Whether the worker had closed the connection before it received the request. In that case its system sends a
    /// reset, which arrives up to a round trip after the close.
    async fn is_refused(&self) -> bool {
        for _ in 0..REFUSAL_WAIT.as_millis() / REFUSAL_CHECK_INTERVAL.as_millis() {
            match self.tcp().take_error() {
                Ok(Some(_reset)) => return true,
                Ok(None) => tokio::time::sleep(REFUSAL_CHECK_INTERVAL).await,
                Err(_unknown) => return false,
            }
        }
        false
    }

    /// Whether the whole request was sent.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// Writes the rest of the request. Does not try again after a failure.
    pub(super) fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BrokeOff>> {
        let Sending::Left(request) = &mut self.sending else { return Poll::Ready(Ok(())) };
        let sent = ready!(match &mut self.stream {
            Stream::Tcp(tcp) => poll_write_all(Pin::new(tcp), cx, request),
            Stream::Tls(tls) => poll_write_all(Pin::new(&mut **tls), cx, request),
        });
        let untouched = !request.begun;
        self.sending = if sent.is_ok() { Sending::Done } else { Sending::Failed };
        Poll::Ready(sent.map_err(|error| {
            self.report(&error);
            BrokeOff { untouched, error }
        }))
    }

    /// Reads once and passes the bytes to the caller's function; `None` if the worker has closed the connection.
    pub(super) fn poll_read<T>(
        &mut self,
        cx: &mut Context<'_>,
        take: impl FnOnce(&mut BytesMut) -> T,
    ) -> Poll<io::Result<Option<T>>> {
        let mut buffer = self.shared.buffer.lock();
        buffer.clear();
        if buffer.capacity() < READ / 2 {
            buffer.reserve(READ);
        }
        let read = match &mut self.stream {
            Stream::Tcp(tcp) => ready!(pin!(tcp.read_buf(&mut *buffer)).poll(cx)),
            Stream::Tls(tls) => ready!(pin!(tls.read_buf(&mut *buffer)).poll(cx)),
        };
        let read = read.inspect_err(|error| self.report(error))?;
        Poll::Ready(Ok((read > 0).then(|| take(&mut buffer))))
    }

    fn report(&self, error: &io::Error) {
        if let Some(kind) = Kind::of(error) {
            self.shared.shortages.report(kind, "exchanging data with a worker", error);
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_write(cx, buf),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_flush(cx),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Stream::Tls(tls) => Pin::new(&mut **tls).poll_shutdown(cx),
        }
    }
}

/// The observations about a request whose connection was lost before an answer.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    /// Whether all of it was passed to the system.
    sent_whole: bool,
    /// Whether a part of an answer was received.
    answered: bool,
    /// Whether the worker had closed the connection before it received all of the request.
    refused: bool,
}

impl Evidence {
    /// How much of the request the worker may have read.
    const fn delivery(self) -> Delivery {
        let Self { sent_whole, answered, refused } = self;
        if !answered && (refused || !sent_whole) { Delivery::Part } else { Delivery::PerhapsAll }
    }
}

/// An error within a handshake. The system's errors may be shortages; those of the TLS layer are not.
fn handshake_error(error: io::Error) -> SendError {
    match Shortage::try_from_error(error) {
        Ok(shortage) => SendError::Shortage { shortage, delivery: Delivery::Nothing },
        Err(error) => SendError::Tls(error),
    }
}

fn lost(error: Option<io::Error>, delivery: Delivery) -> NoAnswer {
    match error.map(Shortage::try_from_error) {
        Some(Ok(shortage)) => NoAnswer::Shortage(shortage, delivery),
        Some(Err(_)) | None => NoAnswer::Lost(delivery),
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
    // TLS holds records back until it is flushed.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_counts_as_unread_only_with_proof() {
        let delivery =
            |sent_whole, answered, refused| Evidence { sent_whole, answered, refused }.delivery();
        assert_eq!(delivery(true, false, false), Delivery::PerhapsAll);
        assert_eq!(delivery(true, false, true), Delivery::Part);
        assert_eq!(delivery(false, false, false), Delivery::Part);
        // A worker that begins to answer may have read all of it.
        for (sent_whole, refused) in [(true, true), (true, false), (false, false)] {
            assert_eq!(delivery(sent_whole, true, refused), Delivery::PerhapsAll);
        }
    }
}
