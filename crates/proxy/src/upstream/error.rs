//! Why a request got no response head, and what follows from it: whether another worker may be asked, and what it says of
//! the worker.

use std::io;
use std::time::Duration;

use super::head::ProtocolError;

/// Why a request got no response head.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The host has no address.
    #[error("cannot resolve the worker's host")]
    Resolve(#[source] io::Error),
    /// No connection: nobody listens, or no route.
    #[error("cannot connect to the worker")]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("no connection to the worker within {0:?}")]
    ConnectTimeout(Duration),
    /// The TLS handshake failed, or the worker wants TLS and there is no configuration for it.
    #[error("cannot agree on TLS with the worker")]
    Tls(#[source] io::Error),
    /// The connection broke before a byte of the response.
    #[error("the worker closed the connection before it answered")]
    Reset {
        /// Nobody listens there any more, so that nothing can be generating.
        dead: bool,
    },
    /// No response head in time: the worker may be generating.
    #[error("no answer from the worker within {0:?}")]
    HeadTimeout(Duration),
    /// The worker answered with something that is not HTTP.
    #[error("the worker's answer is not HTTP")]
    Protocol(#[source] ProtocolError),
}

impl SendError {
    /// Whether the worker can't have started on the request, so that another one may be asked.
    #[must_use]
    pub fn is_safe_to_retry(&self) -> bool {
        match self {
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::Reset { dead: true } => true,
            Self::Reset { dead: false } | Self::HeadTimeout(_) | Self::Protocol(_) => false,
        }
    }

    /// Whether nobody listens there any more: the process that did is gone, and what it had in memory with it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ),
            Self::Reset { dead } => *dead,
            Self::Resolve(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::HeadTimeout(_)
            | Self::Protocol(_) => false,
        }
    }

    /// Whether no connection came about, for whatever reason that is not our own.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Connect(error) | Self::Resolve(error) if is_our_own(error) => false,
            Self::Resolve(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Reset { dead: true } => true,
            Self::Tls(_)
            | Self::Reset { dead: false }
            | Self::HeadTimeout(_)
            | Self::Protocol(_) => false,
        }
    }

    /// A name from a closed set, for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Resolve(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Tls(_) => "tls",
            Self::Reset { .. } => "reset",
            Self::HeadTimeout(_) => "head_timeout",
            Self::Protocol(_) => "protocol",
        }
    }
}

/// Whether the router has run out of something, which says nothing of the worker: file descriptors (its own or the
/// machine's) or local ports.
fn is_our_own(error: &io::Error) -> bool {
    const EMFILE: i32 = 24;
    const ENFILE: i32 = 23;
    error.kind() == io::ErrorKind::AddrNotAvailable
        || matches!(error.raw_os_error(), Some(EMFILE | ENFILE))
}
