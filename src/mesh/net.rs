//! What connects routers: TCP, or a simulated network in tests.
//!
//! A connection is a stream of bytes in a box; TLS, HTTP/2 and everything above are the same on both.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

/// A connection.
pub(super) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that is being made.
pub(super) type Soon<'a, T> = Pin<Box<dyn Future<Output = io::Result<T>> + Send + 'a>>;

/// Makes connections. Links call it, each for its own address; it may take for ever, for they give up by themselves.
pub(super) trait Net: fmt::Debug + Send + Sync {
    /// Connects to a router. `Err`: there is none, as far as this network can say.
    fn connect(&self, to: SocketAddr) -> Soon<'_, Box<dyn Duplex>>;
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
    fn connect(&self, to: SocketAddr) -> Soon<'_, Box<dyn Duplex>> {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            // A probe must not wait for an acknowledgement.
            stream.set_nodelay(true)?;
            Ok(Box::new(stream) as Box<dyn Duplex>)
        })
    }
}

impl Listener for TcpListener {
    fn accept(&mut self) -> Soon<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = Self::accept(self).await?;
            // Refused where the other side has gone already, which the first look at the stream finds out.
            let _gone = stream.set_nodelay(true).is_err();
            Ok((Box::new(stream) as Box<dyn Duplex>, from))
        })
    }
}
