//! The table of policies follows the fleet and the settings of the admin API.

use std::time::Duration;

use rand::SeedableRng as _;
use rand::rngs::SmallRng;
use smg_types::now::Now;
use smg_types::spec::WorkerSpec;

use super::*;
use crate::fleet::{self, Fleet};
use crate::policy::Candidate;

const NOW: Now = Now::at(Duration::from_secs(1000));

fn policies(kind: Kind) -> (Policies, prometheus::Registry) {
    let registry = prometheus::Registry::new();
    let config = policy::Config { kind, ..policy::Config::default() };
    let index = Arc::new(prefix::Index::new(&prefix::Config::default()));
    (Policies::new(config, index, Metrics::register(&registry).unwrap()), registry)
}

/// A fleet with one worker that serves `model`; `label` names a policy.
fn fleet(model: &str, label: Option<&str>) -> (Fleet, WorkerId) {
    let metrics = fleet::Metrics::register(&prometheus::Registry::new()).unwrap();
    let fleet = Fleet::new(fleet::Config::default(), metrics);
    let mut spec = WorkerSpec::new("http://a:1".parse().unwrap());
    spec.models = vec![model.into()];
    spec.labels.extend(label.map(|label| ("policy".to_owned(), label.to_owned())));
    let id = fleet.register(spec).unwrap();
    (fleet, id)
}

fn kind(policies: &Policies, fleet: &Fleet, model: &str) -> Kind {
    let (default, models) = policies.in_use(&fleet.snapshot());
    models.get(model).copied().unwrap_or(default)
}

#[test]
fn an_administrator_overrules_a_label_and_a_label_overrules_the_default() {
    let (policies, _) = policies(Kind::Random);
    assert_eq!(kind(&policies, &fleet("m", None).0, "m"), Kind::Random);
    let (fleet, _) = fleet("m", Some("least_load"));
    let model = ModelId::from("m");
    let policies = self::policies(Kind::Random).0;
    assert_eq!(kind(&policies, &fleet, "m"), Kind::LeastLoad);
    let setting = Setting { kind: Kind::Manual, ..default_setting(&policies.config()) };
    policies.set(&model, Some(setting.clone()), &fleet.snapshot());
    assert_eq!(kind(&policies, &fleet, "m"), Kind::Manual);
    assert_eq!(policies.settings().get(&model), Some(&setting));
    policies.set(&model, None, &fleet.snapshot());
    assert_eq!(kind(&policies, &fleet, "m"), Kind::LeastLoad);
}

#[test]
fn another_default_replaces_the_policies_that_follow_it_and_no_other() {
    let (policies, _) = policies(Kind::Random);
    let (fleet, _) = fleet("m", None);
    let mut labelled = WorkerSpec::new("http://b:1".parse().unwrap());
    labelled.models = vec!["labelled".into()];
    labelled.labels.insert("policy".to_owned(), "least_load".to_owned());
    fleet.register(labelled).unwrap();
    let before = policies.config();
    let wanted = policy::Config {
        kind: Kind::RoundRobin,
        max_sessions: before.max_sessions + 1,
        ..policy::Config::clone(&before)
    };
    assert!(policies.set_default(&wanted, &fleet.snapshot()));
    assert!(!policies.set_default(&wanted, &fleet.snapshot()), "nothing differs any more");
    assert_eq!(policies.config().max_sessions, before.max_sessions, "the memory stays");
    assert_eq!(kind(&policies, &fleet, "m"), Kind::RoundRobin);
    assert_eq!(kind(&policies, &fleet, "unknown"), Kind::RoundRobin);
    assert_eq!(kind(&policies, &fleet, "labelled"), Kind::LeastLoad);
}

#[test]
fn a_label_that_names_no_policy_leaves_the_default() {
    let (policies, _) = policies(Kind::RoundRobin);
    let (fleet, _) = fleet("m", Some("fastest"));
    assert_eq!(kind(&policies, &fleet, "m"), Kind::RoundRobin);
}

#[test]
fn an_unchanged_policy_keeps_its_state_when_the_fleet_changes() {
    let (policies, _) = policies(Kind::RoundRobin);
    let (fleet, id) = fleet("m", None);
    let before = Arc::clone(policies.table(&fleet.snapshot()).entry(Some("m")));
    fleet.drain(id, true);
    let after = Arc::clone(policies.table(&fleet.snapshot()).entry(Some("m")));
    assert!(Arc::ptr_eq(&before, &after));
}

#[test]
fn policies_forget_a_worker_whose_cache_went_cold() {
    let (policies, _) = policies(Kind::Manual);
    let (fleet, id) = fleet("m", None);
    let decide = |session: &[u8]| {
        let entry = Arc::clone(policies.table(&fleet.snapshot()).entry(Some("m")));
        let hint = policy::Hint { session: Some(session), ..policy::Hint::default() };
        let candidates = [Candidate::new(id, 0, 1)];
        let pick =
            entry.policy.pick(&candidates, &hint, NOW, &mut SmallRng::seed_from_u64(1)).unwrap();
        entry.policy.sent(id, &hint, NOW);
        pick.decision
    };
    assert_eq!((decide(b"s"), decide(b"s")), (Decision::Miss, Decision::Sticky));
    fleet.mark_cold(id);
    assert_eq!(decide(b"s"), Decision::Miss);
}

#[test]
fn policies_forget_a_worker_that_was_removed_and_registered_again_between_two_picks() {
    for kind in [Kind::Manual, Kind::CacheAware] {
        let (policies, _) = policies(kind);
        let (fleet, id) = fleet("m", None);
        let decide = || {
            let entry = Arc::clone(policies.table(&fleet.snapshot()).entry(Some("m")));
            let hint = policy::Hint {
                session: Some(b"s"),
                blocks: &[1, 2, 3],
                prompt_bytes: 100,
                ..policy::Hint::default()
            };
            let candidates = [Candidate::new(id, 0, 1)];
            let mut rng = SmallRng::seed_from_u64(1);
            let pick = entry.policy.pick(&candidates, &hint, NOW, &mut rng).unwrap();
            entry.policy.sent(id, &hint, NOW);
            pick.decision
        };
        let (first, second) = (decide(), decide());
        assert_eq!(first, Decision::Miss);
        assert_ne!(second, Decision::Miss);
        let spec = (*fleet.load().worker(id).unwrap().spec).clone();
        fleet.remove(id, NOW);
        fleet.register(spec).unwrap();
        assert_eq!(decide(), Decision::Miss);
    }
}

#[test]
fn what_other_routers_reported_of_a_removed_worker_is_forgotten_whatever_the_policy() {
    let (policies, _) = policies(Kind::Random);
    let (fleet, id) = fleet("m", None);
    policies.follow(&fleet.snapshot());
    policies.memory().index.insert_remote(0, &[1], id, NOW);
    fleet.remove(id, NOW);
    policies.follow(&fleet.snapshot());
    assert_eq!(policies.memory().index.longest(&[1], NOW, |_| true), None);
}

#[test]
fn the_series_of_a_model_end_with_its_last_worker() {
    let (policies, registry) = policies(Kind::Random);
    let (fleet, id) = fleet("m", None);
    policies.table(&fleet.snapshot()).entry(Some("m")).metrics.count(Ending::Broken);
    let failed = |policies: &Policies| {
        policies.endings().into_iter().map(|(model, endings)| (model, endings.failed)).collect()
    };
    let counted: Vec<_> = failed(&policies);
    assert_eq!(counted, [(ModelId::from("m"), 1)]);
    let shown = |registry: &prometheus::Registry| {
        prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
    };
    assert!(shown(&registry).contains("model=\"m\""));
    fleet.remove(id, NOW);
    let _table = policies.table(&fleet.snapshot());
    assert!(!shown(&registry).contains("model=\"m\"") && policies.endings().is_empty());
}

#[test]
fn a_worker_that_lists_very_many_models_makes_a_bounded_number_of_series() {
    let (policies, registry) = policies(Kind::RoundRobin);
    let metrics = fleet::Metrics::register(&prometheus::Registry::new()).unwrap();
    let fleet = Fleet::new(fleet::Config::default(), metrics);
    let mut spec = WorkerSpec::new("http://a:1".parse().unwrap());
    spec.models = (0..1_000).map(|n| ModelId::from(format!("m{n}").as_str())).collect();
    fleet.register(spec).unwrap();
    let snapshot = fleet.snapshot();
    for n in 0..1_000 {
        let table = policies.table(&snapshot);
        table.entry(Some(&format!("m{n}"))).metrics.count(Ending::Complete);
    }
    let families = registry.gather();
    let requests = families.iter().find(|f| f.name() == "smg_router_requests_total").unwrap();
    let models: std::collections::BTreeSet<_> = requests
        .get_metric()
        .iter()
        .flat_map(|metric| metric.get_label())
        .filter(|label| label.name() == "model")
        .map(|label| label.value().to_owned())
        .collect();
    assert_eq!(models.len(), MAX_SERIES + 1);
    let sum: f64 =
        requests.get_metric().iter().map(|metric| metric.get_counter().get_value()).sum();
    assert!((sum - 1_000.0).abs() < 0.5, "no request is lost: {sum}");
    assert_eq!(policies.endings().len(), MAX_SERIES);
}
