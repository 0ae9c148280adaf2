//! Connections that have not shown yet that they come from a member: how many there may be, for how long, and how many
//! bytes they may send.
//!
//! Whoever reaches the mesh port can open connections and send halves of messages, which the router must keep until the
//! other half comes. So a connection is a *stranger* until its first frame was accepted, or its certificate. Strangers
//! have a few seconds, and budgets per source address and in all. If a budget is used up, the oldest stranger that uses
//! it is closed: a member needs milliseconds to send its first frame, and so finds a place however many strangers come.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

use crate::net::Duplex;

/// Time that a connection has for its first accepted frame.
pub(super) const STRANGER_TIMEOUT: Duration = Duration::from_secs(5);

/// A budget of strangers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Use {
    connections: usize,
    /// Bytes that they have sent.
    bytes: usize,
}

/// Strangers of one source address at most. The first frame of a member may be as large as two of the largest messages.
const PER_ADDRESS: Use = Use { connections: 128, bytes: 2 << 20 };

/// Strangers at most.
const IN_ALL: Use = Use { connections: 1024, bytes: 16 << 20 };

impl Use {
    const fn exceeds(self, budget: Self) -> bool {
        self.connections > budget.connections || self.bytes > budget.bytes
    }
}

/// All strangers.
#[derive(Debug, Default)]
pub(super) struct Strangers(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// By number, which grows: the first is the oldest.
    connections: BTreeMap<u64, Stranger>,
    by_address: HashMap<IpAddr, Use>,
    all: Use,
    next: u64,
}

#[derive(Debug)]
struct Stranger {
    address: IpAddr,
    bytes: usize,
    closed: Arc<Notify>,
}

impl Inner {
    fn add(&mut self, number: u64, bytes: usize) {
        let Some(stranger) = self.connections.get_mut(&number) else { return };
        stranger.bytes += bytes;
        self.all.bytes += bytes;
        self.by_address.entry(stranger.address).or_default().bytes += bytes;
        self.close_oldest(stranger_address(&self.connections, number));
    }

    fn remove(&mut self, number: u64) -> Option<Stranger> {
        let stranger = self.connections.remove(&number)?;
        self.all.connections -= 1;
        self.all.bytes -= stranger.bytes;
        if let Some(used) = self.by_address.get_mut(&stranger.address) {
            used.connections -= 1;
            used.bytes -= stranger.bytes;
            if used.connections == 0 {
                self.by_address.remove(&stranger.address);
            }
        }
        Some(stranger)
    }

    /// Closes the oldest strangers until the budgets of `address` and of all are kept.
    fn close_oldest(&mut self, address: Option<IpAddr>) {
        while let Some(address) = address
            && self.by_address.get(&address).is_some_and(|used| used.exceeds(PER_ADDRESS))
        {
            let mut oldest = self.connections.iter().filter(|(_, s)| s.address == address);
            let Some(number) = oldest.next().map(|(number, _)| *number) else { break };
            self.close(number);
        }
        while self.all.exceeds(IN_ALL)
            && let Some((number, _)) = self.connections.first_key_value()
        {
            self.close(*number);
        }
    }

    fn close(&mut self, number: u64) {
        if let Some(stranger) = self.remove(number) {
            stranger.closed.notify_one();
        }
    }
}

fn stranger_address(connections: &BTreeMap<u64, Stranger>, number: u64) -> Option<IpAddr> {
    connections.get(&number).map(|stranger| stranger.address)
}

impl Strangers {
    /// Admits a connection from `address`, perhaps in place of an older one.
    pub(super) fn admit(self: &Arc<Self>, address: IpAddr) -> Arc<Ticket> {
        let closed = Arc::new(Notify::new());
        let mut inner = self.0.lock();
        let number = inner.next;
        inner.next += 1;
        inner.all.connections += 1;
        inner.by_address.entry(address).or_default().connections += 1;
        let stranger = Stranger { address, bytes: 0, closed: Arc::clone(&closed) };
        inner.connections.insert(number, stranger);
        inner.close_oldest(Some(address));
        drop(inner);
        let is_member = AtomicBool::new(false);
        Arc::new(Ticket { strangers: Arc::clone(self), number, is_member, closed })
    }

    /// Strangers at present, and the bytes that they have sent.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let inner = self.0.lock();
        (inner.all.connections, inner.all.bytes)
    }
}

/// The place of a connection among the strangers, until it is a member's or ends.
#[derive(Debug)]
pub(super) struct Ticket {
    strangers: Arc<Strangers>,
    number: u64,
    is_member: AtomicBool,
    closed: Arc<Notify>,
}

impl Ticket {
    /// The connection is a member's: budgets and times of strangers don't hold for it any more.
    pub(super) fn accept(&self) {
        if !self.is_member.swap(true, Ordering::Relaxed) {
            drop(self.strangers.0.lock().remove(self.number));
        }
    }

    /// Whether the connection is a member's.
    pub(super) fn is_member(&self) -> bool {
        self.is_member.load(Ordering::Relaxed)
    }

    /// Resolves when the connection must be closed because strangers have used up a budget.
    pub(super) async fn closed(&self) {
        self.closed.notified().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        drop(self.strangers.0.lock().remove(self.number));
    }
}

/// A connection whose bytes are counted while it is a stranger's.
#[derive(Debug)]
pub(super) struct Counted<D> {
    io: D,
    ticket: Arc<Ticket>,
}

impl<D: Duplex> Counted<D> {
    pub(super) const fn new(io: D, ticket: Arc<Ticket>) -> Self {
        Self { io, ticket }
    }
}

impl<D: Duplex> AsyncRead for Counted<D> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buf);
        let bytes = buf.filled().len().saturating_sub(before);
        if bytes > 0 && !self.ticket.is_member() {
            self.ticket.strangers.0.lock().add(self.ticket.number, bytes);
        }
        read
    }
}

impl<D: Duplex> AsyncWrite for Counted<D> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Waker;

    use super::*;

    fn ip(host: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, host])
    }

    fn is_closed(ticket: &Ticket) -> bool {
        pin!(ticket.closed()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_oldest_stranger_of_an_address_makes_room_for_its_next() {
        let strangers = Arc::new(Strangers::default());
        let other = strangers.admit(ip(2));
        let tickets: Vec<_> =
            (0..PER_ADDRESS.connections + 2).map(|_| strangers.admit(ip(1))).collect();
        let closed: Vec<bool> = tickets.iter().map(|ticket| is_closed(ticket)).collect();
        assert!(closed[0] && closed[1] && !closed[2..].contains(&true));
        assert!(!is_closed(&other), "another address does not pay for it");
        drop((other, tickets));
        assert_eq!(strangers.count(), (0, 0));
    }

    #[test]
    fn strangers_of_many_addresses_keep_no_newcomer_out() {
        let strangers = Arc::new(Strangers::default());
        let crowd: Vec<_> = (0..8192_usize)
            .map(|n| strangers.admit(IpAddr::from([10, 1, (n / 100) as u8, (n % 100) as u8])))
            .collect();
        assert_eq!(strangers.count().0, IN_ALL.connections);
        let member = strangers.admit(ip(1));
        member.accept();
        assert!(!is_closed(&member) && member.is_member());
        assert!(is_closed(&crowd[0]) && !is_closed(&crowd[8191]));
    }

    #[test]
    fn bytes_of_strangers_are_bounded_per_address_and_those_of_members_are_not_counted() {
        let strangers = Arc::new(Strangers::default());
        let tickets: Vec<_> = (0..4).map(|_| strangers.admit(ip(1))).collect();
        for ticket in &tickets[..3] {
            strangers.0.lock().add(ticket.number, PER_ADDRESS.bytes / 2);
        }
        assert!(is_closed(&tickets[0]) && !is_closed(&tickets[1]));
        assert_eq!(strangers.count(), (3, PER_ADDRESS.bytes));
        tickets[1].accept();
        assert_eq!(strangers.count(), (2, PER_ADDRESS.bytes / 2));
    }
}
