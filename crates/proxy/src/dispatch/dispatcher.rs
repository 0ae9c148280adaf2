//! Admits a request, sends it to workers until one answers, and judges what happens.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::{HeaderMap, HeaderValue, Response, header};
use rand::rngs::SmallRng;
use smallvec::SmallVec;
use smg_routing::fleet::{Fleet, InFlight, Outcome};
use smg_routing::limit::{Admission, Permit, Place, Priority};
use smg_routing::policies::{Asked, Ending, Entry, Policies};
use smg_routing::policy::Decision;
use smg_runtime::clock::Clock;
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use tracing::{debug, warn};

use super::account::{Account, log_breaker};
use super::attempts::{Attempt, Attempts, Budget, Next};
use super::body::{ResponseBody, StreamEnd};
use super::choice::{Blocks, Chosen};
use super::config::Config;
use super::metrics::Metrics;
use super::request::{DispatchError, Dispatched, Request, Trace};
use crate::causes::with_causes;
use crate::upstream::{self, Client, Outgoing, SendError};

/// What all dispatchers of a process share.
#[derive(Debug)]
pub struct Shared {
    /// When and how often to try again.
    pub config: Config,
    /// The workers.
    pub fleet: Arc<Fleet>,
    /// Who picks among them.
    pub policies: Arc<Policies>,
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
        policies: Arc<Policies>,
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
    pub(super) shared: Arc<Shared>,
    upstream: Client,
    pub(super) clock: Clock,
    // Held for one pick; a dispatcher belongs to one thread, so it is never contended.
    pub(super) rng: parking_lot::Mutex<SmallRng>,
}

/// How far a request has come.
pub(super) struct Progress {
    /// `Clock::mono` when dispatch began.
    pub(super) started: Duration,
    permit: Permit,
    attempts: Attempts,
    /// The workers that were tried.
    pub(super) tried: SmallVec<[WorkerId; 4]>,
    pub(super) blocks: Blocks,
}

/// What a worker answered.
struct Answered {
    response: Response<upstream::ResponseBody>,
    worker: WorkerId,
    entry: Arc<Entry>,
    decision: Decision,
    asked: Asked,
    /// `Clock::mono` when the request was sent.
    sent_at: Duration,
}

/// What follows from an attempt.
enum Step {
    /// The answer goes to the client.
    Respond(Answered, InFlight),
    /// Another attempt may be made after this time. The answer goes to the client only if no worker can be tried.
    BetterAnswer(Duration, Answered),
    /// There is no answer, and another attempt may be made after this time.
    Again(Duration),
    /// There is no answer, and no other attempt is made.
    GiveUp(DispatchError),
}

/// How long other workers are preferred to one that pushes back without a `Retry-After`.
const PUSH_BACK: Duration = Duration::from_secs(1);

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

    /// Sends a request to workers until one answers or no attempt is left. Dropping the future ends the attempt that is
    /// under way.
    ///
    /// # Errors
    /// If no worker answered. A worker's own error is an answer.
    pub async fn dispatch(&self, request: &Request<'_>) -> Result<Dispatched, DispatchError> {
        let started = self.clock.mono();
        let shared = &*self.shared;
        let permit = self.admit(request.priority).await?;
        if let Some(observer) = request.observer {
            observer.admitted(self.clock.mono().saturating_sub(started));
        }
        shared.budget.deposit(&shared.config);
        let mut progress = Progress {
            started,
            permit,
            attempts: Attempts::default(),
            tried: SmallVec::new(),
            blocks: Blocks::default(),
        };
        // The last answer, if another worker might give a better one.
        let mut poor: Option<Answered> = None;
        loop {
            let chosen = match self.choose_or_wait(request, &mut progress).await {
                Ok(chosen) => chosen,
                Err(error) => {
                    let is_shortage = matches!(
                        error,
                        DispatchError::NoneAvailable
                            | DispatchError::Rejected(_)
                            | DispatchError::QueueTimeout(_)
                    );
                    let poor = poor.take().filter(|_| is_shortage);
                    let poor = poor.ok_or(error)?;
                    return Ok(self.respond(request, poor, None, progress));
                }
            };
            // It was not read to its end: its connection closes.
            drop(poor.take());
            let wait = match self.attempt(request, chosen, &mut progress).await {
                Step::Respond(answered, in_flight) => {
                    return Ok(self.respond(request, answered, Some(in_flight), progress));
                }
                Step::BetterAnswer(wait, answered) => {
                    poor = Some(answered);
                    wait
                }
                Step::Again(wait) => wait,
                Step::GiveUp(error) => return Err(error),
            };
            if !wait.is_zero() {
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// Sends the request to the chosen worker and decides what follows.
    async fn attempt(
        &self,
        request: &Request<'_>,
        mut chosen: Chosen,
        progress: &mut Progress,
    ) -> Step {
        let worker = &chosen.worker;
        let sent_at = self.clock.now();
        let hint = request.criteria.hint(progress.blocks.hashes(), &chosen.entry);
        chosen.entry.policy.sent(worker.id, &hint, sent_at);
        let outgoing = Outgoing {
            method: &request.method,
            path_and_query: &request.path_and_query,
            headers: &request.headers,
            authorization: worker.spec.api_key.as_ref().and_then(upstream::bearer),
            body: chosen
                .renamed
                .as_ref()
                .map_or_else(|| request.body.clone(), |model| request.body_for(model)),
            stream: request.stream,
            websocket: request.websocket,
        };
        request.sent.store(true, Ordering::Relaxed);
        if let Some(observer) = request.observer {
            observer.sent(worker);
        }
        chosen.in_flight.send_prompt(chosen.tokens, request.stream, sent_at);
        chosen.place.take().into_iter().for_each(Place::leave);
        let sending = self.upstream.send(&*worker.spec, &outgoing);
        let answer = unless_cut(&mut chosen.in_flight, sending).await;
        progress.tried.push(chosen.worker.id);
        match answer {
            Ok(response) => self.after_answer(response, chosen, sent_at, request, progress),
            Err(error) => self.after_error(error, chosen, request, progress),
        }
    }

    /// Decides whether the client gets this answer, or whether another worker may give a better one.
    fn after_answer(
        &self,
        response: Response<upstream::ResponseBody>,
        chosen: Chosen,
        sent_at: Now,
        request: &Request<'_>,
        progress: &mut Progress,
    ) -> Step {
        let now = self.clock.now();
        let Chosen { worker, in_flight, entry, decision, asked, others, .. } = chosen;
        in_flight.record_head_latency(now.since(sent_at));
        let status = response.status();
        let answered =
            Answered { response, worker: worker.id, entry, decision, asked, sent_at: sent_at.mono };
        let config = &self.shared.config;
        if !config.is_retryable(status) {
            return Step::Respond(answered, in_flight);
        }
        let after = retry_after(answered.response.headers(), now);
        if config.pushes_back(status) {
            worker.push_back(now, after.unwrap_or(PUSH_BACK).min(config.max_backoff));
        }
        let attempt = Attempt::Answered(status, after);
        match self.next(&mut progress.attempts, attempt, others, now) {
            Next::GiveUp => Step::Respond(answered, in_flight),
            Next::Again(wait) => {
                let outcome = config.judge(status);
                let request_id = request.request_id.to_str().unwrap_or_default();
                let (id, url) = (worker.id, &worker.spec.url);
                if outcome == Outcome::Failure {
                    warn!(
                        worker = %id, %url, request_id, %status,
                        "the worker answered with an error: the request is sent again, to another worker if there is one; \
                         the worker's log has the cause"
                    );
                } else {
                    debug!(worker = %id, %url, request_id, %status, ?wait, "the worker pushed the request back");
                }
                let reason = if status.is_server_error() { "5xx" } else { "4xx" };
                self.shared.metrics.count_retry(reason);
                self.end(in_flight, worker.id, outcome, now);
                Step::BetterAnswer(wait, answered)
            }
        }
    }

    /// Notes what a failed attempt says of the worker, and decides whether another one is made.
    fn after_error(
        &self,
        error: SendError,
        chosen: Chosen,
        request: &Request<'_>,
        progress: &mut Progress,
    ) -> Step {
        let now = self.clock.now();
        let worker = &chosen.worker;
        self.shared.metrics.count_send_error(error.name());
        if error.is_unreachable() {
            worker.mark_unreachable(now, error.is_gone());
        }
        let text = with_causes(&error);
        let outcome = if error.is_about_the_worker() {
            warn!(
                worker = %worker.id,
                url = %worker.spec.url,
                request_id = request.request_id.to_str().unwrap_or_default(),
                error = text,
                "attempt failed"
            );
            Outcome::Failure
        } else {
            // A shortage was logged where it was met, with others of its kind.
            debug!(
                worker = %worker.id,
                request_id = request.request_id.to_str().unwrap_or_default(),
                error = text,
                "attempt failed through no fault of the worker"
            );
            Outcome::Neutral
        };
        self.end(chosen.in_flight, worker.id, outcome, now);
        let attempt = Attempt::from(&error);
        match self.next(&mut progress.attempts, attempt, chosen.others, now) {
            Next::Again(wait) => {
                self.shared.metrics.count_retry(error.name());
                Step::Again(wait)
            }
            Next::GiveUp => {
                chosen.entry.metrics.count(Ending::Failed);
                let attempts = progress.attempts.made();
                Step::GiveUp(DispatchError::Failed { attempts, source: error })
            }
        }
    }

    /// Gives an answer to the client. `in_flight`: `None` if the worker was judged by it already.
    fn respond(
        &self,
        request: &Request<'_>,
        answered: Answered,
        in_flight: Option<InFlight>,
        progress: Progress,
    ) -> Dispatched {
        let Progress { started, permit, tried, .. } = progress;
        let Answered { response, worker, entry, decision, asked, sent_at } = answered;
        let trace = Trace {
            worker,
            policy: entry.policy.name(),
            decision,
            attempts: u32::try_from(tried.len()).unwrap_or(u32::MAX),
            overhead: sent_at.saturating_sub(started),
        };
        let is_events = is_event_stream(response.headers());
        let account = Account {
            worker,
            request_id: request.request_id.as_bytes().into(),
            in_flight,
            permit: Some(permit),
            fleet: Arc::clone(&self.shared.fleet),
            entry: Arc::clone(&entry),
            clock: self.clock,
            started,
            outcome: self.shared.config.judge(response.status()),
            is_error: response.status().is_server_error(),
            first_byte_seen: false,
            streams: is_events && response.status().is_success(),
            stores: request.path_and_query.path() == "/v1/responses"
                && response.status().is_success(),
            goes_on_from: request.criteria.goes_on_from.map(Into::into),
            memory: Arc::clone(self.shared.policies.memory()),
            asked,
            reported: None,
        };
        // An event in clear text means nothing within a compressed stream.
        let is_plain = !response.headers().contains_key(header::CONTENT_ENCODING);
        let stream_end = if is_events && is_plain { request.stream_end } else { StreamEnd::Cut };
        let response = response.map(|body| ResponseBody::new(body, account, stream_end));
        Dispatched { response, trace, entry }
    }

    /// Takes a place among the requests that may be at the workers, waiting for it if the queue has room.
    async fn admit(&self, priority: Priority) -> Result<Permit, DispatchError> {
        let admission = &self.shared.admission;
        if let Some(permit) = admission.try_acquire() {
            return Ok(permit);
        }
        let mut waiting = admission.acquire(priority).map_err(DispatchError::Rejected)?;
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
            log_breaker(&self.shared.fleet, worker, mode);
        }
        // The worker has room for another request.
        self.shared.admission.call_lines();
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

/// The answer, unless the worker is removed before it comes: then the connection is closed, and the worker may have
/// started on the request.
async fn unless_cut<T>(
    in_flight: &mut InFlight,
    sending: impl Future<Output = Result<T, SendError>>,
) -> Result<T, SendError> {
    let mut sending = std::pin::pin!(sending);
    std::future::poll_fn(|cx| match sending.as_mut().poll(cx) {
        Poll::Ready(answer) => Poll::Ready(answer),
        Poll::Pending => in_flight.poll_abort(cx).map(|()| Err(SendError::Removed)),
    })
    .await
}
