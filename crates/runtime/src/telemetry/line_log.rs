//! Lines to standard output or to a file, through the same kind of queue as the log: a caller never waits, and lines that
//! are lost are counted.
//!
//! A file is opened for appending, and created if there is none. [`LineLog::reopen`] opens it again under its path, so that
//! a program that rotates files can move it away.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use prometheus::Registry;
use tracing::{error, warn};

use super::sink::{Announce, Sink};

/// Writes lines without waiting. Cheap to clone.
#[derive(Debug, Clone)]
pub struct LineLog {
    sink: Sink,
    must_reopen: Arc<AtomicBool>,
}

impl LineLog {
    /// Begins to write to the file at `path`, or to standard output. `metric` and `help` are the name of the counter of lost
    /// lines and its description.
    ///
    /// # Errors
    /// If the file can't be opened, or the system refuses a thread.
    pub fn start(path: Option<&Path>, metric: &str, help: &str) -> io::Result<Self> {
        let must_reopen = Arc::new(AtomicBool::new(false));
        let output: Box<dyn Write + Send> = match path {
            None => match io::stdout().as_fd().try_clone_to_owned() {
                Ok(own) => Box::new(File::from(own)),
                Err(_no_descriptors) => Box::new(io::stdout()),
            },
            Some(path) => Box::new(Rotated {
                file: open(path)?,
                path: path.to_owned(),
                must_reopen: Arc::clone(&must_reopen),
            }),
        };
        let sink = Sink::start(output, metric, help, Announce::Elsewhere(announce_lost))?;
        Ok(Self { sink, must_reopen })
    }

    /// Registers the counter of lost lines.
    ///
    /// # Errors
    /// If it is registered already.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        self.sink.register(registry)
    }

    /// Queues a line, which ends with a line feed, or counts it as lost.
    pub fn write(&self, line: &[u8]) {
        self.sink.push(line);
    }

    /// Opens the file again under its path before the next line is written. Without a file nothing happens.
    pub fn reopen(&self) {
        self.must_reopen.store(true, Ordering::Relaxed);
    }

    /// Waits until every queued line has been written or lost, but no longer than `most`.
    pub fn flush(&self, most: Duration) {
        self.sink.flush(most);
    }
}

fn announce_lost(lines: u64) {
    error!(
        lines,
        "lines of the access log were lost: its file or standard output did not take them"
    );
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// A file that is opened again when it was moved away.
struct Rotated {
    path: PathBuf,
    file: File,
    must_reopen: Arc<AtomicBool>,
}

impl Write for Rotated {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.must_reopen.swap(false, Ordering::Relaxed) {
            match open(&self.path) {
                Ok(file) => self.file = file,
                Err(error) => {
                    let path = self.path.display();
                    warn!(%path, %error, "the file of the access log can't be opened again: the open one stays in use");
                }
            }
        }
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn lines_are_appended_and_a_file_that_was_moved_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let (path, moved) = (folder.path().join("access.log"), folder.path().join("access.log.1"));
        std::fs::write(&path, "before\n").unwrap();
        let log = LineLog::start(Some(&path), "lost_total", "Lost lines.").unwrap();
        log.write(b"one\n");
        log.flush(LONG);
        std::fs::rename(&path, &moved).unwrap();
        log.write(b"two\n");
        log.flush(LONG);
        log.reopen();
        log.write(b"three\n");
        log.flush(LONG);
        assert_eq!(std::fs::read_to_string(&moved).unwrap(), "before\none\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        // The folder is gone: the open file stays in use.
        drop(folder);
        log.reopen();
        log.write(b"four\n");
        log.flush(LONG);
    }

    #[test]
    fn lines_that_do_not_fit_on_the_disk_are_counted() {
        let log =
            LineLog::start(Some(Path::new("/dev/full")), "lost_total", "Lost lines.").unwrap();
        let registry = Registry::new();
        log.register(&registry).unwrap();
        log.write(b"one\n");
        log.flush(LONG);
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        assert!(text.contains("lost_total{reason=\"no_space\"} 1\n"), "{text}");
    }

    #[test]
    fn a_file_that_can_not_be_opened_is_an_error() {
        assert!(
            LineLog::start(Some(Path::new("/absent/access.log")), "lost_total", "Lost.").is_err()
        );
    }
}
