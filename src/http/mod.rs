//! The HTTP surface: routes, layers, endpoints and the only status codes.
//!
//! A request comes in at `server` (listeners and threads), goes through `shard` (one table of routes; the layers in
//! order: name, route, keys) to `inference` (the data path) or to `local` (everything that the router answers itself),
//! and out again through `body`. `error` is the only file that knows which status a failure has.

mod accept;
mod access_log;
mod auth;
mod body;
mod buffered;
mod config;
mod connection;
mod data_thread;
mod documents;
mod encoding;
mod engine_metrics;
mod error;
mod estimates;
mod exchange;
mod explain;
mod facts;
mod fanout;
mod foreign;
mod form;
mod forwarded;
mod from_worker;
mod ha;
mod headers;
mod heartbeat;
mod hops;
mod idle;
mod inference;
mod keys;
mod leader;
mod legacy;
mod local;
mod metered;
mod metering;
mod metrics;
mod models;
mod origin;
mod own_address;
mod page;
mod pass_through;
mod peek;
mod peek_values;
mod public;
mod quota;
mod quota_headers;
mod rate_limits;
mod reloads;
mod routes;
mod server;
mod settings;
mod shard;
mod shared;
mod stream_options;
mod streams;
mod tunnel;
mod ui;
mod upload;
mod views;
mod wait;
mod watched;
mod worker_spec;
mod workers;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, Semaphore};

pub use access_log::{AccessConfig, AccessFormat, AccessLog, AccessLogError};
pub use auth::{KeysRefused, LiveKeys};
pub use config::{AdminKey, AdminRole, Config, MetricsListen, Tenant};
pub use estimates::Estimates;
pub use hops::Hops;
pub use metering::Settle;
pub use metrics::Metrics;
pub use own_address::{OwnAddress, OwnAddresses};
pub use page::Pages;
pub use pass_through::PassThrough;
pub use quota::MOST_WAITING;
pub use reloads::{NeedsRestart, NotReloaded, ReloadRequest, Reloaded, Reloads};
pub use routes::{Access, ROUTES, Route};
pub use server::{BindError, Running, Server};
pub use settings::{Setting, ShownSettings};

use crate::bridge::{Admin, Gate};
use smg_mesh as mesh;
use smg_proxy::dispatch;
use smg_proxy::upstream;
use smg_routing::fleet::Fleet;
use smg_routing::policies::Policies;
use smg_runtime::clock::Clock;
use smg_runtime::dial::Dialer;

/// What the surface stands on: everything that its endpoints read or change.
#[derive(Debug)]
pub struct Surface {
    /// What the listeners offer.
    pub config: Config,
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// The keys that requests are held against, first those of `config`.
    pub keys: LiveKeys,
    /// Which policy picks for which model.
    pub policies: Arc<Policies>,
    /// How requests reach workers.
    pub dispatch: Arc<dispatch::Shared>,
    /// For what the router itself asks of workers.
    pub control: upstream::Client,
    /// For what the router asks of other routers. It does not say that it forwards a request, because it forwards none.
    pub routers: upstream::Client,
    /// The settings with which the router was started, for people.
    pub settings: ShownSettings,
    /// Makes connections, and counts descriptors and shortages.
    pub dialer: Arc<Dialer>,
    /// What `/metrics` shows.
    pub registry: prometheus::Registry,
    /// The surface's own part of it.
    pub metrics: Metrics,
    /// The pages of metrics that clients have not taken yet.
    pub pages: Pages,
    /// Whether the router is on its way out.
    pub lifecycle: Lifecycle,
    /// Requests to read the configuration again.
    pub reloads: Reloads,
    /// Where requests are logged; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// This router's cluster node.
    pub mesh: mesh::Handle,
    /// Where administrators write.
    pub admin: Admin,
    /// Where this router listens.
    pub own_addresses: OwnAddresses,
    /// What this router says of itself to the next hop, and how it knows its own requests.
    pub hops: Hops,
    /// Places for requests that wait for rights of other routers.
    pub waiting_for_rights: Semaphore,
    /// Estimates of what requests may use, for the limits of tokens.
    pub estimates: Arc<Estimates>,
    /// Whether this router knows what the others know.
    pub gate: Arc<Gate>,
    /// Time.
    pub clock: Clock,
}

/// Whether the router is on its way out.
#[derive(Debug, Default)]
pub struct Lifecycle {
    draining: AtomicBool,
    /// Somebody asked for the end over HTTP.
    asked: Notify,
}

impl Lifecycle {
    /// From now on `/readiness` says no.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Asks for the end, as a signal does.
    pub fn ask_to_end(&self) {
        self.asked.notify_one();
    }

    /// Resolves once somebody has asked for the end.
    pub async fn asked_to_end(&self) {
        self.asked.notified().await;
    }

    /// Whether it drains.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}
