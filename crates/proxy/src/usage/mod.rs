//! Token usage: reads from a worker's answer how many tokens a request used, whatever API the answer belongs to.
//!
//! Everything here is plain code that is fed with bytes. [`Reader`] reads JSON answers and streams of events as they pass
//! and keeps none of their bytes, so an answer of any size costs the same memory. At the end it gives one [`Settlement`]:
//! the worker's own counts, or an estimate if the answer ended without them. [`Strip`] removes the usage that the router
//! asked for from a stream whose client did not ask for it.

mod events;
mod reader;
mod report;
mod scan;
mod strip;
mod tokens;

pub use reader::{Encoding, Reader};
pub use strip::Strip;
pub use tokens::{Origin, Settlement, TokenUsage, Work};
