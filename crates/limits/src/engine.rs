//! The engine: it exchanges rows with the other routers and states what this router may use.
//!
//! This file is long because the roster, the votes and the time of a router are one state: each step reads what the others
//! have changed. The exchange of rights, which is not part of it, is in `exchange`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_types::ids::{Generation, NodeId, NodeName};
use smg_types::now::Now;

use crate::exchange::{Exchange, GRANT_HORIZON_MS, Parts};
use crate::limiter::Limiter;
use crate::meter::Moment;
use crate::roster::{self, Member, Roster, RosterId, Shares, Situation};
use crate::rows::{Beat, Report, Row, WindowKey};
use crate::standing::{Inherited, Place, Standing};
use crate::votes::{Times, Votes};
use crate::windows::{CLOCK_MARGIN_MS, ClusterTime};

/// Time between two beats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

/// How long the same change of the roster must be due before it is made.
const ROSTER_DELAY: Duration = Duration::from_millis(300);

/// How long the others have to learn of a new life before it uses anything, in milliseconds.
const LIFE_DELAY_MS: u64 = 1_000;

/// How long a router must have left before its place is given up. A router that restarts returns sooner.
pub const GONE_AFTER: Duration = Duration::from_secs(600);

/// The most rosters that are remembered because another one replaced them before they were settled.
const MAX_SUPERSEDED: usize = 16;

/// A step of the cluster's time, in milliseconds, from which on what is known by the former time counts as later.
const MIN_STEP_MS: u64 = 1_000;

/// Configuration of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Config {
    /// How many routers the cluster is meant to have. Without it, the limits are divided among those that have joined.
    pub expected: Option<u32>,
    /// The periods of the votes.
    pub times: Times,
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

/// The engine of one router.
#[derive(Debug)]
pub struct Engine {
    me: NodeId,
    config: Config,
    votes: Votes,
    beats: BTreeMap<NodeName, (NodeId, Beat)>,
    roster: Option<Roster>,
    settled: Option<Roster>,
    /// Divisions by rosters that this router went by, and that another roster replaced before they were settled.
    superseded: Vec<Shares>,
    earlier: Vec<(Place, u64)>,
    proposal: Option<(Roster, Duration)>,
    missing: BTreeMap<NodeName, Duration>,
    whole_until: Duration,
    whole_from_ms: u64,
    /// Since when this router has both rules and a settled roster, by its monotonic clock.
    active_since: Option<Duration>,
    heir_from_ms: BTreeMap<NodeName, u64>,
    time: Option<ClusterTime>,
    sent_beat: Option<(Beat, Duration)>,
    exchange: Exchange,
    /// When this router leaves: the time from which it uses nothing.
    until_ms: Option<u64>,
    /// What former lives of this router have said of themselves.
    former: BTreeMap<Generation, Option<u64>>,
    /// What this router has to say of its own life.
    life: Option<Row>,
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
            superseded: Vec::new(),
            earlier: Vec::new(),
            proposal: None,
            missing: BTreeMap::new(),
            whole_until: Duration::ZERO,
            whole_from_ms: 0,
            active_since: None,
            heir_from_ms: BTreeMap::new(),
            time: None,
            sent_beat: None,
            exchange: Exchange::default(),
            until_ms: None,
            former: BTreeMap::new(),
            life: None,
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
        self.note_former_life(from);
        match row {
            Row::Roster(roster) => {
                if roster.is_valid() {
                    self.adopt(roster);
                }
            }
            Row::Beat(_) | Row::Report(..) | Row::Grant { .. } | Row::Life { .. }
                if *from == self.me => {}
            Row::Life { until_ms, .. } => {
                if from.name == self.me.name && from.generation < self.me.generation {
                    let known = self.former.entry(from.generation).or_default();
                    *known = (*known).max(until_ms);
                }
            }
            Row::Beat(beat) => {
                beat.heard.iter().for_each(|heard| self.note_former_life(&heard.of));
                let names = self.names();
                self.votes.receive(from, &beat, &names, now.mono);
                let known = self.beats.get(&from.name);
                if known.is_none_or(|(node, known)| {
                    (node.generation, known.at_ms) <= (from.generation, beat.at_ms)
                }) {
                    self.beats.insert(from.name.clone(), (from.clone(), beat));
                }
            }
            Row::Report(key, report) => self.exchange.reported(from, key, report, limiter),
            Row::Grant { key, to, units } => {
                self.exchange.granted(from, key, &to, units, &self.me, limiter);
            }
        }
    }

    /// Goes by another roster. One that it replaces before it was settled still restricts this router, because others may
    /// have settled it.
    fn adopt(&mut self, roster: Roster) {
        if let Some(before) = &self.roster
            && before.id() != roster.id()
            && !self.is_settled(before.id())
            && !self.superseded.contains(&before.shares())
            && self.superseded.len() < MAX_SUPERSEDED
        {
            self.superseded.push(before.shares());
        }
        self.roster = Some(roster);
    }

    /// The divisions that other routers may go by; the settled one is the last. While a roster is not settled, a majority of
    /// every division is needed, since majorities of two divisions need not have a router in common.
    fn divisions(&self) -> Vec<Shares> {
        let Some(settled) = &self.settled else { return Vec::new() };
        let mut divisions = self.superseded.clone();
        let pending = self.roster.iter().filter(|roster| roster.id() != settled.id());
        divisions.extend(pending.map(Roster::shares));
        divisions.push(settled.shares());
        divisions
    }

    /// Does what is due, and returns the rows to write.
    pub fn turn(&mut self, turn: &Turn<'_>, limiter: &Limiter) -> Vec<Row> {
        let mut rows = Vec::new();
        self.follow_time(turn);
        rows.extend(self.change_roster(turn).map(Row::Roster));
        self.settle(turn);
        let is_active = !limiter.is_idle() && self.settled.is_some();
        self.votes.activate(!limiter.is_idle(), turn.now.mono);
        self.active_since = is_active.then(|| self.active_since.unwrap_or(turn.now.mono));
        self.follow_votes(turn);
        let standing = self.standing(turn);
        limiter.set_standing(standing.clone(), self.time.unwrap_or_default());
        rows.extend(self.life.take());
        rows.extend(self.beat(turn, !limiter.is_idle()).map(Row::Beat));
        if limiter.is_idle() {
            self.exchange.clear();
            return rows;
        }
        let moment = self.moment(turn, &standing);
        let shares = self.settled.as_ref().map(Roster::shares);
        let parts =
            Parts { me: &self.me, members: turn.members, shares: shares.as_ref(), moment: &moment };
        rows.extend(self.exchange.turn(&parts, limiter));
        rows
    }

    /// Hands all rights of the subjects in exchange to the others, because this router leaves: in the present window and in
    /// those that begin within `GRANT_HORIZON_MS`. Afterwards it grants nothing more.
    pub fn leave(&mut self, turn: &Turn<'_>, limiter: &Limiter) -> Vec<Row> {
        let at_ms = self.time.unwrap_or_default().at(turn.now);
        let until_ms = at_ms + GRANT_HORIZON_MS;
        self.until_ms = Some(until_ms);
        let standing = self.standing(turn);
        limiter.set_standing(standing.clone(), self.time.unwrap_or_default());
        let moment = self.moment(turn, &standing);
        let shares = self.settled.as_ref().map(Roster::shares);
        let parts =
            Parts { me: &self.me, members: turn.members, shares: shares.as_ref(), moment: &moment };
        let mut rows = self.exchange.leave(&parts, limiter);
        rows.push(Row::Life { at_ms, until_ms: Some(until_ms) });
        rows
    }

    /// What other routers have reported of a window, by router.
    #[must_use]
    pub fn reports(&self, key: &WindowKey) -> Vec<(NodeId, Report)> {
        self.exchange.reports(key)
    }

    /// How many subjects this router exchanges with others, and how many windows.
    #[must_use]
    pub fn exchanged(&self) -> (usize, usize) {
        self.exchange.size()
    }

    /// Forgets the subjects that are exchanged, because the rules have changed.
    pub fn rules_changed(&mut self) {
        self.exchange.rules_changed();
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
        if self.time.is_some() && alive < needed {
            return;
        }
        let before_ms = self.time.map(|time| time.at(turn.now));
        self.time = Some(ClusterTime::new(turn.now, turn.cluster_ms));
        let step_ms = turn.cluster_ms.saturating_sub(before_ms.unwrap_or(turn.cluster_ms));
        if step_ms < MIN_STEP_MS {
            return;
        }
        // What happened at a time by the former clock may have been that much later by the clock of others.
        let latest_ms = turn.cluster_ms + GRANT_HORIZON_MS + CLOCK_MARGIN_MS;
        let later = |from_ms: u64| from_ms.max(from_ms.saturating_add(step_ms).min(latest_ms));
        self.whole_from_ms = later(self.whole_from_ms);
        self.earlier.iter_mut().for_each(|(_, before)| *before = later(*before));
        self.heir_from_ms.values_mut().for_each(|from_ms| *from_ms = later(*from_ms));
    }

    /// The names of the roster, in the order of their places.
    fn names(&self) -> Vec<NodeName> {
        self.roster.as_ref().map(|roster| roster.shares().names).unwrap_or_default()
    }

    /// The greatest number of routers that any present router expects.
    fn expected(&self, turn: &Turn<'_>) -> Option<u32> {
        let present = self
            .beats
            .values()
            .filter(|(node, _)| turn.members.iter().any(|member| member.node.name == node.name));
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
        if !turn.is_complete
            || self.until_ms.is_some()
            || is_unsettled
            || first != Some(&self.me.name)
        {
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
        let alive = turn.members.iter().filter(|member| member.is_alive).count() + 1;
        if self.votes.contacts(&names) < majority || alive < majority {
            return;
        }
        let is_stated =
            self.beats.values().any(|(_, beat)| beat.is_settled && beat.roster == Some(id));
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
        // What a former life has said of itself must be here before this one uses anything.
        if !turn.is_complete && !self.is_in_first_life(&roster) {
            return;
        }
        let cluster_ms = self.time.unwrap_or_default().at(turn.now);
        let is_first_life = self.is_in_first_life(&roster);
        let restriction = match &self.settled {
            Some(before) => {
                let place = Place::of(&before.shares(), &self.me.name);
                Some((place, GRANT_HORIZON_MS + CLOCK_MARGIN_MS))
            }
            // A founder: nobody has used anything before.
            None if is_first_life && roster.previous.is_none() => None,
            // A place that has never been taken.
            None if is_first_life && self.is_untouched(&roster) => None,
            None if is_first_life => Some((Place::NONE, GRANT_HORIZON_MS + CLOCK_MARGIN_MS)),
            None => Some((Place::NONE, self.after_former_life(cluster_ms))),
        };
        // A router that has left since may have granted what it had by the roster before.
        let margin_ms = GRANT_HORIZON_MS + CLOCK_MARGIN_MS;
        let superseded = std::mem::take(&mut self.superseded);
        let superseded = superseded.iter().map(|shares| Place::of(shares, &self.me.name));
        let all = restriction.into_iter().chain(superseded.map(|place| (place, margin_ms)));
        self.earlier.extend(all.map(|(place, margin_ms)| (place, cluster_ms + margin_ms)));
        self.life = Some(Row::Life { at_ms: cluster_ms, until_ms: None });
        self.votes.abstain(!is_first_life);
        self.settled = Some(roster);
    }

    /// Whether this router's place has never belonged to another one.
    fn is_untouched(&self, roster: &Roster) -> bool {
        let place = roster.shares().place(&self.me.name);
        place.is_some_and(|place| place >= roster.untouched_from)
    }

    /// Notes that a former life of this router is known, whatever it has said of itself: a farewell counts only if no later
    /// life has followed it.
    fn note_former_life(&mut self, node: &NodeId) {
        if node.name == self.me.name && node.generation < self.me.generation {
            self.former.entry(node.generation).or_default();
        }
    }

    /// How long after `cluster_ms` the windows begin in which no former life of this router can have used or granted anything.
    fn after_former_life(&self, cluster_ms: u64) -> u64 {
        match self.former.last_key_value() {
            // It has said where it stopped. A moment more, so that the others know of this life before it uses anything.
            Some((_, Some(until_ms))) => until_ms.saturating_sub(cluster_ms).max(LIFE_DELAY_MS),
            Some((_, None)) | None => GRANT_HORIZON_MS + CLOCK_MARGIN_MS,
        }
    }

    /// Follows for how long a majority acknowledges this router, and which shares it inherits.
    fn follow_votes(&mut self, turn: &Turn<'_>) {
        let mono = turn.now.mono;
        let Some(roster) = self.settled.clone() else { return };
        let names = roster.shares().names;
        let cluster_ms = self.time.unwrap_or_default().at(turn.now);
        let divisions = self.divisions();
        if divisions.iter().all(|division| division.size <= 2) {
            self.whole_until = Duration::MAX;
            self.whole_from_ms = 0;
            self.heir_from_ms.clear();
            return;
        }
        if self.whole_until <= mono {
            // There was a time without a majority, even if there is one now.
            // The first time is no interruption, if it comes before a promise of this share could have ended.
            let is_early =
                self.active_since.is_none_or(|since| mono < since + self.config.times.lease);
            let is_first_time =
                self.whole_until.is_zero() && is_early && self.is_in_first_life(&roster);
            self.whole_from_ms = if is_first_time { 0 } else { cluster_ms + CLOCK_MARGIN_MS };
        }
        let until = divisions.iter().map(|division| match division.size {
            ..=2 => Some(Duration::MAX),
            size => self.votes.whole_until(&division.names, size, mono),
        });
        match until.min().flatten() {
            Some(until) if until > mono => self.whole_until = until,
            _ => self.whole_until = self.whole_until.min(mono),
        }
        let mut heirs = BTreeMap::new();
        for name in names.iter().filter(|name| **name != self.me.name) {
            if self.heir_until(name, &divisions, mono).is_some() {
                let from = self.heir_from_ms.get(name).copied();
                heirs.insert(name.clone(), from.unwrap_or(cluster_ms + CLOCK_MARGIN_MS));
            }
        }
        self.heir_from_ms = heirs;
    }

    /// Until when this router may use what `absent` does not keep, by the promises of a majority of every division.
    fn heir_until(
        &self,
        absent: &NodeName,
        divisions: &[Shares],
        mono: Duration,
    ) -> Option<Duration> {
        let until = divisions
            .iter()
            .map(|division| self.votes.heir_until(absent, &division.names, division.size, mono));
        until.min().flatten()
    }

    fn standing(&mut self, turn: &Turn<'_>) -> Standing {
        let mono = turn.now.mono;
        let Some(settled) = &self.settled else { return Standing::none() };
        let divisions = self.divisions();
        let places = divisions.iter().map(|division| Place::of(division, &self.me.name)).collect();
        let inherited = self.heir_from_ms.iter().filter_map(|(name, from_ms)| {
            let until = self.heir_until(name, &divisions, mono)?;
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
            until_ms: self.until_ms.unwrap_or(u64::MAX),
        }
    }

    /// The beat that is due: regularly while there are rules, else only if something has changed.
    fn beat(&mut self, turn: &Turn<'_>, has_rules: bool) -> Option<Beat> {
        if self.until_ms.is_some() {
            // The others may inherit the share as soon as they may.
            return None;
        }
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
        if is_voter {
            beat.claims = self.votes.claim(&names, mono);
        }
        if has_rules {
            beat.heard = self.votes.acknowledgements(mono);
            beat.promises = self.votes.promises(mono);
        }
        let is_due = match &self.sent_beat {
            None => true,
            Some((sent, at)) => {
                let who =
                    |beat: &Beat| beat.heard.iter().map(|h| h.of.clone()).collect::<BTreeSet<_>>();
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
}
