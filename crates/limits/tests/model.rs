//! Checks all histories of three routers that divide one limit, with the model checker `stateright`: links that fail in one
//! direction or both, routers that stand still, loans that arrive late or never, and one router that crashes or leaves and
//! returns.
//!
//! Votes, tenures, standings and counts are those of the crate; what the model adds is the exchange of rows. Time passes in
//! ticks of four seconds; an acknowledgement counts for nine, and a promise for twelve; in each tick a router writes a row about itself, which
//! arrives at the others at once or never. A router takes all units that it may use, since nobody else loses what it takes;
//! only a patient one waits for the end of a window, so that it has something to lend or to leave. The roster does not change,
//! and clocks agree: both are the simulator's part.
//!
//! This file is long because the model, its state and its properties are one machine.
//!
//! `SMG_LIMIT_TICKS` sets how many ticks pass. Each rule that a test removes is removed at a seam: the model forges what the
//! rule forbids.

#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use smg_limits::meter::{self, Moment, Windows};
use smg_limits::roster::Shares;
use smg_limits::rows::Beat;
use smg_limits::rule::{Meter, Rule, RuleDocument};
use smg_limits::standing::{Place, Standing};
use smg_limits::tenure::{self, Tenure};
use smg_limits::votes::{Times, Votes};
use smg_limits::windows::{GRANT_HORIZON_MS, UNUSED_MS, start_of};
use smg_types::ids::{Generation, NodeId, NodeName};
use stateright::{Checker as _, HasDiscoveries, Model, Property};

const ROUTERS: usize = 3;
/// Length of a tick, in milliseconds.
const TICK_MS: u64 = 4_000;
const LIMIT: u64 = 12;
const TIMES: Times = Times { ttl: Duration::from_secs(9), lease: Duration::from_secs(12) };

/// The rules that a test can remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Removed {
    Nothing,
    /// T2: an heir uses windows that began before it inherited.
    HeirFrom,
    /// A restarted router has its share in windows that began before.
    Boot,
    /// The lender loses what it lends.
    LenderLoses,
}

#[derive(Debug, Clone, Copy)]
struct Cluster {
    /// How many ticks pass after the first one.
    ticks: u64,
    /// How many ticks a window has.
    window: u64,
    /// How many times a router crashes or leaves.
    ends: u8,
    loans: u8,
    /// Whether links fail in one direction, and routers stand still.
    has_odd_links: bool,
    removed: Removed,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Router {
    is_up: bool,
    generation: u64,
    votes: Votes,
    tenure: Tenure,
    windows: Windows,
    /// It has no share in windows that begin before this time.
    share_from_ms: u64,
    /// When it leaves: the time from which it uses nothing.
    until_ms: Option<u64>,
    beat: Option<Beat>,
}

/// Units of a window that one router has lent to a generation of another one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Loan {
    to: usize,
    generation: u64,
    start_ms: u64,
    units: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    /// Routers end and return.
    Fate,
    /// Routers send, as far as their links allow.
    Links,
    /// The data path of a router acts.
    Act(usize),
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    tick: u64,
    /// The length of a window, in milliseconds.
    window_ms: u64,
    phase: Phase,
    routers: Vec<Router>,
    /// Loans on their way.
    loans: Vec<Loan>,
    /// The router that takes units only at the end of a window.
    patient: Option<usize>,
    admitted: BTreeMap<u64, u64>,
    ends: u8,
    lent: u8,
    has_inherited: bool,
    has_borrowed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Action {
    Go,
    Crash(usize),
    /// A router hands its rights to another one and stops.
    Leave(usize, usize),
    Return(usize),
    Links(Links),
    /// A router takes all units that are free.
    Take,
    Wait,
    /// A router lends all that it may of the window that begins at or after the present one.
    Lend(usize, u64),
    Borrow(usize),
}

/// Which routers reach each other in a tick.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Links {
    All,
    None,
    /// All but those of one router.
    Without(usize),
    /// All but those to one router.
    Deaf(usize),
    /// All but those from one router.
    Mute(usize),
    /// One router does nothing but admit requests.
    Still(usize),
}

impl Links {
    fn reaches(self, from: usize, to: usize) -> bool {
        match self {
            Self::All => true,
            Self::None => false,
            Self::Without(cut) | Self::Still(cut) => from != cut && to != cut,
            Self::Deaf(deaf) => to != deaf,
            Self::Mute(mute) => from != mute,
        }
    }

    fn acts(self, router: usize) -> bool {
        self != Self::Still(router)
    }
}

fn name(router: usize) -> NodeName {
    ["a", "b", "c"][router].parse().unwrap()
}

fn names() -> Vec<NodeName> {
    (0..ROUTERS).map(name).collect()
}

thread_local! {
    static METER: Meter = {
        // The length of its windows has no effect without a burst.
        let json = format!(r#"{{"id":"r","requests":{LIMIT},"window":"1m"}}"#);
        let rule = Rule::new(serde_json::from_str::<RuleDocument>(&json).unwrap()).unwrap();
        rule.meters[0].clone()
    };
    static DIVISIONS: Vec<Shares> = vec![Shares { size: 3, names: names() }];
}

impl State {
    fn now_ms(&self) -> u64 {
        self.tick * TICK_MS
    }

    fn mono(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }

    fn id(&self, router: usize) -> NodeId {
        NodeId { name: name(router), generation: Generation(self.routers[router].generation) }
    }

    /// Does something with the votes' view of a router.
    fn at<T>(&self, router: usize, act: impl FnOnce(&tenure::Moment<'_>) -> T) -> T {
        DIVISIONS.with(|divisions| {
            act(&tenure::Moment {
                me: &self.id(router),
                votes: &self.routers[router].votes,
                divisions,
                is_first_life: self.routers[router].generation == 1,
                mono: self.mono(),
                cluster_ms: self.now_ms(),
            })
        })
    }

    fn follow(&mut self, router: usize) {
        let mut tenure = self.routers[router].tenure.clone();
        self.at(router, |moment| tenure.follow(moment));
        self.routers[router].tenure = tenure;
    }

    fn standing(&self, at: usize, removed: Removed) -> Standing {
        let router = &self.routers[at];
        let (whole_until, whole_from_ms) = router.tenure.whole();
        let mut inherited = self.at(at, |moment| router.tenure.inherited(moment));
        if removed == Removed::HeirFrom {
            inherited.iter_mut().for_each(|inherited| inherited.from_ms = 0);
        }
        let place = u32::try_from(at).unwrap();
        Standing {
            places: vec![Place { size: 3, place: Some(place) }],
            earlier: vec![(Place::NONE, router.share_from_ms)],
            whole_until,
            whole_from_ms,
            inherited,
            until_ms: router.until_ms.unwrap_or(u64::MAX),
        }
    }

    /// Does something with a window of a router.
    fn window<T>(
        &mut self,
        router: usize,
        start_ms: u64,
        removed: Removed,
        act: impl FnOnce(&Meter, u64, &mut meter::Window, &Moment<'_>) -> T,
    ) -> T {
        let standing = self.standing(router, removed);
        let moment = Moment { standing: &standing, cluster_ms: self.now_ms(), mono: self.mono() };
        let window = self.routers[router].windows.at(start_ms).unwrap();
        METER.with(|meter| act(meter, 0, window, &moment))
    }

    fn start_ms(&self) -> u64 {
        start_of(self.now_ms(), u32::try_from(self.window_ms).unwrap())
    }

    /// A router writes a row about itself.
    fn write(&mut self, at: usize) {
        let (mono, at_ms) = (self.mono(), self.now_ms());
        let router = &mut self.routers[at];
        let claims = router.votes.claim(&names(), mono);
        let heard = router.votes.acknowledgements(mono);
        let promises = router.votes.promises(mono);
        router.beat = Some(Beat { at_ms, heard, claims, promises, ..Beat::default() });
    }

    fn deliver(&mut self, from: usize, to: usize) {
        let (mono, id) = (self.mono(), self.id(from));
        let Some(beat) = self.routers[from].beat.clone() else { return };
        let target = &mut self.routers[to];
        target.votes.receive(&id, &beat, &names(), mono);
    }

    /// Lends all that a router may lend of a window. Returns whether that is anything.
    fn lend(&mut self, from: usize, to: usize, start_ms: u64, removed: Removed) -> bool {
        let units = self.window(from, start_ms, removed, |meter, salt, window, moment| {
            let units = meter::lend(meter, salt, window, u64::MAX, moment);
            if removed == Removed::LenderLoses {
                window.lent -= units;
            }
            units
        });
        let generation = self.routers[to].generation;
        if units > 0 {
            self.loans.push(Loan { to, generation, start_ms, units });
            self.loans.sort();
        }
        units > 0
    }

    fn take(&mut self, router: usize, removed: Removed) {
        let start_ms = self.start_ms();
        let units = self.window(router, start_ms, removed, |meter, salt, window, moment| {
            let units = meter::free(meter, salt, window, moment);
            units * u64::from(meter::take(meter, salt, window, units, moment))
        });
        *self.admitted.entry(start_ms).or_default() += units;
        let window = self.routers[router].windows.get(start_ms).unwrap().clone();
        let rights = self.window(router, start_ms, removed, meter::rights);
        self.has_inherited |= window.used() > rights.base + window.granted;
        self.has_borrowed |= window.granted > 0 && units > 0;
    }
}

impl Cluster {
    fn start(generation: u64, now_ms: u64, router: usize) -> Router {
        let mono = Duration::from_millis(now_ms);
        let me = NodeId { name: name(router), generation: Generation(generation) };
        let mut votes = Votes::new(me, TIMES, mono);
        votes.abstain(generation > 1);
        votes.activate(true, mono);
        let mut tenure = Tenure::default();
        tenure.activate(true, mono);
        Router {
            is_up: true,
            generation,
            votes,
            tenure,
            windows: Windows::default(),
            share_from_ms: 0,
            until_ms: None,
            beat: None,
        }
    }

    /// A router returns: its former life may have used and lent something.
    fn restart(self, state: &mut State, at: usize) {
        let (now_ms, before) = (state.now_ms(), &state.routers[at]);
        let share_from_ms = match before.until_ms {
            Some(until_ms) => until_ms.max(now_ms + 1_000),
            None => now_ms + UNUSED_MS,
        };
        let router = Self::start(before.generation + 1, now_ms, at);
        let share_from_ms = if self.removed == Removed::Boot { 0 } else { share_from_ms };
        state.routers[at] = Router { share_from_ms, ..router };
    }

    fn leave(self, state: &mut State, at: usize, to: usize) {
        let now_ms = state.now_ms();
        state.routers[at].until_ms = Some(now_ms + GRANT_HORIZON_MS);
        let (first, window_ms) = (state.start_ms(), state.window_ms);
        let starts = (0..).map(|n| first + n * window_ms);
        for start_ms in starts.take_while(|start| *start < now_ms + GRANT_HORIZON_MS) {
            state.lend(at, to, start_ms, self.removed);
        }
        state.routers[at].is_up = false;
    }

    fn links(state: &mut State, links: Links) {
        let acts = |state: &State, at: usize| state.routers[at].is_up && links.acts(at);
        for at in (0..ROUTERS).filter(|at| acts(state, *at)).collect::<Vec<_>>() {
            let mono = state.mono();
            state.routers[at].votes.forget_ended(mono);
            state.follow(at);
            state.write(at);
        }
        for (from, to) in (0..ROUTERS).flat_map(|from| (0..ROUTERS).map(move |to| (from, to))) {
            if from != to && links.reaches(from, to) && acts(state, from) && acts(state, to) {
                state.deliver(from, to);
            }
        }
        for at in (0..ROUTERS).filter(|at| acts(state, *at)).collect::<Vec<_>>() {
            state.follow(at);
        }
    }

    fn tick(state: &mut State) {
        state.tick += 1;
        let (now_ms, window_ms) = (state.now_ms(), u32::try_from(state.window_ms).unwrap());
        for router in &mut state.routers {
            router.windows.drop_old(window_ms, now_ms);
        }
        let start_ms = state.start_ms();
        state.loans.retain(|loan| loan.start_ms >= start_ms);
        state.admitted.retain(|start, _| *start >= start_ms);
    }

    /// The steps that the data path of a router may take.
    fn acts(self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let router = &state.routers[at];
        let is_end = ((state.tick + 1) * TICK_MS).is_multiple_of(state.window_ms);
        if !router.is_up || state.patient == Some(at) && !is_end {
            actions.push(Action::Wait);
        } else {
            actions.push(Action::Take);
        }
        if !router.is_up {
            return;
        }
        let is_mine = |loan: &Loan| loan.to == at && loan.generation == router.generation;
        let mine = (0..state.loans.len()).filter(|loan| is_mine(&state.loans[*loan]));
        actions.extend(mine.map(Action::Borrow));
        if state.lent < self.loans {
            let others = (0..ROUTERS).filter(|to| *to != at);
            actions.extend(others.map(|to| Action::Lend(to, state.start_ms())));
        }
    }
}

impl Model for Cluster {
    type State = State;
    type Action = Action;

    /// All three routers run and know each other when the first window of the history begins.
    fn init_states(&self) -> Vec<State> {
        let begin_ms = (self.window - 2) * TICK_MS;
        let routers = if self.loans + self.ends > 0 { ROUTERS } else { 0 };
        let patient = [None].into_iter().chain((0..routers).map(Some));
        let state = |patient| State {
            tick: self.window - 2,
            window_ms: self.window * TICK_MS,
            phase: Phase::Links,
            routers: (0..ROUTERS).map(|at| Self::start(1, begin_ms, at)).collect(),
            loans: Vec::new(),
            patient,
            admitted: BTreeMap::new(),
            ends: 0,
            lent: 0,
            has_inherited: false,
            has_borrowed: false,
        };
        let known = |patient| {
            let mut state = state(patient);
            for _ in 0..2 {
                Self::links(&mut state, Links::All);
                state.tick += 1;
            }
            state
        };
        patient.map(known).collect()
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        match state.phase {
            Phase::Fate => {
                if state.tick > self.window + self.ticks {
                    return;
                }
                actions.push(Action::Go);
                for at in 0..ROUTERS {
                    if !state.routers[at].is_up {
                        actions.push(Action::Return(at));
                    } else if state.ends < self.ends {
                        actions.push(Action::Crash(at));
                        let others = (0..ROUTERS).filter(|to| *to != at);
                        actions.extend(others.map(|to| Action::Leave(at, to)));
                    }
                }
            }
            Phase::Links => {
                let mut links = vec![Links::All, Links::None];
                for at in 0..ROUTERS {
                    links.push(Links::Without(at));
                    if self.has_odd_links {
                        links.extend([Links::Deaf(at), Links::Mute(at), Links::Still(at)]);
                    }
                }
                actions.extend(links.into_iter().map(Action::Links));
            }
            Phase::Act(at) => self.acts(state, at, actions),
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match (state.phase, action) {
            (Phase::Fate, action) => {
                match action {
                    Action::Crash(at) => state.routers[at].is_up = false,
                    Action::Leave(at, to) => self.leave(&mut state, at, to),
                    Action::Return(at) => self.restart(&mut state, at),
                    _ => {}
                }
                state.ends += u8::from(matches!(action, Action::Crash(_) | Action::Leave(..)));
                state.phase = Phase::Links;
            }
            (Phase::Links, Action::Links(links)) => {
                Self::links(&mut state, links);
                state.phase = Phase::Act(0);
            }
            (Phase::Act(at), Action::Borrow(loan)) => {
                let loan = state.loans.remove(loan);
                state.routers[at].windows.at(loan.start_ms).unwrap().granted += loan.units;
            }
            (Phase::Act(at), action) => {
                match action {
                    Action::Take => state.take(at, self.removed),
                    Action::Lend(to, start_ms) => {
                        state.lent += 1;
                        if !state.lend(at, to, start_ms, self.removed) {
                            return None;
                        }
                    }
                    _ => {}
                }
                state.phase = Phase::Act(at + 1);
                if at + 1 == ROUTERS {
                    Self::tick(&mut state);
                    state.phase = Phase::Fate;
                }
            }
            _ => return None,
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most the limit", |_, state: &State| {
                state.admitted.values().all(|units| *units <= LIMIT)
            }),
            Property::sometimes("the whole limit is used", |_, state: &State| {
                state.admitted.values().any(|units| *units == LIMIT)
            }),
            Property::sometimes(
                "an heir uses what it inherits",
                |cluster: &Self, state: &State| state.has_inherited || cluster.ticks < 6,
            ),
            Property::sometimes("a borrower uses a loan", |cluster: &Self, state: &State| {
                state.has_borrowed || cluster.loans == 0
            }),
        ]
    }
}

const SMALL: Cluster = Cluster {
    ticks: 4,
    window: 6,
    ends: 0,
    loans: 0,
    has_odd_links: false,
    removed: Removed::Nothing,
};

/// Checks all histories, and prints how many states there are.
fn check(cluster: Cluster) {
    let ticks = std::env::var("SMG_LIMIT_TICKS").ok().map(|text| text.parse().unwrap());
    let cluster = Cluster { ticks: ticks.unwrap_or(cluster.ticks), ..cluster };
    let checker =
        cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    eprintln!("{cluster:?}: {} states", checker.unique_state_count());
    checker.assert_properties();
}

/// Finds a history that exceeds the limit without a rule.
fn exceeds_without(removed: Removed, cluster: Cluster) {
    let cluster = Cluster { removed, ..cluster };
    let checker =
        cluster.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    let path = checker.assert_any_discovery("at most the limit");
    let states = checker.unique_state_count();
    eprintln!("without {removed:?}: {states} states; {:?}", path.into_actions());
}

#[test]
fn links_fail() {
    // An heir can use what it inherits from the sixth tick on.
    check(Cluster { ticks: 6, ..SMALL });
}

#[test]
fn links_fail_and_a_router_lends() {
    check(Cluster { ticks: 2, window: 2, loans: 1, ..SMALL });
}

#[test]
fn links_fail_and_a_router_ends_and_returns() {
    check(Cluster { ticks: 2, window: 2, ends: 1, ..SMALL });
}

#[test]
#[ignore = "1,339,811 states: 46 s on two busy cores in release"]
fn links_fail_for_longer() {
    check(Cluster { ticks: 8, ..SMALL });
}

#[test]
#[ignore = "446,069 states: 24 s on two busy cores in release"]
fn links_fail_in_one_direction() {
    check(Cluster { ticks: 4, has_odd_links: true, ..SMALL });
}

#[test]
#[ignore = "1,519,765 states: 37 s on two busy cores in release"]
fn links_fail_and_a_router_lends_for_longer() {
    check(Cluster { ticks: 4, window: 3, loans: 1, ..SMALL });
}

#[test]
#[ignore = "1,895,403 states: 30 s on two busy cores in release"]
fn links_fail_and_a_router_ends_for_longer() {
    check(Cluster { ticks: 4, window: 2, ends: 1, ..SMALL });
}

#[test]
fn without_t2_a_history_exceeds_the_limit() {
    exceeds_without(Removed::HeirFrom, SMALL);
}

#[test]
fn without_a_pause_after_a_restart_a_history_exceeds_the_limit() {
    exceeds_without(Removed::Boot, Cluster { ends: 1, ticks: 2, ..SMALL });
}

#[test]
fn without_the_loss_of_the_lender_a_history_exceeds_the_limit() {
    exceeds_without(Removed::LenderLoses, Cluster { loans: 1, ticks: 2, ..SMALL });
}
