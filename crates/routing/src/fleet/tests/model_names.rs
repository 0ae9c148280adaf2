//! Models that lose their last worker, and models that are read again.

use std::collections::BTreeMap;

use super::*;

#[test]
fn a_model_that_lost_its_last_worker_is_remembered_for_a_time() {
    let memory = Duration::from_secs(60);
    let fleet = fleet_with(Config { model_memory: memory, ..Config::default() });
    let mut aliased = spec("http://a", &["m", "n"]);
    aliased.aliases = BTreeMap::from([("nick".into(), "m".into())]);
    let a = fleet.register(aliased).unwrap();
    let b = ready(&fleet, "http://b", &["n"]);
    fleet.remove(a, NOW);
    let departed = |fleet: &Fleet, now| {
        ["m", "nick", "n", "never"].map(|model| fleet.has_departed(model, now))
    };
    assert_eq!(departed(&fleet, NOW), [true, true, false, false]);
    assert_eq!(departed(&fleet, NOW + memory), [false; 4]);
    fleet.remove(b, NOW);
    assert_eq!(departed(&fleet, NOW), [true, true, true, false]);
    let sent: Vec<_> = fleet.take_departures(NOW).into_iter().map(|d| d.model).collect();
    assert_eq!(sent, ["m", "n", "nick"].map(ModelId::from));
    assert_eq!(fleet.take_departures(NOW), []);
    // A worker serves it again, and later does not list it any more: it was unloaded.
    let a = fleet.register(spec("http://a", &["m"])).unwrap();
    let returned = Departure { model: "m".into(), remember: None };
    assert_eq!(fleet.take_departures(NOW), [returned]);
    fleet.respecify(spec("http://a", &["other"]));
    assert_eq!(departed(&fleet, NOW), [false, true, true, false]);
    fleet.remove(a, NOW);
    assert_eq!(departed(&fleet, NOW), [false, true, true, false]);
}

#[test]
fn the_departure_of_a_model_from_another_router_counts_here() {
    let departed = |memory: u64| {
        let model_memory = Duration::from_secs(memory);
        let fleet = fleet_with(Config { model_memory, ..Config::default() });
        let model = ModelId::from("m");
        // This router still drains its worker: that is no return of the model.
        let worker = ready(&fleet, "http://a", &["m"]);
        fleet.apply_remote_departure(&model, Some(Duration::from_secs(30)), NOW);
        fleet.drain(worker, true);
        assert_eq!(fleet.take_departures(NOW), []);
        let before = fleet.has_departed("m", NOW);
        fleet.apply_remote_departure(&model, None, NOW);
        assert!(!fleet.has_departed("m", NOW));
        before
    };
    assert_eq!([departed(60), departed(0)], [true, false]);
}

#[test]
fn models_are_read_again_only_where_a_worker_may_list_others() {
    let fleet = fleet();
    let specified = ready(&fleet, "http://a", &["m"]);
    assert_eq!(fleet.request_rediscovery(NOW), None, "its spec names its models");
    let listing = ready(&fleet, "http://b", &[]);
    assert_eq!(fleet.request_rediscovery(NOW), None, "its models are being read anyway");
    fleet.report_discovered(listing, discovered(Models::Known(vec!["m".into()])));
    let round = fleet.request_rediscovery(NOW).unwrap();
    assert_eq!(fleet.begin_rediscovery(NOW), Some(vec![listing]), "{specified} is not asked");
    assert!(!fleet.is_rediscovered(round));
    fleet.end_rediscovery();
    assert!(fleet.is_rediscovered(round));
    assert_eq!(fleet.request_rediscovery(NOW), None, "they were read just now");
    assert!(fleet.request_rediscovery(NOW + MIN_INTERVAL).is_some());
}

#[test]
fn replaced_aliases_apply_to_the_next_snapshot() {
    let fleet = fleet();
    ready(&fleet, "http://a", &["m"]);
    let names =
        |fleet: &Fleet| ["first", "second"].map(|alias| fleet.load().model(alias).is_some());
    assert_eq!(names(&fleet), [false, false]);
    for (alias, expected) in [("first", [true, false]), ("second", [false, true])] {
        let aliases = BTreeMap::from([(alias.into(), "m".into())]);
        assert!(fleet.set_aliases(aliases.clone()));
        assert!(!fleet.set_aliases(aliases), "nothing differs any more");
        assert_eq!(names(&fleet), expected);
    }
}
