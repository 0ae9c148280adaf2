//! Reads what the files of a folder contain, whatever has happened to them. Nothing is written, but files that this router
//! can't read are set aside.
//!
//! The keys are those of the newest finished snapshot, changed by all batches that follow it without a gap. Batches have
//! numbers for this: a log goes on where another one ended only if its first batch has the next number. The first batch that
//! is damaged ends it, because a batch says what has changed since all batches before.

use std::fmt;
use std::io;

use crate::disk::Disk;
use crate::frame::{BadFrame, BadHeader, FileKind, FrameKind, Frames, entries};
use crate::image::Image;
use crate::names;
use crate::seal::Seal;

/// Something that was on disk and could not be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loss {
    /// The end of a log is torn or damaged, as after a crash while it was written.
    Tail {
        /// The name of the file.
        file: String,
        /// How many bytes were not used.
        bytes: usize,
    },
    /// A log does not go on where the one before it ended, so it was not used.
    Gap {
        /// The name of the file.
        file: String,
    },
    /// A snapshot is damaged.
    Snapshot {
        /// The name of the file.
        file: String,
    },
    /// A file is of another version of smg, and was set aside.
    Format {
        /// The name of the file.
        file: String,
        /// The version of its format.
        format: u16,
    },
    /// No key opens a file, which was set aside.
    Sealed {
        /// The name of the file.
        file: String,
    },
    /// A file or the folder can't be read.
    Unreadable {
        /// The name of the file, or `.`.
        file: String,
        /// The error of the system.
        error: String,
    },
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tail { file, bytes } => {
                write!(f, "the last {bytes} bytes of {file} are torn or damaged")
            }
            Self::Gap { file } => write!(f, "{file} does not follow the file before it"),
            Self::Snapshot { file } => write!(f, "{file} is damaged"),
            Self::Format { file, format } => {
                write!(f, "{file} has format {format}, which this version can't read")
            }
            Self::Sealed { file } => write!(f, "none of the configured keys opens {file}"),
            Self::Unreadable { file, error } => write!(f, "{file} can't be read: {error}"),
        }
    }
}

/// What was found on disk.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recovered {
    /// The number of keys.
    pub keys: usize,
    /// The number of batches that were read from logs.
    pub batches: u64,
    /// What could not be used.
    pub losses: Vec<Loss>,
}

/// The keys of a folder, and where a new snapshot goes on.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) image: Image,
    /// The number of the last batch.
    pub(crate) number: u64,
    /// The epoch of the snapshot that was used; 0: none.
    pub(crate) epoch: u64,
    /// The highest epoch of any file.
    pub(crate) last_epoch: u64,
    pub(crate) recovered: Recovered,
}

/// Reads all files.
pub(crate) fn read(disk: &mut dyn Disk, seal: Option<&dyn Seal>) -> Contents {
    let mut contents = Contents::default();
    let names = match disk.names() {
        Ok(names) => names,
        Err(error) => {
            contents.lose_unreadable(".", &error);
            return contents;
        }
    };
    let mut files: Vec<(FileKind, u64, String)> = Vec::new();
    for name in names {
        let Some((kind, epoch)) = names::parse(&name) else { continue };
        contents.last_epoch = contents.last_epoch.max(epoch);
        if !names::is_unfinished(&name) {
            files.push((kind, epoch, name));
        }
    }
    files.sort_by_key(|(_, epoch, _)| *epoch);
    let snapshots = files.iter().rev().filter(|(kind, ..)| *kind == FileKind::Snapshot);
    for (_, epoch, name) in snapshots {
        if contents.read_snapshot(disk, name, *epoch, seal) {
            break;
        }
    }
    for (kind, epoch, name) in &files {
        if *kind == FileKind::Log
            && *epoch >= contents.epoch
            && !contents.read_log(disk, name, *epoch, seal)
        {
            break;
        }
    }
    contents.recovered.keys = contents.image.values().len();
    contents
}

impl Contents {
    fn lose_unreadable(&mut self, file: &str, error: &io::Error) {
        let (file, error) = (file.to_owned(), error.to_string());
        self.recovered.losses.push(Loss::Unreadable { file, error });
    }

    /// Renames a file, so that a later snapshot does not remove it. Fails silently on a disk that can only be read: then
    /// nothing is removed either.
    fn set_aside(&mut self, disk: &mut dyn Disk, name: &str, loss: Loss) {
        let aside = format!("{}{name}", names::UNREADABLE);
        if let Err(error) = disk.rename(name, &aside) {
            self.lose_unreadable(name, &error);
        }
        self.recovered.losses.push(loss);
    }

    /// Reads a snapshot; returns whether it is finished and whole.
    fn read_snapshot(
        &mut self,
        disk: &mut dyn Disk,
        name: &str,
        epoch: u64,
        seal: Option<&dyn Seal>,
    ) -> bool {
        let bytes = match disk.read(name) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.lose_unreadable(name, &error);
                return false;
            }
        };
        let file = name.to_owned();
        let mut frames = match Frames::of(&bytes, seal) {
            Ok(frames) => frames,
            Err(BadHeader::Format(format)) => {
                self.set_aside(disk, name, Loss::Format { file, format });
                return false;
            }
            Err(BadHeader::Damaged) => {
                self.recovered.losses.push(Loss::Snapshot { file });
                return false;
            }
        };
        let header = frames.header();
        match snapshot_image(&mut frames) {
            Ok(image) if header.kind == FileKind::Snapshot && header.epoch == epoch => {
                self.image = image;
                (self.epoch, self.number) = (epoch, header.base);
                true
            }
            Err(BadFrame::Sealed) => {
                self.set_aside(disk, name, Loss::Sealed { file });
                false
            }
            Ok(_) | Err(BadFrame::Damaged) => {
                self.recovered.losses.push(Loss::Snapshot { file });
                false
            }
        }
    }

    /// Reads the batches of a log; returns whether the next log may go on.
    fn read_log(
        &mut self,
        disk: &mut dyn Disk,
        name: &str,
        epoch: u64,
        seal: Option<&dyn Seal>,
    ) -> bool {
        let bytes = match disk.read(name) {
            Ok(bytes) => bytes,
            Err(error) => {
                self.lose_unreadable(name, &error);
                return false;
            }
        };
        let file = name.to_owned();
        let mut frames = match Frames::of(&bytes, seal) {
            Ok(frames) if frames.header().kind == FileKind::Log => frames,
            Err(BadHeader::Format(format)) => {
                self.set_aside(disk, name, Loss::Format { file, format });
                return false;
            }
            Ok(_) | Err(BadHeader::Damaged) => {
                self.recovered.losses.push(Loss::Tail { file, bytes: bytes.len() });
                return false;
            }
        };
        if frames.header().epoch != epoch || frames.header().base != self.number {
            self.recovered.losses.push(Loss::Gap { file });
            return false;
        }
        loop {
            let rest = frames.rest();
            match frames.next() {
                None => return true,
                Some(Ok(frame))
                    if frame.kind == FrameKind::Batch && frame.number == self.number + 1 =>
                {
                    let Some(changes) = entries(&frame.plain) else {
                        self.recovered.losses.push(Loss::Tail { file, bytes: rest });
                        return false;
                    };
                    for (key, value) in changes {
                        self.image.set(key, value);
                    }
                    self.number = frame.number;
                    self.recovered.batches += 1;
                }
                Some(Err(BadFrame::Sealed)) => {
                    self.set_aside(disk, name, Loss::Sealed { file });
                    return false;
                }
                Some(Ok(_) | Err(BadFrame::Damaged)) => {
                    self.recovered.losses.push(Loss::Tail { file, bytes: rest });
                    return false;
                }
            }
        }
    }
}

/// All keys of a snapshot, if it is whole.
fn snapshot_image(frames: &mut Frames<'_>) -> Result<Image, BadFrame> {
    let mut image = Image::default();
    let mut expected = 0;
    while let Some(frame) = frames.next() {
        let frame = frame?;
        if frame.number != expected {
            return Err(BadFrame::Damaged);
        }
        match frame.kind {
            FrameKind::Part => {
                for (key, value) in entries(&frame.plain).ok_or(BadFrame::Damaged)? {
                    image.set(key, value);
                }
            }
            FrameKind::End => return Ok(image),
            FrameKind::Batch | FrameKind::Value => return Err(BadFrame::Damaged),
        }
        expected += 1;
    }
    Err(BadFrame::Damaged)
}
