//! The network between routers: TCP, or a simulated network in tests.
//!
//! A connection is a boxed stream of bytes; TLS, HTTP/2 and everything above are the same on both networks.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use smg_cluster::Lane;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// A connection in both directions.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is being made or accepted.
pub(super) type IoFuture<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Makes connections. Each link calls it for its own address. It may take arbitrarily long, because links have a
/// timeout.
pub(super) trait Net: fmt::Debug + Send + Sync {
    /// Connects to a router, for the frames of `lane`. `Err` means that no connection could be made.
    fn connect(&self, to: SocketAddr, lane: Lane) -> IoFuture<'_, Box<dyn Duplex>>;
}

/// Accepts connections. The server calls it repeatedly, also after an `Err`, which concerns one connection or a
/// temporary shortage of resources.
pub(super) trait Listener: Send {
    /// The next connection, and the address that it comes from. Dropping the future loses no connection.
    fn accept(&mut self) -> IoFuture<'_, (Box<dyn Duplex>, SocketAddr)>;
}

/// The network of this machine.
#[derive(Debug)]
pub(super) struct Tcp;

impl Net for Tcp {
    fn connect(&self, to: SocketAddr, lane: Lane) -> IoFuture<'_, Box<dyn Duplex>> {
        Box::pin(async move {
            let stream = connect(to).await?;
            make_prompt(&stream)?;
            match lane {
                Lane::Swim => make_steady(&stream),
                // State is bulk data, for which the system's defaults are better.
                Lane::State => {}
            }
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> IoFuture<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = Self::accept(self).await?;
            // The option is refused if the other side is gone already, which the first read from the stream shows.
            let _gone = make_prompt(&stream).is_err();
            // Only answers to pings and little else are sent in this direction.
            make_steady(&stream);
            Ok((Box::new(stream) as Box<dyn Duplex>, from))
        })
    }
}

/// When to make a second attempt beside the first one. The kernel waits a second before it repeats the first packet of
/// a connection.
const SECOND_DIAL: Duration = Duration::from_millis(250);

async fn connect(to: SocketAddr) -> io::Result<TcpStream> {
    let first = TcpStream::connect(to);
    tokio::pin!(first);
    if let Ok(connected) = tokio::time::timeout(SECOND_DIAL, &mut first).await {
        return connected;
    }
    tokio::select! {
        connected = &mut first => connected,
        connected = TcpStream::connect(to) => connected,
    }
}

/// Sends small packets at once and repeats lost ones at short intervals. A probe must not wait for an acknowledgement,
/// and growing intervals would make live routers look dead on a network that loses packets.
fn make_prompt(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_thin_linear_timeouts(true)?;
    Ok(())
}

/// Chooses a congestion control that respects the short intervals of [`make_prompt`]. BBR, where it is the default,
/// repeats ever more slowly. This is for connections that carry little. Every Linux has this one; if it must not be
/// chosen, the default is good enough.
fn make_steady(tcp: &TcpStream) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(tcp).set_tcp_congestion(b"reno") {
        debug!(%error, "cannot choose the congestion control");
    }
    #[cfg(not(target_os = "linux"))]
    let _nothing_to_choose = tcp;
}
