//! The engine: it exchanges rows with the other routers and states what this router may use.
//!
//! It combines `agreement` on the roster, the [`votes`](crate::votes) with the [`tenure`] that follows from them, and
//! the `exchange` of rights.

use std::collections::BTreeSet;
use std::time::Duration;

use smg_types::ids::NodeId;
use smg_types::now::Now;

use crate::agreement::{Agreement, Around, Beats};
use crate::exchange::{Exchange, Parts};
use crate::limiter::Limiter;
use crate::meter::Moment;
use crate::roster::{Member, Roster, Shares};
use crate::rows::{Beat, Report, Row, WindowKey};
use crate::standing::{Place, Standing};
use crate::tenure::{self, Tenure};
use crate::votes::{Times, Votes};
use crate::windows::{CLOCK_MARGIN_MS, ClusterTime, GRANT_HORIZON_MS};

/// Time between two beats.
pub const BEAT_INTERVAL: Duration = Duration::from_secs(1);

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
    beats: Beats,
    agreement: Agreement,
    tenure: Tenure,
    time: Option<ClusterTime>,
    sent_beat: Option<(Beat, Duration)>,
    exchange: Exchange,
    /// When this router leaves: the time from which it uses nothing.
    until_ms: Option<u64>,
    /// The row about its own life that this router has to write.
    life: Option<Row>,
}

impl Engine {
    /// The engine of the router `me`, which starts at `now`.
    #[must_use]
    pub fn new(me: NodeId, config: Config, now: Now) -> Self {
        Self {
            votes: Votes::new(me.clone(), config.times, now.mono),
            agreement: Agreement::new(me.clone()),
            me,
            config,
            beats: Beats::new(),
            tenure: Tenure::default(),
            time: None,
            sent_beat: None,
            exchange: Exchange::default(),
            until_ms: None,
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
        let roster = self.agreement.roster();
        roster.map(|roster| (roster, self.agreement.is_settled(roster.id())))
    }

    /// The divisions of limits that routers may go by: several while the roster changes, and none before the first one is
    /// settled. A decision of a majority needs one of each.
    #[must_use]
    pub fn divisions(&self) -> Vec<Shares> {
        self.agreement.divisions()
    }

    /// Applies a row of another router, or the present roster whoever wrote it.
    pub fn receive(&mut self, from: &NodeId, row: Row, limiter: &Limiter, now: Now) {
        self.agreement.note_life(from, None);
        match row {
            Row::Roster(roster) => {
                if roster.is_valid() {
                    self.agreement.adopt(roster);
                }
            }
            Row::Beat(_) | Row::Report(..) | Row::Grant { .. } | Row::Life { .. }
                if *from == self.me => {}
            Row::Life { until_ms, .. } => self.agreement.note_life(from, until_ms),
            Row::Beat(beat) => {
                beat.heard.iter().for_each(|heard| self.agreement.note_life(&heard.of, None));
                let names = self.agreement.names();
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

    /// Does what is due, and returns the rows to write.
    pub fn turn(&mut self, turn: &Turn<'_>, limiter: &Limiter) -> Vec<Row> {
        let mut rows = Vec::new();
        self.follow_time(turn);
        rows.extend(self.agree(turn).map(Row::Roster));
        let is_active = !limiter.is_idle() && self.agreement.settled().is_some();
        self.votes.activate(!limiter.is_idle(), turn.now.mono);
        self.tenure.activate(is_active, turn.now.mono);
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
        let shares = self.agreement.settled().map(Roster::shares);
        let parts =
            Parts { me: &self.me, members: turn.members, shares: shares.as_ref(), moment: &moment };
        rows.extend(self.exchange.turn(&parts, limiter));
        rows
    }

    /// Takes part in the agreement on the roster. Returns the roster to write if this router has changed it.
    fn agree(&mut self, turn: &Turn<'_>) -> Option<Roster> {
        let around = Around {
            mono: turn.now.mono,
            cluster_ms: self.time.unwrap_or_default().at(turn.now),
            members: turn.members,
            beats: &self.beats,
            is_complete: turn.is_complete,
            expected: self.expected(turn),
        };
        let is_leaving = self.until_ms.is_some();
        let changed = if is_leaving { None } else { self.agreement.change(&around) };
        let contacts = self.votes.contacts(&self.agreement.names());
        if self.agreement.settle(contacts, &around)
            && let Some(settled) = self.agreement.settled()
        {
            self.life = Some(Row::Life { at_ms: around.cluster_ms, until_ms: None });
            self.votes.abstain(!self.agreement.is_in_first_life(settled));
        }
        changed
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
        let shares = self.agreement.settled().map(Roster::shares);
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
        let size = self.agreement.roster().map_or(1, |roster| roster.size);
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
        self.tenure.shift(later);
        self.agreement.earlier.iter_mut().for_each(|(_, before)| *before = later(*before));
    }

    /// The greatest number of routers that any present router expects.
    fn expected(&self, turn: &Turn<'_>) -> Option<u32> {
        let present = self
            .beats
            .values()
            .filter(|(node, _)| turn.members.iter().any(|member| member.node.name == node.name));
        present.filter_map(|(_, beat)| beat.expected).chain(self.config.expected).max()
    }

    /// Follows for how long a majority acknowledges this router, and which shares it inherits.
    fn follow_votes(&mut self, turn: &Turn<'_>) {
        self.votes.forget_ended(turn.now.mono);
        let divisions = self.agreement.divisions();
        let mut tenure = std::mem::take(&mut self.tenure);
        tenure.follow(&self.votes_at(turn, &divisions));
        self.tenure = tenure;
    }

    fn votes_at<'a>(&'a self, turn: &Turn<'_>, divisions: &'a [Shares]) -> tenure::Moment<'a> {
        let settled = self.agreement.settled();
        tenure::Moment {
            me: &self.me,
            votes: &self.votes,
            divisions,
            is_first_life: settled.is_some_and(|roster| self.agreement.is_in_first_life(roster)),
            mono: turn.now.mono,
            cluster_ms: self.time.unwrap_or_default().at(turn.now),
        }
    }

    fn standing(&mut self, turn: &Turn<'_>) -> Standing {
        let week = crate::rule::MAX_WINDOW.as_millis();
        let cluster_ms = u128::from(self.time.unwrap_or_default().at(turn.now));
        self.agreement.earlier.retain(|(_, before)| u128::from(*before) + week > cluster_ms);
        let divisions = self.agreement.divisions();
        if divisions.is_empty() {
            return Standing::none();
        }
        let (whole_until, whole_from_ms) = self.tenure.whole();
        Standing {
            places: divisions.iter().map(|division| Place::of(division, &self.me.name)).collect(),
            earlier: self.agreement.earlier.clone(),
            whole_until,
            whole_from_ms,
            inherited: self.tenure.inherited(&self.votes_at(turn, &divisions)),
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
        let settled = self.agreement.settled();
        let names = settled.map(|roster| roster.shares().names).unwrap_or_default();
        let is_voter = has_rules && names.contains(&self.me.name) && names.len() > 2;
        let mut beat = Beat {
            at_ms: u64::try_from(mono.as_millis()).unwrap_or(u64::MAX),
            expected: self.config.expected,
            roster: self.roster().map(|(roster, _)| roster.id()),
            is_settled: self.roster().is_some_and(|(_, is_settled)| is_settled),
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
