//! Meters the tokens of one inference request, from its arrival to its end.
//!
//! A [`Meter`] is made before the request is dispatched and lives until the last byte of the response, wherever that is: in
//! the dispatch, in a stream that begins with comments, in the body. It settles exactly once: at the end of the answer, or
//! when it is dropped because the client has left, the worker has died, or the code has panicked. Attempts at several workers
//! are one request. Each settlement is passed to the listeners ([`Settle`]) and counted in `smg_tokens_total`.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Response, header};
use smallvec::SmallVec;
use smg_proxy::usage::{Encoding, Origin, Reader, Settlement, Work};
use smg_routing::policies::{Entry, TokenKind};
use tracing::debug;

/// Something that must know what a request has used, such as a reservation of tokens.
pub trait Settle: fmt::Debug + Send {
    /// Called once for each request, at its end, on the thread that served it. It must neither block nor panic.
    fn settle(self: Box<Self>, settlement: &Settlement);
}

/// Meters one request.
#[derive(Debug)]
pub(super) struct Meter {
    /// The route, in the spelling of the table.
    route: &'static str,
    /// The tenant whose key the request had.
    tenant: Option<String>,
    prompt_bytes: usize,
    /// Whether the request has been sent to a worker.
    sent: AtomicBool,
    stage: Stage,
    listeners: SmallVec<[Box<dyn Settle>; 1]>,
}

#[derive(Debug)]
enum Stage {
    /// No worker has answered.
    Waiting,
    /// Every attempt has failed, or the answer is an error.
    Refused,
    /// A worker answers.
    Answered {
        reader: Reader,
        entry: Arc<Entry>,
    },
    Settled,
}

impl Meter {
    /// A meter for a request that is about to be dispatched. `prompt_bytes`: the size of its prompt.
    pub(super) fn new(route: &'static str, tenant: Option<String>, prompt_bytes: usize) -> Self {
        Self {
            route,
            tenant,
            prompt_bytes,
            sent: AtomicBool::new(false),
            stage: Stage::Waiting,
            listeners: SmallVec::new(),
        }
    }

    /// Registers `listener`, which gets the settlement of the request.
    pub(super) fn add_listener(&mut self, listener: Box<dyn Settle>) {
        self.listeners.push(listener);
    }

    /// The flag for [`smg_proxy::dispatch::Request::sent`].
    pub(super) fn sent(&self) -> &AtomicBool {
        &self.sent
    }

    /// Settles a request that no worker has answered.
    pub(super) fn refuse(&mut self) {
        self.stage = Stage::Refused;
        self.end(false);
    }

    /// Begins to read a worker's answer. `entry`: the model's, under which the request is counted.
    pub(super) fn answer<B>(&mut self, response: &Response<B>, entry: Arc<Entry>) {
        if !response.status().is_success() {
            return self.refuse();
        }
        let headers = response.headers();
        let kind = headers.get(header::CONTENT_TYPE).map_or(&b""[..], |kind| kind.as_bytes());
        let is_plain = !headers.contains_key(header::CONTENT_ENCODING);
        let reader = Reader::new(self.route, Encoding::of(kind, is_plain));
        self.stage = Stage::Answered { reader, entry };
    }

    /// Reads the next piece of the answer.
    pub(super) fn observe(&mut self, piece: &[u8]) {
        if let Stage::Answered { reader, .. } = &mut self.stage {
            reader.feed(piece);
        }
    }

    /// Settles, unless that has been done. `is_complete`: the worker has sent its whole answer.
    pub(super) fn end(&mut self, is_complete: bool) {
        let settlement = match std::mem::replace(&mut self.stage, Stage::Settled) {
            Stage::Settled => return,
            Stage::Waiting if self.sent.load(Ordering::Relaxed) => {
                Settlement::unanswered(Work::of(self.route), self.prompt_bytes)
            }
            Stage::Waiting | Stage::Refused => Settlement::UNUSED,
            Stage::Answered { reader, entry } => {
                let settlement = reader.settlement(is_complete, self.prompt_bytes);
                count(self.route, &entry, self.tenant.as_deref(), &settlement);
                settlement
            }
        };
        for listener in self.listeners.drain(..) {
            listener.settle(&settlement);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.end(false);
    }
}

/// Counts the tokens under the request's tenant and model.
fn count(route: &str, entry: &Entry, tenant: Option<&str>, settlement: &Settlement) {
    let Settlement { tokens, origin, unreadable } = settlement;
    let (input, output) = match origin {
        Origin::Reported => (TokenKind::Input, TokenKind::Output),
        Origin::OutputEstimated => (TokenKind::Input, TokenKind::OutputEstimated),
        Origin::Estimated => (TokenKind::InputEstimated, TokenKind::OutputEstimated),
        Origin::Unreported | Origin::Unused => (TokenKind::Input, TokenKind::Output),
    };
    for (kind, tokens) in [
        (input, tokens.input),
        (TokenKind::CachedInput, tokens.cached_input),
        (output, tokens.output),
        (TokenKind::Reasoning, tokens.reasoning),
    ] {
        if tokens > 0 {
            entry.metrics.count_tokens(tenant, kind, tokens);
        }
    }
    if *unreadable > 0 {
        debug!(
            route,
            unreadable, "ignored usage objects of a worker whose numbers are not token counts"
        );
        entry.metrics.count_unreadable_usage((*unreadable).into());
    }
}

#[cfg(test)]
mod tests;
