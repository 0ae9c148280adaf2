//! The client of workers: connections, timeouts by phase, and bodies that return their connection to the pool.
//!
//! There is one [`Client`] per data-path thread. Its idle connections belong to that thread, so that a request, its
//! connection and its response never move between cores. It implements HTTP/1.1 itself, for exactly this use: a
//! connection has one owner, the request or its response, and neither a task nor buffers of its own, so that thousands
//! of open streams cost little. Dropping a connection in any state closes the socket, which shows the worker that its
//! client is gone. `request`, `head` and `decode` are the protocol as plain code; `connection` and `body` handle
//! sockets and timers; `error` classifies failures by how much of the request was delivered.

mod body;
mod client;
mod config;
mod connection;
mod decode;
mod error;
mod head;
mod pool;
mod request;
mod target;
mod tunnel;

pub use body::{BodyError, ResponseBody};
pub use client::Client;
pub use config::Config;
pub use decode::FramingError;
pub use error::{Delivery, SendError};
pub use head::ProtocolError;
pub use request::{Outgoing, Question, bearer};
pub use target::Target;
pub use tunnel::Tunnel;
