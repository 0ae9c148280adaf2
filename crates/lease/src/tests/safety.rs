//! The rules that keep two routers from holding a lease.

use super::*;
use crate::voter::Voter;
use crate::{Fence, Refusal};

#[test]
fn l1_a_router_that_sees_nobody_holds_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.routers[0].set_members(ms(0), []);
    cluster.run(0, 20_000);
    assert_eq!((cluster.held(0), cluster.routers[0].reaches_majority()), (None, false));
    // Two of the configured five are no majority, though they are all that there are.
    let mut cluster = Cluster::new(2);
    for router in &mut cluster.routers {
        router.set_quorum(ms(0), Quorum(vec![voters(5, 0..2)]));
    }
    cluster.run_all(20_000);
    assert_eq!(cluster.holders(), Vec::<usize>::new());
}

#[test]
fn l2_a_vote_lasts_for_its_whole_time() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (node(7, 1), node(8, 1));
    assert!(is_granted(cluster.ask(&a, 0, 1, PREPARE)));
    assert!(is_granted(cluster.ask(&a, 0, 1, propose(1))));
    cluster.at = ms(4_999);
    let refused = cluster.ask(&b, 0, 2, PREPARE);
    let reason = Refusal::HasVoted { holder: a.clone(), for_ms: 2 };
    assert_eq!(refused, Some(Content::Refused { highest: Term(1), reason }));
    assert!(!is_granted(cluster.ask(&b, 0, 2, propose(1))));
    // For its holder it is renewed.
    assert!(is_granted(cluster.ask(&a, 0, 1, propose(2))));
    cluster.at = ms(9_998);
    assert!(!is_granted(cluster.ask(&b, 0, 2, PREPARE)));
    cluster.at = ms(9_999);
    assert!(is_granted(cluster.ask(&b, 0, 2, PREPARE)));
    assert!(is_granted(cluster.ask(&b, 0, 2, propose(1))));
}

#[test]
fn l3_a_vote_counts_from_before_its_request_was_sent() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    assert_eq!(cluster.holders(), [0]);
    let at = cluster.routers[0].next_deadline(cluster.at).unwrap();
    cluster.at = at;
    cluster.routers[0].handle_timeout(at);
    let requests = cluster.take(0);
    // The request arrives at once; the answer takes three seconds.
    let answers = cluster.arrive(0, &requests[0]);
    cluster.at = at + ms(2_900);
    cluster.arrive(1, &answers[0]);
    let (_, until) = cluster.routers[0].still_held(cluster.at, &lease()).unwrap();
    assert_eq!(until, at + Times::DEFAULT.hold);
    // A voter whose clock is fast by the assumed bound still votes for nobody else then.
    let drift = f64::from(Times::MAX_DRIFT).recip();
    let held = Times::DEFAULT.hold.as_secs_f64() / (1.0 - drift);
    assert!(held < Times::DEFAULT.ttl.as_secs_f64() / (1.0 + drift));
}

#[test]
fn l4_a_term_is_promised_to_one_candidate() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (node(7, 1), node(8, 1));
    assert!(is_granted(cluster.ask(&a, 0, 5, PREPARE)));
    assert!(is_granted(cluster.ask(&a, 0, 5, PREPARE)), "the same promise once more");
    assert!(!is_granted(cluster.ask(&b, 0, 5, PREPARE)));
    assert!(!is_granted(cluster.ask(&b, 0, 4, PREPARE)));
    assert!(!is_granted(cluster.ask(&b, 0, 5, propose(1))));
    assert!(!is_granted(cluster.ask(&b, 0, 4, propose(1))));
    assert!(is_granted(cluster.ask(&b, 0, 6, PREPARE)));
    assert!(!is_granted(cluster.ask(&a, 0, 5, propose(1))), "a vote against a later promise");
    assert!(is_granted(cluster.ask(&b, 0, 6, propose(1))));
}

#[test]
fn l5_a_voter_that_has_lost_its_memory_abstains() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    assert_eq!(cluster.holders(), [0]);
    cluster.run(0, 3_000);
    cluster.restart(1, 100, Memory::LOST);
    cluster.restart(2, 100, Memory::LOST);
    let until = cluster.at + Times::DEFAULT.abstain;
    let other = node(1, 2);
    let reason = Refusal::Abstains { for_ms: 6_001 };
    let refused = Some(Content::Refused { highest: Term(100), reason });
    assert_eq!(cluster.ask(&other, 2, 101, PREPARE), refused);
    assert_eq!(cluster.ask(&other, 2, 101, propose(1)), refused, "not even in a renewal");
    assert_eq!(cluster.held(0), Some(Term(1)));
    cluster.at = until - ms(1);
    assert!(!is_granted(cluster.ask(&other, 2, 101, PREPARE)));
    assert_eq!(cluster.held(0), None, "its votes have ended before the voters vote again");
    cluster.at = until;
    assert!(is_granted(cluster.ask(&other, 2, 101, PREPARE)));
    assert!(Times::DEFAULT.abstain > Times::DEFAULT.ttl);
}

#[test]
fn l6_an_ended_term_does_not_come_back() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    let at = cluster.routers[0].next_deadline(cluster.at).unwrap();
    cluster.at = at;
    cluster.routers[0].handle_timeout(at);
    let requests = cluster.take(0);
    let answers = cluster.arrive(0, &requests[0]);
    // The process stops before the answers, and goes on when its votes have ended but the renewed ones have not.
    cluster.at = at + ms(3_500);
    assert_eq!(cluster.held(0), None);
    cluster.arrive(1, &answers[0]);
    assert_eq!(cluster.held(0), None, "the term has come back");
    assert!(cluster.events(0).contains(&EventKind::Expired));
}

#[test]
fn l6_a_released_term_is_not_voted_for_again() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    let at = cluster.routers[0].next_deadline(cluster.at).unwrap();
    cluster.at = at;
    cluster.routers[0].handle_timeout(at);
    let late = cluster.take(0);
    cluster.routers[0].step_down(cluster.at, &lease()).unwrap();
    cluster.settle();
    let answers = cluster.arrive(0, &late[0]);
    assert!(!is_granted(Some(answers[0].message.content.clone())));
}

#[test]
fn l7_a_release_ends_only_the_terms_of_its_sender_up_to_its_own() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (node(7, 1), node(8, 1));
    let release = Content::Release { to: None };
    for term in [3, 6] {
        cluster.ask(&a, 0, term, PREPARE);
        assert!(is_granted(cluster.ask(&a, 0, term, propose(term))));
    }
    // One that is late, and one of another router.
    cluster.ask(&a, 0, 3, release.clone());
    cluster.ask(&b, 0, 6, release.clone());
    assert!(!is_granted(cluster.ask(&b, 0, 7, PREPARE)));
    cluster.ask(&a, 0, 6, release);
    assert!(is_granted(cluster.ask(&b, 0, 7, PREPARE)));
}

#[test]
fn l7_a_proposal_that_is_given_up_while_an_earlier_term_is_held_is_not_released() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    assert_eq!(cluster.held(0), Some(Term(1)));
    // A voter has promised a later term in vain, so that the holder goes on above it.
    cluster.restart(2, 50, Memory::EMPTY);
    let at = cluster.routers[0].next_deadline(cluster.at).unwrap();
    cluster.at = at;
    cluster.routers[0].handle_timeout(at);
    let requests = cluster.take(0);
    let to = |outs: &[Outgoing], router: usize| {
        outs.iter().find(|out| out.to.name == node(router, 1).name).cloned().unwrap()
    };
    let prepare = {
        let voted = cluster.arrive(0, &to(&requests, 1));
        cluster.arrive(1, &voted[0]);
        let refused = cluster.arrive(0, &to(&requests, 2));
        cluster.arrive(2, &refused[0])
    };
    let promised = cluster.arrive(0, &to(&prepare, 1));
    let proposal = cluster.arrive(1, &promised[0]);
    // The vote of router 1 is lost, and the proposal is given up. The held term still counts the earlier vote of router 1.
    drop(cluster.arrive(0, &to(&proposal, 1)));
    cluster.at += Times::DEFAULT.round;
    cluster.routers[0].handle_timeout(cluster.at);
    for out in cluster.take(0) {
        if out.to.name == node(1, 1).name {
            cluster.arrive(0, &out);
        }
    }
    assert_eq!(cluster.held(0), Some(Term(1)));
    assert!(!is_granted(cluster.ask(&node(2, 2), 1, 60, PREPARE)));
}

#[test]
fn l8_an_answer_to_no_request_does_not_count() {
    let mut cluster = Cluster::new(3);
    let at = cluster.routers[0].next_deadline(ms(0)).unwrap();
    cluster.at = at;
    cluster.routers[0].handle_timeout(at);
    drop(cluster.take(0));
    let b = node(1, 1);
    cluster.ask(&b, 0, 1, Content::Promised);
    drop(cluster.take(0));
    // Votes in another term, and for requests that were not sent.
    cluster.ask(&b, 0, 2, Content::Voted { request: 1 });
    cluster.ask(&b, 0, 1, Content::Voted { request: 9 });
    assert_eq!(cluster.held(0), None);
    cluster.ask(&b, 0, 1, Content::Voted { request: 1 });
    assert_eq!(cluster.held(0), Some(Term(1)));
}

#[test]
fn l9_a_holder_that_was_stopped_knows_it_by_its_clock_alone() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    let (_, until) = cluster.routers[0].still_held(cluster.at, &lease()).unwrap();
    // Nothing runs in between.
    assert!(cluster.routers[0].still_held(until - ms(1), &lease()).is_some());
    assert_eq!(cluster.routers[0].still_held(until, &lease()), None);
}

#[test]
fn l10_an_act_of_a_former_holder_is_refused() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    let former = cluster.held(0).unwrap();
    cluster.run_all(2_000);
    cluster.routers[0].transfer(cluster.at, &lease(), &node(1, 1).name).unwrap();
    cluster.settle();
    cluster.run(1, 2_500);
    let later = cluster.held(1).unwrap();
    assert!(later > former);
    // A router that has not received an act of the new holder, but its requests.
    let refused = cluster.routers[2].admit(&lease(), former).unwrap_err();
    assert_eq!((refused.term, refused.newest), (former, later));
    cluster.routers[2].admit(&lease(), later).unwrap();
    let mut fence = Fence::default();
    fence.admit(&lease(), later).unwrap();
    assert!(fence.admit(&lease(), former).is_err());
    assert_eq!(fence.newest(&lease()), Some(later));
}

#[test]
fn l11_a_term_is_above_all_that_a_majority_knows_and_above_the_start() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    assert_eq!(cluster.held(0), Some(Term(1)));
    // All three forget everything. Their floor is above all terms before.
    for router in 0..3 {
        cluster.restart(router, 500, Memory::LOST);
    }
    cluster.run_all(10_000);
    let holder = cluster.holders()[0];
    assert_eq!(cluster.held(holder), Some(Term(501)));
    // A resource knows of a later term, so that the holder goes on above it.
    cluster.routers[holder].note_term(cluster.at, &lease(), Term(900));
    assert_eq!(cluster.held(holder), None);
    cluster.settle();
    cluster.run_all(12_000);
    let holder = cluster.holders()[0];
    assert!(cluster.held(holder) > Some(Term(900)));
}

#[test]
fn l11_the_floor_rises_when_the_voters_change() {
    let mut cluster = Cluster::new(5);
    // The first two lead the three, and the others know nothing of it.
    cluster.at = ms(7_000);
    let five = Quorum(vec![voters(5, 0..5)]);
    for router in 2..5 {
        cluster.routers[router].set_quorum(cluster.at, Quorum(vec![voters(3, 0..3)]));
        cluster.routers[router].set_quorum(cluster.at, five.clone());
        assert!(!is_granted(cluster.ask(&node(0, 1), router, 7_000, PREPARE)));
        assert!(!is_granted(cluster.ask(&node(0, 1), router, 7_000, propose(1))));
        assert!(is_granted(cluster.ask(&node(0, 1), router, 7_001, PREPARE)));
    }
}

#[test]
fn l12_a_change_of_the_voters_takes_effect_at_once_and_needs_both_majorities() {
    let mut cluster = Cluster::new(3);
    let alone = Quorum(vec![voters(1, 0..1)]);
    cluster.routers[0].set_quorum(ms(0), alone);
    cluster.routers[0].set_members(ms(0), []);
    cluster.run(0, 1_000);
    assert_eq!(cluster.held(0), Some(Term(1)));
    let both = Quorum(vec![voters(3, 0..3), voters(1, 0..1)]);
    for router in &mut cluster.routers {
        router.set_quorum(cluster.at, both.clone());
    }
    assert_eq!(cluster.held(0), None, "one vote is no majority of three");
    // Those that have come are a majority of three, but not without the one that was there.
    drop(cluster.take(0));
    let absent = Member { node: node(0, 1), is_present: false, is_leaving: false };
    let other = |router| Member { node: node(router, 1), is_present: true, is_leaving: false };
    cluster.routers[1].set_members(cluster.at, [absent.clone(), other(2)]);
    cluster.routers[2].set_members(cluster.at, [absent, other(1)]);
    cluster.run_all(30_000);
    assert_eq!(cluster.holders(), Vec::<usize>::new());
}

#[test]
fn l13_a_vote_is_stored_before_it_is_given() {
    let mut cluster = Cluster::new(3);
    let (a, b) = (node(7, 1), node(8, 1));
    cluster.restart(0, 0, Memory { fails: true, ..Memory::EMPTY });
    let refused = Some(Content::Refused { highest: Term(0), reason: Refusal::Unable });
    assert_eq!(cluster.ask(&a, 0, 1, PREPARE), refused);
    assert_eq!(cluster.ask(&a, 0, 1, propose(1)), refused);
    // A voter that remembers votes at once, but for nobody else while what it remembers may count.
    let vote = StoredVote {
        promised: Term(4),
        promised_to: Some(a.clone()),
        voted: Some((Term(4), a.clone())),
    };
    let votes = BTreeMap::from([(lease(), vote)]);
    let loaded = Some(Remembered { votes, ended: None });
    cluster.restart(0, 0, Memory { loaded, fails: false });
    assert!(!is_granted(cluster.ask(&b, 0, 9, PREPARE)));
    assert!(is_granted(cluster.ask(&a, 0, 4, propose(2))));
    assert!(!is_granted(cluster.ask(&b, 0, 9, PREPARE)));
    cluster.at += Times::DEFAULT.ttl;
    assert!(!is_granted(cluster.ask(&b, 0, 4, PREPARE)));
    assert!(is_granted(cluster.ask(&b, 0, 5, PREPARE)));
}

#[test]
fn l13_a_vote_that_may_be_stored_although_that_failed_is_stored_over() {
    let (a, b) = (node(7, 1), node(8, 1));
    let mut memory = Memory::EMPTY;
    let (mut voter, _) = Voter::new(ms(0), Times::DEFAULT, Term(0), &mut memory);
    let stored = |memory: &Memory| {
        let vote = memory.loaded.as_ref().unwrap().votes[&lease()].voted.clone();
        vote.map(|(_, holder)| holder)
    };
    let voted = voter.propose(ms(0), &lease(), &a, (Term(1), 1), &mut memory);
    assert!(is_granted(Some(voted)));
    memory.fails = true;
    let refused = voter.propose(ms(5_000), &lease(), &b, (Term(2), 1), &mut memory);
    assert!(!is_granted(Some(refused)));
    assert_eq!(stored(&memory), Some(b.clone()), "a restarted voter would vote for b");
    // A renewal, which would not be stored otherwise: after a restart, the voter must vote for nobody else.
    let renewal = voter.propose(ms(5_001), &lease(), &a, (Term(1), 2), &mut memory);
    assert!(!is_granted(Some(renewal)));
    memory.fails = false;
    let renewal = voter.propose(ms(5_002), &lease(), &a, (Term(1), 3), &mut memory);
    assert!(is_granted(Some(renewal)));
    assert_eq!(stored(&memory), Some(a));
}

#[test]
fn l20_a_process_that_may_still_run_is_waited_for() {
    let vote = |holder: NodeId| StoredVote {
        promised: Term(4),
        promised_to: Some(holder.clone()),
        voted: Some((Term(4), holder)),
    };
    // It is not certain that the process before has ended; or what has ended is not what was voted for.
    for (voted, ended) in [(node(0, 1), None), (node(1, 1), Some(node(0, 1)))] {
        let mut cluster = Cluster::new(3);
        for router in 0..3 {
            let votes = BTreeMap::from([(lease(), vote(voted.clone()))]);
            let loaded = Some(Remembered { votes, ended: ended.clone() });
            cluster.restart(router, 4, Memory { loaded, fails: false });
        }
        cluster.run_all(4_999);
        assert_eq!(cluster.holders(), Vec::<usize>::new(), "{voted:?} {ended:?}");
        cluster.run_all(8_000);
        assert_eq!(cluster.holders().len(), 1);
    }
}

#[test]
fn l17_a_memory_with_a_term_that_can_not_have_been_reached_is_none() {
    let week = 7 * 24 * 3_600_000;
    for (promised, remembers) in [(1_000 + week, true), (1_001 + week, false)] {
        let vote = StoredVote { promised: Term(promised), promised_to: None, voted: None };
        let votes = BTreeMap::from([(lease(), vote)]);
        let mut memory =
            Memory { loaded: Some(Remembered { votes, ended: None }), ..Memory::EMPTY };
        let (voter, _) = Voter::new(ms(0), Times::DEFAULT, Term(1_000), &mut memory);
        let abstains = if remembers { Duration::ZERO } else { Times::DEFAULT.abstain };
        assert_eq!(voter.abstains_until(), abstains, "{promised}");
    }
}

#[test]
fn l17_a_term_that_can_not_have_been_reached_changes_nothing() {
    let mut cluster = Cluster::new(3);
    let liar = node(2, 1);
    for term in [u64::MAX, u64::MAX - 1, 1 << 60] {
        assert_eq!(cluster.ask(&liar, 0, term, PREPARE), None);
        assert_eq!(cluster.ask(&liar, 0, term, propose(1)), None);
        let highest = Term(term);
        cluster.ask(&liar, 0, 1, Content::Refused { highest, reason: Refusal::Outdated });
    }
    cluster.run(0, 2_000);
    assert_eq!(cluster.held(0), Some(Term(1)));
}

#[test]
fn l18_the_only_voter_votes_for_nobody_while_it_holds() {
    let mut cluster = Cluster::new(3);
    cluster.routers[0].set_quorum(ms(0), Quorum(vec![voters(1, 0..1)]));
    cluster.routers[0].set_members(ms(0), []);
    cluster.run(0, 1_000);
    assert_eq!(cluster.routers[0].next_deadline(cluster.at), None, "it need not be woken");
    cluster.at = ms(60_000);
    assert_eq!(cluster.held(0), Some(Term(1)));
    // The others know of the change of the voters before the holder does.
    let both = Quorum(vec![voters(3, 0..3), voters(1, 0..1)]);
    for router in 1..3 {
        cluster.routers[router].set_quorum(cluster.at, both.clone());
    }
    for router in 1..3 {
        cluster.run(router, 62_000 + u64::try_from(router).unwrap());
    }
    assert_eq!(cluster.holders(), [0]);
}

#[test]
fn strangers_can_not_make_a_voter_remember_many_leases() {
    let mut cluster = Cluster::new(3);
    let granted = (0..200).filter(|n| {
        let lease = format!("lease-{n}").parse().unwrap();
        let message = Message { lease, term: Term(1), content: PREPARE };
        cluster.routers[0].handle_message(ms(0), &node(1, 1), message);
        let answer = cluster.take(0).pop().map(|out| out.message.content);
        is_granted(answer)
    });
    assert_eq!(granted.count(), crate::voter::MAX_LEASES);
}
