//! Encryption of what is written to disk. The cipher and the keys are the caller's.

use std::fmt::Debug;

/// Names the key with which a file is sealed.
pub type KeyId = [u8; 8];

/// The id that says that a file is not sealed.
pub const NO_KEY: KeyId = [0; 8];

/// Seals bytes before they are written, and opens them after they were read.
pub trait Seal: Debug + Send {
    /// The id of the key with which new files are sealed.
    fn key_id(&self) -> KeyId;

    /// Seals `plain` for a file with [`Seal::key_id`]. `place` is authenticated with it, so that a part of a file can't be moved
    /// to another place.
    fn seal(&self, place: &[u8], plain: &[u8]) -> Vec<u8>;

    /// Opens bytes of a file that names `key`; `None` if there is no such key, or the bytes are not what it has sealed.
    fn open(&self, key: KeyId, place: &[u8], sealed: &[u8]) -> Option<Vec<u8>>;
}
