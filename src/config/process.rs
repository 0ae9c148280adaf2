//! The environment of the process: arguments, variables and files enter here.
//!
//! Everything else takes a [`Process`], so a test needs only a few literals and a map.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use smg_runtime::clock::Clock;
use smg_runtime::memory;
use smg_types::now::Now;

/// The largest configuration or key file that is read, in bytes.
const LARGEST_FILE: u64 = 4 << 20;

/// The environment of the process.
pub struct Process<'a> {
    /// The arguments after the program's name.
    pub arguments: Vec<OsString>,
    /// The environment variables. Variables whose name is not UTF-8 are not ours and are left out.
    pub variables: BTreeMap<String, OsString>,
    /// Reads a text file.
    pub read: &'a dyn Fn(&Path) -> io::Result<String>,
    /// The number of CPUs that the process may use.
    pub cpus: usize,
    /// The memory that the process may use, in bytes; `None`: the system does not say.
    pub memory: Option<u64>,
    /// The host name of the machine.
    pub host_name: String,
    /// The time, to check the validity of certificates.
    pub now: Now,
}

impl Process<'static> {
    /// The environment of this process.
    #[must_use]
    pub fn current() -> Self {
        let variables: BTreeMap<String, OsString> = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
            .collect();
        Self {
            arguments: std::env::args_os().skip(1).collect(),
            host_name: host_name(&variables),
            variables,
            read: &read_text,
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory: memory::limit(),
            now: Clock::start().now(),
        }
    }
}

impl Process<'_> {
    /// The value of a variable that is set, not empty and UTF-8, without the blanks around it.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        let text = self.variables.get(name)?.to_str()?.trim();
        (!text.is_empty()).then_some(text)
    }

    /// Whether a variable is set and contains nothing but blanks.
    pub(super) fn is_empty(&self, name: &str) -> bool {
        self.variables
            .get(name)
            .and_then(|text| text.to_str())
            .is_some_and(|text| text.trim().is_empty())
    }
}

impl fmt::Debug for Process<'_> {
    /// Shows only the names of variables, because their values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Process")
            .field("variables", &self.variables.keys())
            .field("cpus", &self.cpus)
            .field("host_name", &self.host_name)
            .finish_non_exhaustive()
    }
}

/// The host name: from the kernel on Linux, else from the shell, else `smg`.
fn host_name(variables: &BTreeMap<String, OsString>) -> String {
    read_text(Path::new("/proc/sys/kernel/hostname"))
        .ok()
        .or_else(|| variables.get("HOSTNAME")?.clone().into_string().ok())
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "smg".to_owned())
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let length = File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if length as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("is larger than {LARGEST_FILE} bytes")));
    }
    Ok(text)
}
