//! `/ha/leader`: who leads the cluster, and how the leadership is handed over.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use http::{HeaderName, HeaderValue, StatusCode};
use serde::Deserialize;
use smg_mesh::{HaMode, LeaderError, Leadership, TransferError};
use smg_types::ids::NodeName;

use super::Surface;
use super::error::ApiError;

/// The URL of the router that leads, on refusals of a router that does not.
static X_SMG_LEADER_URL: HeaderName = HeaderName::from_static("x-smg-leader-url");

/// Who leads, as this router knows it.
pub(super) async fn leader(State(surface): State<Arc<Surface>>) -> Json<Leadership> {
    Json(surface.mesh.leadership())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    to: String,
}

/// Makes another router the leader. Answers when it is.
pub(super) async fn transfer(
    State(surface): State<Arc<Surface>>,
    body: Bytes,
) -> Result<Json<Leadership>, ApiError> {
    let Transfer { to } = serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request("invalid_body", format!("the body is not {{\"to\": NAME}}: {error}"))
    })?;
    let to: NodeName = to
        .parse()
        .map_err(|error| ApiError::bad_request("invalid_body", format!("field `to`: {error}")))?;
    let done = surface.mesh.transfer_leadership(to).await;
    done.map(Json).map_err(|error| refusal(&surface, &error))
}

/// Gives the leadership up. Answers when another router leads, or when none was found.
pub(super) async fn step_down(
    State(surface): State<Arc<Surface>>,
) -> Result<Json<Leadership>, ApiError> {
    let done = surface.mesh.step_down().await;
    done.map(Json).map_err(|error| refusal(&surface, &error))
}

fn refusal(surface: &Surface, error: &LeaderError) -> ApiError {
    let message = error.to_string();
    match error {
        LeaderError::Standalone => ApiError::new(StatusCode::CONFLICT, "mesh_disabled", message),
        LeaderError::Node(error) => (*error).into(),
        LeaderError::Transfer(TransferError::NotHeld { .. }) => not_leader(surface),
        LeaderError::Transfer(TransferError::NoVoter(_) | TransferError::NotReady(_)) => {
            ApiError::new(StatusCode::CONFLICT, "not_ready_to_lead", message)
        }
    }
}

/// The refusal of what only the leader may do: there is no majority, or another router leads.
fn not_leader(surface: &Surface) -> ApiError {
    let Leadership { ha_mode, leader, leader_url, .. } = surface.mesh.leadership();
    if ha_mode == HaMode::ReadOnly {
        let message = "this router reaches no majority of the configured routers: no router can lead here until it does";
        return ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "no_quorum", message);
    }
    let message = match (&leader, &leader_url) {
        (Some(name), Some(url)) => format!("only the leader can do this: {name} at {url}"),
        (Some(name), None) => format!("only the leader can do this: {name}"),
        (None, _) => {
            "only the leader can do this, and there is none at the moment: try again".to_owned()
        }
    };
    let url = leader_url.and_then(|url| HeaderValue::try_from(url).ok());
    ApiError {
        accepted: url.map(|url| Box::new((X_SMG_LEADER_URL.clone(), url))),
        retry_after: Some(std::time::Duration::from_secs(1)),
        ..ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "not_leader", message)
    }
}
