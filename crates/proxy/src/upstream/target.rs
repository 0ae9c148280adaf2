//! What the client needs to know of a worker to connect to it.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use smg_types::ids::WorkerId;
use smg_types::spec::{WorkerSpec, WorkerTls, WorkerUrl};

/// A server to connect to, and how its certificate is checked.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    pub(super) url: &'a WorkerUrl,
    pub(super) tls: &'a WorkerTls,
}

/// A pool's key: the connections of a worker that were made with the same checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Place {
    worker: WorkerId,
    /// A hash of the checks; 0: the usual ones.
    tls: u64,
}

impl Target<'_> {
    pub(super) fn place(&self) -> Place {
        let tls = match self.tls {
            WorkerTls::Authorities => 0,
            WorkerTls::Pins(_) | WorkerTls::Unchecked => {
                let mut hasher = DefaultHasher::new();
                self.tls.hash(&mut hasher);
                hasher.finish()
            }
        };
        Place { worker: self.url.id(), tls }
    }
}

impl<'a> From<&'a WorkerSpec> for Target<'a> {
    fn from(spec: &'a WorkerSpec) -> Self {
        Self { url: &spec.url, tls: &spec.tls }
    }
}

impl<'a> From<&'a WorkerUrl> for Target<'a> {
    /// A server whose certificate is checked against the authorities.
    fn from(url: &'a WorkerUrl) -> Self {
        Self { url, tls: &WorkerTls::Authorities }
    }
}
