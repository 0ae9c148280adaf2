//! Writes snapshots, logs and batches.

use std::io;

use crate::disk::Disk;
use crate::frame::{FileKind, FrameKind, Header, push_entry};
use crate::image::Image;
use crate::names;
use crate::seal::{NO_KEY, Seal};

/// A part of a snapshot is finished when it has this many bytes.
const PART_BYTES: usize = 256 * 1024;

/// The log to which batches are appended.
#[derive(Debug)]
pub(crate) struct OpenLog {
    header: Header,
    name: String,
    pub(crate) bytes: u64,
}

/// Adds what was done to an error, so that a reader of the log knows the file.
pub(crate) fn failed_to(what: &str, name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't {what} {name}: {error}"))
}

/// Writes a snapshot of `image` as `epoch`, and an empty log after it. When this returns `Ok`, both are on disk. Returns the
/// log and the bytes of the snapshot.
pub(crate) fn snapshot(
    disk: &mut dyn Disk,
    image: &Image,
    epoch: u64,
    base: u64,
    seal: Option<&dyn Seal>,
) -> io::Result<(OpenLog, u64)> {
    let key = seal.map_or(NO_KEY, Seal::key_id);
    let header = Header { kind: FileKind::Snapshot, epoch, base, key };
    let name = names::snapshot(epoch);
    let unfinished = format!("{name}{}", names::UNFINISHED);
    disk.create(&unfinished).map_err(|error| failed_to("create", &unfinished, &error))?;
    let mut written = 0;
    let mut append = |bytes: &[u8]| {
        written += bytes.len() as u64;
        disk.append(&unfinished, bytes).map_err(|error| failed_to("write", &unfinished, &error))
    };
    append(&header.encode())?;
    let (mut part, mut number) = (Vec::new(), 0);
    for (key, value) in image.values() {
        push_entry(&mut part, key, Some(value));
        if part.len() >= PART_BYTES {
            append(&header.frame(FrameKind::Part, number, std::mem::take(&mut part), seal))?;
            number += 1;
        }
    }
    if !part.is_empty() {
        append(&header.frame(FrameKind::Part, number, part, seal))?;
        number += 1;
    }
    append(&header.frame(FrameKind::End, number, Vec::new(), seal))?;
    disk.sync(&unfinished).map_err(|error| failed_to("sync", &unfinished, &error))?;
    let log = new_log(disk, epoch, base, seal)?;
    disk.rename(&unfinished, &name).map_err(|error| failed_to("rename", &unfinished, &error))?;
    disk.sync_names().map_err(|error| failed_to("sync", "the folder", &error))?;
    Ok((log, written))
}

fn new_log(
    disk: &mut dyn Disk,
    epoch: u64,
    base: u64,
    seal: Option<&dyn Seal>,
) -> io::Result<OpenLog> {
    let key = seal.map_or(NO_KEY, Seal::key_id);
    let header = Header { kind: FileKind::Log, epoch, base, key };
    let name = names::log(epoch);
    disk.create(&name).map_err(|error| failed_to("create", &name, &error))?;
    let bytes = header.encode();
    disk.append(&name, &bytes).map_err(|error| failed_to("write", &name, &error))?;
    disk.sync(&name).map_err(|error| failed_to("sync", &name, &error))?;
    Ok(OpenLog { header, name, bytes: bytes.len() as u64 })
}

/// Appends a batch to `log` and syncs it. Returns the bytes written.
pub(crate) fn batch(
    disk: &mut dyn Disk,
    log: &mut OpenLog,
    number: u64,
    payload: Vec<u8>,
    seal: Option<&dyn Seal>,
) -> io::Result<u64> {
    let frame = log.header.frame(FrameKind::Batch, number, payload, seal);
    disk.append(&log.name, &frame).map_err(|error| failed_to("write", &log.name, &error))?;
    disk.sync(&log.name).map_err(|error| failed_to("sync", &log.name, &error))?;
    log.bytes += frame.len() as u64;
    Ok(frame.len() as u64)
}

/// Removes the files of epochs before `epoch`, and files that were not finished. Returns the first error; the others are
/// removed all the same.
pub(crate) fn remove_before(disk: &mut dyn Disk, epoch: u64) -> io::Result<()> {
    let mut result = Ok(());
    for name in disk.names()? {
        let is_old = names::parse(&name).is_some_and(|(_, of)| of < epoch);
        if is_old || names::is_unfinished(&name) {
            let removed = disk.remove(&name).map_err(|error| failed_to("remove", &name, &error));
            result = result.and(removed);
        }
    }
    result
}
