//! A folder of the file system, which one process at a time has.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{StatVfsMountFlags, statfs, statvfs};

use crate::disk::Disk;
use crate::network::network_file_system;

const LOCK: &str = "LOCK";
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;

/// A folder of which this process has the lock.
///
/// If it can't be created or locked because the disk does not work, it is a folder all the same, whose operations fail until
/// [`Disk::reopen`] succeeds.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    holder: String,
    lock: Mutex<Option<File>>,
}

/// Why a folder can't be used at all.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// Another process has the lock.
    #[error("the data folder {path} is in use by {holder}")]
    Held {
        /// The folder.
        path: String,
        /// What the other process has written into the lock file: its name and its process id.
        holder: String,
    },
    /// The path names something else.
    #[error("{0} is not a folder")]
    NotAFolder(String),
}

impl Folder {
    /// Creates the folder if there is none, and takes its lock. `holder` names this process for others that want the lock.
    ///
    /// Returns the folder, and why it can't be used at present, if so.
    ///
    /// # Errors
    /// Another process has the lock, or the path is that of a file.
    pub fn open(path: &Path, holder: &str) -> Result<(Arc<Self>, io::Result<()>), FolderError> {
        let shown = path.display().to_string();
        if fs::metadata(path).is_ok_and(|metadata| !metadata.is_dir()) {
            return Err(FolderError::NotAFolder(shown));
        }
        let folder =
            Self { path: path.to_owned(), holder: holder.to_owned(), lock: Mutex::new(None) };
        match folder.take_lock() {
            Ok(()) => Ok((Arc::new(folder), Ok(()))),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(FolderError::Held { path: shown, holder: folder.other_holder() })
            }
            Err(error) => Ok((Arc::new(folder), Err(error))),
        }
    }

    /// The path, as it was given.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The name of the network file system on which the folder is; `None` if it is on a local one.
    #[must_use]
    pub fn network_file_system(&self) -> Option<&'static str> {
        let magic = statfs(&self.path).ok()?.f_type;
        #[expect(
            clippy::cast_sign_loss,
            reason = "the system's type of the number has a sign on some platforms"
        )]
        network_file_system(magic as u64)
    }

    /// The files of the folder. Each value keeps the files open to which it writes, so two values must not write to the same
    /// files.
    #[must_use]
    pub fn files(self: &Arc<Self>) -> FolderFiles {
        FolderFiles { folder: Arc::clone(self), written: BTreeMap::new() }
    }

    fn other_holder(&self) -> String {
        let text = fs::read_to_string(self.path.join(LOCK)).unwrap_or_default();
        let text = text.trim();
        if text.is_empty() { "another process".to_owned() } else { text.to_owned() }
    }

    /// Whether this process has the lock of the folder that is there now.
    fn has_lock(&self) -> bool {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        held.as_ref().is_some_and(|lock| is_same_file(lock, &self.path.join(LOCK)))
    }

    /// Device and inode of the lock file that this process holds, if it is that of the folder that is there now. A copy of the
    /// folder has another one.
    #[must_use]
    pub fn lock_id(&self) -> Option<(u64, u64)> {
        let held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let lock = held.as_ref().filter(|lock| is_same_file(lock, &self.path.join(LOCK)))?;
        let file = lock.metadata().ok()?;
        Some((file.dev(), file.ino()))
    }

    /// Takes the lock, unless this process has that of the present folder.
    fn take_lock(&self) -> io::Result<()> {
        let mut held = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let path = self.path.join(LOCK);
        if let Some(lock) = held.as_ref() {
            if is_same_file(lock, &path) {
                return Ok(());
            }
            *held = None;
        }
        if !self.path.is_dir() {
            fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.path)?;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(FILE_MODE);
        let file = match options.open(&path) {
            Ok(file) => file,
            // A disk that can only be read may have a state to read, and another process may use it.
            Err(error) => {
                let Ok(file) = File::open(&path) else { return Err(error) };
                lock(&file)?;
                *held = Some(file);
                return Err(error);
            }
        };
        lock(&file)?;
        // The name is for people; the lock counts without it.
        let named = file.set_len(0).and_then(|()| (&file).write_all(self.holder.as_bytes()));
        *held = Some(file);
        named
    }
}

fn lock(file: &File) -> io::Result<()> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => io::ErrorKind::WouldBlock.into(),
        TryLockError::Error(error) => error,
    })
}

/// Whether `path` still names the open file.
fn is_same_file(file: &File, path: &Path) -> bool {
    let (open, named) = (file.metadata(), fs::metadata(path));
    matches!((open, named), (Ok(a), Ok(b)) if a.ino() == b.ino() && a.dev() == b.dev())
}

/// The files of a [`Folder`].
#[derive(Debug)]
pub struct FolderFiles {
    folder: Arc<Folder>,
    /// The files that this value has created.
    written: BTreeMap<String, File>,
}

impl FolderFiles {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path.join(name)
    }

    fn file(&self, name: &str) -> io::Result<&File> {
        self.written.get(name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for FolderFiles {
    fn names(&mut self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.folder.path)? {
            // A name that is not Unicode is none of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn read(&mut self, name: &str) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(self.path(name))?.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn create(&mut self, name: &str) -> io::Result<()> {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(FILE_MODE);
        self.written.insert(name.to_owned(), options.open(self.path(name))?);
        Ok(())
    }

    fn append(&mut self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all(bytes)
    }

    fn sync(&mut self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }

    fn rename(&mut self, from: &str, to: &str) -> io::Result<()> {
        fs::rename(self.path(from), self.path(to))?;
        if let Some(file) = self.written.remove(from) {
            self.written.insert(to.to_owned(), file);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) -> io::Result<()> {
        self.written.remove(name);
        fs::remove_file(self.path(name))
    }

    fn sync_names(&mut self) -> io::Result<()> {
        File::open(&self.folder.path)?.sync_all()
    }

    fn check(&mut self) -> io::Result<()> {
        let shown = self.folder.path.display();
        let is_there = |(name, file): (&String, &File)| is_same_file(file, &self.path(name));
        if !self.folder.has_lock() || !self.written.iter().all(is_there) {
            let text = format!("files of {shown} were removed");
            return Err(io::Error::new(io::ErrorKind::NotFound, text));
        }
        let system = statvfs(&self.folder.path)?;
        if system.f_flag.contains(StatVfsMountFlags::RDONLY) {
            let text = format!("{shown} can only be read");
            return Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, text));
        }
        if system.f_bavail == 0 {
            let text = format!("the file system of {shown} is full");
            return Err(io::Error::new(io::ErrorKind::StorageFull, text));
        }
        Ok(())
    }

    fn reopen(&mut self) -> io::Result<()> {
        self.written.clear();
        self.folder.take_lock().map_err(|error| {
            let path = self.folder.path.display();
            let text = match error.kind() {
                io::ErrorKind::WouldBlock => {
                    format!("{path} is in use by {}", self.folder.other_holder())
                }
                _ => format!("can't use {path}: {error}"),
            };
            io::Error::new(error.kind(), text)
        })
    }
}
