//! Tests that whatever a sender without the key sends only increments a counter and changes nothing.
//!
//! One router listens at one end of a pipe in memory. At the other end a stranger sends gRPC, or arbitrary bytes.

use bytes::Bytes;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config as Cases, TestRunner};
use prost::Message as _;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use smg_cluster::codec::{self, Kind};
use smg_types::ids::Generation;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tonic::transport::{Channel, Endpoint};

use super::*;
use crate::purpose::Purpose;
use crate::wire::proto::envelope::Content;
use crate::wire::proto::key_change::Change;
use crate::wire::proto::mesh_client::MeshClient;
use crate::wire::proto::{Envelope, KeyAnswer, KeyChange as Change_, Opening, Sealed};
use crate::wire::{self, MAX_MESSAGE_BYTES};

const HOME: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), DEFAULT_PORT);
const STRANGER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 9)), 4711);

/// A router alone, and a runtime with simulated time.
struct Home {
    runtime: tokio::runtime::Runtime,
    local: tokio::task::LocalSet,
    handle: Handle,
    metrics: Metrics,
    pipes: mpsc::Sender<DuplexStream>,
    _ends: Ends,
}

/// A network in which every connection is refused.
#[derive(Debug)]
struct NoNetwork;

impl Net for NoNetwork {
    fn connect(&self, _to: SocketAddr, _lane: Lane) -> IoFuture<'_, Box<dyn Duplex>> {
        Box::pin(async { Err(io::ErrorKind::ConnectionRefused.into()) })
    }
}

/// Accepts the pipes that the test opens.
struct PipeListener(mpsc::Receiver<DuplexStream>);

impl Listener for PipeListener {
    fn accept(&mut self) -> IoFuture<'_, (Box<dyn Duplex>, SocketAddr)> {
        Box::pin(async move {
            match self.0.recv().await {
                Some(pipe) => Ok((Box::new(pipe) as Box<dyn Duplex>, STRANGER)),
                None => std::future::pending().await,
            }
        })
    }
}

/// Everything that a stranger could change.
#[derive(Debug, PartialEq)]
struct RouterState {
    me: Identity,
    members: Vec<MemberView>,
    refused: Option<RefusalReason>,
    rows: Vec<u64>,
    versions: Vec<(String, u64)>,
    frames: cluster::FrameCounters,
    received: Vec<&'static str>,
    keys: (Mode, Vec<KeyId>),
}

impl Home {
    fn of(mode: Mode) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let local = tokio::task::LocalSet::new();
        let keys = Ring::new((mode != Mode::Off).then(ours)).unwrap();
        let config = config("home", "smg", &[], SecurityConfig { tls: None, mode, keys });
        let metrics = metrics();
        let (pipes, accepted) = mpsc::channel(16);
        let (handle, ends) = {
            let _inside = runtime.enter();
            let clock = Clock::simulated(BEGIN);
            let net = Arc::new(NoNetwork);
            let (handle, engine, ends) = assemble(
                config,
                clock,
                metrics.clone(),
                CLIENT_ENDPOINT,
                HOME,
                net,
                services(clock),
            )
            .unwrap();
            local.spawn_local(engine.run(Some(PipeListener(accepted))));
            (handle, ends)
        };
        let home = Self { runtime, local, handle, metrics, pipes, _ends: ends };
        home.run(async {
            home.handle.visit(|node, _, now| node.update(now, put(1)).unwrap()).await.unwrap();
        });
        home
    }

    fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.local.block_on(&self.runtime, future)
    }

    fn state(&self) -> RouterState {
        let keys = self.handle.keys();
        let looking = self.handle.visit(move |node, _, _| RouterState {
            me: node.membership().identity().clone(),
            members: node.members().collect(),
            refused: node.membership().refused().cloned(),
            rows: StoreId::ALL.map(|store| node.state().fingerprint(store)).to_vec(),
            versions: StoreId::ALL
                .into_iter()
                .flat_map(|store| node.state().versions(store))
                .map(|(writer, version)| (writer.to_string(), version))
                .collect(),
            frames: node.frames(),
            received: node.received().keys().copied().collect(),
            keys,
        });
        self.run(looking).expect("the router answers")
    }

    fn rejected(&self, reason: &str) -> u64 {
        self.metrics.rejected.with_label_values(&[reason]).get()
    }

    async fn pipe(&self) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(1 << 16);
        self.pipes.send(theirs).await.unwrap();
        ours
    }

    async fn client(&self) -> MeshClient<Channel> {
        let pipe = Arc::new(Mutex::new(Some(self.pipe().await)));
        let connector = tower::service_fn(move |_| {
            let pipe = pipe.lock().take();
            async move {
                pipe.map(TokioIo::new)
                    .ok_or_else(|| io::Error::from(io::ErrorKind::ConnectionRefused))
            }
        });
        let endpoint = Endpoint::from_static("http://mesh");
        let channel = endpoint.connect_with_connector(connector).await.unwrap();
        MeshClient::new(channel).max_encoding_message_size(usize::MAX)
    }

    /// Sends all messages on one stream and collects the answers until the router ends it, or is silent for a second.
    async fn exchange(
        &self,
        call: Call,
        messages: Vec<Envelope>,
    ) -> Vec<Result<Envelope, tonic::Status>> {
        let mut client = self.client().await;
        // The stream stays open after the last message, because the router must decide to end it.
        let outbound =
            tokio_stream::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
        let called = match call {
            Call::Swim => client.swim(outbound).await,
            Call::Sync => client.sync(outbound).await,
            Call::Keys => client.keys(outbound).await,
        };
        let mut received = Vec::new();
        let mut inbound = match called {
            Ok(answer) => answer.into_inner(),
            Err(status) => return vec![Err(status)],
        };
        while let Ok(Some(message)) =
            tokio::time::timeout(SECOND, tokio_stream::StreamExt::next(&mut inbound)).await
        {
            received.push(message);
        }
        received
    }
}

/// The key that the router has and no stranger has.
fn ours() -> SharedKey {
    SharedKey::new([1; 32])
}

#[derive(Debug, Clone, Copy)]
enum Call {
    Swim,
    Sync,
    Keys,
}

/// The opening that a stranger sends. All of it but a key can be observed on the network.
fn opening() -> Opening {
    let me = Introduction {
        node: NodeId { name: "stranger".parse().unwrap(), generation: Generation(7) },
        address: STRANGER,
        cluster: ClusterId::of("smg"),
        client_url: "http://10.0.0.9:8000".to_owned(),
    };
    let mut opening = wire::opening(&me, None);
    opening.salt = Bytes::from_static(&[9; seal::SALT_BYTES]);
    opening.key_ids = vec![ours().id().0];
    opening
}

fn envelope(content: Content) -> Envelope {
    Envelope { content: Some(content) }
}

fn plain(frame: &[u8]) -> Envelope {
    envelope(Content::Frame(Bytes::copy_from_slice(frame)))
}

fn sealed(key_id: u64, ciphertext: impl Into<Bytes>) -> Envelope {
    envelope(Content::Sealed(Sealed { key_id, ciphertext: ciphertext.into() }))
}

/// Frames that an accepted router would send, each of which changes something: a join request and all that follows it.
fn frames() -> Vec<Vec<u8>> {
    let mut rng = StdRng::seed_from_u64(1);
    let now = Now { mono: Duration::ZERO, wall: BEGIN };
    let mut node = |name: &str, address: SocketAddr| {
        let config = config(name, "smg", &[], SecurityConfig::default()).node;
        let generation = generation_at(now.wall, rng.random());
        Node::try_new(config, name.parse().unwrap(), generation, address, now, &mut rng).unwrap()
    };
    let (mut stranger, mut home) = (node("stranger", STRANGER), node("home", HOME));
    home.join(now, &[]);
    stranger.join(now, &[HOME]);
    let mut frames = Vec::new();
    for step in 0..40 {
        let now = now + Duration::from_millis(100) * step;
        if step == 20 {
            stranger.update(now, put(2)).unwrap();
        }
        for node in [&mut stranger, &mut home] {
            node.handle_timeout(now);
        }
        while let Some(transmit) = stranger.poll_transmit() {
            home.handle_frame(now, STRANGER, &transmit.bytes);
            frames.push(transmit.bytes);
        }
        while let Some(transmit) = home.poll_transmit() {
            stranger.handle_frame(now, HOME, &transmit.bytes);
        }
    }
    assert!(home.state().worker(worker(2).id()).is_some(), "they would change something");
    frames
}

/// The frames as they were encrypted with the right key on another stream: a stranger can record these.
fn recorded(frames: &[Vec<u8>]) -> Vec<Bytes> {
    let keys = Ring::new([ours()]).unwrap();
    let salts = [[9; seal::SALT_BYTES], [3; seal::SALT_BYTES]];
    let purpose = Purpose::Lane(Lane::Swim);
    let stream = seal::Stream::new(&salts[0], &salts[1], purpose).unwrap();
    let mut sealer = seal::Sealer::new(stream);
    frames.iter().map(|frame| sealer.seal(&keys, frame).unwrap().1.into()).collect()
}

fn any_bytes(most: usize) -> impl Strategy<Value = Bytes> {
    proptest::collection::vec(any::<u8>(), 0..most).prop_map(Bytes::from)
}

/// The opening of a stranger. It is usually valid, because otherwise the messages after it would be ignored.
fn any_opening() -> impl Strategy<Value = Opening> {
    let name = select(&["stranger", "home", "", "a b", "x"][..]);
    let salt = prop_oneof![4 => Just(Bytes::from_static(&[9; 32])), 1 => any_bytes(40)];
    let keys = prop_oneof![
        4 => Just(vec![ours().id().0]),
        1 => proptest::collection::vec(any::<u64>(), 0..4)
    ];
    let major = prop_oneof![8 => Just(u32::from(codec::VERSION.0)), 1 => any::<u32>()];
    let cluster = prop_oneof![8 => Just(ClusterId::of("smg").0), 1 => any::<u64>()];
    (name, salt, keys, major, cluster, any::<u64>()).prop_map(
        |(name, salt, key_ids, major, cluster, generation)| Opening {
            node_name: name.to_owned(),
            generation,
            salt,
            key_ids,
            major,
            cluster,
            ..opening()
        },
    )
}

/// A message after the opening.
fn any_message(frames: Vec<Vec<u8>>, recorded: Vec<Bytes>) -> impl Strategy<Value = Envelope> {
    let id = ours().id().0;
    let key = prop_oneof![
        any_bytes(40).prop_map(Change::Install),
        Just(Change::Install(Bytes::from_static(&[7; 32]))),
        Just(Change::Use(id)),
        any::<u64>().prop_map(Change::Use),
        Just(Change::Remove(id)),
    ];
    let honest = prop_oneof![
        4 => select(frames).prop_map(|frame| plain(&frame)),
        1 => any_bytes(200).prop_map(|bytes| plain(&bytes)),
        4 => select(recorded).prop_map(move |bytes| sealed(id, bytes)),
        2 => (any::<u64>(), any_bytes(200)).prop_map(|(id, bytes)| sealed(id, bytes)),
        2 => any_bytes(200).prop_map(move |bytes| sealed(id, bytes)),
        2 => key.prop_map(|change| envelope(Content::KeyChange(Change_ { change: Some(change) }))),
        1 => Just(envelope(Content::KeyAnswer(KeyAnswer::default()))),
        1 => any_opening().prop_map(wire::opening_envelope),
        1 => Just(Envelope { content: None }),
    ];
    let changes = proptest::collection::vec((any::<Index>(), any::<u8>()), 0..4);
    (honest, changes).prop_map(|(honest, changes)| {
        let mut bytes = honest.encode_to_vec();
        for (at, byte) in changes {
            if !bytes.is_empty() {
                *at.get_mut(&mut bytes) = byte;
            }
        }
        // Bytes that are no longer a message would be refused earlier.
        Envelope::decode(&bytes[..]).unwrap_or(honest)
    })
}

#[test]
fn without_the_key_no_frame_changes_anything() {
    let home = Home::of(Mode::Required);
    let before = home.state();
    assert_eq!(before.frames, cluster::FrameCounters::default());
    let frames = frames();
    let recorded = recorded(&frames);
    let message = || any_message(frames.clone(), recorded.clone());
    let first = prop_oneof![8 => any_opening().prop_map(wire::opening_envelope), 1 => message()];
    let session = (
        select(&[Call::Swim, Call::Sync, Call::Keys][..]),
        first,
        proptest::collection::vec(message(), 0..6),
    );
    let mut runner = TestRunner::new(Cases { cases: 512, ..Cases::default() });
    let ran = runner.run(&session, |(call, first, rest)| {
        home.run(home.exchange(call, [vec![first], rest].concat()));
        prop_assert_eq!(&home.state(), &before);
        Ok(())
    });
    if let Err(error) = ran {
        panic!("{error}");
    }
    // The sessions got as far as possible: past the opening, and to each kind of refusal.
    for reason in ["plain", "unknown_key", "seal", "no_shared_key", "version", "cluster", "keys"] {
        assert!(home.rejected(reason) > 0, "no session was refused for {reason}");
    }
}

#[test]
fn the_same_frames_are_accepted_without_encryption() {
    let home = Home::of(Mode::Off);
    let before = home.state();
    let frames = frames();
    let messages: Vec<_> = std::iter::once(wire::opening_envelope(opening()))
        .chain(frames.iter().map(|frame| plain(frame)))
        .collect();
    home.run(home.exchange(Call::Swim, messages));
    let after = home.state();
    assert_ne!(after.members, before.members);
    assert!(after.frames.taken > 0);
}

#[test]
fn each_refusal_is_counted_under_its_reason() {
    let id = ours().id().0;
    let frame = frames().swap_remove(0);
    let open = || wire::opening_envelope(opening());
    let opened = |opening| wire::opening_envelope(opening);
    for (reason, call, messages) in [
        ("version", Call::Swim, vec![opened(Opening { major: 9, ..opening() })]),
        ("cluster", Call::Sync, vec![opened(Opening { cluster: 1, ..opening() })]),
        ("opening", Call::Swim, vec![opened(Opening { node_name: String::new(), ..opening() })]),
        ("opening", Call::Swim, vec![plain(&frame)]),
        ("no_shared_key", Call::Swim, vec![opened(Opening { salt: Bytes::new(), ..opening() })]),
        ("plain", Call::Swim, vec![open(), plain(&frame)]),
        ("unknown_key", Call::Sync, vec![open(), sealed(id + 1, frame.clone())]),
        ("seal", Call::Sync, vec![open(), sealed(id, frame.clone())]),
        ("envelope", Call::Swim, vec![open(), open()]),
        ("message", Call::Swim, vec![open(), plain(&vec![0; MAX_MESSAGE_BYTES + 1])]),
        ("message", Call::Sync, vec![open(), plain(&vec![0; 64 << 20])]),
        ("keys", Call::Keys, vec![open(), sealed(id, frame.clone())]),
    ] {
        let home = Home::of(Mode::Required);
        let before = home.state();
        home.run(home.exchange(call, messages));
        assert_eq!(home.rejected(reason), 1, "{reason}");
        let all: u64 = prometheus::core::Collector::collect(&home.metrics.rejected)
            .iter()
            .flat_map(|family| family.get_metric())
            .map(|metric| metric.get_counter().get_value() as u64)
            .sum();
        assert_eq!(all, 1, "{reason}, and nothing else");
        assert_eq!(home.state(), before, "{reason}");
    }
}

#[test]
fn bytes_that_are_not_http2_are_counted() {
    let home = Home::of(Mode::Off);
    let before = home.state();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let cases: [Vec<u8>; 4] = [
        b"GET / HTTP/1.1\r\nhost: home\r\n\r\n".to_vec(),
        vec![0; 1 << 16],
        [&preface[..], &[0xff; 4096]].concat(),
        [&preface[..], &codec::frame(Kind::Hello, ClusterId::of("smg"), b"x")].concat(),
    ];
    for (number, bytes) in cases.into_iter().enumerate() {
        home.run(async {
            let mut pipe = home.pipe().await;
            // The router may close the connection before all is written.
            let _refused = pipe.write_all(&bytes).await.is_err();
            let mut answer = Vec::new();
            let ended = tokio::time::timeout(SECOND * 20, pipe.read_to_end(&mut answer)).await;
            assert!(ended.is_ok(), "the router hangs up on case {number}");
        });
        assert_eq!(home.rejected("not_http2"), number as u64 + 1, "case {number}");
    }
    assert_eq!(home.state(), before);
}

/// The beginning of HTTP/2, and empty settings.
const GREETING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

/// Whether the router closes a connection within a time.
async fn is_closed_within(pipe: &mut DuplexStream, time: Duration) -> bool {
    let mut answer = Vec::new();
    tokio::time::timeout(time, pipe.read_to_end(&mut answer)).await.is_ok()
}

#[test]
fn a_connection_on_which_no_frame_is_accepted_ends_after_seconds() {
    let home = Home::of(Mode::Required);
    home.run(async {
        let mut pipe = home.pipe().await;
        pipe.write_all(GREETING).await.unwrap();
        assert!(!is_closed_within(&mut pipe, SECOND * 4).await, "it has a few seconds");
        assert!(is_closed_within(&mut pipe, SECOND * 2).await, "and no more");
    });
    assert_eq!(home.rejected("stranger_timeout"), 1);
}

#[test]
fn a_connection_on_which_a_frame_was_accepted_stays() {
    let home = Home::of(Mode::Off);
    let first_frame = frames().swap_remove(0);
    home.run(async {
        let mut client = home.client().await;
        let messages = vec![wire::opening_envelope(opening()), plain(&first_frame)];
        let outbound =
            tokio_stream::StreamExt::chain(tokio_stream::iter(messages), tokio_stream::pending());
        let mut inbound = client.swim(outbound).await.unwrap().into_inner();
        let first = inbound.message().await.unwrap();
        assert!(matches!(first.and_then(|first| first.content), Some(Content::Opening(_))));
        let next = tokio::time::timeout(SECOND * 20, inbound.message()).await;
        assert!(next.is_err(), "the router has ended the stream: {next:?}");
    });
    assert_eq!(home.rejected("stranger_timeout"), 0);
}

#[test]
fn idle_strangers_make_room_for_those_who_come_later() {
    let home = Home::of(Mode::Required);
    home.run(async {
        let mut pipes = Vec::new();
        for _ in 0..200 {
            let mut pipe = home.pipe().await;
            pipe.write_all(GREETING).await.unwrap();
            pipes.push(pipe);
        }
        assert!(is_closed_within(&mut pipes[0], SECOND).await, "the oldest is closed first");
        assert!(!is_closed_within(&mut pipes[199], SECOND / 10).await);
    });
    assert_eq!(home.rejected("strangers"), 200 - 128);
}

#[test]
fn a_router_with_a_key_introduces_itself_to_nobody_without_it() {
    for (mode, is_introduced) in [(Mode::Off, true), (Mode::Required, false)] {
        let home = Home::of(mode);
        let answer = home.run(async { home.client().await.hello(opening()).await });
        assert_eq!(answer.is_ok(), is_introduced, "{answer:?}");
        assert_eq!(home.rejected("hello"), u64::from(!is_introduced));
        if let Err(status) = answer {
            assert!(!status.message().contains("home"), "{status}");
        }
    }
}
