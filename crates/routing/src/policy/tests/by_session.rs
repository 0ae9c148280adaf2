//! The policy `manual`.

use super::*;

fn second(n: u64) -> Now {
    Now::at(Duration::from_secs(n))
}

#[test]
fn a_session_keeps_the_worker_that_was_sent_its_request() {
    let policy = policy(Kind::Manual);
    let alice = session("alice");
    check(&policy, &[("a", 1), ("b", 0)], &alice, decides("b", Decision::Miss));
    // The policy picked b, but a retry went to a.
    policy.sent(id("a"), &alice, Now::default());
    check(&policy, &[("a", 90), ("b", 0)], &alice, decides("a", Decision::Sticky));
    check(&policy, &[("a", 1), ("b", 0)], &session("bob"), decides("b", Decision::Miss));
    check(&policy, &[("a", 1), ("b", 0)], &Hint::default(), decides("b", Decision::NoKey));
}

#[test]
fn a_session_whose_worker_is_not_a_candidate_moves_and_stays() {
    let policy = policy(Kind::Manual);
    let alice = session("alice");
    policy.sent(id("a"), &alice, Now::default());
    check(&policy, &[("b", 5), ("c", 2)], &alice, decides("c", Decision::Spill));
    policy.sent(id("c"), &alice, Now::default());
    check(&policy, &[("a", 0), ("b", 0), ("c", 2)], &alice, decides("c", Decision::Sticky));
}

#[test]
fn a_session_ends_with_its_time_to_live_or_when_its_worker_is_forgotten() {
    let config = Config { session_ttl: Duration::from_secs(60), ..Config::default() };
    let policy = policy_with(Kind::Manual, &config);
    let alice = session("alice");
    let fleet = loads(&[("a", 3), ("b", 0)]);
    policy.sent(id("a"), &alice, second(0));
    check_at(&policy, &fleet, &alice, second(60), decides("a", Decision::Sticky));
    check_at(&policy, &fleet, &alice, second(61), decides("b", Decision::Miss));
    policy.sent(id("a"), &alice, second(61));
    check_at(&policy, &fleet, &alice, second(100), decides("a", Decision::Sticky));
    policy.forget(id("a"));
    check_at(&policy, &fleet, &alice, second(100), decides("b", Decision::Miss));
}
