//! The rules that let a lease have a holder soon.

use super::*;
use crate::TransferError;

#[test]
fn a_cluster_has_one_holder_soon_and_keeps_it() {
    for routers in [1, 2, 3, 4, 5, 7] {
        let mut cluster = Cluster::new(routers);
        cluster.run_all(2_000);
        let holders = cluster.holders();
        assert_eq!(holders.len(), 1, "{routers} routers");
        let term = cluster.held(holders[0]);
        cluster.run_all(60_000);
        assert_eq!((cluster.holders(), cluster.held(holders[0])), (holders.clone(), term));
        for router in &cluster.routers {
            let status = router.statuses(cluster.at).next().unwrap();
            assert_eq!(status.holder, Some(node(holders[0], 1)));
            assert_eq!(Some(status.term), term);
        }
    }
}

#[test]
fn the_death_of_a_holder_is_over_within_ten_seconds() {
    let mut cluster = Cluster::new(3);
    cluster.run_all(3_000);
    let dead = cluster.holders()[0];
    let me = cluster.ids[dead].clone();
    cluster.routers[dead] = Cluster::start(cluster.at, &me, Term(0), Memory::EMPTY);
    cluster.run_all(9_000);
    let holders = cluster.holders();
    assert_eq!(holders.len(), 1);
    assert_ne!(holders, [dead]);
    let events = cluster.events(holders[0]);
    assert!(events.ends_with(&[EventKind::Started, EventKind::Won]), "{events:?}");
}

#[test]
fn l14_a_router_that_leaves_hands_its_lease_over_and_campaigns_no_more() {
    let mut cluster = Cluster::new(3);
    cluster.run_all(3_000);
    let holder = cluster.holders()[0];
    cluster.routers[holder].leave(cluster.at);
    assert_eq!(cluster.held(holder), None);
    cluster.settle();
    cluster.run_all(3_100);
    let next = cluster.holders();
    assert!(next.len() == 1 && next != [holder], "{next:?}");
    // The others go on to leave, and nobody is left to lead.
    for router in (0..3).filter(|router| *router != holder) {
        cluster.routers[router].leave(cluster.at);
    }
    cluster.settle();
    cluster.run_all(30_000);
    assert_eq!(cluster.holders(), Vec::<usize>::new());
}

#[test]
fn a_transfer_succeeds_although_the_release_reaches_the_others_late() {
    let mut cluster = Cluster::new(5);
    cluster.run(0, 3_000);
    let to = node(1, 1).name;
    cluster.routers[0].transfer(cluster.at, &lease(), &to).unwrap();
    assert_eq!(cluster.held(0), None);
    let released = cluster.take(0);
    let first = released.iter().find(|out| out.to.name == to).unwrap();
    cluster.arrive(0, first);
    cluster.run(1, 3_050);
    assert_eq!(cluster.holders(), [1]);
    assert_eq!(cluster.events(0).last(), Some(&EventKind::Released));
}

#[test]
fn a_transfer_that_can_not_succeed_changes_nothing() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 3_000);
    let mut transfer = |from: usize, to: &str| {
        cluster.routers[from].transfer(cluster.at, &lease(), &to.parse().unwrap())
    };
    let holder = Some(node(0, 1));
    assert_eq!(transfer(1, "r2"), Err(TransferError::NotHeld { lease: lease(), holder }));
    assert_eq!(transfer(0, "r9"), Err(TransferError::NoVoter("r9".parse().unwrap())));
    assert_eq!(transfer(0, "r0"), Ok(()));
    cluster.restart(2, 0, Memory::LOST);
    let at = cluster.at + Times::DEFAULT.hold;
    cluster.run(0, u64::try_from(at.as_millis()).unwrap());
    let to = node(2, 1).name;
    let refused = cluster.routers[0].transfer(cluster.at, &lease(), &to);
    assert_eq!(refused, Err(TransferError::NotReady(to)));
    assert_eq!(cluster.holders(), [0]);
}

#[test]
fn a_holder_that_steps_down_is_followed_by_another() {
    let mut cluster = Cluster::new(3);
    cluster.run_all(3_000);
    let holder = cluster.holders()[0];
    let follower = (holder + 1) % 3;
    assert!(cluster.routers[follower].step_down(cluster.at, &lease()).is_err());
    cluster.routers[holder].step_down(cluster.at, &lease()).unwrap();
    cluster.settle();
    cluster.run_all(4_000);
    let next = cluster.holders();
    assert!(next.len() == 1 && next != [holder], "{next:?}");
}

#[test]
fn l15_one_router_campaigns_before_the_others_and_another_one_for_each_lease() {
    let mut first = std::collections::BTreeSet::new();
    for name in ["leader", "backup", "keys", "other"] {
        let lease: LeaseName = name.parse().unwrap();
        let mut cluster = Cluster::new(5);
        for (router, id) in cluster.ids.clone().iter().enumerate() {
            let names = [lease.clone()];
            cluster.routers[router] =
                Leases::new(ms(0), id.clone(), names, Times::DEFAULT, Term(0), Memory::EMPTY);
        }
        cluster.introduce();
        let mut due: Vec<(Duration, usize)> = cluster
            .routers
            .iter()
            .enumerate()
            .map(|(router, leases)| (leases.next_deadline(ms(0)).unwrap(), router))
            .collect();
        due.sort_unstable();
        first.insert(due[0].1);
        let gaps = due.windows(2).map(|pair| pair[1].0 - pair[0].0);
        assert!(gaps.max().unwrap() <= Times::DEFAULT.stagger * 2, "{due:?}");
        assert!(due[0].0 <= Times::DEFAULT.stagger, "{due:?}");
        assert!(due[4].0 >= Times::DEFAULT.stagger * 4, "{due:?}");
    }
    assert!(first.len() > 1, "all leases begin at router {first:?}");
}

#[test]
fn l16_a_holder_goes_on_above_a_later_promise_without_a_gap() {
    let mut cluster = Cluster::new(3);
    cluster.run_all(3_000);
    let holder = cluster.holders()[0];
    // Another router has promised itself a later term while it was cut off.
    let other = (holder + 1) % 3;
    cluster.restart(other, 70, Memory::EMPTY);
    for step in 0..40 {
        cluster.run_all(3_000 + step * 50);
        assert_eq!(cluster.holders(), [holder]);
    }
    assert!(cluster.held(holder) > Some(Term(70)));
    let events = cluster.events(holder);
    assert_eq!(events, [EventKind::Started, EventKind::Won, EventKind::Raised]);
    // The vote of the other one counts now: the third may fail.
    let third = (holder + 2) % 3;
    let me = cluster.ids[third].clone();
    cluster.routers[third] = Cluster::start(cluster.at, &me, Term(0), Memory::LOST);
    cluster.run_all(8_000);
    assert_eq!(cluster.holders(), [holder]);
}

#[test]
fn a_candidate_without_a_majority_uses_up_no_terms() {
    let mut cluster = Cluster::new(3);
    // Membership takes the others for present, but nothing arrives.
    for _ in 0..50 {
        let due = cluster.routers[0].next_deadline(cluster.at).unwrap();
        cluster.at = cluster.at.max(due);
        cluster.routers[0].handle_timeout(cluster.at);
        for out in cluster.take(0) {
            assert_eq!(out.message.term, Term(1));
        }
    }
    assert_eq!(cluster.events(0), [EventKind::Started]);
}

#[test]
fn a_router_under_another_generation_gives_its_leases_up() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    cluster.routers[0].set_me(cluster.at, node(0, 2));
    assert_eq!(cluster.held(0), None);
    cluster.ids[0] = node(0, 2);
    cluster.introduce();
    cluster.settle();
    // The others do not know that it has given them up.
    cluster.run_all(8_000);
    assert_eq!(cluster.holders().len(), 1);
}

#[test]
fn l20_routers_that_remember_have_a_leader_again_without_waiting_for_the_one_that_ended() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    assert_eq!(cluster.holders(), [0]);
    // All three are killed, and each remembers its vote for the first one.
    let former = node(0, 1);
    let term = cluster.held(0).unwrap();
    let vote = StoredVote {
        promised: term,
        promised_to: Some(former.clone()),
        voted: Some((term, former)),
    };
    for router in 0..3 {
        let votes = BTreeMap::from([(lease(), vote.clone())]);
        let loaded = Some(Remembered { votes, ended: Some(node(router, 1)) });
        cluster.restart(router, 50, Memory { loaded, fails: false });
    }
    cluster.run_all(2_000);
    assert_eq!(cluster.holders(), [0], "one second after the restart");
    assert!(cluster.held(0) > Some(term));
}

#[test]
fn l20_a_holder_that_restarts_need_not_wait_until_the_votes_for_it_end() {
    let mut cluster = Cluster::new(3);
    cluster.run(0, 1_000);
    let term = cluster.held(0).unwrap();
    let former = node(0, 1);
    let vote =
        StoredVote { promised: term, promised_to: None, voted: Some((term, former.clone())) };
    let votes = BTreeMap::from([(lease(), vote)]);
    let loaded = Some(Remembered { votes, ended: Some(former) });
    cluster.restart(0, 50, Memory { loaded, fails: false });
    cluster.run_all(2_000);
    assert_eq!(cluster.holders(), [0]);
}
