//! The simulated network: connections of turmoil that can be cut in one direction and recorded.

use std::collections::BTreeSet;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use smg_cluster::Lane;
use smg_cluster::codec::ClusterId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::net::{Duplex, IoFuture, Listener, Net};

/// The mesh port of a host.
pub(super) struct SimulatedPort(pub(super) turmoil::net::TcpListener);

impl Listener for SimulatedPort {
    fn accept(&mut self) -> IoFuture<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(async move {
            let (stream, from) = self.0.accept().await?;
            Ok((Box::new(stream) as Box<dyn Duplex>, from))
        })
    }
}

/// The network, as a host accesses it.
#[derive(Debug)]
pub(super) struct Simulated {
    pub(super) ip: IpAddr,
    pub(super) wires: Arc<Wires>,
}

impl Net for Simulated {
    fn connect(&self, to: SocketAddr, _lane: Lane) -> IoFuture<'_, Box<dyn Duplex>> {
        Box::pin(async move {
            if self.wires.walls.lock().contains(&(self.ip, to.ip())) {
                std::future::pending::<()>().await;
            }
            let stream = turmoil::net::TcpStream::connect(to).await?;
            let wire = Arc::new(Wire { from: self.ip, to: to.ip(), state: Mutex::default() });
            self.wires.all.lock().push(Arc::clone(&wire));
            let wires = Arc::clone(&self.wires);
            Ok(Box::new(Tapped { stream, wire, wires }) as Box<dyn Duplex>)
        })
    }
}

/// All connections that were ever made.
#[derive(Debug, Default)]
pub(super) struct Wires {
    pub(super) all: Mutex<Vec<Arc<Wire>>>,
    /// The pairs of addresses of which the first can't make new connections to the second: connecting hangs.
    pub(super) walls: Mutex<BTreeSet<(IpAddr, IpAddr)>>,
    /// The bytes of all wires in both directions, while they are recorded.
    pub(super) record: Mutex<Option<Vec<u8>>>,
}

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) from: IpAddr,
    pub(super) to: IpAddr,
    pub(super) state: Mutex<WireState>,
}

#[derive(Debug, Default)]
pub(super) struct WireState {
    /// The lane, derived from the bytes on the wire where they are not encrypted.
    pub(super) lane: Option<Lane>,
    /// Whether the caller's bytes are lost.
    pub(super) cut_out: bool,
    /// Whether the bytes of the called side are lost.
    pub(super) cut_back: bool,
}

/// The lane of a plain-text frame. A frame begins with its version, kind and flags, and the cluster.
pub(super) fn lane_of(bytes: &[u8]) -> Option<Lane> {
    let cluster = ClusterId::of("smg").0.to_le_bytes();
    let at = bytes.windows(8).position(|window| window == cluster)?;
    match bytes[..at] {
        [.., 1, 0, 32, 0] => Some(Lane::State),
        [.., 1, 0, 1..=8, 0] => Some(Lane::Swim),
        _ => None,
    }
}

/// The dialling end of a connection.
pub(super) struct Tapped {
    pub(super) stream: turmoil::net::TcpStream,
    pub(super) wire: Arc<Wire>,
    pub(super) wires: Arc<Wires>,
}

impl AsyncWrite for Tapped {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        {
            let mut state = self.wire.state.lock();
            state.lane = state.lane.or_else(|| lane_of(bytes));
            if state.cut_out {
                return Poll::Ready(Ok(bytes.len()));
            }
        }
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if let Poll::Ready(Ok(length)) = written
            && let Some(record) = &mut *self.wires.record.lock()
        {
            record.extend(&bytes[..length]);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl AsyncRead for Tapped {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            let read = Pin::new(&mut self.stream).poll_read(cx, buf);
            let came = buf.filled().len() > before;
            if came && self.wire.state.lock().cut_back {
                buf.set_filled(before);
                continue;
            }
            if let Some(record) = &mut *self.wires.record.lock() {
                record.extend(&buf.filled()[before..]);
            }
            return read;
        }
    }
}
