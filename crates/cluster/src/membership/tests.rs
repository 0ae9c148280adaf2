//! Membership by hand: two or three nodes, one frame at a time. What needs many nodes or chance is in `tests/sim`.

use std::net::SocketAddr;
use std::time::Duration;

use foca::{Member, State};
use rand::SeedableRng;
use rand::rngs::StdRng;
use smg_types::ids::Generation;
use smg_types::now::Now;

use crate::codec::{self, ClusterId, Frame, Kind};
use crate::membership::message::{Hello, Refusal, RefusalReason, Welcome};
use crate::membership::{Config, Event, Identity, MemberState, Membership, Outgoing};

const CLUSTER: ClusterId = ClusterId(7);

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 39527))
}

fn identity(name: &str, host: u8, generation: u64) -> Identity {
    Identity {
        name: name.parse().unwrap(),
        generation: Generation(generation),
        renewal: 0,
        address: address(host),
    }
}

fn at(millis: u64) -> Now {
    Now::at(Duration::from_millis(1_000_000 + millis))
}

fn node(name: &str, host: u8, generation: u64) -> Membership {
    let mut rng = StdRng::seed_from_u64(u64::from(host));
    let identity = identity(name, host, generation);
    Membership::try_new(Config::lan(), CLUSTER, identity, at(0), &mut rng).unwrap()
}

fn sent(node: &mut Membership) -> Vec<Outgoing> {
    std::iter::from_fn(|| node.poll_transmit()).collect()
}

fn kinds(frames: &[Outgoing]) -> Vec<Kind> {
    frames.iter().map(|frame| Frame::read(&frame.bytes).unwrap().kind).collect()
}

fn events(node: &mut Membership) -> Vec<Event> {
    std::iter::from_fn(|| node.poll_event()).collect()
}

fn deliver(node: &mut Membership, now: Now, from: SocketAddr, bytes: &[u8]) {
    node.handle_frame(now, from, &Frame::read(bytes).unwrap()).unwrap();
}

/// Delivers frames between the nodes until none sends any; frames to other addresses are lost.
fn exchange(nodes: &mut [&mut Membership], now: Now) {
    for _ in 0..100 {
        let mut under_way = Vec::new();
        for node in nodes.iter_mut() {
            let from = node.identity().address;
            under_way.extend(sent(node).into_iter().map(|frame| (from, frame)));
        }
        if under_way.is_empty() {
            return;
        }
        for (from, frame) in under_way {
            if let Some(to) = nodes.iter_mut().find(|node| node.identity().address == frame.to) {
                deliver(to, now, from, &frame.bytes);
            }
        }
    }
    panic!("nodes exchange frames for ever without time passing");
}

/// Lets time pass for a node; what it sends is lost.
fn pass_time(node: &mut Membership, from: u64, to: u64) {
    for millis in (from..=to).step_by(50) {
        node.handle_timeout(at(millis));
        sent(node);
    }
}

fn listed(node: &Membership) -> Vec<(String, MemberState)> {
    node.members().map(|member| (member.node.to_string(), member.state)).collect()
}

fn joined_pair() -> (Membership, Membership) {
    let (mut a, mut b) = (node("a", 1, 10), node("b", 2, 20));
    a.join(at(0), &[]);
    b.join(at(0), &[address(1)]);
    exchange(&mut [&mut a, &mut b], at(1));
    events(&mut a);
    events(&mut b);
    (a, b)
}

#[test]
fn without_join_addresses_a_node_is_alive_at_once() {
    let mut lone = node("a", 1, 10);
    assert_eq!(lone.me().state, MemberState::Init);
    lone.join(at(0), &[address(1)]);
    assert_eq!(lone.me().state, MemberState::Alive, "its own address is no other node's");
}

#[test]
fn a_node_without_others_is_not_woken() {
    let mut lone = node("a", 1, 10);
    lone.join(at(0), &[address(1)]);
    assert_eq!(lone.next_deadline(), None);
}

#[test]
fn a_node_that_was_alone_probes_a_member_that_is_down_until_it_forgets_it() {
    let mut a = node("a", 1, 10);
    a.join(at(0), &[]);
    assert_eq!(a.next_deadline(), None);
    let mut b = node("b", 2, 20);
    b.join(at(0), &[address(1)]);
    exchange(&mut [&mut a, &mut b], at(1));
    a.table.get_mut(&b.identity().name).expect("it is listed").met = true;
    let dead = Member::down(b.identity().clone());
    a.drive(at(10), |swim, effects| swim.apply_many(std::iter::once(dead), true, effects));
    sent(&mut a);
    let forgotten = at(10).mono + a.config.forget_after;
    let (mut probes, mut last) = (0, Duration::ZERO);
    while let Some(deadline) = a.next_deadline() {
        assert!(deadline < forgotten + Duration::from_secs(60), "it still waits for a member");
        a.handle_timeout(Now::at(deadline));
        probes += kinds(&sent(&mut a)).iter().filter(|kind| **kind == Kind::Hello).count();
        last = deadline;
    }
    assert!(probes > 2, "it sent {probes} join probes");
    assert!(last >= forgotten && listed(&a).is_empty());
}

#[test]
fn with_join_addresses_a_node_is_in_init_until_one_has_answered() {
    let (mut a, mut b) = (node("a", 1, 10), node("b", 2, 20));
    a.join(at(0), &[]);
    b.join(at(0), &[address(1), address(2)]);
    assert_eq!(b.me().state, MemberState::Init);
    exchange(&mut [&mut a, &mut b], at(1));
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert_eq!(listed(&b), [("a@10".to_owned(), MemberState::Alive)]);
    assert_eq!(b.me().state, MemberState::Alive);
}

#[test]
fn a_join_address_that_does_not_answer_is_probed_again() {
    let mut b = node("b", 2, 20);
    b.join(at(0), &[address(1)]);
    for _ in 0..5 {
        assert_eq!(kinds(&sent(&mut b)), [Kind::Hello]);
        let next = b.next_deadline().unwrap();
        assert!(next <= at(100_000).mono);
        // Skips the sweeps in between.
        let mut now = next;
        while b.outgoing.is_empty() {
            b.handle_timeout(Now::at(now));
            now = b.next_deadline().unwrap();
        }
    }
}

#[test]
fn a_node_that_receives_its_own_join_probe_learns_its_other_address() {
    let mut a = node("a", 1, 10);
    a.join(at(0), &[address(9)]);
    let [hello] = &sent(&mut a)[..] else { panic!("one join probe") };
    deliver(&mut a, at(1), address(9), &hello.bytes);
    assert_eq!(a.me().state, MemberState::Alive, "there is no other router to join");
}

#[test]
fn a_live_holder_keeps_its_name_and_the_newcomer_is_refused() {
    let (mut a, mut b) = joined_pair();
    let mut other = node("b", 3, 30);
    other.join(at(1000), &[address(1)]);
    exchange(&mut [&mut a, &mut b, &mut other], at(1000));
    let seen = events(&mut other);
    assert!(
        seen.iter().any(|event| matches!(
            event,
            Event::Refused(RefusalReason::DuplicateName(holder)) if *holder == identity("b", 2, 20)
        )),
        "{seen:?}"
    );
    assert!(other.refused().is_some());
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert_eq!(b.me().state, MemberState::Alive);
}

#[test]
fn a_node_that_gave_up_its_name_joins_again_with_a_renewed_identity() {
    let (mut a, mut host) = (node("a", 1, 2), node("h", 2, 1));
    a.join(at(0), &[address(2)]);
    exchange(&mut [&mut a, &mut host], at(0));
    a.handle_live_namesake(at(10), &identity("a", 9, 1), true);
    exchange(&mut [&mut a, &mut host], at(10));
    assert!(a.refused().is_some());
    assert_eq!(listed(&host), [("a@2".to_owned(), MemberState::Down)]);
    // The namesake goes, and a node that knows of nothing lets this one in.
    let mut stranger = node("s", 3, 1);
    a.send_join_probe(at(0), address(3));
    exchange(&mut [&mut a, &mut stranger], at(20));
    assert_eq!(a.refused(), None);
    assert!(events(&mut a).iter().any(|event| matches!(event, Event::Renewed(_))));
    // It takes part: a node that probes it gets an answer.
    for millis in (20..3_000).step_by(50) {
        stranger.handle_timeout(at(millis));
        exchange(&mut [&mut a, &mut stranger], at(millis));
    }
    let seen = stranger.members().next().unwrap();
    assert!(seen.state == MemberState::Alive && seen.rtt.is_some(), "{seen:?}");
}

#[test]
fn a_holder_that_does_not_answer_has_moved() {
    let (mut a, _b_is_gone) = joined_pair();
    pass_time(&mut a, 0, 1000);
    let mut again = node("b", 3, 30);
    again.join(at(1000), &[address(1)]);
    exchange(&mut [&mut a, &mut again], at(1000));
    assert_eq!(again.me().state, MemberState::Init, "the holder may still answer");
    for millis in [1100, 1200] {
        a.handle_timeout(at(millis));
        exchange(&mut [&mut a, &mut again], at(millis));
    }
    assert_eq!(listed(&a), [("b@30".to_owned(), MemberState::Alive)]);
    assert_eq!(again.me().state, MemberState::Alive);
}

#[test]
fn a_newcomer_of_another_cluster_is_refused() {
    let (mut a, _) = joined_pair();
    let hello = Hello { identity: identity("x", 5, 50), dialled: address(1), joined: false };
    let bytes = codec::frame(Kind::Hello, ClusterId(8), &codec::encode(&hello));
    deliver(&mut a, at(5), address(5), &bytes);
    let answers = sent(&mut a);
    let [answer] = &answers[..] else { panic!("one answer, not {answers:?}") };
    let frame = Frame::read(&answer.bytes).unwrap();
    assert_eq!((answer.to, frame.cluster, frame.kind), (address(5), ClusterId(8), Kind::Refusal));
    let refusal: Refusal = frame.decode().unwrap();
    assert_eq!(refusal.reason, RefusalReason::ForeignCluster(address(1)));
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert_eq!(a.counters().foreign_cluster, 1);
}

#[test]
fn an_answer_to_another_generation_is_ignored() {
    let mut b = node("b", 2, 20);
    b.join(at(0), &[address(1)]);
    let welcome = Welcome {
        to: Generation(19),
        from: identity("a", 1, 10),
        seen_as: address(2),
        known: None,
        members: Vec::new(),
    };
    deliver(
        &mut b,
        at(1),
        address(1),
        &codec::frame(Kind::Welcome, CLUSTER, &codec::encode(&welcome)),
    );
    assert_eq!((b.me().state, b.counters().stray_messages), (MemberState::Init, 1));
}

#[test]
fn a_node_below_its_earlier_generation_goes_on_above_it() {
    let (mut a, _b_is_gone) = joined_pair();
    let mut again = node("b", 2, 15);
    again.join(at(500), &[address(1)]);
    exchange(&mut [&mut a, &mut again], at(500));
    let change = events(&mut again).into_iter().find_map(|event| match event {
        Event::NewGeneration { was, is } => Some((was, is)),
        _ => None,
    });
    let (was, is) = change.unwrap();
    assert_eq!(was.generation, Generation(15));
    assert!(is.generation > Generation(20));
    assert_eq!(listed(&a), [(is.to_string(), MemberState::Alive)]);
}

#[test]
fn a_false_down_costs_a_renewal_and_keeps_the_generation() {
    let (mut a, mut b) = joined_pair();
    a.table.get_mut(&b.identity().name).expect("it is listed").met = true;
    let dead = Member::down(b.identity().clone());
    a.drive(at(10), |swim, effects| swim.apply_many(std::iter::once(dead), true, effects));
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Down)]);
    // The node that was declared down sends a packet.
    b.drive(at(20), |swim, effects| swim.gossip(effects));
    exchange(&mut [&mut a, &mut b], at(21));
    assert_eq!(b.me().node.generation, Generation(20), "a false DOWN resets nothing");
    assert!(b.me().renewal > 0);
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert_eq!(b.counters().renewals, 1);
}

#[test]
fn the_timer_of_a_refuted_suspicion_declares_nobody_down() {
    let (mut a, b) = joined_pair();
    let suspect = b.identity().clone();
    let as_state = |incarnation, state| Member::new(suspect.clone(), incarnation, state);
    let apply = |a: &mut Membership, now, member| {
        a.drive(now, |swim, effects| swim.apply_many(std::iter::once(member), false, effects));
    };
    apply(&mut a, at(10), as_state(0, State::Suspect));
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Suspected)]);
    apply(&mut a, at(20), as_state(1, State::Alive));
    sent(&mut a);
    let stale = foca::Timer::ChangeSuspectToDown { member_id: suspect, incarnation: 0, token: 0 };
    a.handle_swim_timer(at(3000), stale);
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert_eq!(a.counters().stale_suspicions, 1);
    assert_eq!(sent(&mut a), [], "the refuting member must not be seen that it is dead");
}

#[test]
fn a_node_that_leaves_is_listed_as_leaving_and_then_not_at_all() {
    let (mut a, mut b) = joined_pair();
    b.leave(at(10));
    exchange(&mut [&mut a, &mut b], at(11));
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Leaving)]);
    b.depart(at(500));
    exchange(&mut [&mut a, &mut b], at(501));
    assert_eq!(listed(&a), []);
    assert_eq!(b.next_deadline(), None);
    // It is remembered, so that late gossip can't revive it.
    let late = Member::alive(identity("b", 2, 20));
    a.drive(at(600), |swim, effects| swim.apply_many(std::iter::once(late), true, effects));
    assert_eq!(listed(&a), []);
}

#[test]
fn a_process_that_was_frozen_reads_its_inbox_before_it_suspects() {
    let (mut a, _b_is_silent) = joined_pair();
    let before = sent(&mut a).len();
    a.handle_timeout(at(20_000));
    assert_eq!((sent(&mut a).len(), before), (0, 0), "nothing is due right after a freeze");
    assert_eq!(a.counters().stalls, 1);
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
    assert!(a.next_deadline().unwrap() > at(20_000).mono);
}

#[test]
fn a_member_that_is_down_is_forgotten_by_command() {
    let (mut a, b) = joined_pair();
    a.table.get_mut(&b.identity().name).expect("it is listed").met = true;
    let dead = Member::down(b.identity().clone());
    a.drive(at(10), |swim, effects| swim.apply_many(std::iter::once(dead), true, effects));
    let name = "b".parse().unwrap();
    assert!(a.forget(at(20), &name));
    assert_eq!(listed(&a), []);
    assert!(!a.forget(at(30), &name), "it is not listed any more");
}

#[test]
fn a_frame_of_garbage_changes_nothing() {
    let (mut a, _) = joined_pair();
    for kind in Kind::ALL {
        let bytes = codec::frame(kind, CLUSTER, &[0xff; 40]);
        drop(a.handle_frame(at(5), address(9), &Frame::read(&bytes).unwrap()));
    }
    assert_eq!(listed(&a), [("b@20".to_owned(), MemberState::Alive)]);
}

#[test]
fn a_configuration_that_can_not_work_is_refused() {
    let wrong = Config { probe_period: Duration::ZERO, ..Config::lan() };
    let mut rng = StdRng::seed_from_u64(0);
    let refused = Membership::try_new(wrong, CLUSTER, identity("a", 1, 1), at(0), &mut rng);
    assert!(refused.is_err());
}
