//! A node alone, a pair of nodes, and nodes that receive arbitrary bytes.

use proptest::prelude::*;
use smg_types::spec::WorkerSpec;

use super::*;
use crate::state::StoreId;
use crate::state::session::{SessionKey, SessionWrite};
use crate::state::worker::{WorkerRecord, WorkerWrite};

const CLUSTER: ClusterId = ClusterId(7);

fn node(name: &str, host: u8) -> Node {
    let config = Config {
        cluster: CLUSTER,
        membership: membership::Config::lan(),
        replication: replication::Config::default(),
    };
    let address = address(host);
    let mut rng = StdRng::seed_from_u64(u64::from(host));
    let name = name.parse().unwrap();
    Node::try_new(config, name, Generation(u64::from(host)), address, now(), &mut rng).unwrap()
}

fn address(host: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, host], 39527))
}

fn now() -> Now {
    Now::at(Duration::from_secs(1_000_000))
}

/// Exchanges frames between two nodes until neither sends any. Returns the frames.
fn exchange(a: &mut Node, b: &mut Node) -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    loop {
        let before = frames.len();
        while let Some(transmit) = a.poll_transmit() {
            b.handle_frame(now(), address(1), &transmit.bytes);
            frames.push(transmit.bytes);
        }
        while let Some(transmit) = b.poll_transmit() {
            a.handle_frame(now(), address(2), &transmit.bytes);
            frames.push(transmit.bytes);
        }
        if frames.len() == before {
            return frames;
        }
    }
}

fn pair() -> (Node, Node, Vec<Vec<u8>>) {
    let (mut a, mut b) = (node("a", 1), node("b", 2));
    a.join(now(), &[]);
    b.join(now(), &[address(1)]);
    let frames = exchange(&mut a, &mut b);
    (a, b, frames)
}

#[test]
fn a_node_that_joins_is_a_member_and_a_peer() {
    let (a, b, _) = pair();
    assert_eq!(a.members().map(|m| m.state).collect::<Vec<_>>(), [MemberState::Alive]);
    assert!(b.replication().members().all(|(_, is_up)| is_up));
    assert_eq!((a.frames().misdirected, b.frames().misdirected), (0, 0));
}

/// Lets a node do what is due until nothing is, or until `end`; when it did something last.
fn pass_time(node: &mut Node, end: Now) -> Option<Duration> {
    let mut last = None;
    while let Some(deadline) = node.next_deadline().filter(|at| *at <= end.mono) {
        last = Some(deadline);
        let late = deadline.saturating_sub(now().mono);
        node.handle_timeout(now() + late);
        while node.poll_transmit().is_some() {}
    }
    last
}

#[test]
fn a_lone_node_is_woken_only_while_something_that_it_holds_changes_with_time() {
    let mut lone = node("a", 1);
    lone.join(now(), &[]);
    assert_eq!(lone.next_deadline(), None);
    let minute = now() + Duration::from_secs(60);
    let spec = WorkerSpec::new("http://w:1".parse().unwrap());
    let id = spec.id();
    lone.update(now(), WorkerWrite::Put(WorkerRecord::from(&spec))).unwrap();
    pass_time(&mut lone, minute);
    assert_eq!(lone.next_deadline(), None);
    // A tombstone is collected once the node takes itself to be alone.
    lone.update(now(), WorkerWrite::Remove(id)).unwrap();
    let last = pass_time(&mut lone, minute).unwrap();
    assert!(last > (now() + Duration::from_secs(5)).mono);
    assert_eq!(lone.next_deadline(), None);
    assert_eq!(lone.state().sizes(StoreId::Workers).tombstones, 0);
    // A session ends, a hint too.
    let session =
        SessionWrite::Use { key: SessionKey(1), worker: id, ttl: Duration::from_secs(30) };
    lone.update(minute, session).unwrap();
    lone.served(minute, id, 0, &[1, 2, 3]);
    assert!(lone.next_deadline().is_some());
    pass_time(&mut lone, minute + Duration::from_secs(3600));
    assert_eq!(lone.next_deadline(), None);
    assert_eq!(lone.state().sizes(StoreId::Sessions).entries, 0);
}

#[test]
fn state_for_another_generation_is_refused() {
    let (mut a, b, _) = pair();
    let former = NodeId { name: a.me().node.name, generation: Generation(0) };
    let message = Message::HotSetRequest;
    let envelope = Envelope { from: b.me().node, to: former, message };
    let bytes = codec::frame(Kind::State, CLUSTER, &codec::encode(&envelope));
    a.handle_frame(now(), address(2), &bytes);
    assert_eq!(a.frames().misdirected, 1);
}

#[test]
fn an_address_that_is_resolved_later_is_probed_at_once_while_the_node_is_alone() {
    let mut lone = node("b", 2);
    let mut probed = |addresses: &[SocketAddr]| {
        lone.join(now(), addresses);
        std::iter::from_fn(|| lone.poll_transmit()).map(|frame| frame.to).collect::<Vec<_>>()
    };
    assert_eq!(probed(&[address(9)]), [address(9)]);
    assert_eq!(probed(&[address(9), address(1), address(2)]), [address(1)], "2 is its own");
    assert_eq!(probed(&[address(9), address(1)]), []);
}

#[test]
fn a_node_that_has_left_sends_nothing_more() {
    let (mut a, mut b, _) = pair();
    b.depart(now());
    exchange(&mut a, &mut b);
    assert_eq!((a.members().count(), b.next_deadline()), (0, None));
}

proptest! {
    #[test]
    fn any_payload_of_any_kind_is_handled_or_refused(
        kind in proptest::sample::select(&Kind::ALL[..]),
        payload in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let (mut a, _, _) = pair();
        a.handle_frame(now(), address(9), &codec::frame(kind, CLUSTER, &payload));
        while a.poll_transmit().is_some() {}
        a.handle_timeout(now() + Duration::from_millis(100));
    }

    #[test]
    fn a_real_frame_with_changed_bytes_is_handled_or_refused(
        which in any::<proptest::sample::Index>(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let (mut a, mut b, frames) = pair();
        let frame = Frame::read(which.get::<Vec<u8>>(&frames)).unwrap();
        let mut payload = frame.payload.to_vec();
        for (at, byte) in changes {
            if !payload.is_empty() {
                *at.get_mut(&mut payload) = byte;
            }
        }
        for node in [&mut a, &mut b] {
            node.handle_frame(now(), address(9), &codec::frame(frame.kind, CLUSTER, &payload));
            while node.poll_transmit().is_some() {}
            node.handle_timeout(now() + Duration::from_millis(100));
        }
    }
}
