//! How long a write of an administrator waits for other routers, and the receipt in its answer.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::bridge::{Wait, Written};

/// Longest that a write may wait for others.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Whom a write waits for, as the query says it.
#[derive(Debug, Deserialize)]
pub(super) struct WaitQuery {
    wait: Option<String>,
    timeout: Option<String>,
}

/// Whom a write waits for, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    wait: Wait,
    timeout: Duration,
}

impl WaitQuery {
    /// `?wait=local|quorum|all&timeout=5s`
    pub(super) fn read(&self) -> Result<Waits, ApiError> {
        let wait = match self.wait.as_deref() {
            None | Some("local") => Wait::Local,
            Some("quorum") => Wait::Quorum,
            Some("all") => Wait::All,
            Some(other) => {
                let message = format!("wait {other:?} is not one of local, quorum, all");
                return Err(ApiError {
                    param: Some("wait"),
                    ..ApiError::bad_request("invalid_wait", message)
                });
            }
        };
        let timeout = match &self.timeout {
            None => Duration::from_secs(5),
            Some(text) => humantime::parse_duration(text)
                .ok()
                .or_else(|| text.parse().ok().map(Duration::from_secs))
                .filter(|timeout| *timeout <= MAX_WAIT)
                .ok_or_else(|| ApiError {
                    param: Some("timeout"),
                    ..ApiError::bad_request(
                        "invalid_wait",
                        format!(
                            "timeout {text:?} is not a time of at most 60s, such as 5s or 250ms"
                        ),
                    )
                })?,
        };
        Ok(Waits { wait, timeout })
    }
}

impl Waits {
    /// Waits, and answers with the receipt in the document. What is not confirmed in time is 202: it goes on being sent.
    pub(super) async fn answer(
        self,
        status: StatusCode,
        written: Written<'_>,
        document: impl FnOnce() -> Value,
    ) -> Response {
        let receipt = written.receipt(self.wait, self.timeout).await;
        // Made now, so that it shows what was written.
        let mut document = document();
        let complete = receipt.as_ref().is_ok_and(|receipt| receipt.complete);
        if let Ok(receipt) = receipt {
            document["receipt"] = json!(receipt);
        }
        let status = if complete { status } else { StatusCode::ACCEPTED };
        (status, Json(document)).into_response()
    }
}
