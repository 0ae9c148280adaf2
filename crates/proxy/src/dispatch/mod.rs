//! Dispatch: admit → pick → send → judge → again?
//!
//! One [`Dispatcher`] per data-path thread, over parts that all of them share. A request reads the fleet once per
//! attempt, from one consistent snapshot; no step takes a lock across an await, and none waits for another node.

mod attempts;
mod body;
mod candidates;
mod feedback;
mod metrics;
mod policies;

use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use tracing::{debug, warn};

use attempts::{Attempt, Attempts, Budget, Next};
use body::Account;
pub use body::{BodyError, ResponseBody, StreamEnd};
use metrics::Ending;
pub use metrics::{Endings, Metrics};
use policies::Entry;
pub use policies::{Policies, Setting, Settings};

use crate::upstream::{self, Client, Outgoing, SendError};
use smg_routing::fleet::{Fleet, InFlight, Outcome, ServedBy, Worker};
use smg_routing::limit::{Admission, Permit, Priority, Rejected};
use smg_routing::policy::{Decision, Hint};
use smg_routing::prefix;
use smg_runtime::clock::Clock;
use smg_types::ids::{ModelId, WorkerId};
use smg_types::now::Now;

/// When a request is tried again, and how long it waits where it may.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Attempts after the first one.
    pub max_retries: u32,
    /// Longest back-off before the first retry.
    pub initial_backoff: Duration,
    /// No back-off is longer.
    pub max_backoff: Duration,
    /// Growth of the back-off from retry to retry, at least 1.
    pub backoff_multiplier: f32,
    /// Share of the back-off that is drawn at random, 0..=1: with 1 it is between zero and the longest.
    pub backoff_jitter: f32,
    /// Retries as a share of recent requests, 0..=1.
    pub budget_ratio: f32,
    /// Retries per second that are always allowed.
    pub budget_floor: f32,
    /// Statuses by which a worker says that it has too much to do: no failure, but a reason to ask another first.
    pub push_back_statuses: Vec<StatusCode>,
    /// How long a request waits for a place when `max_concurrent` are at the workers.
    pub queue_timeout: Duration,
    /// How long a request waits when workers are known and none is available; zero: not at all.
    pub no_worker_wait: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_retries: 3,
            initial_backoff: Duration::from_millis(50),
            max_backoff: Duration::from_secs(5),
            backoff_multiplier: 2.0,
            backoff_jitter: 1.0,
            budget_ratio: 0.2,
            budget_floor: 10.0,
            push_back_statuses: vec![
                StatusCode::TOO_MANY_REQUESTS,
                StatusCode::SERVICE_UNAVAILABLE,
            ],
            queue_timeout: Duration::from_secs(60),
            no_worker_wait: Duration::ZERO,
        }
    }
}

/// A request, read as far as routing needs it.
#[derive(Debug)]
pub struct Request<'a> {
    /// The method.
    pub method: Method,
    /// Path and query as the client sent them.
    pub path_and_query: PathAndQuery,
    /// Its name in the log.
    pub request_id: &'a HeaderValue,
    /// What the worker gets, apart from `host`, `content-length` and its own `authorization`.
    pub headers: HeaderMap,
    /// The body as the client sent it.
    pub body: Bytes,
    /// The model that it names.
    pub model: Option<&'a str>,
    /// Where the model's name lies in the body.
    pub model_at: Option<ModelPlace>,
    /// Whether the client asked for a stream.
    pub stream: bool,
    /// What a stream that breaks ends with.
    pub stream_end: StreamEnd,
    /// Session or routing key.
    pub session: Option<&'a [u8]>,
    /// The pieces of the prompt, in the order in which an engine sees them.
    pub prompt: &'a [&'a [u8]],
    /// Its class in the queue.
    pub priority: Priority,
}

/// Where a body names its model, for workers that call the model otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelPlace {
    /// A JSON string, quotes included.
    Json(Range<usize>),
    /// Plain text, as in a part of a form.
    Text(Range<usize>),
}

/// A response and how it came to be.
#[derive(Debug)]
pub struct Dispatched {
    /// The worker's response.
    pub response: Response<ResponseBody>,
    /// How it came to be.
    pub trace: Trace,
}

/// How a response came to be, for `--debug-headers` and the log.
#[derive(Debug, Clone, Copy)]
pub struct Trace {
    /// Who answered.
    pub worker: WorkerId,
    /// The policy that picked it.
    pub policy: &'static str,
    /// Why.
    pub decision: Decision,
    /// Attempts made.
    pub attempts: u32,
    /// Time spent in the router itself before the last attempt was sent, waits included.
    pub overhead: Duration,
}

/// Why a request got no response from a worker.
#[derive(Debug, thiserror::Error)]
pub enum DispatchError {
    /// No worker serves such a model.
    #[error("the model does not exist or no worker serves it")]
    NoSuchModel,
    /// Workers are known, but none can take it now.
    #[error("no worker is available")]
    NoneAvailable,
    /// As many requests as allowed are at the workers, and the queue is full.
    #[error("too many requests are being served")]
    Rejected(#[source] Rejected),
    /// It waited in the queue for too long.
    #[error("waited {0:?} for a place")]
    QueueTimeout(Duration),
    /// The last attempt failed.
    #[error("the last of {attempts} attempts failed")]
    Failed {
        /// Attempts made.
        attempts: u32,
        /// What went wrong with the last.
        #[source]
        source: SendError,
    },
}

/// What all dispatchers of a process share.
#[derive(Debug)]
pub struct Shared {
    /// When and how often to try again.
    pub config: Config,
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// Who picks among them.
    pub policies: Policies,
    /// Who may go on.
    pub admission: Arc<Admission>,
    /// Counters.
    pub metrics: Metrics,
    budget: Budget,
}

impl Shared {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        config: Config,
        fleet: Arc<Fleet>,
        policies: Policies,
        admission: Arc<Admission>,
        metrics: Metrics,
    ) -> Self {
        let budget = Budget::new(&config);
        Self { config, fleet, policies, admission, metrics, budget }
    }
}

/// Sends requests to workers until one answers.
#[derive(Debug)]
pub struct Dispatcher {
    shared: Arc<Shared>,
    upstream: Client,
    clock: Clock,
    // Held for one pick; a dispatcher belongs to one thread, so it is never contended.
    rng: parking_lot::Mutex<SmallRng>,
}

/// The choice for one attempt.
struct Chosen {
    worker: Arc<Worker>,
    renamed: Option<ModelId>,
    in_flight: InFlight,
    entry: Arc<Entry>,
    decision: Decision,
    /// Others were left that could be asked next.
    others: bool,
}

/// What a worker answered.
struct Answered {
    response: Response<upstream::ResponseBody>,
    worker: WorkerId,
    entry: Arc<Entry>,
    decision: Decision,
    /// `Clock::mono` when it was asked.
    sent_at: Duration,
}

/// Block hashes of the prompt, computed when a policy first asks for them.
#[derive(Default)]
struct Blocks {
    known: bool,
    hashes: Vec<u64>,
}

/// How long others come before a worker that pushes back without saying when to come back.
const PUSH_BACK: Duration = Duration::from_secs(1);

/// How often a request that waits for a worker looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

impl Dispatcher {
    /// A dispatcher for one thread.
    #[must_use]
    pub fn new(shared: Arc<Shared>, upstream: Client, clock: Clock, rng: SmallRng) -> Self {
        Self { shared, upstream, clock, rng: parking_lot::Mutex::new(rng) }
    }

    /// What all dispatchers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The connections to workers.
    #[must_use]
    pub fn upstream(&self) -> &Client {
        &self.upstream
    }

    /// Sends a request to workers until one answers or there is no use in trying. Dropping the future ends the attempt
    /// that is under way.
    ///
    /// # Errors
    /// If no worker answered. A worker's own error is an answer.
    pub async fn dispatch(&self, request: &Request<'_>) -> Result<Dispatched, DispatchError> {
        let started = self.clock.mono();
        let shared = &*self.shared;
        let mut permit = Some(self.admit(request.priority).await?);
        shared.budget.deposit(&shared.config);
        let mut attempts = Attempts::default();
        let mut tried: SmallVec<[WorkerId; 4]> = SmallVec::new();
        let mut blocks = Blocks::default();
        // The last answer that was not good enough.
        let mut poor: Option<Answered> = None;
        loop {
            let mut chosen = match self.choose_or_wait(request, &tried, &mut blocks).await {
                Ok(chosen) => chosen,
                Err(error) => {
                    // Nobody is left that could do better.
                    let poor =
                        poor.take().filter(|_| matches!(error, DispatchError::NoneAvailable));
                    let poor = poor.ok_or(error)?;
                    return Ok(self.respond(request, poor, None, permit.take(), started, &tried));
                }
            };
            // Not read to its end: the connection closes.
            drop(poor.take());
            let worker = &chosen.worker;
            let sent_at = self.clock.now();
            let hint = request.hint(&blocks, &chosen.entry);
            chosen.entry.policy.sent(worker.id, &hint, sent_at);
            let outgoing = Outgoing {
                method: &request.method,
                path_and_query: &request.path_and_query,
                headers: &request.headers,
                authorization: worker.spec.api_key.as_ref().and_then(upstream::bearer),
                body: chosen
                    .renamed
                    .as_ref()
                    .map_or_else(|| request.body.clone(), |model| request.renamed(model)),
                stream: request.stream,
            };
            let sending = self.upstream.send(&worker.spec.url, &outgoing);
            let answer = unless_cut(&mut chosen.in_flight, sending).await;
            let now = self.clock.now();
            tried.push(worker.id);
            match answer {
                Ok(response) => {
                    chosen.in_flight.head_after(now.since(sent_at));
                    let status = response.status();
                    let answered = Answered {
                        response,
                        worker: worker.id,
                        entry: chosen.entry,
                        decision: chosen.decision,
                        sent_at: sent_at.mono,
                    };
                    if shared.config.is_retryable(status) {
                        let after = retry_after(answered.response.headers(), now);
                        if shared.config.pushes_back(status) {
                            let time = after.unwrap_or(PUSH_BACK).min(shared.config.max_backoff);
                            worker.push_back(now, time);
                        }
                        let attempt = Attempt::Answered(status, after);
                        if let Next::Again(wait) =
                            self.next(&mut attempts, attempt, chosen.others, now)
                        {
                            debug!(worker = %worker.id, %status, ?wait, "trying again after the worker's answer");
                            shared.metrics.count_retry(if status.is_server_error() {
                                "5xx"
                            } else {
                                "4xx"
                            });
                            let outcome = shared.config.judge(status);
                            self.end(chosen.in_flight, worker.id, outcome, now);
                            poor = Some(answered);
                            wait_for(wait).await;
                            continue;
                        }
                    }
                    let in_flight = Some(chosen.in_flight);
                    return Ok(self.respond(
                        request,
                        answered,
                        in_flight,
                        permit.take(),
                        started,
                        &tried,
                    ));
                }
                Err(error) => {
                    shared.metrics.count_send_error(error.name());
                    if error.is_unreachable() {
                        worker.mark_unreachable(now, error.is_gone());
                    }
                    let error_text = chain(&error);
                    let outcome = if error.is_about_the_worker() {
                        warn!(
                            worker = %worker.id, request_id = ?request.request_id,
                            error = error_text, "attempt failed"
                        );
                        Outcome::Failure
                    } else {
                        // A shortage was logged where it was met, with others of its kind.
                        debug!(
                            worker = %worker.id, request_id = ?request.request_id,
                            error = error_text, "attempt failed through no fault of the worker"
                        );
                        Outcome::Neutral
                    };
                    self.end(chosen.in_flight, worker.id, outcome, now);
                    let attempt = Attempt::from(&error);
                    match self.next(&mut attempts, attempt, chosen.others, now) {
                        Next::Again(wait) => {
                            shared.metrics.count_retry(error.name());
                            wait_for(wait).await;
                        }
                        Next::GiveUp => {
                            chosen.entry.metrics.count(Ending::Failed);
                            return Err(DispatchError::Failed {
                                attempts: attempts.made(),
                                source: error,
                            });
                        }
                    }
                }
            }
        }
    }

    /// Gives an answer to the client. `in_flight`: `None` if the worker was judged by it already.
    fn respond(
        &self,
        request: &Request<'_>,
        answered: Answered,
        in_flight: Option<InFlight>,
        permit: Option<Permit>,
        started: Duration,
        tried: &[WorkerId],
    ) -> Dispatched {
        let Answered { response, worker, entry, decision, sent_at } = answered;
        let trace = Trace {
            worker,
            policy: entry.policy.name(),
            decision,
            attempts: u32::try_from(tried.len()).unwrap_or(u32::MAX),
            overhead: sent_at.saturating_sub(started),
        };
        let account = Account {
            worker,
            request_id: request.request_id.as_bytes().into(),
            in_flight,
            permit,
            fleet: Arc::clone(&self.shared.fleet),
            entry,
            clock: self.clock,
            started,
            outcome: self.shared.config.judge(response.status()),
            is_error: response.status().is_server_error(),
            first_byte_seen: false,
            expected: feedback::expected(decision),
        };
        let is_events = is_event_stream(response.headers());
        // An event in clear text means nothing within a compressed stream.
        let is_plain = !response.headers().contains_key(header::CONTENT_ENCODING);
        let stream_end = if is_events && is_plain { request.stream_end } else { StreamEnd::Cut };
        let response = response.map(|body| ResponseBody::new(body, account, stream_end));
        Dispatched { response, trace }
    }

    /// Takes a place among the requests that may be at the workers, waiting for it if the queue has room.
    async fn admit(&self, priority: Priority) -> Result<Permit, DispatchError> {
        let admission = &self.shared.admission;
        if let Some(permit) = admission.try_enter() {
            return Ok(permit);
        }
        let mut waiting = admission.enter(priority).map_err(DispatchError::Rejected)?;
        let timeout = self.shared.config.queue_timeout;
        match tokio::time::timeout(timeout, &mut waiting).await {
            Ok(permit) => Ok(permit),
            Err(_elapsed) => {
                waiting.time_out();
                Err(DispatchError::QueueTimeout(timeout))
            }
        }
    }

    fn next(&self, attempts: &mut Attempts, attempt: Attempt, others: bool, now: Now) -> Next {
        let shared = &*self.shared;
        attempts.next(attempt, others, &shared.config, &shared.budget, now, &mut *self.rng.lock())
    }

    fn end(&self, in_flight: InFlight, worker: WorkerId, outcome: Outcome, now: Now) {
        if let Some(mode) = in_flight.end(outcome, now, &self.shared.fleet.config().breaker) {
            warn!(%worker, breaker = mode.name(), "breaker changed");
        }
    }

    /// Chooses a worker; where the configuration says so, waits until there is one to choose.
    async fn choose_or_wait(
        &self,
        request: &Request<'_>,
        tried: &[WorkerId],
        blocks: &mut Blocks,
    ) -> Result<Chosen, DispatchError> {
        let deadline = self.clock.mono() + self.shared.config.no_worker_wait;
        loop {
            match self.choose(request, tried, blocks) {
                Err(DispatchError::NoneAvailable) if self.clock.mono() < deadline => {
                    tokio::time::sleep(LOOK_AGAIN).await;
                }
                chosen => return chosen,
            }
        }
    }

    /// One pick from one snapshot.
    fn choose(
        &self,
        request: &Request<'_>,
        tried: &[WorkerId],
        blocks: &mut Blocks,
    ) -> Result<Chosen, DispatchError> {
        let shared = &*self.shared;
        let fleet = &*shared.fleet;
        let snapshot = fleet.load();
        let members = match snapshot.served_by(request.model) {
            ServedBy::Members(members) => members,
            ServedBy::NobodyYet => return Err(DispatchError::NoneAvailable),
            ServedBy::Nobody if request.model.is_none() => {
                return Err(DispatchError::NoneAvailable);
            }
            ServedBy::Nobody => return Err(DispatchError::NoSuchModel),
        };
        let table = shared.policies.at(&snapshot);
        let entry = table.of(request.model);
        if entry.policy.wants_blocks() && !blocks.known {
            blocks.known = true;
            prefix::chain(entry.root(request.model), request.prompt, &mut blocks.hashes);
        }
        let hint = request.hint(blocks, entry);
        let now = self.clock.now();
        let weights = &entry.weights;
        let mut found = candidates::of(members, tried, now, fleet.config(), weights);
        let mut untried = true;
        if let (true, Some(last)) = (found.list.is_empty(), tried.last()) {
            // All were asked: then anyone but the one that has just failed, and that one only if it is alone. One that
            // is merely full is worth waiting for, if that is allowed.
            untried = false;
            let last = std::slice::from_ref(last);
            found = candidates::of(members, last, now, fleet.config(), weights);
            if found.list.is_empty() && !found.full {
                found = candidates::of(members, &[], now, fleet.config(), weights);
            }
        }
        loop {
            let pick = entry.policy.pick(&found.list, &hint, now, &mut *self.rng.lock());
            let Some(pick) = pick else { return Err(DispatchError::NoneAvailable) };
            let member = &members[found.members[pick.index] as usize];
            // It may have filled up, or its breaker's one probe gone out, since the candidates were counted.
            let Some(in_flight) = member.worker.begin(now, &fleet.config().breaker, found.anyway)
            else {
                found.remove(pick.index);
                continue;
            };
            entry.count(pick.decision);
            return Ok(Chosen {
                worker: Arc::clone(&member.worker),
                renamed: member.renamed.clone(),
                in_flight,
                entry: Arc::clone(entry),
                decision: pick.decision,
                others: untried && found.list.len() > 1,
            });
        }
    }
}

impl Request<'_> {
    /// The body for a worker that calls the model `model`: the one rewrite there is.
    fn renamed(&self, model: &ModelId) -> Bytes {
        let (at, name) = match &self.model_at {
            None => return self.body.clone(),
            Some(ModelPlace::Json(at)) => {
                (at, serde_json::to_vec(model).expect("a string is JSON"))
            }
            Some(ModelPlace::Text(at)) => (at, model.as_str().as_bytes().to_vec()),
        };
        [&self.body[..at.start], &name, &self.body[at.end..]].concat().into()
    }

    fn hint<'h>(&'h self, blocks: &'h Blocks, entry: &Entry) -> Hint<'h> {
        let prompt_bytes = self.prompt.iter().map(|piece| piece.len()).sum();
        let model = entry.session_root(self);
        Hint { session: self.session, blocks: &blocks.hashes, prompt_bytes, model }
    }
}

fn is_event_stream(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value.as_bytes().starts_with(b"text/event-stream"))
}

/// `Retry-After` as a time from now: seconds or a date (RFC 9110, 10.2.3).
fn retry_after(headers: &HeaderMap, now: Now) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER).map(HeaderValue::to_str)?.ok()?;
    if let Ok(seconds) = text.trim().parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = httpdate::parse_http_date(text).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(date.saturating_sub(now.wall))
}

/// The answer, unless the worker is taken away before it comes: then the connection is closed, and the worker may have
/// started on the request.
async fn unless_cut<T>(
    in_flight: &mut InFlight,
    sending: impl Future<Output = Result<T, SendError>>,
) -> Result<T, SendError> {
    let mut sending = std::pin::pin!(sending);
    std::future::poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(answer),
        Poll::Pending => in_flight.poll_cut(cx).map(|()| Err(SendError::Removed)),
    })
    .await
}

async fn wait_for(time: Duration) {
    if !time.is_zero() {
        tokio::time::sleep(time).await;
    }
}

/// An error with its causes, for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
