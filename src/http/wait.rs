//! How long an administrator's write waits for other routers, and the receipt in its answer.

use std::time::Duration;

use axum::Json;
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::error::ApiError;
use crate::bridge::{Wait, Written};

/// The longest time that a write may wait for others.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The routers that a write waits for, in the form of the query.
#[derive(Debug, Deserialize)]
pub(super) struct WaitQuery {
    wait: Option<String>,
    timeout: Option<String>,
}

/// The routers that a write waits for, and the time limit.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waits {
    wait: Wait,
    timeout: Duration,
}

impl WaitQuery {
    /// Parses `?wait=local|quorum|all&timeout=5s`.
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
    /// Waits, and answers with the receipt in the document. The status is 202 if some routers have not acknowledged in
    /// time; the write is still sent to them.
    pub(super) async fn answer(
        self,
        status: StatusCode,
        written: Written<'_>,
        document: impl FnOnce() -> Value,
    ) -> Response {
        let receipt = written.receipt(self.wait, self.timeout).await;
        // The document is made after the wait, so that it shows the result of the write.
        let mut document = document();
        let complete = receipt.as_ref().is_ok_and(|receipt| receipt.complete);
        if let Ok(receipt) = receipt {
            document["receipt"] = json!(receipt);
        }
        let status = if complete { status } else { StatusCode::ACCEPTED };
        (status, Json(document)).into_response()
    }
}
