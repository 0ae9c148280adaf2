//! The fleet through its public face: registering, discovering, judging, leaving.

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

/// A ready worker that serves `models`.
fn ready(fleet: &Fleet, url: &str, models: &[&str]) -> WorkerId {
    let id = fleet.register(spec(url, models)).unwrap();
    fleet.report_probe(id, Probe::Good);
    id
}

fn who_serves(fleet: &Fleet, model: Option<&str>) -> Vec<WorkerId> {
    match fleet.load().served_by(model) {
        ServedBy::Members(members) => members.iter().map(|member| member.worker.id).collect(),
        ServedBy::NobodyYet | ServedBy::Nobody => Vec::new(),
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
fn a_full_fleet_has_room_for_those_that_are_there() {
    let fleet = fleet();
    let told = (0..=MAX_WORKERS).map(|number| {
        let spec = spec(&format!("http://w{number}"), &["m"]);
        (spec.id(), Some(Told { spec, verdict: None, cordoned: false }))
    });
    fleet.tell(told.collect(), NOW);
    assert_eq!(fleet.load().workers().len(), MAX_WORKERS);
    let there = fleet.load().workers()[0].spec.url.to_string();
    assert_eq!(fleet.check_room(&spec(&there, &["m"])), Ok(()));
    assert_eq!(fleet.check_room(&spec("http://another", &["m"])), Err(RegisterError::Full));
}

#[test]
fn a_model_is_served_by_those_that_have_it() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m", "n"]);
    let b = ready(&fleet, "http://b", &["m"]);
    let mut both = vec![a, b];
    both.sort();
    assert_eq!(who_serves(&fleet, Some("m")), both);
    assert_eq!(who_serves(&fleet, Some("n")), [a]);
    assert_eq!(who_serves(&fleet, None), both);
    assert_eq!(fleet.load().served_by(Some("x")), ServedBy::Nobody);
}

#[test]
fn an_alias_is_served_by_those_that_serve_the_model() {
    let named = |alias: &str, model: &str| (ModelId::from(alias), ModelId::from(model));
    let aliases = [named("a", "m"), named("x", "absent"), named("n", "m")].into();
    let fleet = fleet_with(Config { aliases, ..Config::default() });
    let first = ready(&fleet, "http://a", &["m"]);
    let renamed = |name: &str| match fleet.load().served_by(Some(name)) {
        ServedBy::Members(members) => {
            members.iter().map(|member| (member.worker.id, member.renamed.clone())).collect()
        }
        ServedBy::NobodyYet | ServedBy::Nobody => Vec::new(),
    };
    assert_eq!(renamed("a"), [(first, Some("m".into()))]);
    assert_eq!(renamed("x"), []);
    // A model that a worker itself calls so is not hidden.
    let second = ready(&fleet, "http://b", &["n"]);
    assert_eq!(renamed("n"), [(second, None)]);
    // Who takes whatever is sent gets the model's own name, too.
    let any = fleet.register(spec("http://c", &[])).unwrap();
    fleet.discovered(any, Discovered { models: Models::Any, info: None });
    assert!(renamed("a").contains(&(any, Some("m".into()))));
    assert_eq!(renamed("x"), [(any, Some("absent".into()))]);
}

#[test]
fn an_unknown_model_may_still_turn_up() {
    let fleet = fleet();
    assert_eq!(fleet.load().served_by(None), ServedBy::Nobody);
    let a = ready(&fleet, "http://a", &[]);
    assert_eq!(fleet.load().served_by(Some("m")), ServedBy::NobodyYet);
    assert_eq!(fleet.load().worker(a).unwrap().state(), State::Pending);
    let found = Discovered { models: Models::Known(vec!["m".into()]), info: None };
    assert!(fleet.discovered(a, found.clone()));
    assert!(!fleet.discovered(a, found));
    assert_eq!(who_serves(&fleet, Some("m")), [a]);
    assert_eq!(fleet.load().worker(a).unwrap().state(), State::Ready);
    assert_eq!(fleet.load().served_by(Some("x")), ServedBy::Nobody);
}

#[test]
fn a_worker_that_tells_nothing_does_not_keep_a_name_from_being_a_mistake() {
    let fleet = fleet();
    ready(&fleet, "http://a", &["m"]);
    let asked = || fleet.load().served_by(Some("x")) == ServedBy::NobodyYet;
    // It has just come: it may have it.
    let young = fleet.register(spec("http://b", &[])).unwrap();
    assert!(asked());
    // It never answers.
    for _ in 0..3 {
        fleet.report_probe(young, Probe::Gone);
    }
    assert!(!asked());
    // It answers, but not that question.
    fleet.report_probe(young, Probe::Good);
    assert!(asked());
    for _ in 0..5 {
        assert!(asked());
        fleet.could_not_read(young);
    }
    assert!(!asked());
    assert_eq!(fleet.load().served_by(Some("m")), fleet.load().served_by(None));
}

#[test]
fn those_that_serve_are_counted() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m"]);
    let b = fleet.register(spec("http://b", &[])).unwrap();
    assert_eq!(fleet.ready(), (1, 2));
    fleet.report_probe(b, Probe::Good);
    assert_eq!(fleet.ready(), (1, 2), "its models are not known");
    fleet.discovered(b, Discovered { models: Models::Any, info: None });
    assert_eq!(fleet.ready(), (2, 2));
    fleet.drain(a, true);
    assert_eq!(fleet.ready(), (1, 2));
    for _ in 0..3 {
        fleet.report_probe(b, Probe::Bad);
    }
    assert_eq!(fleet.ready(), (0, 2));
    fleet.report_probe(b, Probe::Good);
    fleet.remove(a, NOW);
    assert_eq!(fleet.ready(), (1, 1));
}

#[test]
fn what_is_in_flight_on_a_worker_that_is_taken_away_ends() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let mut guard = worker.begin(NOW, &fleet.config().breaker, false).unwrap();
    let cx = std::task::Context::from_waker(std::task::Waker::noop());
    fleet.remove(id, NOW);
    assert!(guard.poll_cut(&cx).is_pending() && !guard.is_cut());
    fleet.sweep(NOW + fleet.config().drain_timeout);
    assert!(guard.poll_cut(&cx).is_ready() && guard.is_cut());
    assert!(fleet.load().workers().is_empty());
}

#[test]
fn a_worker_without_a_list_takes_whatever_is_sent() {
    let fleet = fleet();
    let a = ready(&fleet, "http://a", &["m"]);
    let b = ready(&fleet, "http://b", &[]);
    fleet.discovered(b, Discovered { models: Models::Any, info: None });
    assert_eq!(who_serves(&fleet, Some("x")), [b]);
    assert_eq!(who_serves(&fleet, Some("m")).len(), 2);
    assert!(who_serves(&fleet, Some("m")).contains(&a));
}

#[test]
fn an_alias_is_rewritten() {
    let fleet = fleet();
    let mut aliased = spec("http://a", &["real"]);
    aliased.aliases.insert("nick".into(), "real".into());
    fleet.register(aliased).unwrap();
    let snapshot = fleet.load();
    let ServedBy::Members([member]) = snapshot.served_by(Some("nick")) else {
        panic!("nobody serves the alias")
    };
    assert_eq!(member.renamed, Some("real".into()));
}

#[test]
fn in_flight_returns_to_zero_however_it_ends() {
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
fn a_worker_is_never_over_its_own_limit() {
    let fleet = fleet();
    let limited = WorkerSpec { max_concurrent: NonZeroU32::new(2), ..spec("http://a", &["m"]) };
    let id = fleet.register(limited).unwrap();
    fleet.report_probe(id, Probe::Good);
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
fn a_worker_that_pushes_back_comes_after_others_until_it_works_again() {
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
fn failures_eject_and_half_open_lets_one_in() {
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
        Fitness::Ejected { since: NOW.mono, unreachable: false }
    );
    assert!(worker.begin(NOW, breaker, false).is_none());
    let later = NOW + Duration::from_secs(61);
    assert_eq!(worker.fitness(later, breaker), Fitness::Fit);
    let probe = worker.begin(later, breaker, false);
    assert!(probe.is_some());
    assert!(worker.begin(later, breaker, false).is_none(), "half-open let a second one through");
    drop(probe);
    assert_eq!(worker.in_flight(), 0);
    for _ in 0..3 {
        let guard = worker.begin(later, breaker, false).unwrap();
        let _mode = guard.end(Outcome::Success, later, breaker);
    }
    assert_eq!(worker.breaker_mode(later, breaker), Mode::Closed);
}

#[test]
fn nobody_listening_ejects_at_once_and_a_good_probe_brings_it_back_cold() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let breaker = &fleet.config().breaker;
    assert!(!worker.take_probe_wish());
    worker.mark_unreachable(NOW, true);
    assert!(matches!(worker.fitness(NOW, breaker), Fitness::Ejected { unreachable: true, .. }));
    assert!(worker.take_probe_wish() && !worker.take_probe_wish());
    fleet.report_probe(id, Probe::Good);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    assert_eq!(worker.fitness(NOW, breaker), Fitness::Fit);
    assert_eq!(worker.cache_epoch, 1, "what it had cached is gone");
}

#[test]
fn an_operator_has_the_last_word_until_it_lapses() {
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
    assert_eq!(fitness(NOW), Fitness::Out);
    assert_eq!(fitness(NOW + Duration::from_secs(10)), Fitness::Fit);
    for _ in 0..3 {
        fleet.report_probe(id, Probe::Bad);
    }
    assert_eq!(fitness(NOW + Duration::from_secs(10)), Fitness::Out);
    assert!(fleet.override_worker(
        id,
        Some(Override { healthy: true, reason: "probe is wrong".to_owned(), until: None })
    ));
    assert_eq!(fitness(NOW), Fitness::Fit);
}

#[test]
fn a_deleted_worker_finishes_what_is_in_flight() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &["m"]);
    let worker = Arc::clone(fleet.load().worker(id).unwrap());
    let guard = worker.begin(NOW, &fleet.config().breaker, false);
    assert!(fleet.remove(id, NOW));
    assert_eq!(fleet.load().worker(id).unwrap().state(), State::Draining);
    assert_eq!(
        fleet.load().worker(id).unwrap().fitness(NOW, &fleet.config().breaker),
        Fitness::Out
    );
    drop(guard);
    fleet.sweep(NOW);
    assert!(fleet.load().worker(id).is_none());
    assert!(!fleet.remove(id, NOW));
}

#[test]
fn a_deleted_worker_goes_when_its_time_is_over() {
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
fn a_new_spec_keeps_what_is_going_on() {
    let fleet = fleet();
    let id = ready(&fleet, "http://a", &[]);
    fleet.discovered(id, Discovered { models: Models::Known(vec!["m".into()]), info: None });
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
        (1, 7, State::Ready)
    );
    assert!(fleet.respecify(spec("http://a", &["other"])));
    assert_eq!(who_serves(&fleet, Some("other")), [id]);
}

#[test]
fn series_of_a_worker_that_left_are_gone() {
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
