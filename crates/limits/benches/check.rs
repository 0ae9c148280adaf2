//! What the limits cost a request: `cargo bench -p smg-limits --bench check`.

#![allow(missing_docs, clippy::unwrap_used, reason = "a benchmark")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use smg_limits::limiter::Limiter;
use smg_limits::rule::{Rule, RuleDocument, TokenCount, Who};
use smg_limits::standing::Standing;
use smg_limits::windows::ClusterTime;
use smg_types::now::Now;

fn limiter(rules: &[&str]) -> Limiter {
    let limiter = Limiter::default();
    let rules = rules
        .iter()
        .map(|json| Rule::new(serde_json::from_str::<RuleDocument>(json).unwrap()).unwrap())
        .collect();
    limiter.set_rules(rules);
    limiter.set_standing(Standing::alone(), ClusterTime::default());
    limiter
}

fn check(c: &mut Criterion) {
    let now = Now::at(Duration::from_secs(1_800_000_000));
    let who = Who { api_key: Some(7), tenant: Some("acme"), model: Some("llama") };
    let tokens = TokenCount { input: 100, cached_input: 0, output: 100 };
    let global = r#"{"id":"a","requests":1000000000000,"window":"1h"}"#;
    let tenant = r#"{"id":"b","match":"tenant","requests":1000000000000,"tokens":1000000000000000,"window":"1h"}"#;
    for (name, rules) in
        [("no rules", vec![]), ("one rule", vec![global]), ("three limits", vec![global, tenant])]
    {
        let limiter = limiter(&rules);
        c.bench_function(name, |b| {
            b.iter(|| black_box(limiter.check(black_box(&who), &tokens, now)).is_ok());
        });
    }
}

criterion_group!(benches, check);
criterion_main!(benches);
