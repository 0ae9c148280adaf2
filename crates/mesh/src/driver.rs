//! The one task that owns a `cluster::Node`: it waits for input, feeds the node, and sends the node's frames.
//!
//! The driver never waits for a peer: it puts frames into bounded queues, and a full queue drops its oldest frame. It
//! reads the clock for the node. It publishes values to the rest of the router: a [`View`], of which readers always get
//! the newest, and events, of which a slow reader misses some. The node makes all decisions. `measure` sets the gauges.

mod leases;
mod measure;
mod refused_log;
mod saving;

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

use crate::config::ClientEndpoint;
use crate::driver::refused_log::RefusedLog;
use crate::durability::DiskHandle;
use crate::lease_view::{LeaseView, PublishedLeases};
use crate::link::{Dialler, Link};
use crate::metrics::Metrics;
use crate::service::Incoming;
use crate::view::{ClusterEvent, ClusterEventKind, Follower, Synced, View};
use crate::wire::Introduction;

/// The most membership frames that one turn feeds before it checks the node's timers.
const SWIM_PER_TURN: usize = 64;

/// The most state frames that one turn feeds. Some are large, and a probe must not wait for many of them.
const STATE_PER_TURN: usize = 4;

/// The time between two rounds of housekeeping, for metrics and unused links. No round is due while nothing happens and
/// there are no other routers.
const HOUSEKEEPING_INTERVAL: Duration = Duration::from_secs(1);

/// The most links at the same time. Members and join addresses are far fewer.
const MAX_LINKS: usize = 8192;

/// A request of the rest of the router to the driver.
pub(super) enum Command {
    /// Join through other routers at these addresses.
    Join(Vec<SocketAddr>),
    /// Advertise this address from now on.
    Readdress(SocketAddr),
    /// Announce to all members that this router will leave.
    Leave,
    /// Leave the cluster. The driver answers when it has sent everything, or after half a second.
    Depart(oneshot::Sender<()>),
    /// Run this closure on the node.
    Visit(Visit),
}

/// A closure that reads or writes the node.
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

/// The channels through which the driver publishes the state of the node.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) events: broadcast::Sender<Arc<ClusterEvent>>,
    pub(super) leases: watch::Sender<Arc<LeaseView>>,
    pub(super) me: Arc<ArcSwap<Introduction>>,
    /// Takes what must be on disk.
    pub(super) disk: Option<DiskHandle>,
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
    /// The address of this router for clients.
    client_endpoint: ClientEndpoint,
    /// The version of the member list that the follower has applied.
    followed_version: u64,
    links: BTreeMap<SocketAddr, Link>,
    /// The counters of sent frames by kind, so that a frame costs no look-up by label.
    sent: BTreeMap<&'static str, IntCounter>,
    /// The properties of the published view: the version of the member list, and whether the state was warm.
    published: (u64, bool),
    /// The number of events that were published.
    event_count: u64,
    /// `Clock::mono` of the next round of housekeeping. `None` means after the next turn.
    housekeeping_at: Option<Duration>,
    /// `Clock::mono` of the last round of housekeeping.
    housekept_at: Duration,
    synced: Synced,
    /// The number of digests and deltas that were received when `synced` was updated last.
    state_frames: u64,
    /// The number of writes of this router at several times (`Clock::mono`), the oldest first.
    written: VecDeque<(Duration, u64)>,
    /// `Clock::mono` when the positions of all logs were last handed to the disk.
    saved_positions_at: Duration,
    /// The peers that have metrics.
    measured: BTreeSet<NodeName>,
    /// `Clock::mono` when another router last claimed this one's name.
    contested: Option<Duration>,
    /// When input of other routers that contradicts the clock or a limit was last logged.
    refused_log: RefusedLog,
    leases: PublishedLeases,
    /// The sender that the driver answers when everything is sent.
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
            saved_positions_at: Duration::ZERO,
            measured: BTreeSet::new(),
            contested: None,
            refused_log: RefusedLog::default(),
            leases: PublishedLeases::new(),
            departing: None,
        }
    }

    /// Runs until the node has departed, or until all handles are dropped.
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
        // The future is large, because it holds the changed keys of every store.
        Box::pin(self.flush()).await;
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
            // However much is waiting, the tasks of the sockets must run, too.
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
                // All handles are dropped: end without leaving, as a process that crashes does.
                None => commands.close(),
            },
            // These two channels are closed if the node has no network.
            Some(frame) = swim.recv() => first.swim = Some(frame),
            Some(frame) = state.recv() => first.state = Some(frame),
            () = timer => {}
        }
        self.feed_first(first);
    }

    /// Feeds the input that `wait` took from a channel.
    fn feed_first(&mut self, first: FirstInput) {
        if let Some(command) = first.command {
            self.execute(command);
        }
        for incoming in [first.swim, first.state].into_iter().flatten() {
            self.feed_frame(&incoming);
        }
    }

    /// Feeds the waiting inputs, within bounds. Returns whether the driver continues.
    fn feed(&mut self) -> bool {
        while let Ok(command) = self.inputs.commands.try_recv() {
            self.execute(command);
        }
        for _ in 0..SWIM_PER_TURN {
            let Ok(incoming) = self.inputs.swim.try_recv() else { break };
            self.feed_frame(&incoming);
        }
        if self.node.next_deadline().is_some_and(|at| at <= self.clock.mono()) {
            let now = self.now();
            self.node.handle_timeout(now);
        }
        for _ in 0..STATE_PER_TURN {
            let Ok(incoming) = self.inputs.state.try_recv() else { break };
            self.feed_frame(&incoming);
        }
        self.departing.is_none() && !self.inputs.commands.is_closed()
    }

    fn feed_frame(&mut self, incoming: &Incoming) {
        let now = self.now();
        self.node.handle_frame(now, incoming.from, &incoming.frame);
    }

    /// The time of the cluster.
    fn now(&mut self) -> Now {
        self.node.set_suspended(self.clock.suspended());
        self.node.cluster_time(self.clock.now())
    }

    fn execute(&mut self, command: Command) {
        let now = self.now();
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
                // The next visit must find its writes applied to the rest of the router, and handed to the disk.
                self.update_follower();
                self.save();
            }
        }
    }

    /// Makes the follower apply the changes.
    fn update_follower(&mut self) {
        let now = self.now();
        let Some(follower) = &mut self.follower else { return };
        let members = self.node.membership().version();
        let changed = self.node.take_changed_keys();
        if !changed.is_empty() || members != self.followed_version {
            let others = members != std::mem::replace(&mut self.followed_version, members);
            follower.apply(&mut self.node, &changed, others, now);
        }
    }

    /// Sends the node's frames, publishes its events, and does the housekeeping if it is due.
    fn drain(&mut self) {
        self.update_follower();
        self.save();
        self.publish_leases();
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
                info!(%from, %to, "this router's membership state changed");
                ClusterEventKind::Me { from, to }
            }
            membership::Event::Renewed(identity) => {
                warn!(%identity, "another router declared this one DOWN while it was alive; it has refuted that");
                ClusterEventKind::Renewed
            }
            membership::Event::NewGeneration { was, is } => {
                warn!(
                    %was, %is,
                    "other routers know a later generation of this router: it continues under a new generation"
                );
                ClusterEventKind::Reborn { is }
            }
            membership::Event::Refused(reason) => {
                error!(%reason, "other routers refuse this one");
                ClusterEventKind::Refused(reason)
            }
            membership::Event::NameContested(identity) => {
                warn!(by = %identity, "another live router uses this one's name");
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
        info!(peer = %transition.node, from, to, "the membership state of a router changed");
        let name = transition.node.name.as_str();
        self.metrics.transitions.with_label_values(&[name, from, to]).inc();
    }

    /// Publishes the current members.
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

    /// Sends the queued frames, as far as the peers receive them within half a second.
    async fn flush(mut self) {
        self.drain();
        for _ in 0..FLUSH_POLLS {
            if self.links.values().all(Link::is_flushed) {
                break;
            }
            tokio::time::sleep(FLUSH_POLL).await;
        }
        if !self.links.is_empty() {
            // The links have taken the last frames from their queues and need a moment to write them.
            tokio::time::sleep(FLUSH_POLL).await;
        }
        if let Some(done) = self.departing.take() {
            // The caller may have timed out.
            let _timed_out = done.send(()).is_err();
        }
    }
}

/// The time between two checks of the queues while flushing, and the most checks: half a second in all.
const FLUSH_POLL: Duration = Duration::from_millis(10);
const FLUSH_POLLS: usize = 50;

/// The input that ended the wait.
#[derive(Debug, Default)]
struct FirstInput {
    command: Option<Command>,
    swim: Option<Incoming>,
    state: Option<Incoming>,
}
