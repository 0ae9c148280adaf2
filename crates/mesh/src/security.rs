//! What protects the mesh: mutual TLS, a ring of shared keys, both, or a loud warning.
//!
//! Both can be changed while the router runs: certificates are read again when their files change, keys are installed,
//! used and removed over `/ha/keys`. Connections that are open go on with the certificates that they began with.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use smg_runtime::clock::Clock;
use smg_runtime::tasks::turned_on;
use smg_runtime::tls::{Live, MeshFiles, MeshTls, TlsErrors};
use smg_types::now::Now;
use tokio::sync::watch;
use tracing::{info, warn};

use super::seal::{self, KeyId, Mode, OpenError, Opener, Purpose, Ring, RingError, SharedKey};
use super::seal::{Sealer, Stream};
use super::wire::OpeningError;
use super::wire::proto::{Envelope, Opening, Sealed, envelope::Content};

/// How often the certificates' files are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(5);

/// How the mesh shall be protected.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// Mutual TLS; `None`: none.
    pub tls: Option<MeshFiles>,
    /// Whether frames are sealed.
    pub mode: Mode,
    /// The keys, the one that seals first.
    pub keys: Ring,
}

/// What protects the mesh now.
#[derive(Debug)]
pub(super) struct Security {
    mode: Mode,
    ring: ArcSwap<Ring>,
    tls: Option<Live<MeshFiles>>,
    warned: AtomicBool,
}

/// Why a message was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("it is not sealed, and this router takes sealed frames only")]
    Plain,
    #[error(transparent)]
    Closed(#[from] OpenError),
}

impl Refused {
    /// A name from a closed set, for metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Closed(OpenError::UnknownKey(_)) => "unknown_key",
            Self::Closed(OpenError::Broken) => "seal",
        }
    }
}

/// A change of the ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// This key shall open.
    Install(SharedKey),
    /// This key shall seal.
    Use(KeyId),
    /// This key shall be forgotten.
    Remove(KeyId),
}

impl Security {
    pub(super) fn new(config: &Config, now: Now) -> Result<Self, TlsErrors> {
        let tls = config.tls.clone().map(|files| Live::read(files, now)).transpose()?;
        Ok(Self {
            mode: config.mode,
            ring: ArcSwap::from_pointee(config.keys.clone()),
            tls,
            warned: AtomicBool::new(false),
        })
    }

    /// TLS as it is now, if there is any.
    pub(super) fn tls(&self) -> Option<Arc<MeshTls>> {
        self.tls.as_ref().map(Live::current)
    }

    /// Reads the certificates again. Whether they have changed; `None`: the mesh has none.
    pub(super) fn reload_tls(&self, now: Now) -> Option<Result<bool, TlsErrors>> {
        self.tls.as_ref().map(|tls| tls.reload(now))
    }

    /// The keys as they are now.
    pub(super) fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    /// Whether frames are sealed.
    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a change of keys may travel: sealed, or inside TLS.
    pub(super) fn can_carry_keys(&self) -> bool {
        self.tls.is_some() || (self.mode != Mode::Off && !self.ring.load().is_empty())
    }

    /// Replaces the whole ring. A ring without a key is refused where frames must be sealed.
    pub(super) fn replace(&self, ring: Ring) -> bool {
        let fits = self.mode != Mode::Required || !ring.is_empty();
        if fits {
            self.ring.store(Arc::new(ring));
        }
        fits
    }

    /// Changes the ring.
    pub(super) fn change(&self, change: &KeyChange) -> Result<(), RingError> {
        let mut result = Ok(());
        self.ring.rcu(|ring| {
            let mut ring = Ring::clone(ring);
            result = match change {
                KeyChange::Install(key) => ring.install(key.clone()),
                KeyChange::Use(id) => ring.use_key(*id),
                KeyChange::Remove(id) => ring.remove(*id),
            };
            ring
        });
        result
    }

    /// Says once that a peer that is not on this machine is talked to in the open.
    pub(super) fn warn_if_open(&self, to: std::net::SocketAddr) {
        let is_open = self.tls.is_none() && self.mode != Mode::Required;
        if is_open && !to.ip().is_loopback() && !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                %to,
                "the mesh talks to other machines unprotected: whoever reaches the mesh port can change the cluster; \
                 give --mesh-tls-cert, --mesh-tls-key and --mesh-tls-ca, or --mesh-encryption-key-file"
            );
        }
    }

    /// Puts what is needed to seal into our opening.
    pub(super) fn open_with(&self, opening: &mut Opening) {
        if self.mode != Mode::Off {
            opening.salt = Bytes::copy_from_slice(&seal::salt());
            opening.key_ids = self.ring.load().ids().map(|id| id.0).collect();
        }
    }

    /// What our frames are sealed with on a stream that began like this; `None`: they go as they are.
    pub(super) fn sealer(
        &self,
        caller: &Opening,
        called: &Opening,
        theirs: &Opening,
        purpose: Purpose,
    ) -> Result<Option<Sealer>, OpeningError> {
        if self.mode == Mode::Off {
            return Ok(None);
        }
        let first = self.ring.load().ids().next();
        let shared = first.is_some_and(|id| theirs.key_ids.contains(&id.0));
        let stream =
            Stream::new(&caller.salt, &called.salt, purpose).filter(|_| shared).map(Sealer::new);
        match (stream, self.mode) {
            (None, Mode::Required) => Err(OpeningError::NoSharedKey),
            (stream, Mode::Required | Mode::Permissive | Mode::Off) => Ok(stream),
        }
    }

    /// What their frames are opened with.
    pub(super) fn opener(
        &self,
        caller: &Opening,
        called: &Opening,
        purpose: Purpose,
    ) -> Result<Option<Opener>, OpeningError> {
        match (Stream::new(&caller.salt, &called.salt, purpose), self.mode) {
            (_, Mode::Off) => Ok(None),
            (None, Mode::Required) => Err(OpeningError::NoSharedKey),
            (stream, Mode::Required | Mode::Permissive) => Ok(stream.map(Opener::new)),
        }
    }

    /// Seals a frame, if it is to be; `None` when there is no key any more.
    pub(super) fn enclose(&self, sealer: Option<&mut Sealer>, frame: Bytes) -> Option<Envelope> {
        let content = match sealer {
            None => Content::Frame(frame),
            Some(sealer) => {
                let (id, sealed) = sealer.seal(&self.ring.load(), &frame)?;
                Content::Sealed(Sealed { key_id: id.0, ciphertext: sealed.into() })
            }
        };
        Some(Envelope { content: Some(content) })
    }

    /// The frame in a message; `None` for what this version does not know.
    pub(super) fn disclose(
        &self,
        opener: Option<&mut Opener>,
        message: Envelope,
    ) -> Result<Option<Bytes>, Refused> {
        match message.content {
            Some(Content::Frame(_)) if self.mode == Mode::Required => Err(Refused::Plain),
            Some(Content::Frame(frame)) => Ok(Some(frame)),
            Some(Content::Sealed(Sealed { key_id, ciphertext })) => {
                let id = KeyId(key_id);
                let opener = opener.ok_or(OpenError::UnknownKey(id))?;
                Ok(Some(opener.open(&self.ring.load(), id, &ciphertext)?.into()))
            }
            Some(Content::Opening(_) | Content::KeyChange(_) | Content::KeyAnswer(_)) | None => {
                Ok(None)
            }
        }
    }

    /// Reads the certificates again whenever their files have changed, until the end.
    pub(super) async fn follow_files(
        self: Arc<Self>,
        clock: Clock,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Some(tls) = &self.tls else { return };
        let files = tls.files();
        let mut seen = marks(files);
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_AT_FILES) => {}
                () = turned_on(&mut stopping) => return,
            }
            let now = marks(files);
            if now == seen {
                continue;
            }
            match tls.reload(clock.now()) {
                Ok(changed) => {
                    // SIGHUP may have read them before.
                    if changed {
                        info!(certificate = %files.certificate.display(), "the mesh's certificates were read again");
                    }
                    seen = now;
                }
                // Files are seldom replaced all at once: read again until they fit together.
                Err(error) => {
                    warn!(%error, "the mesh's certificates have changed and can't be used: going on with the former ones");
                }
            }
        }
    }
}

/// When the files were written last, and how long they are.
fn marks(files: &MeshFiles) -> [Option<(SystemTime, u64)>; 3] {
    [&files.certificate, &files.key, &files.ca].map(|path| {
        let about = std::fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> SharedKey {
        SharedKey::new([byte; seal::KEY_BYTES])
    }

    fn security(mode: Mode, keys: &[u8]) -> Security {
        let keys = Ring::new(keys.iter().copied().map(key)).unwrap();
        Security::new(&Config { tls: None, mode, keys }, Now::default()).unwrap()
    }

    fn opening(of: &Security) -> Opening {
        let mut opening = Opening::default();
        of.open_with(&mut opening);
        opening
    }

    /// Sends a frame from one to the other, as a stream would.
    fn send(from: &Security, to: &Security) -> Result<Option<Bytes>, String> {
        let (caller, called) = (opening(from), opening(to));
        let purpose = Purpose::Lane(smg_cluster::Lane::State);
        let mut sealer =
            from.sealer(&caller, &called, &called, purpose).map_err(|e| e.name().to_owned())?;
        let mut opener = to.opener(&caller, &called, purpose).map_err(|e| e.name().to_owned())?;
        let message = from.enclose(sealer.as_mut(), "row".into()).unwrap();
        to.disclose(opener.as_mut(), message).map_err(|e| e.name().to_owned())
    }

    #[test]
    fn who_has_the_key_is_heard_and_who_has_not_is_not() {
        use Mode::{Off, Permissive, Required};
        let through = Ok(Some(Bytes::from_static(b"row")));
        let no = |name: &str| Err(name.to_owned());
        for (from, to, expected) in [
            ((Off, &[][..]), (Off, &[][..]), through.clone()),
            ((Required, &[1]), (Required, &[1]), through.clone()),
            ((Required, &[1]), (Required, &[2, 1]), through.clone()),
            // The way from nothing to sealed, one router after the other.
            ((Off, &[]), (Permissive, &[1]), through.clone()),
            ((Permissive, &[1]), (Off, &[]), through.clone()),
            ((Permissive, &[1]), (Required, &[1]), through.clone()),
            ((Required, &[1]), (Permissive, &[1]), through),
            ((Off, &[]), (Required, &[1]), no("no_shared_key")),
            ((Required, &[1]), (Off, &[]), no("no_shared_key")),
            ((Required, &[1]), (Required, &[2]), no("no_shared_key")),
            ((Permissive, &[1]), (Required, &[2]), no("plain")),
        ] {
            let heard = send(&security(from.0, from.1), &security(to.0, to.1));
            assert_eq!(heard, expected, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn a_ring_changes_while_it_is_used() {
        let (a, b) = (security(Mode::Required, &[1]), security(Mode::Required, &[1]));
        for node in [&a, &b] {
            node.change(&KeyChange::Install(key(2))).unwrap();
        }
        a.change(&KeyChange::Use(key(2).id())).unwrap();
        assert!(send(&a, &b).is_ok() && send(&b, &a).is_ok());
        b.change(&KeyChange::Use(key(2).id())).unwrap();
        for node in [&a, &b] {
            node.change(&KeyChange::Remove(key(1).id())).unwrap();
        }
        assert!(send(&a, &b).is_ok());
        assert!(send(&security(Mode::Required, &[1]), &b).is_err());
        assert!(a.change(&KeyChange::Remove(key(2).id())).is_err());
    }
}
