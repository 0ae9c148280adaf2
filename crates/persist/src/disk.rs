//! The operations on files that a journal needs.

use std::fmt::Debug;
use std::io;

/// A folder of files, on a real disk or in a simulation. Calls block until the system answers, so they belong on a thread of
/// their own. An `Err` says that the operation may have happened in part.
pub trait Disk: Debug {
    /// The names of all files.
    ///
    /// # Errors
    /// The folder can't be read.
    fn names(&mut self) -> io::Result<Vec<String>>;

    /// The contents of a file.
    ///
    /// # Errors
    /// There is no such file, or it can't be read.
    fn read(&mut self, name: &str) -> io::Result<Vec<u8>>;

    /// Creates an empty file, or empties the one of that name.
    ///
    /// # Errors
    /// The file can't be created.
    fn create(&mut self, name: &str) -> io::Result<()>;

    /// Appends to a file that this value has created. After a crash, any part of the bytes may be there until the file is
    /// synced.
    ///
    /// # Errors
    /// The disk is full, or fails.
    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// Waits until the contents of a file that this value has created are on disk.
    ///
    /// # Errors
    /// The disk fails. What was appended since the last sync may be lost, even if a later sync succeeds.
    fn sync(&mut self, name: &str) -> io::Result<()>;

    /// Renames a file, and replaces the file of the new name if there is one.
    ///
    /// # Errors
    /// There is no such file, or the disk fails.
    fn rename(&mut self, from: &str, to: &str) -> io::Result<()>;

    /// Removes a file.
    ///
    /// # Errors
    /// There is no such file, or the disk fails.
    fn remove(&mut self, name: &str) -> io::Result<()>;

    /// Waits until the names of the files, as far as they were created, renamed and removed, are on disk.
    ///
    /// # Errors
    /// The disk fails.
    fn sync_names(&mut self) -> io::Result<()>;

    /// Checks without writing whether files can be written, as far as the system shows that.
    ///
    /// # Errors
    /// The folder was removed, is full, or can only be read.
    fn check(&mut self) -> io::Result<()>;

    /// Prepares the folder after a failure: creates it again if it was removed, and takes the lock.
    ///
    /// # Errors
    /// The folder can't be created, or another process has it.
    fn reopen(&mut self) -> io::Result<()>;
}
