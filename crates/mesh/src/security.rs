//! The protection of the mesh: mutual TLS, shared keys, both, or none with a warning.
//!
//! Both can be changed while the router runs: certificates are read again when their files change, and `/ha/keys`
//! installs, uses and removes keys. Open connections continue with the certificates with which they began.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use prost::Message as _;
use smg_runtime::clock::Clock;
use smg_runtime::tasks::turned_on;
use smg_runtime::tls::{Live, MeshFiles, MeshTls, Prepared, TlsErrors};
use smg_types::now::Now;
use tokio::sync::watch;
use tracing::{info, warn};

use super::concealed;
use super::durability::DiskHandle;
use super::purpose::{Purpose, Side};
use super::seal::{
    self, KeyId, Mode, OpenError, Opener, Ring, RingError, Sealer, SharedKey, Stream,
};
use super::wire::proto::{Envelope, Opening, Sealed, envelope::Content};
use super::wire::{self, OpeningError};

/// The time between two checks whether the files of the certificates have changed.
const FILE_CHECK_INTERVAL: Duration = Duration::from_secs(5);

/// The configured protection of the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Config {
    /// The files for mutual TLS; `None` means no TLS.
    pub tls: Option<MeshFiles>,
    /// Whether messages are encrypted.
    pub mode: Mode,
    /// The shared keys, the encrypting one first.
    pub keys: Ring,
}

/// The current protection of the mesh.
#[derive(Debug)]
pub(super) struct Security {
    mode: Mode,
    ring: ArcSwap<Ring>,
    tls: Option<Live<MeshFiles>>,
    warned: AtomicBool,
    /// Where the ring is saved.
    disk: Option<DiskHandle>,
}

/// Why a message was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refused {
    #[error("the message is not encrypted, and this router accepts only encrypted ones")]
    Plain,
    #[error(transparent)]
    Closed(#[from] OpenError),
}

impl Refused {
    /// A value from a fixed set, for metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Closed(OpenError::UnknownKey(_)) => "unknown_key",
            Self::Closed(OpenError::Broken) => "seal",
        }
    }
}

/// A change of the shared keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyChange {
    /// Adds a key for decryption.
    Install(SharedKey),
    /// Makes a key the encrypting one.
    Use(KeyId),
    /// Removes a key.
    Remove(KeyId),
}

impl Security {
    /// `saved`: the ring that was saved, and where it is saved when it changes.
    pub(super) fn new(
        config: &Config,
        now: Now,
        saved: Option<(Ring, DiskHandle)>,
    ) -> Result<Self, TlsErrors> {
        let tls = config.tls.clone().map(|files| Live::read(files, now)).transpose()?;
        let (ring, disk) = saved.unzip();
        Ok(Self {
            mode: config.mode,
            ring: ArcSwap::from_pointee(ring.unwrap_or_else(|| config.keys.clone())),
            tls,
            warned: AtomicBool::new(false),
            disk,
        })
    }

    /// Waits until the ring is on disk, if it is saved and the disk works; not longer than two seconds.
    pub(super) async fn saved(&self) {
        if let Some(disk) = &self.disk {
            disk.synced().await;
        }
    }

    fn save(&self) {
        if let Some(disk) = &self.disk {
            disk.save_ring(Ring::clone(&self.ring.load()));
        }
    }

    /// The current TLS configuration, if there is one.
    pub(super) fn tls(&self) -> Option<Arc<MeshTls>> {
        self.tls.as_ref().map(Live::current)
    }

    /// Uses these certificates for future connections. Returns whether they differ from before; never if the mesh was
    /// started without certificates.
    pub(super) fn replace_tls(&self, prepared: Prepared<MeshFiles>) -> bool {
        self.tls.as_ref().is_some_and(|tls| tls.apply(prepared))
    }

    /// The shared keys that are in use now.
    pub(super) fn ring(&self) -> Arc<Ring> {
        self.ring.load_full()
    }

    /// Whether messages are encrypted.
    pub(super) const fn mode(&self) -> Mode {
        self.mode
    }

    /// Whether a change of keys can be sent in secret: encrypted, or inside TLS.
    pub(super) fn can_carry_keys(&self) -> bool {
        self.tls.is_some() || (self.mode != Mode::Off && !self.ring.load().is_empty())
    }

    /// Whether a member must have shown a shared key or a certificate.
    pub(super) fn authenticates_members(&self) -> bool {
        self.tls.is_some() || self.mode == Mode::Required
    }

    /// Replaces all keys. Returns false and changes nothing if messages must be encrypted and `ring` is empty.
    pub(super) fn replace(&self, ring: Ring) -> bool {
        let fits = self.mode != Mode::Required || !ring.is_empty();
        if fits {
            self.ring.store(Arc::new(ring));
            self.save();
        }
        fits
    }

    /// Applies a change to the keys.
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
        if result.is_ok() {
            self.save();
        }
        result
    }

    /// Warns once if a peer on another machine is connected without protection.
    pub(super) fn warn_if_open(&self, to: std::net::SocketAddr) {
        if !self.authenticates_members()
            && !to.ip().is_loopback()
            && !self.warned.swap(true, Ordering::Relaxed)
        {
            warn!(
                %to,
                "the mesh is not protected between machines: everyone who reaches the mesh port can change the cluster; \
                 give --mesh-tls-cert, --mesh-tls-key and --mesh-tls-ca, or --mesh-encryption-key-file"
            );
        }
    }

    /// Adds to our opening what the encryption needs: the random bytes and the ids of our keys.
    pub(super) fn open_with(&self, opening: &mut Opening) {
        if self.mode != Mode::Off {
            opening.salt = Bytes::copy_from_slice(&seal::salt());
            opening.key_ids = self.ring.load().ids().map(|id| id.0).collect();
        }
    }

    /// The opening as `side` sends it: encrypted if messages must be, so that a stranger learns only the version from it.
    pub(super) fn conceal(&self, opening: &Opening, side: Side) -> Opening {
        if self.mode != Mode::Required {
            return opening.clone();
        }
        let text = opening.encode_to_vec();
        // A ring is not empty where messages must be encrypted, and all texts of an opening are bounded.
        let sealed = concealed::conceal(&self.ring.load(), &opening.salt, side, &text);
        Opening {
            major: opening.major,
            minor: opening.minor,
            salt: opening.salt.clone(),
            sealed: sealed.into_iter().map(Bytes::from).collect(),
            ..Opening::default()
        }
    }

    /// The opening that `side` sent, decrypted if it is encrypted.
    pub(super) fn reveal(&self, opening: Opening, side: Side) -> Result<Opening, OpeningError> {
        wire::check_version(&opening)?;
        let ring = self.ring.load();
        if opening.sealed.is_empty() {
            // During a migration a router that also accepts plain text has the key, but does not encrypt its opening.
            let shares = opening.key_ids.iter().any(|id| ring.has(KeyId(*id)));
            let is_admitted = shares || self.mode != Mode::Required;
            return if is_admitted { Ok(opening) } else { Err(OpeningError::NoSharedKey) };
        }
        let text = concealed::reveal(&ring, &opening.salt, side, &opening.sealed)
            .ok_or(OpeningError::NoSharedKey)?;
        let inner = Opening::decode(&*text)
            .map_err(|_| OpeningError::Malformed("its encrypted part is no opening"))?;
        Ok(Opening { salt: opening.salt, sealed: Vec::new(), ..inner })
    }

    /// The sealer for our messages on a stream with these openings; `None` if they are sent in plain text.
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

    /// The opener for the messages of the other side.
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

    /// Encrypts a frame if `sealer` is given; `None` if there are no keys any more.
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

    /// The frame in a message; `None` for a kind of message that this version does not know.
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

    /// Reads the certificates again whenever their files have changed, until the router shuts down.
    pub(super) async fn follow_files(
        self: Arc<Self>,
        clock: Clock,
        mut stopping: watch::Receiver<bool>,
    ) {
        let Some(tls) = &self.tls else { return };
        let mut applied = marks(&tls.files());
        loop {
            tokio::select! {
                () = tokio::time::sleep(FILE_CHECK_INTERVAL) => {}
                () = turned_on(&mut stopping) => return,
            }
            let files = tls.files();
            let now = marks(&files);
            if now == applied {
                continue;
            }
            match tls.reload(clock.now()) {
                Ok(changed) => {
                    // A reload may have read them before.
                    if changed {
                        info!(certificate = %files.certificate.display(), "the mesh's certificates were read again");
                    }
                    applied = now;
                }
                // Files are seldom replaced all at once: they are read again until they match each other.
                Err(error) => {
                    warn!(%error, "the mesh's certificates have changed and can't be used: the previous ones stay in use");
                }
            }
        }
    }
}

/// The time of the last change and the size of each file.
fn marks(files: &MeshFiles) -> [Option<(SystemTime, u64)>; 3] {
    [&files.certificate, &files.key, &files.ca].map(|path| {
        let about = std::fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    })
}

#[cfg(test)]
mod tests {
    use smg_cluster::codec;

    use super::*;

    fn key(byte: u8) -> SharedKey {
        SharedKey::new([byte; seal::KEY_BYTES])
    }

    fn security(mode: Mode, keys: &[u8]) -> Security {
        let keys = Ring::new(keys.iter().copied().map(key)).unwrap();
        Security::new(&Config { tls: None, mode, keys }, Now::default(), None).unwrap()
    }

    fn opening(of: &Security) -> Opening {
        let major = codec::VERSION.0.into();
        let mut opening = Opening { major, node_name: "node-1".to_owned(), ..Opening::default() };
        of.open_with(&mut opening);
        opening
    }

    #[test]
    fn without_the_key_an_opening_shows_the_version_only() {
        let keyed = security(Mode::Required, &[1]);
        let ours = opening(&keyed);
        let shown = keyed.conceal(&ours, Side::Called);
        let Opening { major, minor, salt, sealed, .. } = shown.clone();
        assert_eq!(shown, Opening { major, minor, salt, sealed, ..Opening::default() });
        assert_eq!(keyed.reveal(shown.clone(), Side::Called), Ok(ours));
        for other in [security(Mode::Required, &[2]), security(Mode::Permissive, &[2])] {
            let refused = other.reveal(shown.clone(), Side::Called);
            assert_eq!(refused, Err(OpeningError::NoSharedKey));
        }
        // Whoever has no key gets the same answer, whatever else it says.
        let claims = Opening { major, cluster: 4711, ..Opening::default() };
        assert_eq!(keyed.reveal(claims, Side::Caller), Err(OpeningError::NoSharedKey));
        let later = Opening { major: major + 1, ..shown };
        assert_eq!(keyed.reveal(later, Side::Called).unwrap_err().name(), "version");
    }

    /// Sends a frame from one to the other, as a stream would.
    fn send(from: &Security, to: &Security) -> Result<Option<Bytes>, String> {
        let through = |opening: Opening, from: &Security, to: &Security, side| {
            to.reveal(from.conceal(&opening, side), side).map_err(|e| e.name().to_owned())
        };
        let caller = through(opening(from), from, to, Side::Caller)?;
        let called = through(opening(to), to, from, Side::Called)?;
        let purpose = Purpose::Lane(smg_cluster::Lane::State);
        let mut sealer =
            from.sealer(&caller, &called, &called, purpose).map_err(|e| e.name().to_owned())?;
        let mut opener = to.opener(&caller, &called, purpose).map_err(|e| e.name().to_owned())?;
        let message = from.enclose(sealer.as_mut(), "row".into()).unwrap();
        to.disclose(opener.as_mut(), message).map_err(|e| e.name().to_owned())
    }

    #[test]
    fn only_messages_of_routers_with_the_key_are_accepted() {
        use Mode::{Off, Permissive, Required};
        let through = Ok(Some(Bytes::from_static(b"row")));
        let no = |name: &str| Err(name.to_owned());
        for (from, to, expected) in [
            ((Off, &[][..]), (Off, &[][..]), through.clone()),
            ((Required, &[1]), (Required, &[1]), through.clone()),
            ((Required, &[1]), (Required, &[2, 1]), through.clone()),
            // The steps of a migration from plain text to encryption, one router after the other.
            ((Off, &[]), (Permissive, &[1]), through.clone()),
            ((Permissive, &[1]), (Off, &[]), through.clone()),
            ((Permissive, &[1]), (Required, &[1]), through.clone()),
            ((Required, &[1]), (Permissive, &[1]), through),
            ((Off, &[]), (Required, &[1]), no("no_shared_key")),
            ((Required, &[1]), (Off, &[]), no("no_shared_key")),
            ((Required, &[1]), (Required, &[2]), no("no_shared_key")),
            ((Permissive, &[1]), (Required, &[2]), no("no_shared_key")),
        ] {
            let received = send(&security(from.0, from.1), &security(to.0, to.1));
            assert_eq!(received, expected, "{from:?} to {to:?}");
        }
    }

    #[test]
    fn keys_change_while_they_are_used() {
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
