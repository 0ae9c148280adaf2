//! The exchange of demand and rights with the other routers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use smg_types::ids::{NodeId, NodeName};

use crate::cell::Cell;
use crate::demand::Hot;
use crate::escrow::{Book, Books, Other};
use crate::limiter::Limiter;
use crate::meter::{self, Moment};
use crate::roster::{Member, Shares};
use crate::rows::{MeterId, Report, Row, SubjectId, WindowKey};
use crate::share::share;
use crate::standing::Mode;
use crate::windows::{GRANT_HORIZON_MS, start_of};

/// Rights for windows up to this length are granted before the window begins.
const AHEAD_MS: u32 = 2_000;

/// The most grants of one turn; beyond it, routers keep to the rights they have.
const MAX_GRANTS: usize = 200;

/// The most windows of which reports of others are kept.
const MAX_BOOKS: usize = 65_536;

/// How long a subject without demand stays in the exchange.
const COOL_AFTER: Duration = Duration::from_secs(10);

/// What a turn of the exchange is based on.
pub(crate) struct Parts<'a> {
    /// This router.
    pub(crate) me: &'a NodeId,
    /// The other routers.
    pub(crate) members: &'a [Member],
    /// The shares of the settled roster.
    pub(crate) shares: Option<&'a Shares>,
    /// The present moment.
    pub(crate) moment: &'a Moment<'a>,
}

/// The subjects and windows that this router exchanges with others.
#[derive(Debug, Default)]
pub(crate) struct Exchange {
    hot: BTreeMap<(MeterId, SubjectId), Hot>,
    books: Books,
    is_leaving: bool,
}

impl Exchange {
    /// Notes what another router has counted and wants.
    pub(crate) fn reported(
        &mut self,
        from: &NodeId,
        key: WindowKey,
        report: Report,
        limiter: &Limiter,
    ) {
        if self.books.len() < MAX_BOOKS || self.books.contains_key(&key) {
            let book = self.books.entry(key).or_default();
            book.report(from, report);
            Self::count_others(book, key, limiter);
        }
    }

    /// Notes a grant of another router.
    pub(crate) fn granted(
        &mut self,
        from: &NodeId,
        key: WindowKey,
        to: &NodeId,
        units: u64,
        me: &NodeId,
        limiter: &Limiter,
    ) {
        if self.books.len() < MAX_BOOKS || self.books.contains_key(&key) {
            let book = self.books.entry(key).or_default();
            book.grant(from, to, units);
            Self::apply_grants(me, book, key, limiter);
        }
    }

    /// Reports and grants what is due.
    pub(crate) fn turn(&mut self, parts: &Parts<'_>, limiter: &Limiter) -> Vec<Row> {
        let moment = parts.moment;
        let mut rows = Vec::new();
        self.books.retain(|key, _| key.end_ms() + u64::from(key.length_ms) >= moment.cluster_ms);
        for (key, book) in &mut self.books {
            Self::apply_grants(parts.me, book, *key, limiter);
        }
        self.report(limiter, moment, &mut rows);
        if !self.is_leaving {
            self.grant(parts, limiter, &mut rows);
        }
        rows
    }

    /// Forgets everything, because there are no rules.
    pub(crate) fn clear(&mut self) {
        self.hot.clear();
        self.books.clear();
    }

    pub(crate) fn reports(&self, key: &WindowKey) -> Vec<(NodeId, Report)> {
        let book = self.books.get(key);
        let reports = book.into_iter().flat_map(Book::reports);
        reports.map(|(node, report)| (node.clone(), *report)).collect()
    }

    pub(crate) fn size(&self) -> (usize, usize) {
        (self.hot.len(), self.books.len())
    }

    pub(crate) fn rules_changed(&mut self) {
        for hot in self.hot.values() {
            hot.cell.cool();
        }
        self.hot.clear();
    }

    /// States what others have reported of a window.
    fn count_others(book: &Book, key: WindowKey, limiter: &Limiter) {
        if let Some(cell) = limiter.reported(key.meter, key.subject)
            && cell.meter.window_ms == key.length_ms
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

    /// Measures the demand of the subjects that are exchanged, and reports what has changed.
    fn report(&mut self, limiter: &Limiter, moment: &Moment<'_>, rows: &mut Vec<Row>) {
        let mono = moment.mono;
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
    fn grant(&mut self, parts: &Parts<'_>, limiter: &Limiter, rows: &mut Vec<Row>) {
        let Some(shares) = parts.shares else { return };
        let moment = parts.moment;
        let mut grants = 0;
        for (key, book) in &mut self.books {
            if grants >= MAX_GRANTS {
                break;
            }
            // In windows far ahead this router may have no share, once its clock has been corrected.
            let is_far = key.start_ms > moment.cluster_ms.saturating_add(GRANT_HORIZON_MS);
            if key.end_ms() <= moment.cluster_ms || is_far || !book.is_wanted() {
                continue;
            }
            let Some(cell) = limiter.reported(key.meter, key.subject) else { continue };
            if cell.meter.window_ms != key.length_ms || cell.meter.mode == Mode::Soft {
                continue;
            }
            let need =
                self.hot.get(&(key.meter, key.subject)).map_or(0, |hot| hot.need(key, moment));
            let free = cell
                .with(key.start_ms, |meter, salt, window| meter::free(meter, salt, window, moment));
            let surplus = free.unwrap_or(0).saturating_sub(need);
            if surplus == 0 {
                continue;
            }
            let others = others(&shares.names, shares.size, parts.me, parts.members, &cell);
            for (to, units) in book.divide(surplus, &others) {
                let lent = cell.with(key.start_ms, |meter, salt, window| {
                    meter::lend(meter, salt, window, units, moment)
                });
                let lent = lent.unwrap_or(0);
                if lent > 0 {
                    grants += 1;
                    let units = book.granted(parts.me, &to, lent);
                    rows.push(Row::Grant { key: *key, to, units });
                }
            }
        }
    }

    /// Grants all rights to the others; afterwards nothing is granted any more.
    pub(crate) fn leave(&mut self, parts: &Parts<'_>, limiter: &Limiter) -> Vec<Row> {
        self.is_leaving = true;
        let moment = parts.moment;
        let alive: Vec<&NodeId> = parts
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
                self.hand_over(&cell, key, &alive, parts, &mut rows);
            }
        }
        rows
    }

    fn hand_over(
        &mut self,
        cell: &Cell,
        key: WindowKey,
        alive: &[&NodeId],
        parts: &Parts<'_>,
        rows: &mut Vec<Row>,
    ) {
        let moment = parts.moment;
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
                let units = book.granted(parts.me, to, lent);
                rows.push(Row::Grant { key, to: (*to).clone(), units });
            }
        }
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
