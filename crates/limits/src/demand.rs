//! The demand for a subject on this router, and what the router reports of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::cell::Cell;
use crate::meter::{self, Moment};
use crate::rows::{Report, Row, WindowKey};
use crate::standing::Mode;
use crate::windows::start_of;

/// How far ahead demand is foreseen, in milliseconds, so that nobody hoards rights of a long window.
const FORESIGHT_MS: u64 = 5_000;

/// Time constant of the measured demand, in milliseconds.
const DEMAND_MS: f64 = 1_000.0;

/// A subject whose demand is exchanged.
#[derive(Debug)]
pub(crate) struct Hot {
    pub(crate) cell: Arc<Cell>,
    /// Measured demand, in units per millisecond.
    demand: f64,
    measured: Duration,
    /// The window of the last measurement, and the units that had been offered in it.
    offered: (u64, u64),
    pub(crate) last_used: Duration,
    /// What was last reported of each window.
    reported: BTreeMap<u64, (Report, Duration)>,
}

impl Hot {
    pub(crate) fn new(cell: Arc<Cell>, mono: Duration) -> Self {
        Self {
            cell,
            demand: 0.0,
            measured: mono,
            offered: (0, 0),
            last_used: mono,
            reported: BTreeMap::new(),
        }
    }

    pub(crate) fn length(&self) -> Duration {
        Duration::from_millis(u64::from(self.cell.meter.window_ms))
    }

    /// Measures the demand since the last turn.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(crate) fn measure(&mut self, moment: &Moment<'_>, mono: Duration) {
        let start_ms = start_of(moment.cluster_ms, self.cell.meter.window_ms);
        let offered = self.cell.window(start_ms).map_or(0, |window| window.offered);
        let before = if self.offered.0 == start_ms { self.offered.1 } else { 0 };
        let rest = match self.cell.window(self.offered.0) {
            Some(window) if self.offered.0 != start_ms => {
                window.offered.saturating_sub(self.offered.1)
            }
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
    pub(crate) fn need(&self, key: &WindowKey, moment: &Moment<'_>) -> u64 {
        let begin = key.start_ms.max(moment.cluster_ms);
        let time = key.end_ms().saturating_sub(begin).min(FORESIGHT_MS);
        let units = self.demand * time as f64;
        if units < 0.5 { 0 } else { (units * 1.1).ceil() as u64 }
    }

    /// The report of a window, if it says something new.
    pub(crate) fn report(
        &mut self,
        key: WindowKey,
        moment: &Moment<'_>,
        mono: Duration,
    ) -> Option<Row> {
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
