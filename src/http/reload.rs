//! `POST /ha/reload`: reads the configuration file and the files that it names again, as SIGHUP does.
//!
//! The part of the program that reads the configuration is above this one. It takes the requests from a channel.

use std::sync::{Arc, OnceLock};

use axum::Json;
use axum::extract::State;
use http::StatusCode;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::Surface;
use super::error::ApiError;

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

    async fn reload(&self) -> Option<Result<Reloaded, Vec<String>>> {
        let (sender, answer) = oneshot::channel();
        self.0.get()?.try_send(sender).ok()?;
        answer.await.ok()
    }
}

/// 200 with the changes, 206 if some could not be applied, 400 with all mistakes.
pub(super) async fn reload(
    State(surface): State<Arc<Surface>>,
) -> Result<(StatusCode, Json<Reloaded>), ApiError> {
    let Some(reloaded) = surface.reloads.reload().await else {
        let message = "the configuration can't be reloaded now: this program does not read one, or too many requests to \
                       reload wait already";
        return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "reload_unavailable", message));
    };
    let reloaded = reloaded.map_err(|mistakes| {
        let message = format!("nothing has changed: {}", mistakes.join("; "));
        ApiError::bad_request("invalid_configuration", message)
    })?;
    let is_complete = reloaded.failed.is_empty();
    let status = if is_complete { StatusCode::OK } else { StatusCode::PARTIAL_CONTENT };
    Ok((status, Json(reloaded)))
}
