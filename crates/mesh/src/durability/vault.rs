//! The secrets of a data folder: the key with which its files are sealed, and the ring of shared keys.
//!
//! The files of the journal are sealed with a *data key* that is made once. The data key is in the folder too, sealed with each
//! of the shared keys, those of the configuration and those of the ring. So whoever has the folder without a shared key reads
//! nothing, and the shared keys can be rotated without writing all files again: a router whose configuration names any key
//! that was shared when it stopped can open its folder. There are two copies, because all is lost with it.
//!
//! `/ha/keys` changes the ring while routers run. The ring is saved together with a fingerprint of the configured keys. At
//! the next start it counts if the configuration is still the same; otherwise an administrator has configured other keys, which
//! replace it, as SIGHUP does.
//!
//! A router without shared keys has nothing to seal with: its files are plain, and only their mode protects them. A router
//! whose keys do not open the folder leaves it as it is, and goes on in memory.

use std::io;

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::hkdf::{HKDF_SHA256, KeyType, Salt};
use aws_lc_rs::{digest, rand};
use serde::{Deserialize, Serialize};
use smg_persist::{FolderFiles, KeyId as FileKeyId, Seal, Slots};
use tracing::{info, warn};

use crate::seal::{KEY_BYTES, KeyId, Ring, SharedKey};

/// The slots with the copies of the sealed data key.
const DATA_KEYS: [&str; 2] = ["data-key", "data-key-copy"];
/// The slot with the ring.
const RING: &str = "ring";

/// The data key, sealed with one shared key.
#[derive(Debug, Serialize, Deserialize)]
struct Envelope {
    key_id: u64,
    sealed: Vec<u8>,
}

/// The ring as it is saved.
#[derive(Debug, Serialize, Deserialize)]
struct SavedRing {
    /// A fingerprint of the keys that were configured.
    configured: Vec<u8>,
    keys: Vec<[u8; KEY_BYTES]>,
}

/// The secrets of a data folder.
#[derive(Debug)]
pub(super) struct Vault {
    slots: Slots<FolderFiles>,
    configured: Ring,
    /// `None`: no shared keys are configured.
    data_key: Option<SharedKey>,
}

/// None of the configured keys opens the folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "none of the configured shared keys opens it: configure a key that was shared when this router stopped, as a second \
     key, or remove the folder"
)]
pub(super) struct Locked;

impl Vault {
    /// Reads the secrets. Returns the ring to use, too.
    pub(super) fn open(files: FolderFiles, configured: &Ring) -> Result<(Self, Ring), Locked> {
        let mut slots = Slots::new(files);
        let found = find_data_key(&mut slots, configured)?;
        let data_key =
            (!configured.is_empty()).then(|| found.unwrap_or_else(|| SharedKey::new(random())));
        let mut vault = Self { slots, configured: configured.clone(), data_key };
        let ring = vault.saved_ring().unwrap_or_else(|| configured.clone());
        Ok((vault, ring))
    }

    /// What seals the files of the journal; `None` without shared keys.
    pub(super) fn file_seal(&self) -> Option<Box<dyn Seal>> {
        let key = self.data_key.clone()?;
        Some(Box::new(FileSeal { key }))
    }

    /// Saves the ring, and the data key sealed with each of its keys.
    pub(super) fn save(&mut self, ring: &Ring) -> io::Result<()> {
        if let Some(data_key) = &self.data_key {
            let mut envelopes: Vec<Envelope> = Vec::new();
            for key in self.configured.keys().chain(ring.keys()) {
                if envelopes.iter().all(|envelope| envelope.key_id != key.id().0) {
                    let sealed = seal_with(key, b"data key", b"", data_key.bytes());
                    envelopes.push(Envelope { key_id: key.id().0, sealed });
                }
            }
            let bytes = smg_cluster::codec::encode(&envelopes);
            for slot in DATA_KEYS {
                self.slots.put(slot, &bytes, None)?;
            }
        }
        let saved = SavedRing {
            configured: fingerprint(&self.configured),
            keys: ring.keys().map(|key| *key.bytes()).collect(),
        };
        let seal = self.data_key.clone().map(|key| FileSeal { key });
        let seal = seal.as_ref().map(|seal| seal as &dyn Seal);
        self.slots.put(RING, &smg_cluster::codec::encode(&saved), seal)
    }

    /// The saved ring, if the configured keys are those with which it was saved.
    fn saved_ring(&mut self) -> Option<Ring> {
        let seal = self.data_key.clone().map(|key| FileSeal { key });
        let bytes = match self.slots.value(RING, seal.as_ref().map(|seal| seal as &dyn Seal)) {
            Ok(bytes) => bytes?,
            Err(error) => {
                warn!(%error, "the saved shared keys can't be used: the configured ones are");
                return None;
            }
        };
        let saved: SavedRing = smg_cluster::codec::decode(&bytes).ok()?;
        if saved.configured != fingerprint(&self.configured) {
            info!("the configured shared keys have changed: they replace the saved ones");
            return None;
        }
        let ring = Ring::new(saved.keys.into_iter().map(SharedKey::new)).ok()?;
        if ring != self.configured {
            let keys: Vec<KeyId> = ring.ids().collect();
            info!(?keys, "the shared keys are those that /ha/keys has set before the restart");
        }
        Some(ring)
    }
}

/// The data key of the folder; `None` if it has none.
fn find_data_key(
    slots: &mut Slots<FolderFiles>,
    configured: &Ring,
) -> Result<Option<SharedKey>, Locked> {
    let mut is_present = false;
    for slot in DATA_KEYS {
        let bytes = match slots.value(slot, None) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => continue,
            Err(error) => {
                warn!(%error, "a copy of the key of the data folder can't be used");
                is_present = true;
                continue;
            }
        };
        is_present = true;
        let Ok(envelopes) = smg_cluster::codec::decode::<Vec<Envelope>>(&bytes) else { continue };
        for envelope in envelopes {
            let key = configured.keys().find(|key| key.id().0 == envelope.key_id);
            let opened = key.and_then(|key| open_with(key, b"data key", b"", &envelope.sealed));
            if let Some(bytes) = opened.and_then(|bytes| bytes.try_into().ok()) {
                return Ok(Some(SharedKey::new(bytes)));
            }
        }
    }
    if is_present { Err(Locked) } else { Ok(None) }
}

fn fingerprint(ring: &Ring) -> Vec<u8> {
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"smg configured keys");
    ring.keys().for_each(|key| hash.update(key.bytes()));
    hash.finish().as_ref().to_vec()
}

/// Seals files with the data key.
#[derive(Debug)]
struct FileSeal {
    key: SharedKey,
}

impl Seal for FileSeal {
    fn key_id(&self) -> FileKeyId {
        self.key.id().0.to_le_bytes()
    }

    fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8> {
        seal_with(&self.key, b"files", place, plain)
    }

    fn open(&self, key: FileKeyId, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        (key == self.key_id()).then(|| open_with(&self.key, b"files", place, sealed)).flatten()
    }
}

/// The number of bytes that HKDF makes.
struct Length;

impl KeyType for Length {
    fn len(&self) -> usize {
        KEY_BYTES
    }
}

fn cipher(key: &SharedKey, purpose: &[u8]) -> LessSafeKey {
    let mut bytes = [0; KEY_BYTES];
    Salt::new(HKDF_SHA256, b"smg disk v1")
        .extract(key.bytes())
        .expand(&[purpose], Length)
        .and_then(|derived| derived.fill(&mut bytes))
        .expect("32 bytes are within HKDF's bound");
    LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &bytes).expect("AES-256 takes 32 bytes"))
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("the system has random bytes");
    bytes
}

/// A random nonce and the sealed bytes. A key seals far fewer than the 2^32 values for which random nonces are safe: 20 a second
/// are that many in seven years, and each start of a router derives nothing anew.
fn seal_with(key: &SharedKey, purpose: &[u8], place: &[u8], plain: &[u8]) -> Vec<u8> {
    let nonce: [u8; NONCE_LEN] = random();
    let mut sealed = plain.to_vec();
    cipher(key, purpose)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            &mut sealed,
        )
        .expect("a value is shorter than AES-GCM's bound");
    [&nonce, &sealed[..]].concat()
}

fn open_with(key: &SharedKey, purpose: &[u8], place: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE_LEN>()?;
    let mut bytes = sealed.to_vec();
    let nonce = Nonce::assume_unique_for_key(*nonce);
    let opened = cipher(key, purpose).open_in_place(nonce, Aad::from(place), &mut bytes).ok()?;
    Some(opened.to_vec())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use smg_persist::Folder;

    use super::*;

    fn key(byte: u8) -> SharedKey {
        SharedKey::new([byte; KEY_BYTES])
    }

    fn ring(keys: &[u8]) -> Ring {
        Ring::new(keys.iter().copied().map(key)).unwrap()
    }

    fn try_open(path: &Path, configured: &[u8]) -> Result<(Vault, Ring), Locked> {
        let (folder, _) = Folder::open(path, "test").unwrap();
        Vault::open(folder.files(), &ring(configured))
    }

    fn open(path: &Path, configured: &[u8]) -> (Vault, Ring) {
        try_open(path, configured).unwrap()
    }

    fn first(vault: &Vault) -> Option<FileKeyId> {
        vault.file_seal().map(|seal| seal.key_id())
    }

    #[test]
    fn changed_keys_count_until_the_configuration_changes() {
        let folder = tempfile::tempdir().unwrap();
        let (mut vault, found) = open(folder.path(), &[1]);
        assert_eq!(found, ring(&[1]));
        drop(vault);
        vault = open(folder.path(), &[1]).0;
        vault.save(&ring(&[2, 1])).unwrap();
        vault.save(&ring(&[2])).unwrap();
        drop(vault);
        assert_eq!(open(folder.path(), &[1]).1, ring(&[2]), "the first key was removed");
        assert_eq!(open(folder.path(), &[2]).1, ring(&[2]), "another configuration counts");
        assert_eq!(open(folder.path(), &[3, 2]).1, ring(&[3, 2]));
    }

    #[test]
    fn the_folder_opens_with_any_key_that_was_shared() {
        let folder = tempfile::tempdir().unwrap();
        let (mut vault, _) = open(folder.path(), &[1]);
        let seal = first(&vault);
        vault.save(&ring(&[2, 1])).unwrap();
        drop(vault);
        for configured in [&[1][..], &[2], &[3, 2]] {
            assert_eq!(first(&open(folder.path(), configured).0), seal, "{configured:?}");
        }
        for configured in [&[3][..], &[]] {
            assert!(try_open(folder.path(), configured).is_err(), "{configured:?}");
        }
    }

    #[test]
    fn one_copy_of_the_data_key_is_enough() {
        for lost in DATA_KEYS {
            let folder = tempfile::tempdir().unwrap();
            let (mut vault, _) = open(folder.path(), &[1]);
            vault.save(&ring(&[1])).unwrap();
            let file = folder.path().join(format!("slot-{lost}"));
            let mut bytes = std::fs::read(&file).unwrap();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            let seal = first(&vault);
            drop(vault);
            assert_eq!(first(&open(folder.path(), &[1]).0), seal, "{lost}");
        }
    }

    #[test]
    fn nothing_in_the_folder_shows_a_key() {
        let folder = tempfile::tempdir().unwrap();
        let (mut vault, _) = open(folder.path(), &[1]);
        vault.save(&ring(&[2, 1])).unwrap();
        for entry in std::fs::read_dir(folder.path()).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            for secret in [[1; 16], [2; 16]] {
                assert!(!bytes.windows(16).any(|window| window == secret));
            }
        }
    }

    #[test]
    fn sealed_bytes_open_at_their_place_only() {
        let sealed = seal_with(&key(1), b"files", b"here", b"plain");
        assert_eq!(open_with(&key(1), b"files", b"here", &sealed).unwrap(), b"plain");
        assert_eq!(open_with(&key(1), b"files", b"there", &sealed), None);
        assert_eq!(open_with(&key(2), b"files", b"here", &sealed), None);
        assert_eq!(open_with(&key(1), b"data key", b"here", &sealed), None);
        assert_eq!(open_with(&key(1), b"files", b"here", &sealed[..5]), None);
    }
}
