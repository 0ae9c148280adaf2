//! A mock worker that needs no GPU, traffic for it, and the demo.
//!
//! The worker serves the OpenAI, Anthropic and SGLang APIs, with configurable delays. It caches prompt prefixes as an
//! engine does, and fails on request. Tests, the demo and the benchmarks all use it. Its answers have no meaning: they
//! are `w0 w1 w2 …`, so that a lost or swapped chunk shows.
//!
//! In reading order: [`config`] · [`server`] (sockets) · [`worker`] (state) · `route`, `service`, `about`, `form`,
//! `receive` (requests) · `engine` (slots, time, counts) · [`prefix_cache`] · [`script`] (faults) · `ask`, `answer`,
//! `listed`, `stored`, `body`, `reply` (formats of requests and answers). Then [`traffic`] (sessions and pace), [`client`],
//! [`histogram`] and [`demo`].

mod about;
mod answer;
mod ask;
mod body;
pub mod client;
pub mod config;
pub mod demo;
mod engine;
mod form;
pub mod histogram;
mod listed;
pub mod prefix_cache;
mod realtime;
mod receive;
mod reply;
mod route;
pub mod script;
pub mod server;
mod service;
mod stored;
pub mod traffic;
pub mod worker;

pub use config::{Args, Config};
pub use engine::Stats;
