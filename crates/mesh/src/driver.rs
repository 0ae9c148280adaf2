//! The one task that owns a `cluster::Node`: it waits, feeds the node, sends what the node wants sent, and does nothing else.
//!
//! The driver never waits for a peer: it puts frames into bounded queues, and a full queue drops its oldest frame. It reads
//! the clock for the node. It publishes values to the rest of the router: a [`View`], of which readers always see the newest,
//! and events, of which a slow reader misses some. The node decides; the driver decides nothing.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use prometheus::IntCounter;
use smg_cluster::membership::{self, MemberState, Transition};
use smg_cluster::state::StoreId;
use smg_cluster::{Event, Lane, Node, Transmit};
use smg_runtime::clock::Clock;
use smg_types::ids::NodeName;
use smg_types::now::Now;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tracing::{error, info, warn};

use super::link::{Dialler, Link};
use super::metrics::{self, Metrics};
use super::server::Incoming;
use super::wire::Introduction;
use super::{ClientEndpoint, ClusterEvent, ClusterEventKind, Follower, Synced, View};

/// Most membership frames that one turn feeds before it checks the node's timers.
const SWIM_PER_TURN: usize = 64;

/// Most state frames that one turn feeds. Some are large, and a probe must not wait for many of them.
const STATE_PER_TURN: usize = 4;

/// Time between two rounds of housekeeping: metrics, unused links. No round is due while nothing happens and there are no
/// other routers.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// The driver removes a link that carried nothing for this long and leads to no member.
const LINK_UNUSED: Duration = Duration::from_secs(30);

/// Most links at once. Members and join addresses are far fewer.
const MAX_LINKS: usize = 8192;

/// How long the metric `smg_mesh_name_conflict` stays 1 after another router claimed this one's name: long enough to be
/// scraped and to page somebody.
const NAME_CONFLICT_SHOWN: Duration = Duration::from_secs(300);

/// Most samples of how much this router had written, from which the age of an unacknowledged write is computed.
const LAG_SAMPLES: usize = 300;

/// What the rest of the router asks of the driver.
pub(super) enum Command {
    /// Other routers may be at these addresses.
    Join(Vec<SocketAddr>),
    /// Other routers reach this one at another address than it assumed.
    Readdress(SocketAddr),
    /// Announce to all members that this router will leave.
    Leave,
    /// Leave. The driver answers when it has sent everything, or gives up after half a second.
    Depart(oneshot::Sender<()>),
    /// Read the node or write to it.
    Visit(Visit),
}

/// A closure that reads the node or writes to it.
pub(super) type Visit = Box<dyn FnOnce(&mut Node, &Synced, Now) + Send>;

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Join(_) => "Join",
            Self::Readdress(_) => "Readdress",
            Self::Leave => "Leave",
            Self::Depart(_) => "Depart",
            Self::Visit(_) => "Visit",
        })
    }
}

/// The channels from which the driver feeds the node.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) swim: mpsc::Receiver<Incoming>,
    pub(super) state: mpsc::Receiver<Incoming>,
    pub(super) commands: mpsc::Receiver<Command>,
}

/// The channels by which the driver publishes what the node knows.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) events: broadcast::Sender<Arc<ClusterEvent>>,
    pub(super) me: Arc<ArcSwap<Introduction>>,
}

/// The task that owns the node.
#[derive(Debug)]
pub(super) struct Driver {
    node: Node,
    clock: Clock,
    inputs: Inputs,
    outputs: Outputs,
    dialler: Arc<Dialler>,
    metrics: Metrics,
    /// Applies changes of the state to the rest of the router, before the node acknowledges them.
    follower: Option<Box<dyn Follower>>,
    /// Where clients reach this router.
    client_endpoint: ClientEndpoint,
    /// The version of the member list that the follower has seen.
    followed_version: u64,
    links: BTreeMap<SocketAddr, Link>,
    /// Counters of sent frames, by kind, so that a frame costs no look-up by label.
    sent: BTreeMap<&'static str, IntCounter>,
    /// What the published view was made from: the version of the member list, and whether the state was warm.
    published: (u64, bool),
    /// How many events were published.
    event_count: u64,
    /// When the next round of housekeeping is due, by `Clock::mono`. `None`: after the next turn.
    housekeeping_at: Option<Duration>,
    /// When the last round of housekeeping took place, by `Clock::mono`.
    housekept_at: Duration,
    synced: Synced,
    /// Digests and deltas received when `synced` was updated last.
    state_frames: u64,
    /// How many writes this router had made, and when, oldest first.
    written: VecDeque<(Duration, u64)>,
    /// The peers that have metrics.
    measured: BTreeSet<NodeName>,
    /// When another router last claimed this one's name, by `Clock::mono`.
    contested: Option<Duration>,
    /// Answered when everything is sent.
    departing: Option<oneshot::Sender<()>>,
}

impl Driver {
    pub(super) fn new(
        mut node: Node,
        clock: Clock,
        inputs: Inputs,
        outputs: Outputs,
        dialler: Arc<Dialler>,
        follower: Option<Box<dyn Follower>>,
        client_endpoint: ClientEndpoint,
    ) -> Self {
        if follower.is_some() {
            node.track_changed_keys();
        }
        let metrics = dialler.metrics.clone();
        Self {
            node,
            clock,
            inputs,
            outputs,
            dialler,
            metrics,
            follower,
            client_endpoint,
            followed_version: u64::MAX,
            links: BTreeMap::new(),
            sent: BTreeMap::new(),
            published: (0, false),
            event_count: 0,
            housekeeping_at: Some(Duration::ZERO),
            housekept_at: Duration::ZERO,
            synced: Synced::new(),
            state_frames: 0,
            written: VecDeque::new(),
            measured: BTreeSet::new(),
            contested: None,
            departing: None,
        }
    }

    /// Runs until the node has departed, or until nobody holds a handle any more.
    pub(super) async fn run(mut self) {
        self.publish_view();
        loop {
            self.wait().await;
            let began = self.clock.mono();
            let goes_on = self.feed();
            self.drain();
            self.metrics.turn.observe(self.clock.mono().saturating_sub(began).as_secs_f64());
            if !goes_on {
                break;
            }
        }
        self.flush().await;
    }

    /// Waits until a command, a frame or a timer is due.
    async fn wait(&mut self) {
        let now = self.clock.mono();
        let due = self.node.next_deadline().into_iter().chain(self.housekeeping_at).min();
        if due.is_some_and(|at| at <= now)
            || !self.inputs.swim.is_empty()
            || !self.inputs.state.is_empty()
            || !self.inputs.commands.is_empty()
        {
            // However much is waiting, the tasks of the sockets must run too.
            tokio::task::yield_now().await;
            return;
        }
        let clock = self.clock;
        let timer = async {
            match due {
                Some(at) => tokio::time::sleep_until(clock.instant_at(at)).await,
                None => std::future::pending().await,
            }
        };
        let Inputs { swim, state, commands } = &mut self.inputs;
        let mut first = FirstInput::default();
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => first.command = Some(command),
                // Nobody holds a handle any more: end without a goodbye, as a process that crashes does.
                None => commands.close(),
            },
            // These two channels are closed if the node has no network.
            Some(frame) = swim.recv() => first.swim = Some(frame),
            Some(frame) = state.recv() => first.state = Some(frame),
            () = timer => {}
        }
        self.feed_first(first);
    }

    /// Feeds what `wait` took out of a channel.
    fn feed_first(&mut self, first: FirstInput) {
        if let Some(command) = first.command {
            self.execute(command);
        }
        for incoming in [first.swim, first.state].into_iter().flatten() {
            self.feed_frame(&incoming);
        }
    }

    /// Feeds what is waiting, within bounds. Returns whether the driver goes on.
    fn feed(&mut self) -> bool {
        while let Ok(command) = self.inputs.commands.try_recv() {
            self.execute(command);
        }
        for _ in 0..SWIM_PER_TURN {
            let Ok(incoming) = self.inputs.swim.try_recv() else { break };
            self.feed_frame(&incoming);
        }
        if self.node.next_deadline().is_some_and(|at| at <= self.clock.mono()) {
            self.node.handle_timeout(self.clock.now());
        }
        for _ in 0..STATE_PER_TURN {
            let Ok(incoming) = self.inputs.state.try_recv() else { break };
            self.feed_frame(&incoming);
        }
        self.departing.is_none() && !self.inputs.commands.is_closed()
    }

    fn feed_frame(&mut self, incoming: &Incoming) {
        self.node.handle_frame(self.clock.now(), incoming.from, &incoming.frame);
    }

    fn execute(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Join(addresses) => self.node.join(now, &addresses),
            Command::Readdress(address) => {
                self.node.readdress(now, address);
                self.publish_view();
            }
            Command::Leave => self.node.leave(now),
            Command::Depart(done) => {
                self.node.depart(now);
                self.departing = Some(done);
            }
            Command::Visit(visit) => {
                visit(&mut self.node, &self.synced, now);
                // The next visit finds its writes applied to the rest of the router.
                self.update_follower();
            }
        }
    }

    /// Lets the follower apply what has changed.
    fn update_follower(&mut self) {
        let Some(follower) = &mut self.follower else { return };
        let members = self.node.membership().version();
        let changed = self.node.take_changed_keys();
        if !changed.is_empty() || members != self.followed_version {
            let others = members != std::mem::replace(&mut self.followed_version, members);
            follower.apply(&mut self.node, &changed, others, self.clock.now());
        }
    }

    /// Sends the node's frames, publishes its events, and does the housekeeping if it is due.
    fn drain(&mut self) {
        self.update_follower();
        while let Some(transmit) = self.node.poll_transmit() {
            self.send(transmit);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Membership(event) => self.publish_event(event),
                Event::Changed(changes) => {
                    let now = self.clock.now().wall;
                    for store in StoreId::ALL.into_iter().filter(|store| changes.touches(*store)) {
                        self.synced.insert(store, now);
                    }
                }
            }
        }
        if self.node.membership().version() != self.published.0
            || self.node.replication().is_warm() != self.published.1
        {
            self.publish_view();
        }
        let now = self.clock.mono();
        match self.housekeeping_at {
            Some(at) if at <= now => {
                self.housekeep(now);
                self.housekept_at = now;
                // Connections and ages change without a turn of this loop.
                let has_others = !self.links.is_empty() || !self.measured.is_empty();
                self.housekeeping_at =
                    (has_others || self.contested.is_some()).then(|| now + HOUSEKEEPING_INTERVAL);
            }
            Some(_) => {}
            None => self.housekeeping_at = Some(now.max(self.housekept_at + HOUSEKEEPING_INTERVAL)),
        }
    }

    fn send(&mut self, transmit: Transmit) {
        let Transmit { to, lane, kind, bytes, .. } = transmit;
        if !self.links.contains_key(&to) && self.links.len() >= MAX_LINKS {
            self.metrics.dropped("links");
            return;
        }
        let link = self.links.entry(to).or_insert_with(|| Link::new(to, &self.dialler));
        link.used = self.clock.mono();
        let dropped = link.send(lane, bytes.into());
        if dropped > 0 {
            let queue = match lane {
                Lane::Swim => "outbox_swim",
                Lane::State => "outbox_state",
            };
            self.metrics.dropped.with_label_values(&[queue]).inc_by(dropped);
        }
        let metrics = &self.metrics;
        self.sent
            .entry(kind)
            .or_insert_with(|| metrics.gossip.with_label_values(&["sent", kind]))
            .inc();
    }

    fn publish_event(&mut self, event: membership::Event) {
        let kind = match event {
            membership::Event::Member(transition) => {
                self.record_transition(&transition);
                let address = self
                    .node
                    .members()
                    .find(|member| member.node == transition.node)
                    .map(|member| member.address);
                ClusterEventKind::Member { transition, address }
            }
            membership::Event::OwnState { from, to } => {
                info!(%from, %to, "this router's state changed");
                ClusterEventKind::Me { from, to }
            }
            membership::Event::Renewed(identity) => {
                warn!(%identity, "another router declared this one DOWN while it was alive; refuted");
                ClusterEventKind::Renewed
            }
            membership::Event::NewGeneration { was, is } => {
                warn!(
                    %was, %is,
                    "other routers know a later generation of this router: it goes on under a new generation"
                );
                ClusterEventKind::Reborn { is }
            }
            membership::Event::Refused(reason) => {
                error!(%reason, "this router can't join");
                ClusterEventKind::Refused(reason)
            }
            membership::Event::NameContested(identity) => {
                warn!(by = %identity, "another live router claims this one's name");
                self.contested = Some(self.clock.mono());
                ClusterEventKind::NameContested(identity)
            }
        };
        self.event_count += 1;
        let event = ClusterEvent { number: self.event_count, at: self.clock.now().wall, kind };
        // There may be no subscriber.
        let _no_subscriber = self.outputs.events.send(Arc::new(event)).is_err();
    }

    fn record_transition(&self, transition: &Transition) {
        let from = transition.from.map_or("NONE", MemberState::as_str);
        let to = transition.to.map_or("GONE", MemberState::as_str);
        info!(peer = %transition.node, from, to, "a router's state changed");
        let name = transition.node.name.as_str();
        self.metrics.transitions.with_label_values(&[name, from, to]).inc();
    }

    /// Publishes the members as they are now.
    fn publish_view(&mut self) {
        self.published = (self.node.membership().version(), self.node.replication().is_warm());
        let me = self.node.me();
        let before = self.outputs.me.load_full();
        if before.node != me.node || before.address != me.address {
            let introduction = Introduction {
                node: me.node.clone(),
                address: me.address,
                client_url: self.client_endpoint.url(me.address.ip()),
                ..(*before).clone()
            };
            self.outputs.me.store(Arc::new(introduction));
        }
        let view = View {
            me,
            members: self.node.members().collect(),
            refused: self.node.membership().refused().cloned(),
            version: self.published.0,
            warm: self.published.1,
        };
        self.measure_view(&view);
        self.outputs.view.send_replace(Arc::new(view));
    }

    fn measure_view(&mut self, view: &View) {
        let listed: BTreeSet<NodeName> =
            view.members.iter().map(|member| member.node.name.clone()).collect();
        for name in self.measured.difference(&listed) {
            self.metrics.forget(name.as_str());
        }
        for member in &view.members {
            let status = &self.metrics.peer_status;
            let name = &[member.node.name.as_str()];
            match member.state {
                MemberState::Alive | MemberState::Suspected => {
                    status.with_label_values(name).set(1);
                }
                MemberState::Down => status.with_label_values(name).set(0),
                // It joins or leaves: nobody should be paged for it.
                MemberState::Init | MemberState::Leaving => {
                    let _absent = status.remove_label_values(name).is_err();
                }
            }
        }
        self.measured = listed;
        metrics::set(&self.metrics.peers, view.present().count());
        for state in MemberState::ALL {
            let is = i64::from(view.me.state == state);
            self.metrics.node_state.with_label_values(&[state.as_str()]).set(is);
        }
    }

    /// Removes unused links and updates the metrics that are levels.
    fn housekeep(&mut self, now: Duration) {
        let members: BTreeSet<SocketAddr> =
            self.node.members().map(|member| member.address).collect();
        self.links
            .retain(|to, link| members.contains(to) || now.saturating_sub(link.used) < LINK_UNUSED);
        self.measure_peers(now);
        self.measure_state();
        self.measure_membership();
    }

    fn measure_peers(&mut self, now: Duration) {
        let replication = self.node.replication();
        let me = replication.me();
        let written: u64 = StoreId::ALL
            .into_iter()
            .flat_map(|store| self.node.state().versions(store))
            .filter(|(writer, _)| *writer == me)
            .map(|(_, version)| version)
            .sum();
        if self.written.back().is_none_or(|(_, last)| *last != written) {
            self.written.push_back((now, written));
            if self.written.len() > LAG_SAMPLES {
                self.written.pop_front();
            }
        }
        for member in self.node.members() {
            let name = [member.node.name.as_str()];
            if let Some(rtt) = member.rtt {
                metrics::set_time(&self.metrics.probe_rtt.with_label_values(&name), rtt);
            }
            if let Some(ahead) = replication.wall_ahead_ms(&member.node.name) {
                #[expect(clippy::cast_precision_loss, reason = "a metric")]
                self.metrics.clock_skew.with_label_values(&name).set(ahead as f64 / 1000.0);
            }
            if let Some(behind) = replication.lag(&member.node.name) {
                let confirmed = written.saturating_sub(behind);
                let since = self.written.iter().find(|(_, total)| *total > confirmed);
                let age = since.map_or(Duration::ZERO, |(at, _)| now.saturating_sub(*at));
                metrics::set_time(&self.metrics.lag.with_label_values(&name), age);
            }
        }
        let links = self.dialler.board.all();
        for lane in [Lane::Swim, Lane::State] {
            let name = metrics::lane_name(lane);
            let count = |up: bool| {
                links.values().filter_map(|l| l.lane(lane)).filter(|l| l.up == up).count()
            };
            let connections = &self.metrics.connections;
            metrics::set(&connections.with_label_values(&[name, "up"]), count(true));
            metrics::set(&connections.with_label_values(&[name, "down"]), count(false));
        }
    }

    fn measure_state(&mut self) {
        for time in self.node.take_confirmation_times() {
            self.metrics.sync_latency.observe(time.as_secs_f64());
        }
        let state = self.node.state();
        let counters = self.node.replication().counters();
        for store in StoreId::in_use() {
            let (name, sizes) = (store.name(), state.sizes(store));
            let metrics = &self.metrics;
            metrics::set(&metrics.store_entries.with_label_values(&[name]), sizes.entries);
            metrics::set(&metrics.store_bytes.with_label_values(&[name]), sizes.bytes);
            metrics::set(&metrics.tombstones.with_label_values(&[name]), sizes.tombstones);
            // A float holds 53 bits exactly.
            #[expect(clippy::cast_precision_loss, reason = "48 bits fit")]
            let digest = (state.fingerprint(store) >> 16) as f64;
            metrics.store_digest.with_label_values(&[name]).set(digest);
            for (direction, bytes) in [
                ("sent", counters.sent_bytes[store.index()]),
                ("received", counters.received_bytes[store.index()]),
            ] {
                metrics::raise(&metrics.delta_bytes.with_label_values(&[name, direction]), bytes);
            }
        }
        for (kind, count) in [
            ("pull", counters.pulls),
            ("retry", counters.retries),
            ("gap", counters.gaps),
            ("adopt", counters.adopted),
            ("retire", counters.retired),
            ("collect", counters.collected),
            ("quarantine", counters.quarantined_rows),
        ] {
            metrics::raise(&self.metrics.sync_operations.with_label_values(&[kind]), count);
        }
        metrics::raise(&self.metrics.repairs, counters.repaired);
        let snapshots = &self.metrics.snapshots;
        metrics::raise(&snapshots.with_label_values(&["received"]), counters.snapshots_joined);
        metrics::raise(&snapshots.with_label_values(&["sent"]), counters.snapshot_chunks_served);
        for (reason, count) in [
            ("row", counters.refused_rows),
            ("contradiction", counters.refused_messages),
            ("unknown_store", counters.unknown_stores),
        ] {
            metrics::raise(&self.metrics.rejected.with_label_values(&[reason]), count);
        }
        let outbox = self.metrics.dropped.with_label_values(&["replication"]);
        metrics::raise(&outbox, counters.dropped_messages);
        // Each digest and each delta tells the sender's versions of every store.
        let received = self.node.received();
        let received: u64 = ["digest", "delta"].iter().filter_map(|kind| received.get(kind)).sum();
        if received != self.state_frames {
            self.state_frames = received;
            let wall = self.clock.now().wall;
            self.synced.extend(StoreId::ALL.map(|store| (store, wall)));
        }
    }

    fn measure_membership(&mut self) {
        let counters = self.node.membership().counters();
        metrics::raise(&self.metrics.refutations, counters.renewals);
        metrics::raise(&self.metrics.failed_probes, counters.failed_probes);
        metrics::raise(&self.metrics.stalls, counters.stalls);
        let frames = self.node.frames();
        for (reason, count) in [
            ("cluster", counters.foreign_cluster),
            ("packet", counters.refused_packets),
            ("stray", counters.stray_messages),
            ("kind", frames.unknown_kind),
            ("version", frames.unknown_version),
            ("corrupted", frames.corrupted),
            ("payload", frames.undecodable),
            ("misdirected", frames.misdirected),
        ] {
            metrics::raise(&self.metrics.rejected.with_label_values(&[reason]), count);
        }
        for (queue, count) in
            [("membership", counters.dropped_frames), ("events", frames.dropped_events)]
        {
            metrics::raise(&self.metrics.dropped.with_label_values(&[queue]), count);
        }
        for (kind, count) in self.node.received() {
            let counter = self.metrics.gossip.with_label_values(&["received", kind]);
            metrics::raise(&counter, *count);
        }
        let contested = self.node.membership().refused().is_some_and(|reason| match reason {
            membership::RefusalReason::DuplicateName(_) => true,
            membership::RefusalReason::ForeignCluster(_) => false,
        });
        let now = self.clock.mono();
        self.contested = self.contested.filter(|at| now.saturating_sub(*at) < NAME_CONFLICT_SHOWN);
        self.metrics.name_conflict.set(i64::from(contested || self.contested.is_some()));
    }

    /// Sends what is queued, as far as the peers receive it within half a second.
    async fn flush(mut self) {
        self.drain();
        for _ in 0..FLUSH_POLLS {
            if self.links.values().all(Link::is_flushed) {
                break;
            }
            tokio::time::sleep(FLUSH_POLL).await;
        }
        if !self.links.is_empty() {
            // The links took the last frames from their queues: give them a moment to write.
            tokio::time::sleep(FLUSH_POLL).await;
        }
        if let Some(done) = self.departing.take() {
            // The asker may have given up.
            let _gave_up = done.send(()).is_err();
        }
    }
}

/// Time between two checks of the queues while flushing, and the most checks: half a second in all.
const FLUSH_POLL: Duration = Duration::from_millis(10);
const FLUSH_POLLS: usize = 50;

/// What ended the wait.
#[derive(Debug, Default)]
struct FirstInput {
    command: Option<Command>,
    swim: Option<Incoming>,
    state: Option<Incoming>,
}
