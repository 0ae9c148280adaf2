//! The one task that owns a `cluster::Node`: wait, feed, drain, and nothing else.
//!
//! It never waits for a peer: frames go into bounded queues, and a full one drops its oldest. It asks the clock, hands
//! chance in, and tells the rest of the router by values: a [`View`] that is always the newest whole, and happenings that
//! may be missed by who is slow. What it needs to decide is decided in `cluster`.

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
use super::{Clients, Follower, Happening, Synced, View, What};

/// Membership frames fed in one turn before timers are looked at again.
const SWIM_PER_TURN: usize = 64;

/// State frames fed in one turn: some are large, and a probe must not wait for many of them.
const STATE_PER_TURN: usize = 4;

/// Time between two looks at everything: metrics, links that nobody uses any more. None is due while nothing happens and
/// there are no other routers.
const LOOK: Duration = Duration::from_secs(1);

/// A link that carried nothing for this long, to an address where no member is, is taken down.
const UNUSED: Duration = Duration::from_secs(30);

/// Links at once: members and join addresses are far fewer.
const MAX_LINKS: usize = 8192;

/// How long a claim to this router's name is shown: longer than it takes to be scraped and to page somebody.
const CONTEST_SHOWN: Duration = Duration::from_secs(300);

/// How often what was written is noted, to tell how old an unconfirmed write is.
const LAG_SAMPLES: usize = 300;

/// What can be asked of the driver.
pub(super) enum Command {
    /// Where others may be.
    Join(Vec<SocketAddr>),
    /// The address at which others reach this router turned out to be another.
    Readdress(SocketAddr),
    /// Tell everybody that this router will go.
    Leave,
    /// Go; answered when everything is sent, or could not be.
    Depart(oneshot::Sender<()>),
    /// Look at the node, or write to it.
    Visit(Visit),
}

/// A look at the node, or a write to it.
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

/// What the driver is fed by.
#[derive(Debug)]
pub(super) struct Inputs {
    pub(super) swim: mpsc::Receiver<Incoming>,
    pub(super) state: mpsc::Receiver<Incoming>,
    pub(super) commands: mpsc::Receiver<Command>,
}

/// What the driver tells.
#[derive(Debug)]
pub(super) struct Outputs {
    pub(super) view: watch::Sender<Arc<View>>,
    pub(super) happenings: broadcast::Sender<Arc<Happening>>,
    pub(super) me: Arc<ArcSwap<Introduction>>,
}

/// The driver.
#[derive(Debug)]
pub(super) struct Driver {
    node: Node,
    clock: Clock,
    inputs: Inputs,
    outputs: Outputs,
    dialler: Arc<Dialler>,
    metrics: Metrics,
    /// Who keeps a picture of the state in step; told before anything is said to have been applied.
    follower: Option<Box<dyn Follower>>,
    /// How clients reach this router.
    clients: Clients,
    /// The members that the follower has seen.
    followed: u64,
    links: BTreeMap<SocketAddr, Link>,
    /// Counters of what is sent, by kind, so that a frame costs no look-up by label.
    sent: BTreeMap<&'static str, IntCounter>,
    /// What the view was made from: the members' version, and whether the state was warm.
    shown: (u64, bool),
    happened: u64,
    /// When everything is looked at next.
    look_at: Option<Duration>,
    /// When everything was looked at last.
    looked_at: Duration,
    synced: Synced,
    state_frames: u64,
    /// How many writes this router had made, and when: oldest first.
    written: VecDeque<(Duration, u64)>,
    /// Peers that metrics speak of.
    measured: BTreeSet<NodeName>,
    /// `Clock::mono` when another router last claimed this one's name.
    contested: Option<Duration>,
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
        clients: Clients,
    ) -> Self {
        if follower.is_some() {
            node.follow();
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
            clients,
            followed: u64::MAX,
            links: BTreeMap::new(),
            sent: BTreeMap::new(),
            shown: (0, false),
            happened: 0,
            look_at: Some(Duration::ZERO),
            looked_at: Duration::ZERO,
            synced: Synced::new(),
            state_frames: 0,
            written: VecDeque::new(),
            measured: BTreeSet::new(),
            contested: None,
            departing: None,
        }
    }

    /// Runs until the node has departed, or everybody who could ask it anything is gone.
    pub(super) async fn run(mut self) {
        self.show();
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

    /// Waits until there is something to do, and does none of it.
    async fn wait(&mut self) {
        let now = self.clock.mono();
        let due = self.node.next_deadline().into_iter().chain(self.look_at).min();
        if due.is_some_and(|at| at <= now)
            || !self.inputs.swim.is_empty()
            || !self.inputs.state.is_empty()
            || !self.inputs.commands.is_empty()
        {
            // Whatever is ready, the sockets get their turn too.
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
        let mut first = First::default();
        tokio::select! {
            command = commands.recv() => match command {
                Some(command) => first.command = Some(command),
                // Nobody is left who could ask: end without a word, as a process that dies does.
                None => commands.close(),
            },
            // Closed in a node without a network.
            Some(frame) = swim.recv() => first.swim = Some(frame),
            Some(frame) = state.recv() => first.state = Some(frame),
            () = timer => {}
        }
        self.feed_first(first);
    }

    /// What `wait` had to take out of a channel to see that something is there.
    fn feed_first(&mut self, first: First) {
        if let Some(command) = first.command {
            self.obey(command);
        }
        for incoming in [first.swim, first.state].into_iter().flatten() {
            self.take(&incoming);
        }
    }

    /// Feeds what is there, within bounds; whether to go on.
    fn feed(&mut self) -> bool {
        while let Ok(command) = self.inputs.commands.try_recv() {
            self.obey(command);
        }
        for _ in 0..SWIM_PER_TURN {
            let Ok(incoming) = self.inputs.swim.try_recv() else { break };
            self.take(&incoming);
        }
        if self.node.next_deadline().is_some_and(|at| at <= self.clock.mono()) {
            self.node.handle_timeout(self.clock.now());
        }
        for _ in 0..STATE_PER_TURN {
            let Ok(incoming) = self.inputs.state.try_recv() else { break };
            self.take(&incoming);
        }
        self.departing.is_none() && !self.inputs.commands.is_closed()
    }

    fn take(&mut self, incoming: &Incoming) {
        self.node.handle_frame(self.clock.now(), incoming.from, &incoming.frame);
    }

    fn obey(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Join(addresses) => self.node.join(now, &addresses),
            Command::Readdress(address) => {
                self.node.readdress(now, address);
                self.show();
            }
            Command::Leave => self.node.leave(now),
            Command::Depart(done) => {
                self.node.depart(now);
                self.departing = Some(done);
            }
            Command::Visit(visit) => {
                visit(&mut self.node, &self.synced, now);
                // So whoever asks again finds what was written.
                self.follow();
            }
        }
    }

    /// Shows the follower what has changed.
    fn follow(&mut self) {
        let Some(follower) = &mut self.follower else { return };
        let members = self.node.membership().version();
        let news = self.node.take_news();
        if !news.is_empty() || members != self.followed {
            let others = members != std::mem::replace(&mut self.followed, members);
            follower.follow(&mut self.node, &news, others, self.clock.now());
        }
    }

    /// Hands out everything that the node wants sent and told.
    fn drain(&mut self) {
        self.follow();
        while let Some(transmit) = self.node.poll_transmit() {
            self.send(transmit);
        }
        while let Some(event) = self.node.poll_event() {
            match event {
                Event::Membership(event) => self.tell(event),
                Event::Changed(changes) => {
                    let now = self.clock.now().wall;
                    for store in StoreId::ALL.into_iter().filter(|store| changes.touches(*store)) {
                        self.synced.insert(store, now);
                    }
                }
            }
        }
        if self.node.membership().version() != self.shown.0
            || self.node.replication().is_warm() != self.shown.1
        {
            self.show();
        }
        let now = self.clock.mono();
        match self.look_at {
            Some(at) if at <= now => {
                self.look(now);
                self.looked_at = now;
                // What changes without a turn of this loop: connections, ages.
                let has_others = !self.links.is_empty() || !self.measured.is_empty();
                self.look_at = (has_others || self.contested.is_some()).then(|| now + LOOK);
            }
            Some(_) => {}
            None => self.look_at = Some(now.max(self.looked_at + LOOK)),
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

    fn tell(&mut self, event: membership::Event) {
        let what = match event {
            membership::Event::Member(transition) => {
                self.note(&transition);
                let address = self
                    .node
                    .members()
                    .find(|member| member.node == transition.node)
                    .map(|member| member.address);
                What::Member { transition, address }
            }
            membership::Event::OwnState { from, to } => {
                info!(%from, %to, "this router's state changed");
                What::Me { from, to }
            }
            membership::Event::Renewed(identity) => {
                warn!(%identity, "declared DOWN while alive, refuted");
                What::Renewed
            }
            membership::Event::NewGeneration { was, is } => {
                warn!(%was, %is, "others know a later life of this router: going on as another writer");
                What::Reborn { is }
            }
            membership::Event::Refused(reason) => {
                error!(%reason, "this router can't join");
                What::Refused(reason)
            }
            membership::Event::NameContested(identity) => {
                warn!(by = %identity, "another live router claims this one's name");
                self.contested = Some(self.clock.mono());
                What::NameContested(identity)
            }
        };
        self.happened += 1;
        let happening = Happening { number: self.happened, at: self.clock.now().wall, what };
        // Nobody may be listening.
        let _unheard = self.outputs.happenings.send(Arc::new(happening)).is_err();
    }

    fn note(&self, transition: &Transition) {
        let from = transition.from.map_or("NONE", MemberState::as_str);
        let to = transition.to.map_or("GONE", MemberState::as_str);
        info!(peer = %transition.node, from, to, "a router's state changed");
        let name = transition.node.name.as_str();
        self.metrics.transitions.with_label_values(&[name, from, to]).inc();
    }

    /// Shows the members as they are now.
    fn show(&mut self) {
        self.shown = (self.node.membership().version(), self.node.replication().is_warm());
        let me = self.node.me();
        let before = self.outputs.me.load_full();
        if before.node != me.node || before.address != me.address {
            let introduction = Introduction {
                node: me.node.clone(),
                address: me.address,
                client_url: self.clients.url(me.address.ip()),
                ..(*before).clone()
            };
            self.outputs.me.store(Arc::new(introduction));
        }
        let view = View {
            me,
            members: self.node.members().collect(),
            refused: self.node.membership().refused().cloned(),
            version: self.shown.0,
            warm: self.shown.1,
        };
        self.show_members(&view);
        self.outputs.view.send_replace(Arc::new(view));
    }

    fn show_members(&mut self, view: &View) {
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
                // Not in yet, or on its way out: nobody should be paged for it.
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

    /// What is looked at once a second.
    fn look(&mut self, now: Duration) {
        let members: BTreeSet<SocketAddr> =
            self.node.members().map(|member| member.address).collect();
        self.links
            .retain(|to, link| members.contains(to) || now.saturating_sub(link.used) < UNUSED);
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
        // Any message of state from a router says how far it is in every store.
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
        self.contested = self.contested.filter(|at| now.saturating_sub(*at) < CONTEST_SHOWN);
        self.metrics.name_conflict.set(i64::from(contested || self.contested.is_some()));
    }

    /// Sends what is queued, as far as peers take it.
    async fn flush(mut self) {
        self.drain();
        for _ in 0..FLUSH_LOOKS {
            if self.links.values().all(Link::is_flushed) {
                break;
            }
            tokio::time::sleep(FLUSH_LOOK).await;
        }
        if !self.links.is_empty() {
            // What was taken from the queues is in the sockets a moment later.
            tokio::time::sleep(FLUSH_LOOK).await;
        }
        if let Some(done) = self.departing.take() {
            // Who asked may not wait any more.
            let _unheard = done.send(()).is_err();
        }
    }
}

/// How often the queues are looked at while flushing, and how many times at most: half a second in all.
const FLUSH_LOOK: Duration = Duration::from_millis(10);
const FLUSH_LOOKS: usize = 50;

/// What came first while waiting.
#[derive(Debug, Default)]
struct First {
    command: Option<Command>,
    swim: Option<Incoming>,
    state: Option<Incoming>,
}
