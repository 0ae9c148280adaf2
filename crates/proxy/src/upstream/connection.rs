//! One connection to a worker: TCP, TLS; then bytes out and bytes in.
//!
//! A connection has one owner, no task and no buffer of its own: all connections of a thread read into one shared buffer,
//! and a request is dropped once it has been written. So an open stream that is silent costs its socket and little else.

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
use smg_runtime::tls::{ClientConfig, Live};
use smg_types::spec::WorkerUrl;
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

use super::error::{Delivery, SendError};
use super::head::{Answer, HeadReader, ProtocolError};

/// Bytes that one read may return.
const READ: usize = 64 << 10;

/// How long to wait, after a worker has closed, for the sign that it did not receive the request: a round trip, with
/// something to spare.
const REFUSAL_WAIT: Duration = Duration::from_millis(100);

/// Between two looks for that sign.
const REFUSAL_LOOK: Duration = Duration::from_millis(5);

/// What the connections of one thread share.
#[derive(Debug)]
pub(super) struct Shared {
    // Held for one system call that does not block, and while its bytes are taken.
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

/// How far the request has been written.
#[derive(Debug)]
enum Sending {
    Done,
    /// This is left.
    Left(Request),
    /// The worker accepts no more.
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
    /// Not a byte of it was written.
    untouched: bool,
    error: io::Error,
}

/// Why an exchange gave no answer.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The connection was lost before the head of the answer was complete.
    Lost(Delivery),
    /// What came is not HTTP.
    Protocol(ProtocolError),
    /// The router lacks something of its own.
    Shortage(Shortage, Delivery),
}

/// How an exchange ended without an answer.
#[derive(Debug)]
enum Broken {
    /// Nothing could be written.
    Untouched(io::Error),
    /// The worker closed in order (`None`), or the connection broke.
    Unanswered(Option<io::Error>),
    Protocol(ProtocolError),
}

impl Connection {
    /// Connects to a worker within `timeout`, name resolution and TLS included.
    pub(super) async fn open(
        worker: &WorkerUrl,
        dialer: &Dialer,
        timeout: Duration,
        tls: Option<&Live<ClientConfig>>,
        shared: &Arc<Shared>,
        clock: Clock,
    ) -> Result<Self, SendError> {
        let began = clock.mono();
        let (tcp, descriptor) = dialer.dial(worker.host(), worker.port(), timeout).await?;
        // Small writes must not wait for acknowledgements: a delayed one costs 40 ms.
        tcp.set_nodelay(true).map_err(SendError::Connect)?;
        let stream = if worker.is_secure() {
            let tls = tls.ok_or_else(|| {
                SendError::Tls(io::Error::other("no TLS configuration for workers"))
            })?;
            let name = ServerName::try_from(worker.host().to_owned())
                .map_err(|e| SendError::Tls(io::Error::new(io::ErrorKind::InvalidInput, e)))?;
            let connector = tokio_rustls::TlsConnector::from(tls.current());
            let left = (began + timeout).saturating_sub(clock.mono());
            let secured = tokio::time::timeout(left, connector.connect(name, tcp)).await;
            let secured = secured.map_err(|_elapsed| SendError::ConnectTimeout(timeout))?;
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

    /// Whether it is open and nothing has come over it that was not asked for. Asks the system, which knows of a close
    /// or a stray answer before the runtime does.
    pub(super) fn is_idle(&mut self) -> bool {
        if let Stream::Tls(tls) = &mut self.stream {
            // What has come may be for the TLS layer alone, such as a session ticket.
            let mut byte = [0u8; 1];
            let read = pin!(tls.read(&mut byte));
            if read.poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                return false;
            }
        }
        let peeked = SockRef::from(self.tcp()).peek(&mut [MaybeUninit::uninit(); 1]);
        peeked.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Whether it is still open after `time`.
    pub(super) async fn stays_open(&mut self, time: Duration) -> bool {
        tokio::time::timeout(time, self.tcp().readable()).await.is_err() || self.is_idle()
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

    /// After the worker has closed: whether it refuses what was sent, for it had closed before that came. The system of
    /// the worker says so with a reset, which comes up to a round trip later.
    async fn is_refused(&self) -> bool {
        for _ in 0..REFUSAL_WAIT.as_millis() / REFUSAL_LOOK.as_millis() {
            match self.tcp().take_error() {
                Ok(Some(_reset)) => return true,
                Ok(None) => tokio::time::sleep(REFUSAL_LOOK).await,
                Err(_unknown) => return false,
            }
        }
        false
    }

    /// Whether all of the request was sent.
    pub(super) fn is_sent(&self) -> bool {
        matches!(self.sending, Sending::Done)
    }

    /// Writes what is left of the request. After a failure it is not tried again.
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

    /// Reads once and hands over what came; `None`: the worker has closed.
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
            self.shared.shortages.report(kind, "talking to a worker", error);
        }
    }
}

/// What is known of a request whose connection was lost before an answer.
#[derive(Debug, Clone, Copy)]
struct Evidence {
    /// All of it was handed to the system.
    sent_whole: bool,
    /// Some of an answer came.
    answered: bool,
    /// The worker had closed before all of it came.
    refused: bool,
}

impl Evidence {
    /// How much the worker may have read.
    const fn delivery(self) -> Delivery {
        let Self { sent_whole, answered, refused } = self;
        if !answered && (refused || !sent_whole) { Delivery::Part } else { Delivery::PerhapsAll }
    }
}

/// The system's errors within a handshake may be shortages; what the TLS layer says is not.
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
    // TLS keeps records back until it is flushed.
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
    fn only_proof_says_that_a_request_was_not_read_whole() {
        let delivery =
            |sent_whole, answered, refused| Evidence { sent_whole, answered, refused }.delivery();
        assert_eq!(delivery(true, false, false), Delivery::PerhapsAll);
        assert_eq!(delivery(true, false, true), Delivery::Part);
        assert_eq!(delivery(false, false, false), Delivery::Part);
        // Who begins to answer has read enough.
        for (sent_whole, refused) in [(true, true), (true, false), (false, false)] {
            assert_eq!(delivery(sent_whole, true, refused), Delivery::PerhapsAll);
        }
    }
}
