//! The fleet through its public interface: registering, discovering, judging and removing workers.

mod model_names;

use std::num::NonZeroU32;
use std::time::Duration;

use smg_types::ids::ModelId;

use super::*;

fn fleet() -> Fleet {
    fleet_with(Config::default())
}

fn fleet_with(config: Config) -> Fleet {
    Fleet::new(config, Metrics::register(&prometheus::Registry::new()).unwrap())
}

fn spec(url: &str, models: &[&str]) -> WorkerSpec {
    WorkerSpec {
        models: models.iter().map(|model| ModelId::from(*model)).collect(),
        ..WorkerSpec::new(url.parse().unwrap())
    }
}

/// Registers a worker that serves `models` and makes it ready.
fn ready(fleet: &Fleet, url: &str, models: &[&str]) -> WorkerId {
    let id = fleet.register(spec(url, models)).unwrap();
    fleet.report_probe(id, ProbeResult::Good);
    id
}

fn discovered(models: Models) -> Discovered {
    Discovered { models, objects: ModelObjects::default(), info: None }
}

fn serving(fleet: &Fleet, model: Option<&str>) -> Vec<WorkerId> {
    match fleet.load().served_by(model) {
        ServedBy::Members(members) => members.iter().map(|member| member.worker.id).collect(),
        ServedBy::NotYetKnown | ServedBy::UnknownModel => Vec::new(),
    }
}

const NOW: Now = Now::at(Duration::from_secs(1000));

#[test]
fn one_url_is_one_worker() {
    let fleet = fleet();
    let id = fleet.register(spec("http://a:80/", &["m"])).unwrap();
    assert_eq!(fleet.register(spec("HTTP://A", &["m"])), Err(RegisterError::Exists(id)));
    assert_eq!(fleet.load().workers().len(), 1);
}

#[test]
fn a_full_fleet_has_room_only_for_registered_workers() {
    let fleet = fleet();
    let desired = (0..=MAX_WORKERS).map(|number| {
        let spec = spec(&format!("http://w{number}"), &["m"]);
        let registration = None;
        let desired = DesiredWorker { spec, health_override: None, cordoned: false, registration };
        (desired.spec.id(), Some(desired))
    });
    fleet.reconcile(desired.collect(), NOW);
    assert_eq!(fleet.load().workers().len(), MAX_WORKERS);
    let registered = fleet.load().workers()[0].spec.url.to_string();
    assert_eq!(fleet.check_room(&spec(&registered, &["m"])), Ok(()));
    assert_eq!(fleet.check_room(&spec("http://another", &["m"])), Err(RegisterError::Full));
}

#[test]
fn a_model_is_served_by_the_workers_that_list_it() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m", "n"]);
    let b = ready(&fleet, "http://b", &["m"]);
    let mut both = vec![a, b];
    both.sort();
    assert_eq!(serving(&fleet, Some("m")), both);
    assert_eq!(serving(&fleet, Some("n")), [a]);
    assert_eq!(serving(&fleet, None), both);
    assert_eq!(fleet.load().served_by(Some("x")), ServedBy::UnknownModel);
}

#[test]
fn an_alias_is_served_by_the_workers_that_serve_the_model() {
    let named = |alias: &str, model: &str| (ModelId::from(alias), ModelId::from(model));
    let aliases = [named("a", "m"), named("x", "absent"), named("n", "m")].into();
    let fleet = fleet_with(Config { aliases, ..Config::default() });
    let first = ready(&fleet, "http://a", &["m"]);
    let renamed = |name: &str| match fleet.load().served_by(Some(name)) {
        ServedBy::Members(members) => {
            members.iter().map(|member| (member.worker.id, member.renamed.clone())).collect()
        }
        ServedBy::NotYetKnown | ServedBy::UnknownModel => Vec::new(),
    };
    assert_eq!(renamed("a"), [(first, Some("m".into()))]);
    assert_eq!(renamed("x"), []);
    // An alias does not hide a model of the same name that a worker lists.
    let second = ready(&fleet, "http://b", &["n"]);
    assert_eq!(renamed("n"), [(second, None)]);
    // A worker that serves every model gets the model's own name, too.
    let any = fleet.register(spec("http://c", &[])).unwrap();
    fleet.report_discovered(any, discovered(Models::Any));
    assert!(renamed("a").contains(&(any, Some("m".into()))));
    assert_eq!(renamed("x"), [(any, Some("absent".into()))]);
}

#[test]
fn a_model_is_not_yet_known_while_a_worker_may_still_list_it() {
    let fleet = fleet();
    assert_eq!(fleet.load().served_by(None), ServedBy::UnknownModel);
    let a = ready(&fleet, "http://a", &[]);
    assert_eq!(fleet.load().served_by(Some("m")), ServedBy::NotYetKnown);
    assert_eq!(fleet.load().worker(a).unwrap().state(), WorkerState::Pending);
    let found = discovered(Models::Known(vec!["m".into()]));
    assert!(fleet.report_discovered(a, found.clone()));
    assert!(!fleet.report_discovered(a, found));
    assert_eq!(serving(&fleet, Some("m")), [a]);
    assert_eq!(fleet.load().worker(a).unwrap().state(), WorkerState::Ready);
    assert_eq!(fleet.load().served_by(Some("x")), ServedBy::UnknownModel);
}

#[test]
fn a_worker_that_never_lists_its_models_does_not_keep_a_model_from_being_unknown() {
    let fleet = fleet();
    ready(&fleet, "http://a", &["m"]);
    let not_yet_known = || fleet.load().served_by(Some("x")) == ServedBy::NotYetKnown;
    // The worker has just been registered: it may serve the model.
    let young = fleet.register(spec("http://b", &[])).unwrap();
    assert!(not_yet_known());
    // The worker never answers.
    for _ in 0..3 {
        fleet.report_probe(young, ProbeResult::Gone);
    }
    assert!(!not_yet_known());
    // The worker answers its probes but does not list its models.
    fleet.report_probe(young, ProbeResult::Good);
    assert!(not_yet_known());
    for _ in 0..5 {
        assert!(not_yet_known());
        fleet.report_failed_discovery(young);
    }
    assert!(!not_yet_known());
    assert_eq!(fleet.load().served_by(Some("m")), fleet.load().served_by(None));
}

#[test]
fn only_failed_attempts_in_a_row_to_list_models_make_a_model_unknown() {
    let fleet = fleet();
    ready(&fleet, "http://b", &["m"]);
    let not_yet_known = || fleet.load().served_by(Some("x")) == ServedBy::NotYetKnown;
    let worker = ready(&fleet, "http://a", &[]);
    let fail = |times| (0..times).for_each(|_| fleet.report_failed_discovery(worker));
    fail(4);
    let models = Models::Known(vec!["m".into()]);
    fleet.report_discovered(worker, discovered(models));
    // The worker gets a list of models, and loses it: its models are unknown again.
    fleet.respecify(spec("http://a", &["m"]));
    fleet.respecify(spec("http://a", &[]));
    fail(4);
    assert!(not_yet_known(), "the worker has answered since the first failures");
    fail(1);
    assert!(!not_yet_known());
}

#[test]
fn ready_workers_are_counted() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m"]);
    let b = fleet.register(spec("http://b", &[])).unwrap();
    assert_eq!(fleet.ready_and_total(), (1, 2));
    fleet.report_probe(b, ProbeResult::Good);
    assert_eq!(fleet.ready_and_total(), (1, 2), "the models of one are not known");
    fleet.report_discovered(b, discovered(Models::Any));
    assert_eq!(fleet.ready_and_total(), (2, 2));
    fleet.drain(a, true);
    assert_eq!(fleet.ready_and_total(), (1, 2));
    for _ in 0..3 {
        fleet.report_probe(b, ProbeResult::Bad);
    }
    assert_eq!(fleet.ready_and_total(), (0, 2));
    fleet.report_probe(b, ProbeResult::Good);
    fleet.remove(a, NOW);
    assert_eq!(fleet.ready_and_total(), (1, 1));
}

#[test]
fn requests_on_a_deleted_worker_are_aborted() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let mut guard = worker.begin(NOW, &fleet.config().breaker, false).unwrap();
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    fleet.remove(id, NOW);
    assert!(guard.poll_abort(&cx).is_pending() && !guard.is_aborted());
    fleet.sweep(NOW + fleet.config().drain_timeout);
    assert!(guard.poll_abort(&cx).is_ready() && guard.is_aborted());
    assert!(fleet.load().workers().is_empty());
}

#[test]
fn a_worker_without_a_list_serves_every_model() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m"]);
    let b = ready(&fleet, "http://b", &[]);
    fleet.report_discovered(b, discovered(Models::Any));
    assert_eq!(serving(&fleet, Some("x")), [b]);
    assert_eq!(serving(&fleet, Some("m")).len(), 2);
    assert!(serving(&fleet, Some("m")).contains(&a));
}

#[test]
fn an_alias_is_rewritten() {
    let fleet = fleet();
    let mut aliased = spec("http://a", &["real"]);
    aliased.aliases.insert("nick".into(), "real".into());
    fleet.register(aliased).unwrap();
    let snapshot = fleet.load();
    let ServedBy::Members([member]) = snapshot.served_by(Some("nick")) else {
        panic!("no worker serves the alias")
    };
    assert_eq!(member.renamed, Some("real".into()));
}

#[test]
fn in_flight_returns_to_zero_however_a_request_ends() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    let guards: Vec<InFlight> =
        (0..4).map(|_| worker.begin(NOW, breaker, false).unwrap()).collect();
    assert_eq!(worker.in_flight(), 4);
    for (guard, outcome) in guards.into_iter().zip([
        Some(Outcome::Success),
        Some(Outcome::Failure),
        Some(Outcome::Neutral),
        None,
    ]) {
        match outcome {
            Some(outcome) => assert_eq!(guard.end(outcome, NOW, breaker), None),
            None => drop(guard),
        }
    }
    assert_eq!(worker.in_flight(), 0);
}

#[test]
fn a_worker_never_exceeds_its_own_limit() {
    let fleet = fleet();
    let limited = WorkerSpec { max_concurrent: NonZeroU32::new(2), ..spec("http://a", &["m"]) };
    let id = fleet.register(limited).unwrap();
    fleet.report_probe(id, ProbeResult::Good);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    let first = worker.begin(NOW, breaker, false);
    let second = worker.begin(NOW, breaker, false);
    assert!(first.is_some() && second.is_some());
    assert_eq!(worker.fitness(NOW, breaker), Fitness::Full);
    assert!(worker.begin(NOW, breaker, true).is_none());
    drop(first);
    assert_eq!(worker.fitness(NOW, breaker), Fitness::Fit);
}

#[test]
fn an_overloaded_worker_comes_after_others_until_a_request_succeeds() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    worker.push_back(NOW, Duration::from_secs(1));
    assert_eq!(worker.fitness(NOW, breaker), Fitness::PushesBack);
    assert!(worker.is_routed(NOW, breaker));
    assert_eq!(worker.fitness(NOW + Duration::from_millis(1001), breaker), Fitness::Fit);
    let guard = worker.begin(NOW, breaker, false).unwrap();
    let _mode = guard.end(Outcome::Success, NOW, breaker);
    assert_eq!(worker.fitness(NOW, breaker), Fitness::Fit);
}

#[test]
fn failures_eject_and_a_half_open_breaker_lets_one_request_through() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    for _ in 0..10 {
        let guard = worker.begin(NOW, breaker, false).unwrap();
        let _mode = guard.end(Outcome::Failure, NOW, breaker);
    }
    assert_eq!(
        worker.fitness(NOW, breaker),
        Fitness::Ejected { since: NOW.mono, by: Ejection::Breaker }
    );
    assert!(worker.begin(NOW, breaker, false).is_none());
    let later = NOW + Duration::from_secs(61);
    assert_eq!(worker.fitness(later, breaker), Fitness::Fit);
    let probe = worker.begin(later, breaker, false);
    assert!(probe.is_some());
    assert!(
        worker.begin(later, breaker, false).is_none(),
        "a half-open breaker let a second request through"
    );
    drop(probe);
    assert_eq!(worker.in_flight(), 0);
    for _ in 0..3 {
        let guard = worker.begin(later, breaker, false).unwrap();
        let _mode = guard.end(Outcome::Success, later, breaker);
    }
    assert_eq!(worker.breaker_mode(later, breaker), BreakerMode::Closed);
}

#[test]
fn a_sleeping_worker_gets_no_requests_and_wakes_up_with_an_empty_cache() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = || Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    let epoch = worker().cache_epoch;
    assert!(!fleet.report_sleeping(id, false));
    assert!(fleet.report_sleeping(id, true) && !fleet.report_sleeping(id, true));
    assert_eq!(worker().state(), WorkerState::Sleeping);
    assert_eq!(worker().fitness(NOW, breaker), Fitness::Out(Outage::Sleeping));
    assert_eq!(fleet.ready_and_total(), (0, 1));
    // Other routers learn of it as of a bad health.
    assert_eq!(worker().local_view(NOW, breaker).health, Some(false));
    // Good probes do not wake it up.
    fleet.report_probe(id, ProbeResult::Good);
    assert_eq!(worker().fitness(NOW, breaker), Fitness::Out(Outage::Sleeping));
    assert!(fleet.report_sleeping(id, false));
    assert_eq!(worker().fitness(NOW, breaker), Fitness::Fit);
    assert_eq!(fleet.ready_and_total(), (1, 1));
    assert_ne!(worker().cache_epoch, epoch);
}

#[test]
fn a_refused_connection_ejects_at_once_and_a_good_probe_brings_the_worker_back_cold() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    assert!(!worker.take_probe_request());
    worker.mark_unreachable(NOW, true);
    assert!(matches!(
        worker.fitness(NOW, breaker),
        Fitness::Ejected { by: Ejection::Unreachable, .. }
    ));
    assert!(worker.take_probe_request() && !worker.take_probe_request());
    fleet.report_probe(id, ProbeResult::Good);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    assert_eq!(worker.fitness(NOW, breaker), Fitness::Fit);
    assert_eq!(worker.cache_epoch, 2, "its cache is lost since its registration");
}

#[test]
fn an_override_outweighs_probes_until_it_ends() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let fitness = |now| fleet.load().worker(id).unwrap().fitness(now, &fleet.config().breaker);
    let until = Some(NOW.mono + Duration::from_secs(10));
    assert!(
        fleet.override_worker(
            id,
            Some(Override { healthy: false, reason: "disk".to_owned(), until })
        )
    );
    assert_eq!(fitness(NOW), Fitness::Out(Outage::Overridden));
    assert_eq!(fitness(NOW + Duration::from_secs(10)), Fitness::Fit);
    for _ in 0..3 {
        fleet.report_probe(id, ProbeResult::Bad);
    }
    assert_eq!(fitness(NOW + Duration::from_secs(10)), Fitness::Out(Outage::Down));
    assert!(fleet.override_worker(
        id,
        Some(Override { healthy: true, reason: "probe is wrong".to_owned(), until: None })
    ));
    assert_eq!(fitness(NOW), Fitness::Fit);
}

#[test]
fn a_removed_worker_finishes_its_requests() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let guard = worker.begin(NOW, &fleet.config().breaker, false);
    assert!(fleet.remove(id, NOW));
    assert_eq!(fleet.load().worker(id).unwrap().state(), WorkerState::Draining);
    assert_eq!(
        fleet.load().worker(id).unwrap().fitness(NOW, &fleet.config().breaker),
        Fitness::Out(Outage::Draining)
    );
    drop(guard);
    fleet.sweep(NOW);
    assert!(fleet.load().worker(id).is_none());
    assert!(!fleet.remove(id, NOW));
}

#[test]
fn a_removed_worker_is_deleted_at_its_drain_deadline() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let _stuck = worker.begin(NOW, &fleet.config().breaker, false);
    fleet.remove(id, NOW);
    fleet.sweep(NOW + Duration::from_secs(299));
    assert!(fleet.load().worker(id).is_some());
    fleet.sweep(NOW + Duration::from_secs(300));
    assert!(fleet.load().worker(id).is_none());
}

#[test]
fn a_new_spec_keeps_counters_and_health() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &[]);
    fleet.report_discovered(id, discovered(Models::Known(vec!["m".into()])));
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let _guard = worker.begin(NOW, &fleet.config().breaker, false);
    let heavier = WorkerSpec {
        weight: smg_types::spec::Weight::try_from(7).unwrap(),
        ..spec("http://a", &[])
    };
    assert!(fleet.respecify(heavier));
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    assert_eq!(
        (worker.in_flight(), worker.spec.weight.get(), worker.state()),
        (1, 7, WorkerState::Ready)
    );
    assert!(fleet.respecify(spec("http://a", &["other"])));
    assert_eq!(serving(&fleet, Some("other")), [id]);
}

#[test]
fn a_deleted_worker_leaves_no_series() {
    let registry = prometheus::Registry::new();
    let fleet = Fleet::new(Config::default(), Metrics::register(&registry).unwrap());
    let id = ready(&fleet, "http://a", &["m"]);
    fleet.show_metrics();
    let mentions = |id: WorkerId| {
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        text.contains(&id.to_string())
    };
    assert!(mentions(id));
    fleet.remove(id, NOW);
    assert!(!mentions(id));
}
