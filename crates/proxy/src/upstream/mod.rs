//! Toward workers: connections, timeouts by phase, the body that gives its connection back.
//!
//! One [`Client`] per data-path thread: its idle connections belong to that thread, so that a request, its connection
//! and its response never cross from one core to another. It speaks HTTP/1.1 by itself, for exactly this use: a
//! connection has one owner, the request or its response, and neither a task nor buffers of its own, so that thousands
//! of open streams cost little. Dropping it, in whatever state, closes the socket, which is how a worker learns that its
//! client left. `request`, `head` and `decode` are the
//! protocol as plain code; `connection` and `body` are the sockets and timers; `error` says how far a request had come when it
//! failed.

mod body;
mod client;
mod config;
mod connection;
mod decode;
mod error;
mod head;
mod pool;
mod request;

pub use body::{BodyError, ResponseBody};
pub use client::Client;
pub use config::Config;
pub use decode::FramingError;
pub use error::{Delivery, SendError};
pub use head::ProtocolError;
pub use request::{Outgoing, Question, bearer};
