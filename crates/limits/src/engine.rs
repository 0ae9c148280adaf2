//! The engine: it exchanges rows with the other routers and states what this router may use.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};
use smg_types::now::Now;

use crate::escrow::{Book, Books, Other};
use crate::limiter::{Cell, Limiter};
use crate::meter::{self, Moment};
use crate::roster::{self, Roster, RosterId, Situation};
use crate::rows::{Beat, MeterId, Report, Row, SubjectId, WindowKey};
use crate::share::share;
use crate::standing::{Inherited, Mode, Place, Standing};
use crate::votes::{Times, Votes};
use crate::windows::{CLOCK_MARGIN_MS, ClusterTime, start_of};

/// How far ahead a router grants rights when it leaves. A router that restarts has no share in windows that begin within
/// this time, because its former life may have granted it.
pub const GRANT_HORIZON_MS: u64 = 8_000;

/// Time between two beats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the same change of the roster must be due before it is made.
const ROSTER_DELAY: Duration = Duration::from_millis(300);

/// How long a router must have left before its place is given up. A router that restarts returns sooner.
pub const GONE_AFTER: Duration = Duration::from_secs(600);

/// Rights for windows up to this length are granted before the window begins.
const AHEAD_MS: u32 = 2_000;

/// How far ahead demand is foreseen, in milliseconds, so that nobody hoards rights of a long window.
const FORESIGHT_MS: u64 = 5_000;

/// The most grants of one turn; beyond it, routers keep to the rights they have.
const MAX_GRANTS: usize = 200;

/// The most windows of which reports of others are kept.
const MAX_BOOKS: usize = 65_536;

/// How long a subject without demand stays in the exchange.
const COOL_AFTER: Duration = Duration::from_secs(10);

/// Time constant of the measured demand, in milliseconds.
const DEMAND_MS: f64 = 1_000.0;

/// Configuration of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// How many routers the cluster is meant to have. Without it, the limits are divided among those that have joined.
    pub expected: Option<u32>,
    /// The periods of the votes.
    pub times: Times,
}

/// Another router of the cluster, as membership knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Name and generation.
    pub node: NodeId,
    /// Whether it is alive.
    pub is_alive: bool,
}

/// What a turn is based on.
#[derive(Debug, Clone, Copy)]
pub struct Turn<'a> {
    /// Both clocks of this router.
    pub now: Now,
    /// The cluster's time, in milliseconds since the Unix epoch.
    pub cluster_ms: u64,
    /// The other routers, those that are down included until they are forgotten. A router that has left is missing.
    pub members: &'a [Member],
    /// Whether this router has the state of the others.
    pub is_complete: bool,
}

/// A subject whose demand is exchanged.
#[derive(Debug)]
struct Hot {
    cell: Arc<Cell>,
    /// Measured demand, in units per millisecond.
    demand: f64,
    measured: Duration,
    /// The window of the last measurement, and the units that had been offered in it.
    offered: (u64, u64),
    last_used: Duration,
    /// What was last reported of each window.
    reported: BTreeMap<u64, (Report, Duration)>,
}

/// The engine of one router.
#[derive(Debug)]
pub struct Engine {
    me: NodeId,
    config: Config,
    votes: Votes,
    beats: BTreeMap<NodeName, (NodeId, Beat)>,
    roster: Option<Roster>,
    settled: Option<Roster>,
    earlier: Vec<(Place, u64)>,
    proposal: Option<(Roster, Duration)>,
    missing: BTreeMap<NodeName, Duration>,
    whole_until: Duration,
    whole_from_ms: u64,
    heir_from_ms: BTreeMap<NodeName, u64>,
    time: Option<ClusterTime>,
    sent_beat: Option<(Beat, Duration)>,
    hot: BTreeMap<(MeterId, SubjectId), Hot>,
    books: Books,
    is_leaving: bool,
}

impl Engine {
    /// The engine of the router `me`, which starts at `now`.
    #[must_use]
    pub fn new(me: NodeId, config: Config, now: Now) -> Self {
        Self {
            votes: Votes::new(me.clone(), config.times, now.mono),
            me,
            config,
            beats: BTreeMap::new(),
            roster: None,
            settled: None,
            earlier: Vec::new(),
            proposal: None,
            missing: BTreeMap::new(),
            whole_until: Duration::ZERO,
            whole_from_ms: 0,
            heir_from_ms: BTreeMap::new(),
            time: None,
            sent_beat: None,
            hot: BTreeMap::new(),
            books: Books::new(),
            is_leaving: false,
        }
    }

    /// The name and generation under which this engine counts.
    #[must_use]
    pub fn me(&self) -> &NodeId {
        &self.me
    }

    /// The roster that this router goes by, and whether all of its routers are known to do so.
    #[must_use]
    pub fn roster(&self) -> Option<(&Roster, bool)> {
        self.roster.as_ref().map(|roster| (roster, self.is_settled(roster.id())))
    }

    fn is_settled(&self, id: RosterId) -> bool {
        self.settled.as_ref().is_some_and(|settled| settled.id() == id)
    }

    /// Applies a row of another router, or the present roster whoever wrote it.
    pub fn receive(&mut self, from: &NodeId, row: Row, limiter: &Limiter, now: Now) {
        match row {
            Row::Roster(roster) => {
                if roster.is_valid() {
                    self.roster = Some(roster);
                }
            }
            Row::Beat(_) | Row::Report(..) | Row::Grant { .. } if *from == self.me => {}
            Row::Beat(beat) => {
                let names = self.names();
                self.votes.receive(from, &beat, &names, now.mono);
                let known = self.beats.get(&from.name);
                if known.is_none_or(|(node, known)| {
                    (node.generation, known.at_ms) <= (from.generation, beat.at_ms)
                }) {
                    self.beats.insert(from.name.clone(), (from.clone(), beat));
                }
            }
            Row::Report(key, report) => {
                if self.books.len() < MAX_BOOKS || self.books.contains_key(&key) {
                    let book = self.books.entry(key).or_default();
                    book.report(from, report);
                    Self::count_others(book, key, limiter);
                }
            }
            Row::Grant { key, to, units } => {
                if self.books.len() < MAX_BOOKS || self.books.contains_key(&key) {
                    let book = self.books.entry(key).or_default();
                    book.grant(from, &to, units);
                    Self::apply_grants(&self.me, book, key, limiter);
                }
            }
        }
    }

    /// Adds what others have reported to a window of mode soft.
    fn count_others(book: &Book, key: WindowKey, limiter: &Limiter) {
        if let Some(cell) = limiter.reported(key.meter, key.subject)
            && cell.meter.window_ms == key.length_ms
            && cell.meter.mode == Mode::Soft
        {
            cell.with(key.start_ms, |_, _, window| window.others = book.used_by_others());
        }
    }

    fn apply_grants(me: &NodeId, book: &mut Book, key: WindowKey, limiter: &Limiter) {
        let units = book.unapplied(me);
        if units == 0 {
            return;
        }
        if let Some(cell) = limiter.reported(key.meter, key.subject)
            && cell.meter.window_ms == key.length_ms
        {
            cell.with(key.start_ms, |_, _, window| window.granted += units);
            cell.has_hope();
            book.apply(me);
        }
    }

    /// Does what is due, and returns the rows to write.
    pub fn turn(&mut self, turn: &Turn<'_>, limiter: &Limiter) -> Vec<Row> {
        let mut rows = Vec::new();
        self.follow_time(turn);
        rows.extend(self.change_roster(turn).map(Row::Roster));
        self.settle(turn);
        self.follow_votes(turn);
        let standing = self.standing(turn);
        limiter.set_standing(standing.clone(), self.time.unwrap_or_default());
        rows.extend(self.beat(turn, !limiter.is_idle()).map(Row::Beat));
        if limiter.is_idle() {
            self.hot.clear();
            self.books.clear();
            return rows;
        }
        let moment = self.moment(turn, &standing);
        self.books.retain(|key, _| key.end_ms() + u64::from(key.length_ms) >= moment.cluster_ms);
        for (key, book) in &mut self.books {
            Self::apply_grants(&self.me, book, *key, limiter);
        }
        self.report(turn, limiter, &moment, &mut rows);
        self.grant(turn, limiter, &moment, &mut rows);
        rows
    }

    fn moment<'a>(&self, turn: &Turn<'_>, standing: &'a Standing) -> Moment<'a> {
        let time = self.time.unwrap_or_default();
        Moment { standing, cluster_ms: time.at(turn.now), mono: turn.now.mono }
    }

    /// Follows the cluster's time while this router is in contact with a majority. Without contact its clock may be wrong, so
    /// that time goes on by the monotonic clock.
    fn follow_time(&mut self, turn: &Turn<'_>) {
        let size = self.roster.as_ref().map_or(1, |roster| roster.size);
        let needed = usize::try_from(size / 2 + 1).unwrap_or(usize::MAX);
        let alive = turn.members.iter().filter(|member| member.is_alive).count() + 1;
        if self.time.is_none() || alive >= needed {
            self.time = Some(ClusterTime::new(turn.now, turn.cluster_ms));
        }
    }

    /// The names of the roster, in the order of their places.
    fn names(&self) -> Vec<NodeName> {
        self.roster.as_ref().map(|roster| roster.shares().names).unwrap_or_default()
    }

    /// The greatest number of routers that any present router expects.
    fn expected(&self, turn: &Turn<'_>) -> Option<u32> {
        let present = self.beats.values().filter(|(node, _)| {
            turn.members.iter().any(|member| member.node.name == node.name)
        });
        present.filter_map(|(_, beat)| beat.expected).chain(self.config.expected).max()
    }

    /// Makes a change of the roster that has been due for a while, if that is this router's part.
    fn change_roster(&mut self, turn: &Turn<'_>) -> Option<Roster> {
        let mono = turn.now.mono;
        let mut alive: Vec<NodeId> = turn
            .members
            .iter()
            .filter(|member| member.is_alive)
            .map(|member| member.node.clone())
            .chain([self.me.clone()])
            .collect();
        alive.sort();
        let names = self.names();
        let is_known = |name: &NodeName| {
            *name == self.me.name || turn.members.iter().any(|member| member.node.name == *name)
        };
        self.missing.retain(|name, _| names.contains(name) && !is_known(name));
        for name in names.iter().filter(|name| !is_known(name)) {
            self.missing.entry(name.clone()).or_insert(mono);
        }
        let gone: Vec<NodeName> = self
            .missing
            .iter()
            .filter(|(_, since)| mono >= **since + GONE_AFTER)
            .map(|(name, _)| name.clone())
            .collect();
        let is_unsettled = self.roster.as_ref().is_some_and(|roster| !self.is_settled(roster.id()));
        let first = match names.is_empty() {
            true => alive.first().map(|node| &node.name),
            false => names.iter().find(|name| alive.iter().any(|node| node.name == **name)),
        };
        if !turn.is_complete || self.is_leaving || is_unsettled || first != Some(&self.me.name) {
            self.proposal = None;
            return None;
        }
        let expected = self.expected(turn);
        let current = self.roster.as_ref();
        let proposal =
            roster::propose(&Situation { current, alive: &alive, gone: &gone, expected })?;
        match &self.proposal {
            Some((known, since)) if *known == proposal => {
                if mono < *since + ROSTER_DELAY {
                    return None;
                }
            }
            _ => {
                // A router alone waits for nobody.
                let is_alone = turn.members.is_empty() && current.is_none();
                self.proposal = Some((proposal.clone(), mono));
                if !is_alone {
                    return None;
                }
            }
        }
        self.proposal = None;
        self.roster = Some(proposal.clone());
        Some(proposal)
    }

    /// Whether this router has had its place in the roster since it started, so that no former life of it has used or promised
    /// anything under it.
    fn is_in_first_life(&self, roster: &Roster) -> bool {
        roster.places.contains(&self.me)
    }

    /// Notices that all routers go by the present roster.
    fn settle(&mut self, turn: &Turn<'_>) {
        let Some(roster) = self.roster.clone() else { return };
        let id = roster.id();
        if self.is_settled(id) {
            return;
        }
        let names = roster.shares().names;
        let majority = usize::try_from(roster.size / 2 + 1).unwrap_or(usize::MAX);
        if self.votes.contacts(&names) < majority {
            return;
        }
        let is_stated = self
            .beats
            .values()
            .any(|(_, beat)| beat.is_settled && beat.roster == Some(id));
        let is_known =
            |name: &NodeName| turn.members.iter().any(|member| member.node.name == *name);
        let mut concerned = roster.concerned();
        if let Some(settled) = &self.settled {
            concerned.extend(settled.shares().names);
        }
        let goes_by_it = |name: &NodeName| {
            let has_left = !names.contains(name) && !is_known(name);
            let beat = self.beats.get(name);
            *name == self.me.name
                || has_left
                || beat.is_some_and(|(_, beat)| beat.roster == Some(id))
        };
        if !is_stated && !concerned.iter().all(goes_by_it) {
            return;
        }
        let cluster_ms = self.time.unwrap_or_default().at(turn.now);
        let is_first_life = self.is_in_first_life(&roster);
        let restriction = match &self.settled {
            Some(before) => Some((Place::of(&before.shares(), &self.me.name), CLOCK_MARGIN_MS)),
            // A founder: nobody has used anything before.
            None if is_first_life && roster.previous.is_none() => None,
            None if is_first_life => Some((Place::NONE, CLOCK_MARGIN_MS)),
            None => Some((Place::NONE, GRANT_HORIZON_MS + CLOCK_MARGIN_MS)),
        };
        if let Some((place, margin_ms)) = restriction {
            self.earlier.push((place, cluster_ms + margin_ms));
        }
        self.votes.abstain(!is_first_life);
        self.settled = Some(roster);
    }

    /// Follows for how long a majority acknowledges this router, and which shares it inherits.
    fn follow_votes(&mut self, turn: &Turn<'_>) {
        let mono = turn.now.mono;
        let Some(roster) = self.settled.clone() else { return };
        let names = roster.shares().names;
        let cluster_ms = self.time.unwrap_or_default().at(turn.now);
        if roster.size <= 2 {
            self.whole_until = Duration::MAX;
            self.whole_from_ms = 0;
            self.heir_from_ms.clear();
            return;
        }
        if self.whole_until <= mono {
            // There was a time without a majority, even if there is one now.
            let is_first_time = self.whole_until.is_zero() && self.is_in_first_life(&roster);
            self.whole_from_ms = if is_first_time { 0 } else { cluster_ms + CLOCK_MARGIN_MS };
        }
        let until = self.votes.whole_until(&names, roster.size, mono);
        match until {
            Some(until) if until > mono => self.whole_until = until,
            _ => self.whole_until = self.whole_until.min(mono),
        }
        let mut heirs = BTreeMap::new();
        for name in names.iter().filter(|name| **name != self.me.name) {
            if self.votes.heir_until(name, &names, roster.size, mono).is_some() {
                let from = self.heir_from_ms.get(name).copied();
                heirs.insert(name.clone(), from.unwrap_or(cluster_ms + CLOCK_MARGIN_MS));
            }
        }
        self.heir_from_ms = heirs;
    }

    fn standing(&mut self, turn: &Turn<'_>) -> Standing {
        let mono = turn.now.mono;
        let Some(settled) = &self.settled else { return Standing::none() };
        let mut places = vec![Place::of(&settled.shares(), &self.me.name)];
        if let Some(roster) = &self.roster
            && roster.id() != settled.id()
        {
            places.insert(0, Place::of(&roster.shares(), &self.me.name));
        }
        let names = settled.shares().names;
        let inherited = self.heir_from_ms.iter().filter_map(|(name, from_ms)| {
            let until = self.votes.heir_until(name, &names, settled.size, mono)?;
            Some(Inherited { place: settled.shares().place(name)?, from_ms: *from_ms, until })
        });
        let inherited = inherited.collect();
        let week = crate::rule::MAX_WINDOW.as_millis();
        let cluster_ms = u128::from(self.time.unwrap_or_default().at(turn.now));
        self.earlier.retain(|(_, before)| u128::from(*before) + week > cluster_ms);
        Standing {
            places,
            earlier: self.earlier.clone(),
            whole_until: self.whole_until,
            whole_from_ms: self.whole_from_ms,
            inherited,
        }
    }

    /// The beat that is due: regularly while there are rules, else only if something has changed.
    fn beat(&mut self, turn: &Turn<'_>, has_rules: bool) -> Option<Beat> {
        let mono = turn.now.mono;
        let names = self.settled.as_ref().map(|roster| roster.shares().names).unwrap_or_default();
        let is_voter = has_rules && names.contains(&self.me.name) && names.len() > 2;
        let mut beat = Beat {
            at_ms: u64::try_from(mono.as_millis()).unwrap_or(u64::MAX),
            expected: self.config.expected,
            roster: self.roster.as_ref().map(Roster::id),
            is_settled: self.roster.as_ref().is_some_and(|roster| self.is_settled(roster.id())),
            ..Beat::default()
        };
        if is_voter && !self.is_leaving {
            beat.claims = self.votes.claim(&names, mono);
        }
        if has_rules {
            beat.heard = self.votes.acknowledgements(mono);
            beat.promises = self.votes.promises(mono);
        }
        let is_due = match &self.sent_beat {
            None => true,
            Some((sent, at)) => {
                let who = |beat: &Beat| beat.heard.iter().map(|h| h.of.clone()).collect::<BTreeSet<_>>();
                let is_same = (sent.roster, sent.is_settled, sent.expected)
                    == (beat.roster, beat.is_settled, beat.expected)
                    && sent.claims == beat.claims
                    && sent.promises.len() == beat.promises.len()
                    && who(sent) == who(&beat);
                !is_same || has_rules && mono >= *at + BEAT_INTERVAL
            }
        };
        if !is_due {
            return None;
        }
        self.sent_beat = Some((beat.clone(), mono));
        Some(beat)
    }

    /// Measures the demand of the subjects that are exchanged, and reports what has changed.
    fn report(&mut self, turn: &Turn<'_>, limiter: &Limiter, moment: &Moment<'_>, rows: &mut Vec<Row>) {
        let mono = turn.now.mono;
        for cell in limiter.take_heated() {
            self.hot.insert((cell.meter.id, cell.subject), Hot::new(cell, mono));
        }
        self.hot.retain(|_, hot| {
            let keep = mono < hot.last_used + COOL_AFTER.max(hot.length() * 2);
            if !keep {
                hot.cell.cool();
            }
            keep
        });
        for hot in self.hot.values_mut() {
            hot.measure(moment, mono);
            let key = hot.cell.key(moment.cluster_ms);
            rows.extend(hot.report(key, moment, mono));
            if key.length_ms <= AHEAD_MS {
                let next = WindowKey { start_ms: key.end_ms(), ..key };
                rows.extend(hot.report(next, moment, mono));
            }
        }
    }

    /// Grants what this router does not need to those who lack it.
    fn grant(&mut self, turn: &Turn<'_>, limiter: &Limiter, moment: &Moment<'_>, rows: &mut Vec<Row>) {
        let Some(settled) = &self.settled else { return };
        let shares = settled.shares();
        let mut grants = 0;
        for (key, book) in &mut self.books {
            if grants >= MAX_GRANTS || self.is_leaving {
                break;
            }
            if key.end_ms() <= moment.cluster_ms || !book.is_wanted() {
                continue;
            }
            let Some(cell) = limiter.reported(key.meter, key.subject) else { continue };
            if cell.meter.window_ms != key.length_ms || cell.meter.mode == Mode::Soft {
                continue;
            }
            let need = self.hot.get(&(key.meter, key.subject)).map_or(0, |hot| hot.need(key, moment));
            let free = cell.with(key.start_ms, |meter, salt, window| {
                meter::free(meter, salt, window, moment)
            });
            let surplus = free.unwrap_or(0).saturating_sub(need);
            if surplus == 0 {
                continue;
            }
            let others = others(&shares.names, shares.size, &self.me, turn.members, &cell);
            for (to, units) in book.divide(surplus, &others) {
                let lent = cell.with(key.start_ms, |meter, salt, window| {
                    meter::lend(meter, salt, window, units, moment)
                });
                let lent = lent.unwrap_or(0);
                if lent > 0 {
                    grants += 1;
                    let units = book.granted(&self.me, &to, lent);
                    rows.push(Row::Grant { key: *key, to, units });
                }
            }
        }
    }

    /// Hands all rights of the subjects in exchange to the others, because this router leaves: in the present window and in
    /// those that begin within [`GRANT_HORIZON_MS`]. Afterwards it grants nothing more.
    pub fn leave(&mut self, turn: &Turn<'_>, limiter: &Limiter) -> Vec<Row> {
        self.is_leaving = true;
        let standing = self.standing(turn);
        let moment = self.moment(turn, &standing);
        let alive: Vec<&NodeId> = turn
            .members
            .iter()
            .filter(|member| member.is_alive)
            .map(|member| &member.node)
            .collect();
        let mut rows = Vec::new();
        if alive.is_empty() || limiter.is_idle() {
            return rows;
        }
        let exchanged: BTreeSet<_> = self
            .hot
            .keys()
            .copied()
            .chain(self.books.keys().map(|key| (key.meter, key.subject)))
            .collect();
        for (meter, subject) in exchanged {
            let Some(cell) = limiter.reported(meter, subject) else { continue };
            let length = u64::from(cell.meter.window_ms);
            let first = start_of(moment.cluster_ms, cell.meter.window_ms);
            let starts = (0..)
                .map(|n| first + n * length)
                .take_while(|start| *start < moment.cluster_ms + GRANT_HORIZON_MS);
            for start_ms in starts {
                let key = WindowKey { start_ms, ..cell.key(moment.cluster_ms) };
                self.hand_over(&cell, key, &alive, &moment, &mut rows);
            }
        }
        rows
    }

    fn hand_over(
        &mut self,
        cell: &Cell,
        key: WindowKey,
        alive: &[&NodeId],
        moment: &Moment<'_>,
        rows: &mut Vec<Row>,
    ) {
        let book = self.books.entry(key).or_default();
        let mut left = alive.len() as u64;
        for to in alive {
            let lent = cell.with(key.start_ms, |meter, salt, window| {
                let free = meter::free(meter, salt, window, moment);
                meter::lend(meter, salt, window, free.div_ceil(left), moment)
            });
            left -= 1;
            let lent = lent.unwrap_or(0);
            if lent > 0 {
                let units = book.granted(&self.me, to, lent);
                rows.push(Row::Grant { key, to: (*to).clone(), units });
            }
        }
    }

    /// What other routers have reported of a window, by router.
    #[must_use]
    pub fn reports(&self, key: &WindowKey) -> Vec<(NodeId, Report)> {
        let book = self.books.get(key);
        let reports = book.into_iter().flat_map(|book| book.reports());
        reports.map(|(node, report)| (node.clone(), *report)).collect()
    }

    /// How many subjects and windows are exchanged with others.
    #[must_use]
    pub fn exchanged(&self) -> (usize, usize) {
        (self.hot.len(), self.books.len())
    }

    /// Forgets the subjects that are exchanged, because the rules have changed.
    pub fn rules_changed(&mut self) {
        for hot in self.hot.values() {
            hot.cell.cool();
        }
        self.hot.clear();
    }
}

/// The other routers of the roster, with their shares of the cell's limit.
fn others<'a>(
    names: &'a [NodeName],
    size: u32,
    me: &NodeId,
    members: &'a [Member],
    cell: &Cell,
) -> Vec<Other<'a>> {
    let places = (0u32..).zip(names).filter(|(_, name)| **name != me.name);
    let other = |(place, name): (u32, &'a NodeName)| {
        let member = members.iter().find(|member| member.node.name == *name && member.is_alive);
        let share = share(cell.meter.limit, cell.salt(), place, size);
        Other { name, node: member.map(|member| &member.node), share }
    };
    places.map(other).collect()
}

impl Hot {
    fn new(cell: Arc<Cell>, mono: Duration) -> Self {
        Self {
            cell,
            demand: 0.0,
            measured: mono,
            offered: (0, 0),
            last_used: mono,
            reported: BTreeMap::new(),
        }
    }

    fn length(&self) -> Duration {
        Duration::from_millis(u64::from(self.cell.meter.window_ms))
    }

    /// Measures the demand since the last turn.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn measure(&mut self, moment: &Moment<'_>, mono: Duration) {
        let start_ms = start_of(moment.cluster_ms, self.cell.meter.window_ms);
        let offered = self.cell.window(start_ms).map_or(0, |window| window.offered);
        let before = if self.offered.0 == start_ms { self.offered.1 } else { 0 };
        let rest = match self.cell.window(self.offered.0) {
            Some(window) if self.offered.0 != start_ms => window.offered.saturating_sub(self.offered.1),
            _ => 0,
        };
        let new = offered.saturating_sub(before) + rest;
        let passed = mono.saturating_sub(self.measured).as_secs_f64() * 1_000.0;
        if passed > 0.0 {
            let weight = 1.0 - (-passed / DEMAND_MS).exp();
            let rate = new as f64 / passed;
            self.demand += (rate - self.demand) * weight;
        }
        self.measured = mono;
        self.offered = (start_ms, offered);
        if new > 0 {
            self.last_used = mono;
        }
    }

    /// Units that this router expects to need in a window from now on.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "an estimate, which is not negative"
    )]
    fn need(&self, key: &WindowKey, moment: &Moment<'_>) -> u64 {
        let begin = key.start_ms.max(moment.cluster_ms);
        let time = key.end_ms().saturating_sub(begin).min(FORESIGHT_MS);
        let units = self.demand * time as f64;
        if units < 0.5 { 0 } else { (units * 1.1).ceil() as u64 }
    }

    /// The report of a window, if it says something new.
    fn report(&mut self, key: WindowKey, moment: &Moment<'_>, mono: Duration) -> Option<Row> {
        let need = self.need(&key, moment);
        let report = self.cell.with(key.start_ms, |meter, salt, window| {
            let free = meter::free(meter, salt, window, moment);
            let refused = std::mem::take(&mut window.refused);
            let wanted = need.max(refused).saturating_sub(free).min(meter.limit);
            let wanted = if meter.mode == Mode::Soft { 0 } else { wanted };
            Report { taken: window.taken, returned: window.returned, wanted }
        })?;
        self.reported.retain(|start, _| start + u64::from(key.length_ms) >= key.start_ms);
        let is_news = match self.reported.get(&key.start_ms) {
            None => report != Report::default(),
            Some((last, at)) => {
                let step = (self.cell.meter.limit / 100).max(1);
                let is_more = report.taken.saturating_sub(last.taken) >= step
                    || report.returned.saturating_sub(last.returned) >= step;
                let is_wanted = report.wanted.abs_diff(last.wanted) * 10 > last.wanted.max(1)
                    || report.wanted > 0 && mono >= *at + Duration::from_millis(500);
                let is_late = mono >= *at + Duration::from_secs(1);
                is_wanted || is_more || is_late && report != *last
            }
        };
        if !is_news {
            return None;
        }
        self.reported.insert(key.start_ms, (report, mono));
        Some(Row::Report(key, report))
    }
}
