//! The environment of a process as a test describes it, and the configuration that follows from it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use smg_types::now::Now;

use super::*;

/// The environment of a process, from literals.
#[derive(Default, Clone)]
pub(super) struct Given {
    pub(super) arguments: Vec<String>,
    pub(super) variables: Vec<(String, String)>,
    /// The files by their path. If `smg.toml` is among them, a flag names it.
    pub(super) files: BTreeMap<PathBuf, String>,
}

pub(super) fn given() -> Given {
    Given::default()
}

impl Given {
    pub(super) fn flags(mut self, flags: &[&str]) -> Self {
        self.arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
        self
    }

    pub(super) fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn file(mut self, text: &str) -> Self {
        self.files.insert("smg.toml".into(), text.to_owned());
        self
    }

    pub(super) fn other_file(mut self, path: &str, text: &str) -> Self {
        self.files.insert(path.into(), text.to_owned());
        self
    }

    pub(super) fn with<T>(&self, run: impl Fn(&Process<'_>) -> T) -> T {
        let read = |path: &Path| {
            self.files.get(path).cloned().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
        };
        let mut arguments = self.arguments.clone();
        if self.files.contains_key(Path::new("smg.toml")) {
            arguments.push("--config=smg.toml".to_owned());
        }
        run(&Process {
            arguments: arguments.into_iter().map(OsString::from).collect(),
            variables: self.variables.iter().map(|(n, v)| (n.clone(), v.into())).collect(),
            read: &read,
            cpus: 3,
            memory: Some(8 << 30),
            host_name: "router-0".to_owned(),
            now: Now::at(Duration::from_secs(1_800_000_000)),
        })
    }

    pub(super) fn loaded(&self) -> Result<Loaded, ConfigErrors> {
        self.with(|process| {
            answer(process).map(|answer| match answer {
                Answer::Router(loaded) => *loaded,
                Answer::Print { text, .. } => {
                    panic!("printed {:?}", String::from_utf8_lossy(&text))
                }
                Answer::MockWorkers(_)
                | Answer::Demo(_)
                | Answer::Console(_)
                | Answer::Probe(_)
                | Answer::Doctor(_) => {
                    panic!("this does not start a router")
                }
            })
        })
    }

    #[track_caller]
    pub(super) fn config(&self) -> Config {
        match self.loaded() {
            Ok(loaded) => loaded.config,
            Err(errors) => panic!("{errors}"),
        }
    }

    #[track_caller]
    pub(super) fn warnings(&self) -> Vec<String> {
        self.loaded().unwrap().warnings
    }

    #[track_caller]
    pub(super) fn errors(&self) -> String {
        match self.loaded() {
            Ok(loaded) => panic!("accepted as {:#?}", loaded.config),
            Err(errors) => errors.to_string(),
        }
    }

    /// Returns the exit status, standard output and standard error.
    pub(super) fn run(&self) -> (u8, String, String) {
        self.with(|process| {
            let (mut out, mut err) = (Vec::new(), Vec::new());
            let Start::Done(status) = start(process, &mut out, &mut err) else {
                panic!("this starts a router")
            };
            (status, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
        })
    }
}

/// Compares a text with a golden file, which is reviewed like code. `SMG_UPDATE_GOLDEN=1` writes the file.
#[track_caller]
pub(super) fn check_golden(path: &str, actual: &str) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    if std::env::var_os("SMG_UPDATE_GOLDEN").is_some_and(|v| !v.is_empty()) {
        fs::write(&file, actual).unwrap();
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    if expected != actual {
        let (at, (was, is)) = expected
            .lines()
            .chain(std::iter::repeat("(end)"))
            .zip(actual.lines().chain(std::iter::repeat("(end)")))
            .enumerate()
            .find(|(_, (was, is))| was != is)
            .unwrap_or((0, ("(line ends differ)", "")));
        panic!(
            "{path} is out of date; SMG_UPDATE_GOLDEN=1 cargo test --lib config writes it\n\
             line {}:\n  file: {was}\n  now:  {is}",
            at + 1
        );
    }
}
