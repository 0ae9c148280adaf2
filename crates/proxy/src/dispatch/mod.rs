//! Dispatch: admits a request, picks a worker, sends, judges the outcome, and tries again where that is safe.
//!
//! One [`Dispatcher`] per data-path thread, over parts that all of them share. A request reads the fleet once per
//! attempt, from one consistent snapshot; no step holds a lock across an await, and none waits for another node.

mod account;
mod attempts;
mod body;
mod candidates;
mod choice;
mod config;
mod dispatcher;
mod explanation;
mod feedback;
mod metrics;
mod rediscovery;
mod request;
mod standing;
mod tunnel;
mod waiting;

pub use body::{BodyError, ResponseBody, StreamEnd};
pub use choice::explain;
pub use config::Config;
pub use dispatcher::{Dispatcher, Shared};
pub use explanation::{Considered, Explanation};
pub use metrics::Metrics;
pub use rediscovery::discover;
pub use request::{Criteria, DispatchError, Dispatched, ModelPlace, Observer, Request, Trace};
pub use standing::Standing;
pub use tunnel::{Tunnel, TunnelEnd};
