//! The errors of writes that administrators make.

use std::time::Duration;

use http::StatusCode;
use smg_mesh::VisitError;
use smg_routing::fleet::RegisterError;

use crate::bridge::WriteError;
use crate::http::error::ApiError;

impl From<WriteError> for ApiError {
    fn from(error: WriteError) -> Self {
        let message = error.to_string();
        match error {
            WriteError::Node(error) => error.into(),
            WriteError::Refused(_) => Self::bad_request("refused_by_cluster", message),
            WriteError::Full { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "shared_state_full", message)
            }
            WriteError::StateIncomplete => {
                let mut error =
                    Self::new(StatusCode::SERVICE_UNAVAILABLE, "state_incomplete", message);
                error.retry_after = Some(Duration::from_secs(1));
                error
            }
            WriteError::NoQuorum => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", message)
            }
            WriteError::Register(error) => error.into(),
            WriteError::NoSuchWorker(id) => Self::no_such_worker(&id.to_string()),
            WriteError::NoSuchRule(_) => {
                Self::new(StatusCode::NOT_FOUND, "rule_not_found", message)
            }
            WriteError::Policy(_) => Self::bad_request("invalid_policy", message),
        }
    }
}

impl From<VisitError> for ApiError {
    fn from(error: VisitError) -> Self {
        let code = match error {
            VisitError::Ended => "node_failed",
            VisitError::Timeout => "mesh_unavailable",
        };
        Self::new(StatusCode::SERVICE_UNAVAILABLE, code, error.to_string())
    }
}

impl From<RegisterError> for ApiError {
    fn from(error: RegisterError) -> Self {
        let message = error.to_string();
        match error {
            RegisterError::Exists(_) => {
                Self::new(StatusCode::CONFLICT, "worker_already_exists", message)
            }
            RegisterError::SameId { .. } => {
                Self::new(StatusCode::CONFLICT, "worker_id_conflict", message)
            }
            RegisterError::Full => Self::new(StatusCode::CONFLICT, "too_many_workers", message),
        }
    }
}
