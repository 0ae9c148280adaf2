//! Tests of false reports: a member reports to the others that a healthy router is suspected, or down.

use foca::{Header, Member, Message, State};
use serde::Serialize;
use smg_cluster::codec::{self, Kind};
use smg_cluster::membership::Identity;

use super::*;
use crate::link::Link;

const FOUR: [&str; 4] = ["a", "b", "c", "liar"];

/// An item of a membership packet: its length, then its encoding.
fn item(value: &impl Serialize) -> Vec<u8> {
    let bytes = codec::encode(value);
    let length = u16::try_from(bytes.len()).unwrap();
    [&length.to_be_bytes()[..], &bytes].concat()
}

/// A packet from one member to another that reports the state of a third.
fn rumour(from: &Identity, to: &Identity, about: &Member<Identity>) -> Vec<u8> {
    let header =
        Header { src: from.clone(), src_incarnation: 0, dst: to.clone(), message: Message::Gossip };
    let payload = [item(&header), 1_u16.to_be_bytes().to_vec(), item(about)].concat();
    codec::frame(Kind::Swim, ClusterId::of("smg"), &payload)
}

/// The liar reports to a and c that b is in `state`. Returns the world, and the time until all were ALIVE again.
fn spread_rumour(state: State) -> (World, Duration) {
    let mut world = World::formed(&FOUR, &Plan::default());
    world.run_for(SECOND * 2);
    world.transitions();
    let [a, b, c, liar] =
        FOUR.map(|name| world.visit(name, |node, _| node.membership().identity().clone()));
    let about = Member::new(b, 0, state);
    let frames = [(a.address, rumour(&liar, &a, &about)), (c.address, rumour(&liar, &c, &about))];
    world.ask("liar", |handle| async move {
        let links = frames.map(|(to, frame)| {
            let link = Link::new(to, &handle.dialler);
            assert_eq!(link.send(Lane::Swim, frame.into()), 0);
            link
        });
        // The wait lets the frames arrive, because dropping the links ends them.
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(links);
    });
    let believed = move |world: &mut World| {
        ["a", "c"].iter().any(|name| world.state_at(name, "b") != Some(MemberState::Alive))
    };
    let transitions = world.transitions();
    let to = if state == State::Down { MemberState::Down } else { MemberState::Suspected };
    if !transitions.contains(&("b".to_owned(), to)) {
        world.until(SECOND, "the rumour is believed", believed);
    }
    let took = world.until(SECOND * 2, "the rumour is refuted", World::is_whole);
    (world, took)
}

#[test]
fn a_false_suspicion_is_refuted() {
    let (mut world, _) = spread_rumour(State::Suspect);
    // It does not return, and it never was more than a suspicion.
    world.run_for(SECOND * 8);
    assert!(world.is_whole());
    let down = world.transitions().into_iter().find(|(_, to)| *to == MemberState::Down);
    assert_eq!(down, None);
}

#[test]
fn a_false_death_is_refuted_and_costs_no_state() {
    let (mut world, _) = spread_rumour(State::Down);
    let renewals = world.visit("b", |node, _| node.membership().counters().renewals);
    assert_eq!(
        renewals, 1,
        "b must refute once, with a higher incarnation and the same generation"
    );
    world.write("b", 0..10);
    world.run_for(SECOND * 8);
    assert!(world.is_whole() && world.agrees());
    assert_eq!(world.workers("a"), 10);
}
