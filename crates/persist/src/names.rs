//! The names of the files in a folder.

use crate::frame::FileKind;

/// The end of the name of a file that is not finished.
pub(crate) const UNFINISHED: &str = ".tmp";

/// The beginning of the name of a file that this router can't read and does not touch.
pub(crate) const UNREADABLE: &str = "unreadable-";

const SNAPSHOT: &str = "snapshot-";
const LOG: &str = "log-";

pub(crate) fn snapshot(epoch: u64) -> String {
    format!("{SNAPSHOT}{epoch:016x}")
}

pub(crate) fn log(epoch: u64) -> String {
    format!("{LOG}{epoch:016x}")
}

/// The kind and the epoch of a snapshot or a log; `None`: another file.
pub(crate) fn parse(name: &str) -> Option<(FileKind, u64)> {
    let (kind, epoch) = match (name.strip_prefix(SNAPSHOT), name.strip_prefix(LOG)) {
        (Some(epoch), _) => (FileKind::Snapshot, epoch),
        (None, Some(epoch)) => (FileKind::Log, epoch),
        (None, None) => return None,
    };
    let epoch = u64::from_str_radix(epoch.strip_suffix(UNFINISHED).unwrap_or(epoch), 16).ok()?;
    Some((kind, epoch))
}

/// Whether the file was not finished when its process ended.
pub(crate) fn is_unfinished(name: &str) -> bool {
    name.ends_with(UNFINISHED)
}
