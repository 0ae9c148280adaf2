//! Passes requests of `POST /ha/reload` to the part of the program that reads the configuration. That part is above this
//! one, so that it takes the requests from a channel.

use std::sync::OnceLock;

use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

/// The most requests that wait while another one is served.
const MOST_WAITING: usize = 16;

/// A request to reload; the answer goes to this sender.
pub type ReloadRequest = oneshot::Sender<Result<Reloaded, Vec<String>>>;

/// The result of a reload without mistakes. With mistakes, nothing changes, and the result is the list of all mistakes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Reloaded {
    /// What has changed.
    pub changed: Vec<String>,
    /// The settings that have changed in the file and need a restart.
    pub needs_restart: Vec<NeedsRestart>,
    /// What has changed in the file and stays as it was by a rule, for example because an administrator has removed it.
    pub kept: Vec<NotReloaded>,
    /// What has changed in the file and could not be applied. The next reload tries again.
    pub failed: Vec<NotReloaded>,
}

/// A setting that needs a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NeedsRestart {
    /// The key of the setting in the configuration file.
    pub setting: String,
    /// The value that is in use; secrets are masked.
    pub running: String,
    /// The value that a restart would use; secrets are masked.
    pub configured: String,
}

/// A part that a reload has not changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NotReloaded {
    /// The part.
    pub part: String,
    /// The reason.
    pub reason: String,
}

/// Passes requests to reload to the part of the program that reads the configuration.
#[derive(Debug, Default)]
pub struct Reloads(OnceLock<mpsc::Sender<ReloadRequest>>);

impl Reloads {
    /// The requests from now on; `None` if somebody receives them already.
    pub fn requests(&self) -> Option<mpsc::Receiver<ReloadRequest>> {
        let (sender, receiver) = mpsc::channel(MOST_WAITING);
        self.0.set(sender).ok().map(|()| receiver)
    }

    /// Reads the configuration again; `None` if nobody can do that now.
    pub(super) async fn reload(&self) -> Option<Result<Reloaded, Vec<String>>> {
        let (sender, answer) = oneshot::channel();
        self.0.get()?.try_send(sender).ok()?;
        answer.await.ok()
    }
}
