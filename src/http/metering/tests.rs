//! Tests that each request settles exactly once, however it ends.

use std::sync::mpsc::{Receiver, Sender, channel};

use smg_proxy::usage::TokenUsage;
use smg_routing::fleet::{self, Fleet};
use smg_routing::policies::{self, Policies};
use smg_routing::{policy, prefix};

use super::*;

const CHAT: &str = "/v1/chat/completions";
const STREAM: &str = "text/event-stream";

/// Sends each settlement that it gets.
#[derive(Debug)]
struct Recorder(Sender<Settlement>);

impl Settle for Recorder {
    fn settle(self: Box<Self>, settlement: &Settlement) {
        self.0.send(*settlement).unwrap();
    }
}

/// A meter of a prompt of 40 bytes, and its settlements.
fn meter(route: &'static str) -> (Meter, Receiver<Settlement>) {
    let (sender, settlements) = channel();
    let mut meter = Meter::new(route, Some("acme".to_owned()), 40);
    meter.add_listener(Box::new(Recorder(sender)));
    (meter, settlements)
}

/// The counters of requests, and what they show.
fn counters() -> (Arc<Entry>, prometheus::Registry) {
    let registry = prometheus::Registry::new();
    let fleet = Fleet::new(
        fleet::Config::default(),
        fleet::Metrics::register(&prometheus::Registry::new()).unwrap(),
    );
    let index = Arc::new(prefix::Index::new(&prefix::Config::default()));
    let metrics = policies::Metrics::register(&registry).unwrap();
    let policies = Policies::new(policy::Config::default(), index, metrics);
    let entry = Arc::clone(policies.table(&fleet.snapshot()).entry(None));
    (entry, registry)
}

fn shown(registry: &prometheus::Registry) -> String {
    prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap()
}

fn answer(status: u16, kind: &str) -> Response<()> {
    Response::builder().status(status).header("content-type", kind).body(()).unwrap()
}

/// The only settlement.
#[track_caller]
fn only(settlements: &Receiver<Settlement>) -> Settlement {
    let settlement = settlements.try_recv().expect("it settles");
    assert!(settlements.try_recv().is_err(), "it settles once");
    settlement
}

const CHUNK: &[u8] = b"data: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\n\n";
const USAGE: &[u8] =
    b"data: {\"choices\":[],\"usage\":{\"prompt_tokens\":9,\"completion_tokens\":2}}\n\n";

#[test]
fn a_request_settles_once_at_the_end_of_its_answer() {
    let (entry, registry) = counters();
    let (mut meter, settlements) = meter(CHAT);
    meter.sent().store(true, Ordering::Relaxed);
    meter.answer(&answer(200, STREAM), entry);
    for piece in [CHUNK, CHUNK, CHUNK, USAGE] {
        meter.observe(piece);
    }
    assert!(settlements.try_recv().is_err(), "not before the end");
    meter.end(true);
    meter.end(false);
    drop(meter);
    let settlement = only(&settlements);
    let tokens = TokenUsage { input: 9, output: 2, ..TokenUsage::default() };
    assert_eq!((settlement.tokens, settlement.origin), (tokens, Origin::Reported));
    let shown = shown(&registry);
    for (kind, count) in [("input", 9), ("output", 2)] {
        let line = format!(
            "smg_tokens_total{{kind=\"{kind}\",model=\"other\",tenant=\"acme\"}} {count}\n"
        );
        assert!(shown.contains(&line), "{line} in {shown}");
    }
}

#[test]
fn a_request_that_is_dropped_settles_at_what_had_passed() {
    let (entry, registry) = counters();
    let (mut meter, settlements) = meter(CHAT);
    meter.answer(&answer(200, STREAM), entry);
    for piece in [CHUNK, CHUNK, CHUNK] {
        meter.observe(piece);
    }
    drop(meter);
    let Settlement { tokens, origin, .. } = only(&settlements);
    // The first chunk of a chat has the role.
    assert_eq!((tokens.input, tokens.output, origin), (10, 2, Origin::Estimated));
    assert!(
        shown(&registry).contains("kind=\"output_estimated\",model=\"other\",tenant=\"acme\"} 2")
    );
}

#[test]
fn a_panic_settles() {
    let (mut meter, settlements) = meter(CHAT);
    meter.answer(&answer(200, STREAM), counters().0);
    let serving = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
        let mut meter = meter;
        meter.observe(CHUNK);
        panic!("as a test wants it");
    }));
    assert!(serving.is_err());
    assert_eq!(only(&settlements).origin, Origin::Estimated);
}

#[test]
fn a_request_without_an_answer_settles_at_what_a_worker_may_have_done() {
    let (meter_before, settlements) = meter(CHAT);
    drop(meter_before);
    assert_eq!(only(&settlements), Settlement::UNUSED, "it was not sent");
    let (sent, settlements) = meter(CHAT);
    sent.sent().store(true, Ordering::Relaxed);
    drop(sent);
    let Settlement { tokens, origin, .. } = only(&settlements);
    assert_eq!((tokens.input, tokens.output, origin), (10, 0, Origin::Estimated));
    let (mut failed, settlements) = meter(CHAT);
    failed.sent().store(true, Ordering::Relaxed);
    failed.refuse();
    drop(failed);
    assert_eq!(only(&settlements), Settlement::UNUSED, "no worker answered");
    let (mut refused, settlements) = meter(CHAT);
    refused.answer(&answer(429, "application/json"), counters().0);
    refused.observe(br#"{"usage":{"prompt_tokens":9,"completion_tokens":2}}"#);
    drop(refused);
    assert_eq!(only(&settlements), Settlement::UNUSED, "the worker refused it");
}

#[test]
fn all_listeners_get_the_settlement() {
    let (mut meter, first) = meter("/v1/tokenize");
    let (sender, second) = channel();
    meter.add_listener(Box::new(Recorder(sender)));
    meter.answer(&answer(200, "application/json"), counters().0);
    meter.observe(br#"{"tokens":[1]}"#);
    meter.end(true);
    assert_eq!(only(&first).origin, Origin::Unreported);
    assert_eq!(only(&second).origin, Origin::Unreported);
}

#[test]
fn a_usage_that_is_no_count_is_counted_as_unreadable() {
    let (entry, registry) = counters();
    let (mut meter, settlements) = meter(CHAT);
    meter.answer(&answer(200, "application/json"), entry);
    meter.observe(br#"{"usage":{"prompt_tokens":-9,"completion_tokens":2}}"#);
    meter.end(true);
    assert_eq!(only(&settlements).unreadable, 1);
    assert!(shown(&registry).contains("smg_tokens_unreadable_total 1"));
}
