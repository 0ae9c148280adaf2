//! The part of the limits that every request passes: which rules concern it, and whether it may go on.
//!
//! Nothing here waits or allocates for a subject that is known. Each subject of a meter has a small lock of its own.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use parking_lot::{Mutex, RwLock};
use smg_types::now::Now;

use crate::admission::{Admission, Quota, Refusal, Taken, quota, refusal};
use crate::cell::{self, Cell};
use crate::meter::{self, Moment};
use crate::rows::{MeterId, SubjectId};
use crate::rule::{Kind, Meter, Rule, TokenCount, Who};
use crate::standing::{Mode, Standing};
use crate::windows::{ClusterTime, start_of};

/// The most subjects of all rules that are counted separately. Further ones of a rule count together, which admits less.
pub const MAX_SUBJECTS: usize = 262_144;

/// The number of parts of the table of subjects, each with a lock of its own.
const SHARDS: usize = 64;

/// The subject under which those beyond [`MAX_SUBJECTS`] count together.
const OVERFLOW: SubjectId = SubjectId(0);

/// The rules that are in force, with the cells of their subjects.
#[derive(Debug, Default)]
struct InForce {
    rules: Vec<Arc<RuleInForce>>,
}

#[derive(Debug)]
struct RuleInForce {
    rule: Rule,
    name: Arc<str>,
    meters: Vec<Arc<Meter>>,
    counts: Counts,
}

/// What has become of the requests that a rule concerned, since this router started.
#[derive(Debug, Default)]
pub struct Counts {
    /// Requests that the rule let pass, whatever other rules said.
    pub admitted: AtomicU64,
    /// Requests that the rule refused, or would have refused if it were not a shadow.
    pub rejected: AtomicU64,
}

/// What a router may use, and the time by which windows begin.
#[derive(Debug, Clone)]
struct Live {
    standing: Standing,
    time: ClusterTime,
}

type Shard = RwLock<HashMap<(MeterId, SubjectId), Arc<Cell>>>;

/// Counts requests and tokens, and refuses those beyond the rights of this router.
pub struct Limiter {
    in_force: ArcSwap<InForce>,
    live: ArcSwap<Live>,
    shards: Box<[Shard]>,
    cells: AtomicU64,
    /// Subjects that have become hot since the engine last looked.
    heated: Mutex<Vec<Arc<Cell>>>,
    /// Called when a request lacks rights that another router may have.
    on_shortage: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl fmt::Debug for Limiter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limiter").field("cells", &self.cells).finish_non_exhaustive()
    }
}

impl Default for Limiter {
    fn default() -> Self {
        let live = Live { standing: Standing::none(), time: ClusterTime::default() };
        Self {
            in_force: ArcSwap::default(),
            live: ArcSwap::from_pointee(live),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            cells: AtomicU64::new(0),
            heated: Mutex::default(),
            on_shortage: OnceLock::new(),
        }
    }
}

impl Limiter {
    /// Sets what is called when a request lacks rights that another router may have. Only the first call has an effect.
    pub fn on_shortage(&self, wake: impl Fn() + Send + Sync + 'static) {
        drop(self.on_shortage.set(Box::new(wake)));
    }

    /// Replaces all rules. The counts of limits that remain are kept; those of removed rules are freed.
    pub fn set_rules(&self, rules: Vec<Rule>) {
        let before = self.in_force.load();
        let rules = rules.into_iter().map(|rule| {
            let same = before.rules.iter().find(|known| known.rule == rule);
            same.cloned().unwrap_or_else(|| {
                let name: Arc<str> = rule.id.as_str().into();
                let meters = rule.meters.iter().cloned().map(Arc::new).collect();
                let counts = before.rules.iter().find(|known| known.name == name);
                let counts = counts.map_or_else(Counts::default, |known| Counts {
                    admitted: AtomicU64::new(known.counts.admitted.load(Ordering::Relaxed)),
                    rejected: AtomicU64::new(known.counts.rejected.load(Ordering::Relaxed)),
                });
                Arc::new(RuleInForce { rule, name, meters, counts })
            })
        });
        let new = InForce { rules: rules.collect() };
        let meters: HashMap<MeterId, (Arc<str>, Arc<Meter>)> = new
            .rules
            .iter()
            .flat_map(|rule| {
                rule.meters.iter().map(|m| (m.id, (Arc::clone(&rule.name), Arc::clone(m))))
            })
            .collect();
        drop(before);
        self.in_force.store(Arc::new(new));
        for shard in &self.shards {
            let mut shard = shard.write();
            shard.retain(|(meter, _), cell| match meters.get(meter) {
                None => {
                    self.cells.fetch_sub(1, Ordering::Relaxed);
                    false
                }
                Some((rule, meter)) => {
                    if !Arc::ptr_eq(meter, &cell.meter) {
                        *cell = Arc::new(cell::renewed(cell, rule, meter));
                    }
                    true
                }
            });
        }
    }

    /// The rules in force, with what has become of the requests that they concerned.
    #[must_use]
    pub fn rules(&self) -> Vec<(Rule, u64, u64)> {
        let in_force = self.in_force.load();
        let rules = in_force.rules.iter().map(|rule| {
            let Counts { admitted, rejected } = &rule.counts;
            let (admitted, rejected) =
                (admitted.load(Ordering::Relaxed), rejected.load(Ordering::Relaxed));
            (rule.rule.clone(), admitted, rejected)
        });
        rules.collect()
    }

    /// Whether there are no rules, so that nothing is counted.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_force.load().rules.is_empty()
    }

    /// Sets what this router may use, and the cluster's time.
    pub fn set_standing(&self, standing: Standing, time: ClusterTime) {
        self.live.store(Arc::new(Live { standing, time }));
    }

    /// What this router may use.
    #[must_use]
    pub fn standing(&self) -> Standing {
        self.live.load().standing.clone()
    }

    /// The cluster's time by which windows begin, in milliseconds.
    #[must_use]
    pub fn cluster_ms(&self, now: Now) -> u64 {
        self.live.load().time.at(now)
    }

    /// Whether any limit of tokens may concern the request.
    #[must_use]
    pub fn counts_tokens(&self, who: &Who<'_>) -> bool {
        let in_force = self.in_force.load();
        in_force.rules.iter().any(|rule| {
            rule.meters.iter().any(|meter| meter.kind == Kind::Tokens)
                && rule.rule.subject(who).is_some()
        })
    }

    /// Takes what a request needs from every limit that concerns it, or nothing. `estimate` are the tokens that it may use.
    ///
    /// # Errors
    /// A limit is used up.
    pub fn check(
        &self,
        who: &Who<'_>,
        estimate: &TokenCount,
        now: Now,
    ) -> Result<Admission, Box<Refusal>> {
        let in_force = self.in_force.load();
        let mut admission = Admission::default();
        if in_force.rules.is_empty() {
            return Ok(admission);
        }
        let live = self.live.load();
        let moment =
            Moment { standing: &live.standing, cluster_ms: live.time.at(now), mono: now.mono };
        for rule in &in_force.rules {
            let Some(subject) = rule.rule.subject(who) else { continue };
            let mut is_over = false;
            for meter in &rule.meters {
                let cell = self.cell(rule, meter, subject, who);
                match self.take(rule, &cell, meter.units(estimate), &moment) {
                    Ok((taken, quota)) => {
                        is_over |= !taken.was_free;
                        admission.taken.push(taken);
                        // A shadow is not seen.
                        admission.quotas.extend((!rule.rule.shadow).then_some(quota));
                    }
                    Err(mut refusal) => {
                        rule.counts.rejected.fetch_add(1, Ordering::Relaxed);
                        refusal.quotas.append(&mut admission.quotas);
                        admission.take_back();
                        return Err(refusal);
                    }
                }
            }
            let count = if is_over { &rule.counts.rejected } else { &rule.counts.admitted };
            count.fetch_add(1, Ordering::Relaxed);
        }
        Ok(admission)
    }

    /// Takes `units` of one cell. A rule that is a shadow takes them whether they are free or not.
    fn take(
        &self,
        rule: &RuleInForce,
        cell: &Arc<Cell>,
        units: u64,
        moment: &Moment<'_>,
    ) -> Result<(Taken, Quota), Box<Refusal>> {
        let meter = &cell.meter;
        let start_ms = start_of(moment.cluster_ms, meter.window_ms);
        let mut windows = cell.windows();
        windows.drop_old(meter.window_ms, moment.cluster_ms);
        let Some(window) = windows.at(start_ms) else {
            // The cluster's time has stepped back into a window whose counts are gone.
            let quota = quota(&rule.name, meter, 0, start_ms, moment);
            return Err(Box::new(refusal(quota, units, false)));
        };
        let salt = cell.salt();
        let is_admitted = meter::take(meter, salt, window, units, moment);
        let rights = meter::rights(meter, salt, window, moment);
        let remaining = meter.limit.saturating_sub(window.used()).saturating_sub(window.others);
        let is_low = window.used().saturating_mul(2) > rights.total
            || !is_admitted
            || meter.mode == Mode::Soft;
        let used_all_here = window.used() >= meter.limit;
        if !is_admitted && rule.rule.shadow {
            window.taken += units;
            window.refused = window.refused.saturating_sub(units);
        }
        drop(windows);
        if is_low && cell.heat() {
            self.heated.lock().push(Arc::clone(cell));
        }
        let taken = Taken { cell: Arc::clone(cell), start_ms, units, was_free: is_admitted };
        if is_admitted {
            return Ok((taken, quota(&rule.name, meter, remaining, start_ms, moment)));
        }
        let quota = quota(&rule.name, meter, 0, start_ms, moment);
        if rule.rule.shadow {
            return Ok((taken, quota));
        }
        let others = meter.mode != Mode::Soft && moment.standing.size() > 1 && !used_all_here;
        let is_hopeful = others
            && meter.burst.is_none()
            && units <= meter.limit
            && cell.is_hopeful(moment.cluster_ms);
        if is_hopeful && let Some(wake) = self.on_shortage.get() {
            wake();
        }
        Err(Box::new(refusal(quota, units, is_hopeful)))
    }

    /// States that a wait for rights of this subject was in vain, so that for `pause_ms` milliseconds nobody waits.
    pub fn waited_in_vain(&self, who: &Who<'_>, refused: &Refusal, pause_ms: u64, now: Now) {
        let in_force = self.in_force.load();
        let rule = in_force.rules.iter().find(|rule| rule.name == refused.quota.rule);
        let Some(rule) = rule else { return };
        let Some(subject) = rule.rule.subject(who) else { return };
        let meter = rule.meters.iter().find(|meter| meter.kind == refused.quota.kind);
        if let Some(meter) = meter {
            let cell = self.cell(rule, meter, subject, who);
            cell.waited_in_vain(self.cluster_ms(now) + pause_ms);
        }
    }

    /// The cell of a subject, which is made if there is none.
    fn cell(
        &self,
        rule: &RuleInForce,
        meter: &Arc<Meter>,
        subject: SubjectId,
        who: &Who<'_>,
    ) -> Arc<Cell> {
        let at = (meter.id, subject);
        let shard = self.shard(at);
        if let Some(cell) = shard.read().get(&at) {
            cell.name(|| rule.rule.label(who));
            return Arc::clone(cell);
        }
        let is_full = self.cells.load(Ordering::Relaxed) >= MAX_SUBJECTS as u64;
        let at = if is_full { (meter.id, OVERFLOW) } else { at };
        let cell = self.insert(at, || Cell::new(&rule.name, meter, at.1));
        cell.name(|| if is_full { "others".to_owned() } else { rule.rule.label(who) });
        cell
    }

    fn insert(&self, at: (MeterId, SubjectId), make: impl FnOnce() -> Cell) -> Arc<Cell> {
        match self.shard(at).write().entry(at) {
            MapEntry::Occupied(known) => Arc::clone(known.get()),
            MapEntry::Vacant(place) => {
                self.cells.fetch_add(1, Ordering::Relaxed);
                Arc::clone(place.insert(Arc::new(make())))
            }
        }
    }

    fn shard(&self, (meter, subject): (MeterId, SubjectId)) -> &Shard {
        #[expect(
            clippy::cast_possible_truncation,
            reason = "the remainder is below the number of shards"
        )]
        let at = ((meter.0 ^ subject.0.rotate_left(17)) % SHARDS as u64) as usize;
        &self.shards[at]
    }

    /// The cell of a subject that another router has reported, which is made if the rule is in force. The subject's name is
    /// not known then.
    pub(crate) fn reported(&self, meter: MeterId, subject: SubjectId) -> Option<Arc<Cell>> {
        let at = (meter, subject);
        if let Some(cell) = self.shard(at).read().get(&at) {
            return Some(Arc::clone(cell));
        }
        if self.cells.load(Ordering::Relaxed) >= MAX_SUBJECTS as u64 {
            return None;
        }
        let in_force = self.in_force.load();
        let (rule, meter) = in_force.rules.iter().find_map(|rule| {
            rule.meters.iter().find(|own| own.id == meter).map(|meter| (rule, meter))
        })?;
        Some(self.insert(at, || Cell::new(&rule.name, meter, subject)))
    }

    /// What a meter counts, if its rule is in force.
    #[must_use]
    pub fn kind(&self, meter: MeterId) -> Option<Kind> {
        let in_force = self.in_force.load();
        let mut meters = in_force.rules.iter().flat_map(|rule| &rule.meters);
        meters.find(|own| own.id == meter).map(|meter| meter.kind)
    }

    /// The subjects that have become hot since the last call.
    pub(crate) fn take_heated(&self) -> Vec<Arc<Cell>> {
        std::mem::take(&mut *self.heated.lock())
    }

    /// All that this router may use of a subject's present window, what it has used and lent included.
    #[must_use]
    pub fn rights(&self, cell: &Cell, now: Now) -> u64 {
        let live = self.live.load();
        let cluster_ms = live.time.at(now);
        let moment = Moment { standing: &live.standing, cluster_ms, mono: now.mono };
        let start_ms = start_of(cluster_ms, cell.meter.window_ms);
        let rights = cell.with(start_ms, |meter, salt, window| {
            meter::rights(meter, salt, window, &moment).total
        });
        rights.unwrap_or(0)
    }

    /// All subjects that are counted for one limit, in no order.
    #[must_use]
    pub fn cells_of(&self, meter: MeterId) -> Vec<Arc<Cell>> {
        let mut cells = Vec::new();
        for shard in &self.shards {
            let shard = shard.read();
            cells.extend(shard.values().filter(|cell| cell.meter.id == meter).cloned());
        }
        cells
    }

    /// How many subjects are counted.
    #[must_use]
    pub fn subjects(&self) -> u64 {
        self.cells.load(Ordering::Relaxed)
    }

    /// Frees the subjects of which nothing has been counted for two windows.
    pub fn sweep(&self, now: Now) {
        let cluster_ms = self.cluster_ms(now);
        for shard in &self.shards {
            shard.write().retain(|_, cell| {
                let is_empty = cell.windows().drop_old(cell.meter.window_ms, cluster_ms);
                // A request that has the cell still holds a reference to it.
                let keep = !is_empty || Arc::strong_count(cell) > 1;
                if !keep {
                    self.cells.fetch_sub(1, Ordering::Relaxed);
                }
                keep
            });
        }
    }
}
