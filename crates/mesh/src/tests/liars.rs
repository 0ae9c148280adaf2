//! Tests over real TCP of a member that lies: it speaks the protocol of the mesh port, and its frames are well-formed, but what
//! they say is false.

use foca::{Header, Member, Message as Gossip, State};
use serde::Serialize;
use smg_cluster::codec::{self, Kind};
use smg_cluster::replication::message::{Delta, Message, RetiredWriter, StoreNumber};
use smg_runtime::tasks::TasksOwner;
use smg_types::ids::Generation;
use tonic::transport::Channel;

use super::*;
use crate::wire::proto::Envelope;
use crate::wire::proto::envelope::Content;
use crate::wire::proto::mesh_client::MeshClient;
use crate::wire::{self};

/// What the tests wait for takes seconds, or up to a minute if a lie has to be withdrawn first. A busy machine gets this much time.
const LIMIT: Duration = Duration::from_secs(120);

/// Two routers on real ports, and the tasks of both.
struct Pair {
    _owner: TasksOwner,
    routers: [Running; 2],
    metrics: [Metrics; 2],
}

impl Pair {
    async fn start() -> Self {
        let owner = TasksOwner::new();
        let bind = |name: &str, join: Option<SocketAddr>| {
            let mut config = config(name, "smg", &[], SecurityConfig::default());
            // Faster than in production, so that a made-up member is found to be dead sooner.
            config.node.membership.probe_period = Duration::from_millis(200);
            config.node.membership.probe_timeout = Duration::from_millis(90);
            let network = config.network.as_mut().unwrap();
            network.listen = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            network.join =
                join.map(|address| address.to_string().parse().unwrap()).into_iter().collect();
            let (clock, metrics) = (Clock::start(), metrics());
            let mesh = Mesh::bind(config, clock, metrics.clone(), CLIENT_ENDPOINT, services(clock));
            (mesh.unwrap(), metrics)
        };
        let (a, a_metrics) = bind("a", None);
        let (b, b_metrics) = bind("b", Some(a.handle().view().me.address));
        let routers = [a, b].map(|mesh| mesh.start(&owner.handle()).unwrap());
        let pair = Self { _owner: owner, routers, metrics: [a_metrics, b_metrics] };
        pair.until("the two are ALIVE to each other", |pair| pair.is_whole()).await;
        pair
    }

    fn is_whole(&self) -> bool {
        [(0, "b"), (1, "a")].iter().all(|(at, other)| {
            let view = self.routers[*at].handle.view();
            let mut members = view.members.iter();
            members.any(|m| m.node.name.as_str() == *other && m.state == MemberState::Alive)
        })
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let holds = async {
            while !is_so(self) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let view = || self.routers.each_ref().map(|router| router.handle.view().members.len());
        assert!(tokio::time::timeout(LIMIT, holds).await.is_ok(), "{what}: {:?}", view());
    }

    async fn identity(&self, at: usize) -> Identity {
        let identity = |node: &mut Node, _: &Synced, _: Now| node.membership().identity().clone();
        self.routers[at].handle.visit(identity).await.unwrap()
    }

    /// Writes workers at one router, and waits until both have as many as were written in all.
    async fn write(&self, at: usize, number: usize, in_all: usize) {
        let write = move |node: &mut Node, _: &Synced, now: Now| node.update(now, put(number));
        self.routers[at].handle.visit(write).await.unwrap().unwrap();
        let arrived = async {
            for router in &self.routers {
                let count = |node: &mut Node, _: &Synced, _: Now| node.state().workers().count();
                while router.handle.visit(count).await != Ok(in_all) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        };
        tokio::time::timeout(LIMIT, arrived).await.expect("both have all workers");
    }

    fn rejected(&self, at: usize, reason: &str) -> u64 {
        self.metrics[at].rejected.with_label_values(&[reason]).get()
    }

    async fn end(self) {
        for router in self.routers {
            router.depart().await;
        }
    }
}

/// A connection of the liar to a router.
struct Liar {
    channel: Channel,
    me: Introduction,
}

impl Liar {
    async fn of(to: &Identity) -> Self {
        let endpoint = Channel::from_shared(format!("http://{}", to.address)).unwrap();
        let me = Introduction {
            node: NodeId { name: "liar".parse().unwrap(), generation: Generation(7) },
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            cluster: ClusterId::of("smg"),
            client_url: String::new(),
        };
        Self { channel: endpoint.connect().await.unwrap(), me }
    }

    /// Sends frames on a stream of its own, and ends the stream.
    async fn send(&self, kind: Kind, payloads: impl IntoIterator<Item = Vec<u8>>) {
        let opening = wire::opening_envelope(wire::opening(&self.me, None));
        let mut messages = vec![opening];
        messages.extend(payloads.into_iter().map(|payload| {
            let frame = codec::frame(kind, ClusterId::of("smg"), &payload);
            Envelope { content: Some(Content::Frame(frame.into())) }
        }));
        let mut client = MeshClient::new(self.channel.clone());
        let outbound = tokio_stream::iter(messages);
        let answer = if kind == Kind::State {
            client.sync(outbound).await
        } else {
            client.swim(outbound).await
        };
        let mut inbound = answer.unwrap().into_inner();
        // The router ends its side when it has read all.
        while let Ok(Some(_opening)) = inbound.message().await {}
    }
}

fn item(value: &impl Serialize) -> Vec<u8> {
    let bytes = codec::encode(value);
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes()[..], &bytes].concat()
}

/// A packet of membership from `src` to `dst` that reports a member.
fn packet(src: &Identity, dst: &Identity, about: &Member<Identity>) -> Vec<u8> {
    let (src, dst) = (src.clone(), dst.clone());
    let header = Header { src, src_incarnation: 0, dst, message: Gossip::Gossip };
    [item(&header), 1_u16.to_be_bytes().to_vec(), item(about)].concat()
}

/// A member that never was.
fn ghost(number: usize) -> Identity {
    let [_, b, c, d] = u32::try_from(number).unwrap().to_be_bytes();
    Identity {
        name: format!("ghost-{number}").parse().unwrap(),
        generation: generation_at(BEGIN - Duration::from_secs(365 * 24 * 3600), 0),
        renewal: 0,
        // Nobody answers in 127/8 at port 9.
        address: SocketAddr::from(([127, 1 + b, c, d], 9)),
    }
}

#[tokio::test]
async fn a_generation_of_the_next_century_does_not_keep_a_router_down() {
    let pair = Pair::start().await;
    let [a, b] = [pair.identity(0).await, pair.identity(1).await];
    let liar = Liar::of(&a).await;
    for address in [b.address, ghost(1).address] {
        let claim = Generation(Identity::MAX_CLAIM - 1);
        let lie = Identity { generation: claim, address, ..b.clone() };
        for state in [State::Down, State::Alive] {
            let about = Member::new(lie.clone(), 0, state);
            liar.send(Kind::Swim, [packet(&ghost(0), &a, &about), packet(&lie, &a, &about)]).await;
        }
    }
    pair.until("the claims are counted", |pair| pair.rejected(0, "absurd_claim") > 0).await;
    pair.until("b is ALIVE to a again", Pair::is_whole).await;
    pair.write(1, 1, 1).await;
    pair.end().await;
}

/// A delta of `b` without rows, up to the version `to`, as `a` receives it.
fn empty_delta(a: &Identity, b: &Identity, to: u64) -> Vec<u8> {
    let (store, writer) = (StoreNumber::from(StoreId::Workers), b.node());
    let delta = Delta { store, writer, from: 0, to, upto: to, floor: 0, rows: Vec::new() };
    codec::encode(&(b.node(), a.node(), Message::Delta(delta)))
}

#[tokio::test]
async fn a_delta_up_to_the_largest_version_does_not_stop_the_rows_of_its_writer() {
    let pair = Pair::start().await;
    pair.write(1, 1, 1).await;
    let [a, b] = [pair.identity(0).await, pair.identity(1).await];
    let liar = Liar::of(&a).await;
    liar.send(Kind::State, [empty_delta(&a, &b, u64::MAX)]).await;
    pair.until("the version is counted", |pair| pair.rejected(0, "absurd_version") > 0).await;
    pair.write(1, 2, 2).await;
    pair.end().await;
}

#[tokio::test]
async fn a_delta_up_to_a_version_that_is_plausible_does_not_stop_the_rows_of_its_writer() {
    let pair = Pair::start().await;
    pair.write(1, 1, 1).await;
    let [a, b] = [pair.identity(0).await, pair.identity(1).await];
    let liar = Liar::of(&a).await;
    liar.send(Kind::State, [empty_delta(&a, &b, 1_000_000)]).await;
    pair.write(1, 2, 2).await;
    pair.end().await;
}

#[tokio::test]
async fn thousands_of_forged_retirements_do_not_stop_a_router() {
    let pair = Pair::start().await;
    let [a, b] = [pair.identity(0).await, pair.identity(1).await];
    let liar = Liar::of(&a).await;
    let mut sent = 0;
    while sent < 4_110 {
        // Each is about the generation that a has at the moment.
        let writer = pair.identity(0).await.node();
        let retired = |_| {
            let writers =
                vec![RetiredWriter { writer: writer.clone(), closed: false, versions: Vec::new() }];
            codec::encode(&(b.node(), writer.clone(), Message::Retired(writers)))
        };
        liar.send(Kind::State, (0..50).map(retired)).await;
        sent += 50;
    }
    pair.until("refused ones are counted", |pair| pair.rejected(0, "too_many_generations") > 0)
        .await;
    pair.write(0, 1, 1).await;
    pair.write(1, 2, 2).await;
    assert!(pair.identity(0).await.generation > a.generation);
    pair.end().await;
}

#[tokio::test]
async fn a_hundred_thousand_made_up_members_are_not_listed() {
    let pair = Pair::start().await;
    let [a, b] = [pair.identity(0).await, pair.identity(1).await];
    let liar = Liar::of(&a).await;
    for part in 0..20 {
        let packets = (0..5_000).map(|n| {
            let member = Member::alive(ghost(part * 5_000 + n));
            packet(&b, &a, &member)
        });
        liar.send(Kind::Swim, packets).await;
        let listed = pair.routers[0].handle.view().members.len();
        assert!(listed <= 100, "{listed} members are listed");
    }
    pair.until("most are counted", |pair| pair.rejected(0, "too_many_strangers") > 1_000).await;
    let present = |pair: &Pair| pair.routers[0].handle.view().present().count();
    pair.until("the made-up members are gone", |pair| present(pair) == 1).await;
    pair.write(0, 1, 1).await;
    pair.end().await;
}
