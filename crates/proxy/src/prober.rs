//! Probes the workers' health, reads which models they serve, and reports both to the fleet.
//!
//! Probes are spread over their interval with jitter, at most 128 at once. A worker that a request could not reach is
//! probed at once. In a cluster only a few of the routers probe each worker. The models of a worker are read when it first
//! responds, when it becomes ready again, and once a minute, because engines load adapters while they run; a failed read
//! is repeated. A request for a model that no worker is known to serve makes the prober read the models of all workers
//! again (`fleet::MIN_INTERVAL` at least apart). A probe that failed because the router lacks a resource of its own does not
//! judge the worker, and is repeated soon.

mod read;
mod verdict;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use rand::RngExt as _;
use rand::rngs::SmallRng;
use smg_routing::fleet::{
    Cause, Discovered, Failure, Fleet, HealthChange, Models, ProbeResult, Snapshot, Worker,
    WorkerState,
};
use smg_runtime::clock::Clock;
use smg_types::ids::WorkerId;
use smg_types::now::Now;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::causes::with_causes;
use crate::upstream::Client;
use read::{LookError, MOST_BYTES, Sleep, ask_sleep, look_at};
use verdict::{cause_of, judge};

/// Probes that run at the same time, at most.
const AT_ONCE: usize = 128;
/// Time between two checks of the schedule.
const TICK: Duration = Duration::from_millis(50);
/// Longest time between two probes of a worker that is neither ready nor known to be down.
const SOON: Duration = Duration::from_secs(1);
/// Time between two attempts to read the models of a worker whose models are unknown.
const ASK_AGAIN: Duration = Duration::from_secs(2);
/// Time between two reads of the models of a worker whose models are known.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Time between two attempts to ask a worker without the route `/is_sleeping` whether it sleeps. A worker that has the route
/// is asked with each probe.
const ASK_SLEEP_AGAIN: Duration = Duration::from_secs(600);

/// The most reasons why a worker is down that the log gives before the worker is up again.
const MOST_LOGGED: usize = 16;

/// When a worker is probed and read next, as `Clock::mono`.
#[derive(Debug, Default)]
struct Schedule {
    probe_at: Duration,
    look_at: Duration,
    /// The worker is asked whether it sleeps by the first good probe from then on.
    sleep_at: Duration,
    asking: bool,
    /// The registration of the worker for which this is the schedule.
    registered_epoch: u32,
    /// The worker's certificate is not checked, and the log says so.
    unchecked: bool,
    /// The reasons that the log has given since the worker was up: the cause, and the status if there was an answer.
    logged: Vec<(Cause, Option<u16>)>,
}

impl Schedule {
    /// Whether the log has not given the reason of `failure` since the worker was up. From then on it has.
    fn is_new_reason(&mut self, failure: &Failure) -> bool {
        let reason = (failure.cause, failure.status);
        let is_new = !self.logged.contains(&reason) && self.logged.len() < MOST_LOGGED;
        if is_new {
            self.logged.push(reason);
        }
        is_new
    }
}

/// The result of probing and reading one worker.
#[derive(Debug)]
struct Answer {
    worker: WorkerId,
    /// The answer belongs to a round of reads that requests wait for.
    again: bool,
    /// The probe failed because the router lacks a resource of its own, so it does not judge the worker.
    unjudged: bool,
    probe: Option<ProbeResult>,
    look: Look,
    sleep: Sleep,
    /// Why the probe or the look failed.
    failure: Option<Failure>,
}

/// The result of reading a worker's models.
#[derive(Debug)]
enum Look {
    /// The models were not read this time.
    NotNow,
    /// The read failed because the router lacks a resource of its own, so it does not judge the worker.
    Unjudged,
    /// The read failed.
    Failed,
    /// The worker serves these models.
    Found(Discovered),
}

/// Probes the fleet until the task is dropped.
///
/// `wake`: a worker may have been added, so that the schedule is checked at once.
pub async fn run(
    fleet: Arc<Fleet>,
    client: Arc<Client>,
    clock: Clock,
    mut rng: SmallRng,
    wake: Arc<Notify>,
) -> anyhow::Result<()> {
    let mut schedules: HashMap<WorkerId, Schedule> = HashMap::new();
    let mut asking: JoinSet<Answer> = JoinSet::new();
    // The workers whose models are still to be read in the round that is running.
    let mut round: Option<HashSet<WorkerId>> = None;
    let mut turn = 0usize;
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _tick = tick.tick() => {}
            () = wake.notified() => {}
            Some(answer) = asking.join_next() => {
                match answer {
                    Ok(answer) => {
                        settle(&fleet, &mut schedules, &answer, clock.mono(), &mut rng);
                        if let (true, Some(round)) = (answer.again, &mut round) {
                            round.remove(&answer.worker);
                        }
                    }
                    Err(error) => {
                        // Which worker's probe panicked is unknown: all may be probed again.
                        warn!(%error, "a probe panicked");
                        schedules.values_mut().for_each(|schedule| schedule.asking = false);
                        round = round.map(|_| HashSet::new());
                    }
                }
                round = unless_over(&fleet, round);
                continue;
            }
        }
        fleet.sweep(clock.now());
        let snapshot = fleet.snapshot();
        schedules.retain(|id, _| snapshot.worker(*id).is_some());
        round = continue_round(&fleet, &snapshot, round, clock.now());
        // Each turn begins with another worker, so that workers that never respond do not block the probes of others.
        let (later, first) = snapshot.workers().split_at(turn.min(snapshot.workers().len()));
        turn = (turn + 1) % snapshot.workers().len().max(1);
        if turn == 0 {
            client.evict();
        }
        for worker in first.iter().chain(later) {
            if asking.len() >= AT_ONCE {
                break;
            }
            let now = clock.mono();
            let schedule = schedules.entry(worker.id).or_default();
            let wish = worker.take_probe_request();
            if schedule.asking {
                continue;
            }
            if schedule.registered_epoch != worker.registered_epoch {
                // Also if the worker was removed and added again between two turns: it is probed at once.
                let registered_epoch = worker.registered_epoch;
                *schedule = Schedule { registered_epoch, ..Schedule::default() };
            }
            warn_if_unchecked(worker, schedule);
            let probed = !(worker.spec.health.disabled || fleet.config().health.disabled);
            let probe = probed && (wish || (worker.is_probed_here() && schedule.probe_at <= now));
            let unknown =
                worker.models == Models::Unknown && schedule.look_at > now + ASK_AGAIN.mul_f64(1.2);
            let again = round.as_ref().is_some_and(|round| round.contains(&worker.id));
            let look = schedule.look_at <= now || unknown;
            if probe || look || again {
                schedule.asking = true;
                let wanted = Wanted { probe, look, again, sleep: schedule.sleep_at <= now };
                let (fleet, client) = (Arc::clone(&fleet), Arc::clone(&client));
                asking.spawn(ask(fleet, client, Arc::clone(worker), clock, wanted));
            }
        }
    }
}

/// Says in the log that the certificate of a worker is not checked, when the worker is new or has come to be so.
fn warn_if_unchecked(worker: &Worker, schedule: &mut Schedule) {
    let unchecked = worker.spec.tls.is_unchecked();
    if unchecked && !schedule.unchecked {
        warn!(
            worker = %worker.id,
            url = %worker.spec.url,
            "the certificate of this worker is not checked (tls.insecure_skip_verify): whoever can intercept its \
             connections can read and change them; set tls.pin_sha256 or --worker-tls-ca instead"
        );
    }
    schedule.unchecked = unchecked;
}

/// Begins a round of reads if one is wanted, and removes the workers from it that have left the fleet.
fn continue_round(
    fleet: &Fleet,
    snapshot: &Snapshot,
    round: Option<HashSet<WorkerId>>,
    now: Now,
) -> Option<HashSet<WorkerId>> {
    let begun = fleet.begin_rediscovery(now).map(HashSet::from_iter);
    let mut round = begun.or(round);
    if let Some(round) = &mut round {
        round.retain(|id| snapshot.worker(*id).is_some());
    }
    unless_over(fleet, round)
}

/// Ends the round of reads when no worker is left in it.
fn unless_over(fleet: &Fleet, round: Option<HashSet<WorkerId>>) -> Option<HashSet<WorkerId>> {
    let is_over = round.as_ref().is_some_and(HashSet::is_empty);
    if is_over {
        fleet.end_rediscovery();
    }
    round.filter(|_| !is_over)
}

/// Reports a result to the fleet and schedules the next probe and read.
fn settle(
    fleet: &Fleet,
    schedules: &mut HashMap<WorkerId, Schedule>,
    answer: &Answer,
    now: Duration,
    rng: &mut SmallRng,
) {
    let Some(schedule) = schedules.get_mut(&answer.worker) else { return };
    schedule.asking = false;
    let worker = answer.worker;
    if answer.probe == Some(ProbeResult::Good) {
        fleet.clear_failure(worker, true);
    }
    match &answer.failure {
        Some(failure) => show_failure(fleet, worker, failure),
        None if matches!(answer.look, Look::Found(_)) => fleet.clear_failure(worker, false),
        None => {}
    }
    match &answer.look {
        Look::NotNow => {}
        Look::Unjudged => {
            schedule.look_at = now + ASK_AGAIN.mul_f64(rng.random_range(0.8..1.2));
        }
        Look::Failed => {
            fleet.report_failed_discovery(worker);
            schedule.look_at = now + ASK_AGAIN.mul_f64(rng.random_range(0.8..1.2));
        }
        Look::Found(found) => {
            schedule.look_at = now + LOOK_AGAIN.mul_f64(rng.random_range(0.8..1.2));
            if fleet.report_discovered(worker, found.clone()) {
                info!(%worker, models = ?found.models, "worker's models are known");
            }
        }
    }
    match answer.sleep {
        Sleep::Unknown => {}
        Sleep::NoRoute => {
            schedule.sleep_at = now + ASK_SLEEP_AGAIN.mul_f64(rng.random_range(0.8..1.2));
            note_sleep(fleet, worker, false);
        }
        Sleep::Asleep => note_sleep(fleet, worker, true),
        Sleep::Awake => note_sleep(fleet, worker, false),
    }
    if answer.unjudged {
        schedule.probe_at = now + SOON.mul_f64(rng.random_range(0.9..1.1));
    }
    if let Some(probe) = answer.probe {
        settle_probe(fleet, schedule, answer, probe, now, rng);
    }
}

/// Reports the result of a probe to the fleet, logs what has changed, and schedules the next probe.
fn settle_probe(
    fleet: &Fleet,
    schedule: &mut Schedule,
    answer: &Answer,
    probe: ProbeResult,
    now: Duration,
    rng: &mut SmallRng,
) {
    let worker = answer.worker;
    let snapshot = fleet.snapshot();
    let own = snapshot.worker(worker).and_then(|worker| worker.spec.health.interval);
    let interval = own.unwrap_or_else(|| fleet.config().health.interval);
    schedule.probe_at = now + interval.mul_f64(rng.random_range(0.9..1.1));
    match fleet.report_probe(worker, probe) {
        Some(HealthChange::Up { cold }) => {
            info!(%worker, cold, "worker is up");
            schedule.logged.clear();
            // It may serve other models than before, or be another engine.
            schedule.look_at = now;
            if answer.sleep == Sleep::Unknown {
                schedule.sleep_at = now;
            }
        }
        Some(HealthChange::Down) => {
            schedule.logged.clear();
            if let Some(failure) = &answer.failure {
                let _is_first = schedule.is_new_reason(failure);
            }
            log_failure(fleet, answer, "worker is down");
        }
        Some(HealthChange::Failed) => {
            log_failure(fleet, answer, "worker is still down after many probes: it is probed on");
        }
        None => {}
    }
    let state = fleet.load().worker(worker).map(|worker| worker.state());
    // The first obstacle may hide the next: an engine that is started at last may still refuse the router's key.
    if let (Some(WorkerState::NotReady | WorkerState::Failed), Some(failure)) =
        (state, &answer.failure)
        && schedule.is_new_reason(failure)
    {
        log_failure(fleet, answer, "worker is still down, for another reason");
    }
    if probe != ProbeResult::Good
        || !matches!(state, Some(WorkerState::Ready | WorkerState::Sleeping))
    {
        // A worker that is not ready is probed more often, but at most once a second.
        let soon = interval.min(SOON).mul_f64(rng.random_range(0.9..1.1));
        schedule.probe_at = now + soon;
    }
}

/// Reports whether a worker sleeps, and logs a change.
fn note_sleep(fleet: &Fleet, worker: WorkerId, sleeping: bool) {
    if !fleet.report_sleeping(worker, sleeping) {
        return;
    }
    if sleeping {
        info!(%worker, "worker sleeps: it gets no requests until it wakes up");
    } else {
        info!(%worker, "worker is awake");
    }
}

/// Remembers a failure, and logs one that no change of the worker's state will log: the probe is answered well, but the
/// models can't be read.
fn show_failure(fleet: &Fleet, worker: WorkerId, failure: &Failure) {
    let is_new = fleet.note_failure(worker, failure.clone());
    if failure.is_discovery && is_new {
        let unknown = fleet.load().worker(worker).is_some_and(|w| w.models == Models::Unknown);
        let message = if failure.cause == Cause::NoModels {
            "the worker gets no requests, because it serves no model"
        } else if unknown {
            "the worker gets no requests, because its models can't be read"
        } else {
            "the worker's models can't be read again: those of the last time stay"
        };
        log(fleet, worker, Some(failure), message);
    }
}

fn log_failure(fleet: &Fleet, answer: &Answer, message: &str) {
    log(fleet, answer.worker, answer.failure.as_ref(), message);
}

/// One line that says which worker, what happened and what to do about it.
fn log(fleet: &Fleet, id: WorkerId, failure: Option<&Failure>, message: &str) {
    let snapshot = fleet.snapshot();
    let (Some(worker), Some(failure)) = (snapshot.worker(id), failure) else { return };
    let url = &worker.spec.url;
    warn!(
        worker = %id,
        %url,
        path = failure.path,
        cause = failure.cause.name(),
        status = failure.status,
        error = (!failure.detail.is_empty()).then_some(failure.detail.as_str()),
        advice = failure.advice(url),
        "{message}"
    );
}

/// What to ask a worker now.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Whether it is healthy.
    probe: bool,
    /// Which models it serves, and how it describes itself.
    look: bool,
    /// Which models it serves, because requests named a model that no worker is known to serve.
    again: bool,
    /// Whether a good probe is followed by the question whether the worker sleeps.
    sleep: bool,
}

async fn ask(
    fleet: Arc<Fleet>,
    client: Arc<Client>,
    worker: Arc<Worker>,
    clock: Clock,
    wanted: Wanted,
) -> Answer {
    let Wanted { probe, look, again, sleep } = wanted;
    let timeout = worker.spec.health.timeout.unwrap_or_else(|| fleet.config().health.timeout);
    let mut answer = Answer {
        worker: worker.id,
        again,
        unjudged: false,
        probe: None,
        look: Look::NotNow,
        sleep: Sleep::Unknown,
        failure: None,
    };
    let failed = |is_discovery, path: &str, cause, status, detail| {
        let (at, path) = (clock.now().wall, path.to_owned());
        Some(Failure { at, is_discovery, path, cause, status, detail })
    };
    if probe {
        let endpoint =
            worker.spec.health.endpoint.as_deref().unwrap_or(&fleet.config().health.endpoint);
        let key = worker.spec.api_key.as_ref();
        let asked = client.fetch(&*worker.spec, Method::GET, endpoint, key, timeout, MOST_BYTES);
        match asked.await {
            Ok((status, _)) if status.is_success() => answer.probe = Some(ProbeResult::Good),
            Ok((status, _)) => {
                debug!(worker = %worker.id, %status, "probe was answered badly");
                answer.probe = Some(ProbeResult::Bad);
                let status = status.as_u16();
                let cause = Cause::of_status(status).unwrap_or(Cause::Status);
                answer.failure = failed(false, endpoint, cause, Some(status), String::new());
            }
            Err(error) => {
                debug!(worker = %worker.id, %error, "probe failed");
                answer.probe = judge(&error);
                answer.unjudged = answer.probe.is_none();
                answer.failure = cause_of(&error)
                    .and_then(|cause| failed(false, endpoint, cause, None, with_causes(&error)));
            }
        }
    }
    if sleep && answer.probe == Some(ProbeResult::Good) {
        answer.sleep = ask_sleep(&client, &worker, timeout).await;
    }
    if (look || again)
        && !answer.unjudged
        && answer.probe.is_none_or(|probe| probe == ProbeResult::Good)
    {
        answer.look = match look_at(&client, &worker, timeout, !look).await {
            Ok(found) => {
                let is_empty = matches!(&found.models, Models::Known(models) if models.is_empty());
                if is_empty && worker.spec.models.is_empty() {
                    let cause = Cause::NoModels;
                    answer.failure = failed(true, "/v1/models", cause, Some(200), String::new());
                }
                Look::Found(found)
            }
            Err(LookError::Answer { status, cause }) => {
                answer.failure = failed(true, "/v1/models", cause, Some(status), String::new());
                Look::Failed
            }
            Err(LookError::Send(error)) => match cause_of(&error) {
                Some(cause) => {
                    answer.failure = failed(true, "/v1/models", cause, None, with_causes(&error));
                    Look::Failed
                }
                None => Look::Unjudged,
            },
        };
    }
    answer
}
