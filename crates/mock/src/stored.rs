//! Stored responses: what reading, deleting and cancelling of `/v1/responses/{id}` find.
//!
//! A worker stores each response unless the request says `"store": false`. One with `"background": true` is answered at
//! once and is in progress for the time that generating it takes, or, with the script `stall_after_chunks`, until it is
//! cancelled.

use std::collections::BTreeMap;
use std::time::Duration;

use http::request::Parts;
use http::{Response, StatusCode};
use parking_lot::Mutex;
use serde_json::json;

use crate::answer::{self, Facts};
use crate::body::Body;
use crate::engine::Usage;
use crate::reply::{error, json_response};
use crate::route::StoredAction;
use crate::script::UsageForm;

/// The most responses that a worker stores. The oldest are forgotten first.
const MAX_STORED: usize = 256;
/// The most bytes of text that a stored response may have. A longer one is not stored.
const MAX_TEXT_BYTES: usize = 1 << 20;

/// The stored responses of a worker, by the number in their ids.
#[derive(Debug, Default)]
pub(super) struct Responses(Mutex<BTreeMap<u64, Stored>>);

/// A stored response.
#[derive(Debug)]
struct Stored {
    created: u64,
    model: String,
    usage: Usage,
    text: String,
    /// The time from which on it is complete, as `Clock::mono`; `None`: never.
    ready: Option<Duration>,
    in_background: bool,
    cancelled: bool,
}

impl Stored {
    fn status(&self, now: Duration) -> &'static str {
        match self.ready {
            _ if self.cancelled => "cancelled",
            Some(ready) if ready <= now => "completed",
            _ => "in_progress",
        }
    }

    fn document(&self, id: u64, now: Duration) -> String {
        let facts = Facts {
            id,
            created: self.created,
            model: &self.model,
            usage: self.usage,
            at_limit: false,
            include_usage: false,
            usage_form: UsageForm::default(),
        };
        answer::with_status(&facts, self.status(now), &self.text)
    }
}

impl Responses {
    /// Stores a response. `ready`: the time from which on it is complete, as `Clock::mono`; `None`: never.
    pub(super) fn store(
        &self,
        facts: &Facts<'_>,
        text: &str,
        ready: Option<Duration>,
        in_background: bool,
    ) {
        if text.len() > MAX_TEXT_BYTES {
            return;
        }
        let stored = Stored {
            created: facts.created,
            model: facts.model.to_owned(),
            usage: facts.usage,
            text: text.to_owned(),
            ready,
            in_background,
            cancelled: false,
        };
        let mut all = self.0.lock();
        all.insert(facts.id, stored);
        if all.len() > MAX_STORED {
            all.pop_first();
        }
    }

    /// Cancels a response that is in progress. A response that is complete, or that a client waits for, is refused.
    fn cancel(&self, id: u64, now: Duration) -> Option<Result<String, &'static str>> {
        let mut all = self.0.lock();
        let stored = all.get_mut(&id)?;
        if !stored.in_background {
            return Some(Err("only a response with background=true can be cancelled"));
        }
        if stored.status(now) == "completed" {
            return Some(Err("the response is complete, so it can not be cancelled"));
        }
        stored.cancelled = true;
        Some(Ok(stored.document(id, now)))
    }
}

/// Answers a request about a stored response. `now` is `Clock::mono`.
pub(super) fn answer(
    responses: &Responses,
    now: Duration,
    action: StoredAction,
    head: &Parts,
) -> Response<Body> {
    let path = head.uri.path();
    let name = path.split('/').nth(3).unwrap_or_default();
    let id = name.strip_prefix("resp_").and_then(|id| id.parse::<u64>().ok());
    let found = id.and_then(|id| match action {
        StoredAction::Read => {
            responses.0.lock().get(&id).map(|stored| Ok(stored.document(id, now)))
        }
        StoredAction::Cancel => responses.cancel(id, now),
        StoredAction::Delete => responses.0.lock().remove(&id).map(|_stored| {
            Ok(json!({ "id": name, "object": "response", "deleted": true }).to_string())
        }),
    });
    match found {
        Some(Ok(document)) => json_response(document),
        Some(Err(why)) => error(StatusCode::BAD_REQUEST, why),
        None => error(StatusCode::NOT_FOUND, &format!("there is no response {name}")),
    }
}
