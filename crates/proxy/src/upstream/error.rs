//! Why a request got no response head, whether that concerns the worker, and how much of the request was delivered.

use std::io;
use std::time::Duration;

use smg_runtime::dial::DialError;
use smg_runtime::resolve::ResolveError;
use smg_runtime::shortage::Shortage;

use super::head::ProtocolError;

/// How much of a request a worker may have read before the connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// Nothing was sent.
    Nothing,
    /// At most a part was read: the rest was not sent, or provably arrived too late.
    Part,
    /// Perhaps all of it was read, so that the worker may have begun to process it.
    PerhapsAll,
}

/// Why a request got no response head.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The worker's name does not exist.
    #[error("cannot resolve the worker's host")]
    NoSuchName(#[source] ResolveError),
    /// No connection could be made: the worker does not listen, or there is no route.
    #[error("cannot connect to the worker")]
    Connect(#[source] io::Error),
    /// No connection could be made within the timeout.
    #[error("no connection to the worker within {0:?}")]
    ConnectTimeout(Duration),
    /// The TLS handshake failed, or the worker needs TLS and there is no configuration for it.
    #[error("cannot agree on TLS with the worker")]
    Tls(#[source] io::Error),
    /// The connection was lost before the head of a response was complete.
    #[error("the worker closed the connection before it answered")]
    Lost {
        /// How much of the request the worker may have read.
        delivery: Delivery,
        /// Whether the worker no longer listens, so that it cannot be generating.
        gone: bool,
    },
    /// No response head arrived within the timeout. The worker may be generating.
    #[error("no answer from the worker within {0:?}")]
    HeadTimeout(Duration),
    /// The answer is not HTTP.
    #[error("the worker's answer is not HTTP")]
    Protocol(#[source] ProtocolError),
    /// The router lacks a resource of its own, which does not concern the worker. It has been counted and logged.
    #[error("the router lacks a resource of its own")]
    Shortage {
        /// The resource that is short.
        #[source]
        shortage: Shortage,
        /// How much of the request the worker may have read.
        delivery: Delivery,
    },
    /// The worker was removed while the request was in flight on it.
    #[error("the worker was removed before it answered")]
    Removed,
}

impl SendError {
    /// Whether the worker no longer listens: its process has ended, and its memory is lost.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Connect(error) => matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset
            ),
            Self::Lost { gone, .. } => *gone,
            Self::NoSuchName(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::HeadTimeout(_)
            | Self::Protocol(_)
            | Self::Shortage { .. }
            | Self::Removed => false,
        }
    }

    /// Whether no connection to the worker could be made.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::NoSuchName(_) | Self::Connect(_) | Self::ConnectTimeout(_) => true,
            Self::Lost { gone, .. } => *gone,
            // Each attempt takes as long as one to a host that does not answer.
            Self::Tls(error) => error.kind() == io::ErrorKind::TimedOut,
            Self::HeadTimeout(_) | Self::Protocol(_) | Self::Shortage { .. } | Self::Removed => {
                false
            }
        }
    }

    /// Whether the error concerns the worker. Shortages of the router, and requests that it has stopped itself, do not.
    #[must_use]
    pub fn is_about_the_worker(&self) -> bool {
        match self {
            Self::NoSuchName(_)
            | Self::Connect(_)
            | Self::ConnectTimeout(_)
            | Self::Tls(_)
            | Self::Lost { .. }
            | Self::HeadTimeout(_)
            | Self::Protocol(_) => true,
            Self::Shortage { .. } | Self::Removed => false,
        }
    }

    /// How much of the request the worker may have read.
    #[must_use]
    pub fn delivery(&self) -> Delivery {
        match self {
            Self::NoSuchName(_) | Self::Connect(_) | Self::ConnectTimeout(_) | Self::Tls(_) => {
                Delivery::Nothing
            }
            Self::Lost { delivery, .. } | Self::Shortage { delivery, .. } => *delivery,
            Self::HeadTimeout(_) | Self::Protocol(_) | Self::Removed => Delivery::PerhapsAll,
        }
    }

    /// A value from a fixed set, for metrics.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::NoSuchName(_) => "resolve",
            Self::Connect(_) => "connect",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Tls(_) => "tls",
            Self::Lost { .. } => "reset",
            Self::HeadTimeout(_) => "head_timeout",
            Self::Protocol(_) => "protocol",
            Self::Shortage { .. } => "own_shortage",
            Self::Removed => "removed",
        }
    }
}

impl From<DialError> for SendError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::NoSuchName(error) => Self::NoSuchName(error),
            DialError::Shortage(shortage) => {
                Self::Shortage { shortage, delivery: Delivery::Nothing }
            }
            DialError::Connect(error) => Self::Connect(error),
            DialError::Timeout(timeout) => Self::ConnectTimeout(timeout),
        }
    }
}
