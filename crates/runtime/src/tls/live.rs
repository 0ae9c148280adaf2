//! A TLS configuration that is read again from its files while it is used.
//!
//! A new connection takes the configuration of that moment; open connections keep the one that they began with. The whole
//! configuration is replaced, with its cache of sessions: a session that an old authority admitted is not resumed under
//! the new one.

use std::path::Path;
use std::sync::Arc;

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use parking_lot::Mutex;
use smg_types::now::Now;

use super::{
    ClientConfig, MeshFiles, MeshTls, ServerConfig, TlsErrors, client, mesh, read_bounded, server,
};

/// Files from which a TLS configuration is made.
pub trait Files {
    /// The configuration.
    type Tls;

    /// Reads the files.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    fn read(&self, now: Now) -> Result<Self::Tls, TlsErrors>;

    /// The files that there are.
    fn paths(&self) -> Vec<&Path>;
}

/// A TLS configuration and the files that it came from.
#[derive(Debug)]
pub struct Live<F: Files> {
    files: ArcSwap<F>,
    current: ArcSwap<F::Tls>,
    /// The content of the files behind `current`.
    fingerprint: Mutex<Fingerprint>,
}

/// A TLS configuration that was read and is not in use yet.
#[derive(Debug)]
pub struct Prepared<F: Files> {
    files: F,
    tls: F::Tls,
    fingerprint: Fingerprint,
}

impl<F: Files> Live<F> {
    /// Reads the files for the first time.
    ///
    /// # Errors
    /// Everything that is wrong with them.
    pub fn read(files: F, now: Now) -> Result<Self, TlsErrors> {
        let fingerprint = Mutex::new(Fingerprint::of(&files));
        let current = ArcSwap::from_pointee(files.read(now)?);
        Ok(Self { files: ArcSwap::from_pointee(files), current, fingerprint })
    }

    /// The configuration for a new connection.
    pub fn current(&self) -> Arc<F::Tls> {
        self.current.load_full()
    }

    /// The files.
    pub fn files(&self) -> Arc<F> {
        self.files.load_full()
    }

    /// Reads `files`, which may be others than before, and changes nothing.
    ///
    /// # Errors
    /// Everything that is wrong with the files.
    pub fn prepare(files: F, now: Now) -> Result<Prepared<F>, TlsErrors> {
        // Before the files are read: if they change in between, the next reload finds a difference and reads them again.
        let fingerprint = Fingerprint::of(&files);
        let tls = files.read(now)?;
        Ok(Prepared { files, tls, fingerprint })
    }

    /// Uses what was prepared for new connections. Returns whether the content of the files differs from before.
    pub fn apply(&self, prepared: Prepared<F>) -> bool {
        let Prepared { files, tls, fingerprint } = prepared;
        let mut known = self.fingerprint.lock();
        self.files.store(Arc::new(files));
        if fingerprint == *known {
            return false;
        }
        self.current.store(Arc::new(tls));
        *known = fingerprint;
        true
    }

    /// Reads the files again. Whether their content has changed, and with it the configuration.
    ///
    /// # Errors
    /// Everything that is wrong with the files; the former configuration stays.
    pub fn reload(&self, now: Now) -> Result<bool, TlsErrors>
    where
        F: Clone,
    {
        let prepared = Self::prepare(F::clone(&self.files()), now)?;
        Ok(self.apply(prepared))
    }
}

/// A digest of what the files hold; files that can't be read count as empty.
#[derive(Debug, PartialEq, Eq)]
struct Fingerprint(Vec<u8>);

impl Fingerprint {
    fn of(files: &impl Files) -> Self {
        let mut whole = digest::Context::new(&digest::SHA256);
        for path in files.paths() {
            let one = digest::digest(&digest::SHA256, &read_bounded(path).unwrap_or_default());
            whole.update(one.as_ref());
        }
        Self(whole.finish().as_ref().to_vec())
    }
}

impl Files for ServerConfig {
    type Tls = rustls::ServerConfig;

    fn read(&self, now: Now) -> Result<Self::Tls, TlsErrors> {
        server(self, now)
    }

    fn paths(&self) -> Vec<&Path> {
        [&self.certificate, &self.key].into_iter().chain(&self.client_ca).map(|p| &**p).collect()
    }
}

impl Files for ClientConfig {
    type Tls = rustls::ClientConfig;

    fn read(&self, now: Now) -> Result<Self::Tls, TlsErrors> {
        client(self, now)
    }

    fn paths(&self) -> Vec<&Path> {
        let identity = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        self.ca.iter().chain(identity).map(|path| &**path).collect()
    }
}

impl Files for MeshFiles {
    type Tls = MeshTls;

    fn read(&self, now: Now) -> Result<Self::Tls, TlsErrors> {
        mesh(self, now)
    }

    fn paths(&self) -> Vec<&Path> {
        vec![&self.certificate, &self.key, &self.ca]
    }
}
