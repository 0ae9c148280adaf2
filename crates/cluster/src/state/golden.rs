//! The bytes of one row of each store, as every router since the first has written them.
//!
//! Routers of different versions share a cluster during an upgrade, so these bytes must not change. A new field needs a
//! new version of the content (see `row`), never a new meaning of these bytes.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::time::Duration;

use smg_types::ids::{Generation, ModelId, NodeId, WorkerId};
use smg_types::now::Now;
use smg_types::spec::{Secret, Weight, WorkerKind, WorkerSpec};

use crate::replication::message::StoreNumber;
use crate::state::load::Load;
use crate::state::observation::{Observation, SeenBreaker, SeenHealth};
use crate::state::policy::PolicyRecord;
use crate::state::prefixes;
use crate::state::rights::{GrantKey, Granted};
use crate::state::rule::{Rule, RuleId, RuleMatch, RuleMode};
use crate::state::session::SessionKey;
use crate::state::tokens::TokenFlow;
use crate::state::totals::Outcome;
use crate::state::usage::{UsageCount, UsageKey};
use crate::state::worker::{Override, OverrideState, Stance, WorkerRecord};
use crate::state::{SessionWrite, State, StoreId, Write};

const NOW: Now =
    Now { mono: Duration::from_millis(5), wall: Duration::from_millis(1_700_000_000_000) };

fn node(name: &str, generation: u64) -> NodeId {
    NodeId { name: name.parse().unwrap(), generation: Generation(generation) }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Writes to a fresh state; returns the store's number, the key and the content of the last row as they travel.
fn row_of(store: StoreId, writes: Vec<Write>) -> (u8, String, String) {
    let mut state =
        State::new(&node("node1", 3), Duration::from_secs(60), prefixes::Config::default());
    for write in writes {
        let version = state.write(NOW, write).unwrap().unwrap();
        assert_eq!(version.store, store);
    }
    let cut = state.replica(store).rows_after(&state.writers, state.me, 0, 1 << 20);
    let row = cut.rows.last().unwrap();
    (StoreNumber::from(store).0, hex(row.key.as_slice()), hex(row.content.as_slice()))
}

fn check(store: StoreId, writes: Vec<Write>, number: u8, key: &str, content: &str) {
    assert_eq!(row_of(store, writes), (number, key.to_owned(), content.to_owned()), "{store}");
}

fn full_spec() -> WorkerSpec {
    let mut spec = WorkerSpec::new("http://w1:8000/v1".parse().unwrap());
    spec.models = vec!["m".into(), "n".into()];
    spec.aliases.insert("a".into(), "m".into());
    spec.kind = WorkerKind::Decode;
    spec.labels.insert("pool".to_owned(), "blue".to_owned());
    spec.region = Some("eu".to_owned());
    spec.zone = Some("eu-1".to_owned());
    spec.priority = -3;
    spec.weight = Weight::try_from(7).unwrap();
    spec.api_key = Some(Secret::new("sk-1"));
    spec.health.endpoint = Some("/ok".to_owned());
    spec.health.interval = Some(Duration::from_millis(1500));
    spec.health.timeout = Some(Duration::from_millis(250));
    spec.health.failure_threshold = NonZeroU32::new(4);
    spec.health.success_threshold = NonZeroU32::new(2);
    spec.health.disabled = true;
    spec.max_concurrent = NonZeroU32::new(9);
    spec.bootstrap_port = Some(8998);
    spec
}

#[test]
fn a_worker() {
    let spec = full_spec();
    let verdict =
        Override { state: OverrideState::Down, reason: "disk".to_owned(), until_ms: Some(99) };
    let writes = vec![
        Write::PutWorker(WorkerRecord::configured(&spec)),
        Write::OverrideWorker(spec.id(), Some(verdict)),
        Write::Stance(spec.id(), Stance::Cordoned),
    ];
    check(
        StoreId::Workers,
        writes,
        0,
        "12772d39336635376431663833656339383666",
        "010101fd0068e5cf8b01000000fdafdcd659883d46e712772d3933663537643166383365633938366611687474703a2f2f77313a383030302f763102016d016e010161016d020104706f6f6c04626c756501026575010465752d3105070104736b2d3101032f6f6b0101fc0065cd1d0100fc80b2e60e0104010201010901fb262301fd134cbadf3dedc80901fd0068e5cf8b01000001fdafdcd659883d46e70101046469736b016301fd0068e5cf8b01000002fdafdcd659883d46e7010000",
    );
}

#[test]
fn a_policy() {
    let record = PolicyRecord {
        policy: "cache_aware".to_owned(),
        parameters: BTreeMap::from([("threshold".to_owned(), "0.5".to_owned())]),
        weights: BTreeMap::from([(WorkerId::from_u64(7), 3)]),
    };
    check(
        StoreId::Policies,
        vec![Write::Policy("m".into(), Some(record))],
        1,
        "016d",
        "010101fd0068e5cf8b01000000fdafdcd659883d46e70b63616368655f617761726501097468726573686f6c6403302e350112772d30303030303030303030303030303037030000",
    );
}

#[test]
fn a_rule() {
    let rule = Rule {
        matches: RuleMatch::Tenant(Some("t".to_owned())),
        requests: Some(1000),
        tokens: Some(70_000),
        window_ms: 60_000,
        burst: 5,
        mode: RuleMode::Bounded,
    };
    check(
        StoreId::Rules,
        vec![Write::Rule(RuleId("r".to_owned()), Some(rule))],
        2,
        "0172",
        "010101fd0068e5cf8b01000000fdafdcd659883d46e70201017401fbe80301fc70110100fb60ea05010000",
    );
}

fn window() -> UsageKey {
    UsageKey { rule: 11, subject: 12, start_ms: 1_700_000_000_000, length_ms: 60_000 }
}

#[test]
fn a_grant_of_rights() {
    let key = GrantKey { window: window(), to: node("node2", 4) };
    let granted = Granted { amount: 300, expires_ms: 1_700_000_001_000 };
    check(
        StoreId::Rights,
        vec![Write::Grant(key, granted)],
        3,
        "0b0cfd0068e5cf8b010000fb60ea056e6f64653204",
        "0101fb2c01fde86be5cf8b0100000000",
    );
}

#[test]
fn usage() {
    let count = UsageCount { requests: 1, tokens: 300, demand: 70_000 };
    check(
        StoreId::Usage,
        vec![Write::Usage(window(), count)],
        4,
        "0b0cfd0068e5cf8b010000fb60ea",
        "010101fb2c01fc701101000000",
    );
}

#[test]
fn tokens() {
    let flow = TokenFlow { taken: 300, given_back: 1 };
    check(
        StoreId::Tokens,
        vec![Write::Tokens(window(), flow)],
        5,
        "0b0cfd0068e5cf8b010000fb60ea",
        "0101fb2c01010000",
    );
}

#[test]
fn a_session() {
    let ttl = Duration::from_secs(3600);
    let key = SessionKey(0x0102_0304_0506_0708);
    let writes = vec![
        Write::Session(key, SessionWrite::Use { worker: WorkerId::from_u64(7), ttl }),
        Write::Session(key, SessionWrite::Rebind { worker: WorkerId::from_u64(8), ttl }),
    ];
    check(
        StoreId::Sessions,
        writes,
        6,
        "fd0807060504030201",
        "010112772d30303030303030303030303030303038fd0068e5cf8b01000001fdafdcd659883d46e701fd0068e5cf8b010000fc80ee36000000",
    );
}

#[test]
fn an_observation() {
    let seen = Observation {
        health: SeenHealth::Unhealthy,
        breaker: SeenBreaker::Serving,
        latency_us: 12_345,
        restarts: 2,
        seen_ms: 1_700_000_000_000,
    };
    let writes = vec![Write::Observe(WorkerId::from_u64(7), Some(seen))];
    check(
        StoreId::Observations,
        writes,
        7,
        "12772d30303030303030303030303030303037",
        "01010203fb393002fd0068e5cf8b0100000000",
    );
}

#[test]
fn a_load() {
    let load = Load { requests: 5, tokens: 4096 };
    check(
        StoreId::Load,
        vec![Write::Load(WorkerId::from_u64(7), Some(load))],
        8,
        "12772d30303030303030303030303030303037",
        "010105fb00100000",
    );
}

#[test]
fn a_total() {
    let model = ModelId::from("m");
    check(
        StoreId::Totals,
        vec![Write::Total(model, Outcome::Limited, 300)],
        9,
        "016d03056e6f646531",
        "0101fb2c0100000000",
    );
}
