//! Builds a policy of a given kind.

use std::sync::Arc;

use super::bucket::Bucket;
use super::cache_aware::CacheAware;
use super::consistent_hashing::ConsistentHashing;
use super::least_load::LeastLoad;
use super::manual::Manual;
use super::passthrough::Passthrough;
use super::power_of_two::PowerOfTwo;
use super::prefix_hash::PrefixHash;
use super::random::Random;
use super::round_robin::RoundRobin;
use super::{Config, Kind, Memory, Policy};

/// The policy called `kind`. One instance may serve several models, and several policies may share `memory`.
#[must_use]
pub fn build(kind: Kind, config: &Config, memory: Arc<Memory>) -> Arc<dyn Policy> {
    match kind {
        Kind::CacheAware => Arc::new(CacheAware::new(config, memory)),
        Kind::RoundRobin => Arc::new(RoundRobin::default()),
        Kind::Random => Arc::new(Random),
        Kind::PowerOfTwo => Arc::new(PowerOfTwo),
        Kind::LeastLoad => Arc::new(LeastLoad),
        Kind::ConsistentHashing => Arc::new(ConsistentHashing),
        Kind::PrefixHash => Arc::new(PrefixHash),
        Kind::Manual => Arc::new(Manual::new(config, memory)),
        Kind::Bucket => Arc::new(Bucket::new(config)),
        Kind::Passthrough => Arc::new(Passthrough),
    }
}
