//! Limits of requests and tokens that hold for a whole cluster of routers.
//!
//! The routers of a cluster divide each limit. What a router may admit in a window without asking another is its *rights*
//! there. Rights are never created: each router has a share of the limit by the [roster], a router that has more
//! rights than it needs grants some to another one (`escrow`), and a majority may let one router inherit the share of
//! another that has gone ([`votes`]). The sum of all rights in a window is therefore at most the limit, whatever routers
//! crash, restart or lose contact. After Balegas et al., "Extending Eventually Consistent Cloud Databases for Enforcing
//! Numeric Invariants" (2015); the votes are leases as in Trenčík's PaxosLease (2012).
//!
//! Two parts share the work. The [`limiter`] decides for each request, on the threads of the data path, from the rights
//! that are here. The [`engine`] exchanges [rows] with the other routers, ten times a second. Neither does I/O nor reads
//! a clock, so that the simulator of the tests drives both.
//!
//! Not promised: windows have fixed edges, so that a span of one window's length that begins inside a window may contain up to
//! twice the limit. A router forgets at its restart what it has admitted; it has no share in windows that began before. A
//! restart of all routers at once forgets everything.

pub mod admission;
mod agreement;
pub mod cell;
mod demand;
pub mod engine;
mod escrow;
mod exchange;
pub mod explain;
pub mod limiter;
pub mod meter;
pub mod roster;
pub mod rows;
pub mod rule;
pub mod share;
pub mod standing;
pub mod tenure;
pub mod votes;
pub mod windows;
