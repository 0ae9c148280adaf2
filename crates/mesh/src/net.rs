//! What connects routers: TCP, or a simulated network in tests.
//!
//! A connection is a stream of bytes in a box; TLS, HTTP/2 and everything above are the same on both.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;

use smg_cluster::Lane;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tracing::debug;

/// A connection.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is being made.
pub(super) type Soon<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Makes connections. Links call it, each for its own address; it may take for ever, for they give up by themselves.
pub(super) trait Net: fmt::Debug + Send + Sync {
    /// Connects to a router, for what `lane` carries. `Err`: there is none, as far as this network can say.
    fn connect(&self, to: SocketAddr, lane: Lane) -> Soon<'_, Box<dyn Duplex>>;
}

/// Takes connections. The server calls it again and again, also after an `Err`, which speaks of one connection or of a
/// lack that may pass.
pub(super) trait Listener: Send {
    /// The next connection, and where it comes from. What was not awaited to its end is not lost.
    fn accept(&mut self) -> Soon<'_, (Box<dyn Duplex>, SocketAddr)>;
}

/// The network of this machine.
#[derive(Debug)]
pub(super) struct Tcp;

impl Net for Tcp {
    fn connect(&self, to: SocketAddr, lane: Lane) -> Soon<'_, Box<dyn Duplex>> {
        Box::pin(async move {
            let stream = connect(to).await?;
            make_prompt(&stream)?;
            match lane {
                Lane::Swim => make_steady(&stream),
                // Bulk: what the system chose for it is better.
                Lane::State => {}
            }
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> Soon<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = Self::accept(self).await?;
            // Refused where the other side has gone already, which the first look at the stream finds out.
            let _gone = make_prompt(&stream).is_err();
            // Answers to pings and little else goes this way.
            make_steady(&stream);
            Ok((Box::new(stream) as Box<dyn Duplex>, from))
        })
    }
}

/// When to dial a second time beside the first: the kernel waits a second before it repeats the first packet of a
/// connection.
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

/// A probe must not wait for an acknowledgement, and a lost packet of so few must not be repeated ever more slowly: that
/// is what takes live routers for dead on a network that loses packets.
fn make_prompt(tcp: &TcpStream) -> io::Result<()> {
    tcp.set_nodelay(true)?;
    #[cfg(target_os = "linux")]
    socket2::SockRef::from(tcp).set_tcp_thin_linear_timeouts(true)?;
    Ok(())
}

/// Chooses a congestion control that heeds the above: BBR, where it is the default, goes on repeating ever more slowly.
/// For connections that carry little. Every Linux has this one; where it may not be chosen, the default will do.
fn make_steady(tcp: &TcpStream) {
    #[cfg(target_os = "linux")]
    if let Err(error) = socket2::SockRef::from(tcp).set_tcp_congestion(b"reno") {
        debug!(%error, "cannot choose the congestion control");
    }
    #[cfg(not(target_os = "linux"))]
    let _nothing_to_choose = tcp;
}
