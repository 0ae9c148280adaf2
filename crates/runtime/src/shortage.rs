//! Shortages of the router's own resources: descriptors, ports, memory, threads, the machine's resolver.
//!
//! Such a shortage says nothing about a worker or another router: it must not open a breaker, fail a probe or be
//! published to other routers. [`Kind::of`] recognises it by the system's error code. [`Shortages`] counts every
//! shortage and logs at most one line per kind every ten seconds.

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tracing::warn;

use crate::clock::Clock;

/// Which resource is short.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// File descriptors of this process (EMFILE).
    Descriptors,
    /// File descriptors of the machine (ENFILE).
    SystemDescriptors,
    /// Local ports for connections to one destination (EADDRNOTAVAIL).
    Ports,
    /// Kernel memory, for example for sockets (ENOMEM, ENOBUFS).
    Memory,
    /// Threads (EAGAIN when one is created).
    Threads,
    /// The machine's resolver does not answer, or reports a temporary failure.
    Resolver,
}

// The numbers of Linux and the BSDs. Only the last one differs.
const ENFILE: i32 = 23;
const EMFILE: i32 = 24;
const ENOMEM: i32 = 12;
const ENOBUFS: i32 = if cfg!(target_os = "linux") { 105 } else { 55 };

impl Kind {
    /// All kinds, in the order of their discriminants.
    pub const ALL: [Self; 6] = [
        Self::Descriptors,
        Self::SystemDescriptors,
        Self::Ports,
        Self::Memory,
        Self::Threads,
        Self::Resolver,
    ];

    /// The shortage behind a socket error; `None` if the error concerns the other side, or no resource of the router.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        match error.raw_os_error() {
            Some(EMFILE) => Some(Self::Descriptors),
            Some(ENFILE) => Some(Self::SystemDescriptors),
            Some(ENOMEM | ENOBUFS) => Some(Self::Memory),
            _ => match error.kind() {
                io::ErrorKind::AddrNotAvailable => Some(Self::Ports),
                io::ErrorKind::OutOfMemory => Some(Self::Memory),
                _ => None,
            },
        }
    }

    /// The value of the metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Descriptors => "descriptors",
            Self::SystemDescriptors => "system_descriptors",
            Self::Ports => "ports",
            Self::Memory => "memory",
            Self::Threads => "threads",
            Self::Resolver => "resolver",
        }
    }

    /// A sentence that names the resource that is short.
    const fn what(self) -> &'static str {
        match self {
            Self::Descriptors => "the router is short of file descriptors",
            Self::SystemDescriptors => "the machine is short of file descriptors",
            Self::Ports => "the router is short of local ports for connections",
            Self::Memory => "the system is short of memory for the router's sockets",
            Self::Threads => "the system refuses the router another thread",
            Self::Resolver => "the machine's resolver gives no answer",
        }
    }

    /// What an operator can do about it.
    const fn advice(self) -> &'static str {
        match self {
            Self::Descriptors => {
                "raise the hard limit on open files (ulimit -Hn, LimitNOFILE= or the container's nofile), or lower --max-connections"
            }
            Self::SystemDescriptors => "raise fs.file-max, or stop what holds files open",
            Self::Ports => {
                "widen net.ipv4.ip_local_port_range, or keep more connections open: --worker-max-idle-connections, --worker-keep-alive-secs"
            }
            Self::Memory => "raise the memory limit, or net.ipv4.tcp_mem",
            Self::Threads => {
                "raise the limit on threads (ulimit -u, TasksMax= or the cgroup's pids.max)"
            }
            Self::Resolver => "check the name servers in /etc/resolv.conf and the way to them",
        }
    }

    /// The system's limit, as text, if the system shows it.
    fn limit(self) -> Option<String> {
        let read = |path: &str| {
            std::fs::read_to_string(path)
                .ok()
                .map(|text| text.split_whitespace().collect::<Vec<_>>().join("-"))
        };
        match self {
            Self::Descriptors => crate::descriptors::limit().map(|limit| limit.to_string()),
            Self::SystemDescriptors => read("/proc/sys/fs/file-max"),
            Self::Ports => read("/proc/sys/net/ipv4/ip_local_port_range"),
            Self::Memory | Self::Threads | Self::Resolver => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.what())
    }
}

/// An operation failed because the router lacks one of its own resources.
#[derive(Debug, thiserror::Error)]
#[error("{kind}")]
pub struct Shortage {
    /// The resource that is short.
    pub kind: Kind,
    /// The system's error.
    #[source]
    pub source: io::Error,
}

impl Shortage {
    /// Converts an error that a shortage has caused.
    ///
    /// # Errors
    ///
    /// The error itself, if no shortage caused it.
    pub fn try_from_error(error: io::Error) -> Result<Self, io::Error> {
        match Kind::of(&error) {
            Some(kind) => Ok(Self { kind, source: error }),
            None => Err(error),
        }
    }
}

/// The minimum time between two log lines about one kind.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Counts shortages, and logs at most one line per kind in 10 s. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Shortages(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    clock: Clock,
    counters: [IntCounter; Kind::ALL.len()],
    // Locked only to compare two times.
    lines: [Mutex<LineLimit>; Kind::ALL.len()],
}

impl Shortages {
    /// Registers the metric.
    ///
    /// # Errors
    ///
    /// If a family of the same name is registered already.
    pub fn register(registry: &Registry, clock: Clock) -> Result<Self, prometheus::Error> {
        let family = IntCounterVec::new(
            Opts::new(
                "smg_own_shortages_total",
                "Shortages of the router's own resources, by resource. They do not count against workers.",
            ),
            &["kind"],
        )?;
        registry.register(Box::new(family.clone()))?;
        let counters = Kind::ALL.map(|kind| family.with_label_values(&[kind.name()]));
        Ok(Self(Arc::new(Inner { clock, counters, lines: Default::default() })))
    }

    /// Counts without a visible metric, for programs that serve none.
    ///
    /// # Panics
    ///
    /// Never: the family's name and label are valid.
    #[must_use]
    pub fn unregistered(clock: Clock) -> Self {
        Self::register(&Registry::new(), clock).expect("a new registry has no such family")
    }

    /// Counts a shortage and logs it, unless one of its kind was logged within the last 10 s. `doing` says what
    /// failed.
    pub fn report(&self, kind: Kind, doing: &str, error: &dyn fmt::Display) {
        let Inner { clock, counters, lines } = &*self.0;
        counters[kind as usize].inc();
        let Some(suppressed) = lines[kind as usize].lock().admit(clock.mono()) else { return };
        warn!(
            kind = kind.name(),
            limit = kind.limit(),
            doing,
            %error,
            action = kind.advice(),
            suppressed,
            "{kind}: this does not count against any worker"
        );
    }
}

/// Lets a line through every [`LINE_EVERY`].
#[derive(Debug, Default)]
struct LineLimit {
    /// `Clock::mono` of the last line.
    last: Option<Duration>,
    /// The number of lines suppressed since then.
    suppressed: u64,
}

impl LineLimit {
    /// Whether a line may be logged at `now`; if so, returns how many were suppressed since the last one.
    fn admit(&mut self, now: Duration) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_sub(last) < LINE_EVERY) {
            self.suppressed += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortages_are_distinguished_from_errors_of_the_other_side() {
        let of = |code| Kind::of(&io::Error::from_raw_os_error(code));
        assert_eq!(of(EMFILE), Some(Kind::Descriptors));
        assert_eq!(of(ENFILE), Some(Kind::SystemDescriptors));
        assert_eq!(of(ENOMEM), Some(Kind::Memory));
        assert_eq!(of(ENOBUFS), Some(Kind::Memory));
        #[cfg(target_os = "linux")]
        {
            const EADDRNOTAVAIL: i32 = 99;
            // ECONNRESET, ETIMEDOUT, ECONNREFUSED, EHOSTUNREACH, ENETUNREACH, EPIPE.
            assert_eq!(of(EADDRNOTAVAIL), Some(Kind::Ports));
            assert_eq!([104, 110, 111, 113, 101, 32].map(of), [None; 6]);
        }
        assert_eq!(Kind::of(&io::ErrorKind::OutOfMemory.into()), Some(Kind::Memory));
        assert_eq!(Kind::of(&io::ErrorKind::TimedOut.into()), None);
    }

    #[test]
    fn kinds_are_indexed_by_their_discriminants() {
        for (at, kind) in Kind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, at);
        }
    }

    #[test]
    fn one_line_in_ten_seconds_carries_the_number_of_suppressed_ones() {
        let mut limit = LineLimit::default();
        let at = |tenths: u64| Duration::from_millis(tenths * 100);
        assert_eq!(limit.admit(at(0)), Some(0));
        for tenths in 1..100 {
            assert_eq!(limit.admit(at(tenths)), None, "{tenths}");
        }
        assert_eq!(limit.admit(at(100)), Some(99));
        assert_eq!(limit.admit(at(101)), None);
        assert_eq!(limit.admit(at(1000)), Some(1));
    }

    #[tokio::test]
    async fn every_report_is_counted() {
        let registry = Registry::new();
        let shortages = Shortages::register(&registry, Clock::start()).unwrap();
        for _ in 0..3 {
            let error = io::Error::from_raw_os_error(EMFILE);
            shortages.report(Kind::Descriptors, "connecting to a worker", &error);
        }
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("smg_own_shortages_total{kind=\"descriptors\"} 3"), "{text}");
        assert!(text.contains("smg_own_shortages_total{kind=\"ports\"} 0"), "{text}");
    }
}
