//! Why a request got no response head, and what that says: of the worker, and of how far the request has come.

use std::io;
use std::time::Duration;

use smg_runtime::dial::DialError;
use smg_runtime::resolve::ResolveError;
use smg_runtime::shortage::Shortage;

use super::head::ProtocolError;

/// How much of a request a worker may have read before the connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Delivery {
    /// Nothing: not a byte was sent.
    Nothing,
    /// A part at most: the rest was not sent, or provably came too late for the worker to read it.
    Part,
    /// Perhaps all of it, so that the worker may have begun to work on it.
    PerhapsAll,
}

/// Why a request got no response head.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The worker's name does not exist.
    #[error("cannot resolve the worker's host")]
    NoSuchName(#[source] ResolveError),
    /// No connection: nobody listens, or there is no route.
    #[error("cannot connect to the worker")]
    Connect(#[source] io::Error),
    /// No connection in time.
    #[error("no connection to the worker within {0:?}")]
    ConnectTimeout(Duration),
    /// The TLS handshake failed, or the worker wants TLS and there is no configuration for it.
    #[error("cannot agree on TLS with the worker")]
    Tls(#[source] io::Error),
    /// The connection was lost before the head of a response was complete.
    #[error("the worker closed the connection before it answered")]
    Lost {
        /// How much of the request the worker may have read.
        delivery: Delivery,
        /// Nobody listens there any more, so that nothing can be generating.
        gone: bool,
    },
    /// No response head in time: the worker may be generating.
    #[error("no answer from the worker within {0:?}")]
    HeadTimeout(Duration),
    /// The worker answered with something that is not HTTP.
    #[error("the worker's answer is not HTTP")]
    Protocol(#[source] ProtocolError),
    /// The router lacks something of its own, which says nothing of the worker. It has been counted and logged.
    #[error("the router lacks a resource of its own")]
    Shortage {
        /// What it lacks.
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
    /// Whether nobody listens there any more: the process that did is gone, and what it had in memory with it.
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

    /// Whether the worker could not be connected to.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::NoSuchName(_) | Self::Connect(_) | Self::ConnectTimeout(_) => true,
            Self::Lost { gone, .. } => *gone,
            Self::Tls(_)
            | Self::HeadTimeout(_)
            | Self::Protocol(_)
            | Self::Shortage { .. }
            | Self::Removed => false,
        }
    }

    /// Whether it says something of the worker. What the router lacks or has stopped itself does not.
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

    /// A name from a closed set, for metrics.
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
