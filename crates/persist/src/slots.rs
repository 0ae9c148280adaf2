//! Single small values, each in a file of its own, that are on disk when the call returns.

use std::io;

use crate::disk::Disk;
use crate::frame::{FileKind, FrameKind, Frames, Header};
use crate::names;
use crate::seal::{NO_KEY, Seal};
use crate::write::failed_to;

/// The most bytes of a value.
const MAX_BYTES: usize = 1 << 20;

/// Small values by name. A value is replaced as a whole: after a crash, a slot has its old value or the new one.
///
/// Each call blocks for as long as the disk takes, usually some milliseconds.
#[derive(Debug)]
pub struct Slots<D> {
    disk: D,
}

/// Why a slot has no value, although it may have had one.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// The disk fails.
    #[error(transparent)]
    Disk(#[from] io::Error),
    /// The file is damaged, or of another version of smg.
    #[error("{0} is damaged, or another version of smg has written it")]
    Damaged(String),
    /// The file is sealed, and the given seal does not open it.
    #[error("none of the configured keys opens {0}")]
    Sealed(String),
}

impl<D: Disk> Slots<D> {
    /// The slots in the folder of `disk`.
    pub fn new(disk: D) -> Self {
        Self { disk }
    }

    /// Sets the value of the slot `name`, which consists of lower-case letters, digits and `-`. When this returns, the value is
    /// on disk. With a `seal`, the file shows nothing of the value.
    ///
    /// # Errors
    /// The disk fails, or the value has more than 1 MiB. Then the slot has its old value or the new one, and the caller must
    /// act as if it had the old one.
    ///
    /// # Panics
    /// If `name` has other characters: names are constants of the program.
    pub fn put(&mut self, name: &str, value: &[u8], seal: Option<&dyn Seal>) -> io::Result<()> {
        let file = file_name(name);
        if value.len() > MAX_BYTES {
            let text =
                format!("a value of {} bytes for {file}, the limit is {MAX_BYTES}", value.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let unfinished = format!("{file}{}", names::UNFINISHED);
        let header = header(seal.map_or(NO_KEY, Seal::key_id));
        let mut bytes = header.encode().to_vec();
        bytes.extend(header.frame(FrameKind::Value, 0, value.to_vec(), seal));
        let disk = &mut self.disk;
        disk.create(&unfinished).map_err(|error| failed_to("create", &unfinished, &error))?;
        disk.append(&unfinished, &bytes)
            .map_err(|error| failed_to("write", &unfinished, &error))?;
        disk.sync(&unfinished).map_err(|error| failed_to("sync", &unfinished, &error))?;
        disk.rename(&unfinished, &file)
            .map_err(|error| failed_to("rename", &unfinished, &error))?;
        disk.sync_names().map_err(|error| failed_to("sync", "the folder", &error))
    }

    /// The value of the slot `name`; `None` if it was never set.
    ///
    /// # Errors
    /// The file can't be read, is damaged, or is sealed with a key that `seal` does not have.
    ///
    /// # Panics
    /// If `name` has other characters than lower-case letters, digits and `-`.
    pub fn value(
        &mut self,
        name: &str,
        seal: Option<&dyn Seal>,
    ) -> Result<Option<Vec<u8>>, SlotError> {
        let file = file_name(name);
        let bytes = match self.disk.read(&file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed_to("read", &file, &error).into()),
        };
        let Ok(mut frames) = Frames::of(&bytes, seal) else { return Err(SlotError::Damaged(file)) };
        let is_slot = frames.header() == header(frames.header().key);
        match frames.next() {
            Some(Ok(frame)) if is_slot && frame.kind == FrameKind::Value && frames.rest() == 0 => {
                Ok(Some(frame.plain))
            }
            Some(Err(crate::frame::BadFrame::Sealed)) => Err(SlotError::Sealed(file)),
            Some(_) | None => Err(SlotError::Damaged(file)),
        }
    }

    /// Removes the slot `name`, if there is one. When this returns, it is gone from disk.
    ///
    /// # Errors
    /// The disk fails.
    ///
    /// # Panics
    /// If `name` has other characters than lower-case letters, digits and `-`.
    pub fn clear(&mut self, name: &str) -> io::Result<()> {
        let file = file_name(name);
        match self.disk.remove(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed_to("remove", &file, &error)),
            Ok(()) => self.disk.sync_names(),
        }
    }

    /// The disk, to check it or to open it again.
    pub fn disk_mut(&mut self) -> &mut D {
        &mut self.disk
    }
}

fn header(key: crate::seal::KeyId) -> Header {
    Header { kind: FileKind::Slot, epoch: 0, base: 0, key }
}

fn file_name(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    assert!(!name.is_empty() && name.chars().all(is_plain), "{name:?} is no name of a slot");
    format!("slot-{name}")
}
