//! The counts of one meter for one subject, by window.

use std::time::Duration;

use crate::rule::Meter;
use crate::standing::{Mode, Standing};
use crate::votes::kept;
use crate::windows::start_of;

/// The counts of one window.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Window {
    /// Its start, in milliseconds of the cluster's time.
    pub start_ms: u64,
    /// Units taken for requests; only grows.
    pub taken: u64,
    /// Units returned, because requests used fewer; only grows.
    pub returned: u64,
    /// Units granted to other routers; only grows.
    pub lent: u64,
    /// Units granted by other routers; only grows.
    pub granted: u64,
    /// Units that other routers have reported. Only mode soft decides by them.
    pub others: u64,
    /// Units that were asked for, whether admitted or not.
    pub offered: u64,
    /// Units that were refused since the engine last looked, at most those of [`Self::offered`].
    pub refused: u64,
    /// The smallest share that this router has had in the window. A share that has shrunk does not grow again in it, because
    /// another router may have used the difference.
    share: u64,
    /// Whether this router was without a majority at any time of the window.
    is_cut: bool,
}

impl Window {
    fn new(start_ms: u64) -> Self {
        Self {
            start_ms,
            taken: 0,
            returned: 0,
            lent: 0,
            granted: 0,
            others: 0,
            offered: 0,
            refused: 0,
            share: u64::MAX,
            is_cut: false,
        }
    }

    /// Units that requests have used.
    #[must_use]
    pub const fn used(&self) -> u64 {
        self.taken.saturating_sub(self.returned)
    }
}

/// A moment at which rights are computed.
#[derive(Debug, Clone, Copy)]
pub struct Moment<'a> {
    /// What this router may use.
    pub standing: &'a Standing,
    /// The cluster's time, in milliseconds.
    pub cluster_ms: u64,
    /// This router's monotonic clock.
    pub mono: Duration,
}

/// The rights of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rights {
    /// The share, by roster and votes.
    pub base: u64,
    /// All that this router may use and lend.
    pub total: u64,
}

/// The windows of one meter for one subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Windows {
    /// The counted windows, in no order; usually one or two.
    list: Vec<Window>,
    /// Counts of windows that start before this time have been dropped, so that nothing may be taken there any more.
    closed_before_ms: u64,
}

/// The most windows that are kept. More than three are only needed after a step of the cluster's time.
const MAX_WINDOWS: usize = 64;

impl Windows {
    /// The window that starts at `start_ms`; `None` if it has been dropped.
    pub fn at(&mut self, start_ms: u64) -> Option<&mut Window> {
        if let Some(at) = self.list.iter().position(|window| window.start_ms == start_ms) {
            return self.list.get_mut(at);
        }
        if start_ms < self.closed_before_ms || self.list.len() >= MAX_WINDOWS {
            return None;
        }
        // Most subjects have one window, or two for a moment.
        self.list.reserve_exact(1);
        self.list.push(Window::new(start_ms));
        self.list.last_mut()
    }

    /// The window that starts at `start_ms`, if anything was counted there.
    #[must_use]
    pub fn get(&self, start_ms: u64) -> Option<&Window> {
        self.list.iter().find(|window| window.start_ms == start_ms)
    }

    /// Drops the windows that ended more than a window before `cluster_ms`. Returns whether none is left.
    pub fn drop_old(&mut self, window_ms: u32, cluster_ms: u64) -> bool {
        let keep_from = start_of(cluster_ms, window_ms).saturating_sub(u64::from(window_ms));
        if self.list.iter().any(|window| window.start_ms < keep_from) {
            self.list.retain(|window| window.start_ms >= keep_from);
            self.closed_before_ms = self.closed_before_ms.max(keep_from);
        }
        self.list.is_empty()
    }
}

/// The rights in a window.
pub fn rights(meter: &Meter, salt: u64, window: &mut Window, moment: &Moment<'_>) -> Rights {
    let Moment { standing, mono, .. } = *moment;
    if meter.mode == Mode::Soft {
        let total = meter.limit.saturating_sub(window.others);
        return Rights { base: total, total };
    }
    let share = standing.share(meter.limit, salt, window.start_ms);
    window.share = window.share.min(share);
    let mut base = window.share;
    let mut inherited = 0;
    if meter.mode == Mode::Bounded {
        window.is_cut |= !standing.is_whole(window.start_ms, mono);
        if window.is_cut {
            base = kept(base);
        }
        inherited = standing.inherited(meter.limit, salt, window.start_ms, mono);
    }
    Rights { base, total: base.saturating_add(window.granted).saturating_add(inherited) }
}

/// The units that are free in a window.
pub fn free(meter: &Meter, salt: u64, window: &mut Window, moment: &Moment<'_>) -> u64 {
    let rights = rights(meter, salt, window, moment);
    rights.total.saturating_sub(window.used()).saturating_sub(window.lent)
}

/// Takes `units` in a window if they are free, and by the rule's burst if there is one.
pub fn take(
    meter: &Meter,
    salt: u64,
    window: &mut Window,
    units: u64,
    moment: &Moment<'_>,
) -> bool {
    window.offered = window.offered.saturating_add(units);
    let rights = rights(meter, salt, window, moment);
    let free = rights.total.saturating_sub(window.used()).saturating_sub(window.lent);
    let is_admitted = units <= free && within_burst(meter, window, units, rights.total, moment);
    if is_admitted {
        window.taken += units;
    } else {
        window.refused = window.refused.saturating_add(units);
    }
    is_admitted
}

/// Whether `units` more are within the burst: at any time of a window, at most the rule's burst beyond what an even rate
/// would have admitted, both in proportion to the rights of this router.
fn within_burst(
    meter: &Meter,
    window: &Window,
    units: u64,
    total: u64,
    moment: &Moment<'_>,
) -> bool {
    let Some(burst) = meter.burst else { return true };
    let part = |of: u64, number: u64, whole: u64| {
        let part = u128::from(of) * u128::from(number) / u128::from(whole.max(1));
        u64::try_from(part).unwrap_or(u64::MAX)
    };
    let own = part(burst, total.saturating_sub(window.lent), meter.limit).max(1);
    let elapsed = moment.cluster_ms.saturating_sub(window.start_ms).min(u64::from(meter.window_ms));
    let even = part(total.saturating_sub(window.lent), elapsed, u64::from(meter.window_ms));
    window.used().saturating_add(units) <= even.saturating_add(own)
}

/// Grants up to `units` of a window to another router; returns how many. Inherited rights are not granted.
pub fn lend(meter: &Meter, salt: u64, window: &mut Window, units: u64, moment: &Moment<'_>) -> u64 {
    if meter.mode == Mode::Soft {
        return 0;
    }
    let mut rights = rights(meter, salt, window, moment);
    let ahead = Duration::from_millis(window.start_ms.saturating_sub(moment.cluster_ms));
    let is_sure = moment.mono.saturating_add(ahead) < moment.standing.whole_until;
    if meter.mode == Mode::Bounded && !window.is_cut && !is_sure {
        // Whether this router will have its whole share when that window begins is not certain yet.
        let kept = kept(rights.base);
        rights.total -= rights.base - kept;
        rights.base = kept;
    }
    let free = rights.total.saturating_sub(window.used()).saturating_sub(window.lent);
    let own = rights.base.saturating_add(window.granted).saturating_sub(window.lent);
    let units = units.min(free).min(own);
    window.lent += units;
    units
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::{Rule, RuleDocument};
    use crate::standing::Place;

    #[test]
    fn a_router_lends_its_whole_share_of_a_window_only_if_it_will_be_whole_then() {
        let json = r#"{"id":"r","requests":12,"window":"1s"}"#;
        let rule = Rule::new(serde_json::from_str::<RuleDocument>(json).unwrap()).unwrap();
        let standing = Standing {
            places: vec![Place { size: 3, place: Some(0) }],
            whole_until: Duration::from_secs(15),
            ..Standing::alone()
        };
        let moment =
            Moment { standing: &standing, cluster_ms: 60_000, mono: Duration::from_secs(10) };
        for (start_ms, most) in [(60_000, 4), (64_000, 4), (65_000, 1), (67_000, 1)] {
            let mut window = Window::new(start_ms);
            assert_eq!(lend(&rule.meters[0], 0, &mut window, 9, &moment), most, "{start_ms}");
        }
    }

    #[test]
    fn a_router_never_lends_what_it_inherits() {
        let json = r#"{"id":"r","requests":12,"window":"1s"}"#;
        let rule = Rule::new(serde_json::from_str::<RuleDocument>(json).unwrap()).unwrap();
        let inherited = crate::standing::Inherited { place: 1, from_ms: 0, until: Duration::MAX };
        let standing = Standing {
            places: vec![Place { size: 3, place: Some(0) }],
            inherited: vec![inherited],
            ..Standing::alone()
        };
        let moment = Moment { standing: &standing, cluster_ms: 60_000, mono: Duration::ZERO };
        let mut window = Window::new(60_000);
        assert_eq!(lend(&rule.meters[0], 0, &mut window, 9, &moment), 4);
        assert_eq!(free(&rule.meters[0], 0, &mut window, &moment), 3);
    }
}
