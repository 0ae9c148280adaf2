//! The members as this node lists them: foca's list, and what foca does not represent.
//!
//! foca notifies of no suspicion, and it knows neither newcomers nor goodbyes. So the table compares foca's list with
//! what it held before, and derives the transitions. It is level-triggered: comparing twice changes nothing.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::Duration;

use foca::State;
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::membership::identity::Identity;
use crate::membership::state::{MemberState, Transition};

/// How long a member that is down or gone and was never met is remembered after a member listed it.
const VOUCHED_FOR: Duration = Duration::from_secs(15);

/// When a member that is down and was never met was last listed this long ago, another member is asked for its list.
const VOUCH_AGAIN: Duration = Duration::from_secs(4);

/// A member that is leaving repeats its goodbye each second or two. Without one for this long, it is not leaving: the
/// goodbye was not its own.
const GOODBYE_LASTS: Duration = Duration::from_secs(30);

/// The goodbye of a generation.
#[derive(Debug, Clone, Copy)]
pub(super) struct Farewell {
    /// The highest claim of the generation when it said goodbye. A generation that is gone never claims more.
    claim: u64,
    /// When the goodbye was last received.
    at: Duration,
}

/// A member other than this node.
#[derive(Debug, Clone)]
pub(super) struct Record {
    pub(super) identity: Identity,
    pub(super) incarnation: u16,
    /// `None`: it has left. It is not listed, and remembered so that late gossip can't revive it.
    pub(super) state: Option<MemberState>,
    /// When it came into that state, by the monotonic clock.
    pub(super) since: Duration,
    /// The goodbye of this generation, if it has said one.
    pub(super) farewell: Option<Farewell>,
    /// Whether it has ever answered a probe of this node.
    pub(super) met: bool,
    /// When it came into its state, or a member that this node has met last listed it so.
    pub(super) vouched_at: Duration,
    /// When a member that is down, gone or a newcomer is forgotten.
    pub(super) forget_at: Duration,
    /// The round trip of the last probe that it answered.
    pub(super) rtt: Option<Duration>,
}

/// All members except this node, by name.
#[derive(Debug, Default)]
pub(super) struct Table {
    records: BTreeMap<NodeName, Record>,
    transitions: VecDeque<Transition>,
    /// A number that grows with each change of what the table shows.
    version: u64,
}

impl Table {
    pub(super) fn get(&self, name: &NodeName) -> Option<&Record> {
        self.records.get(name)
    }

    pub(super) fn get_mut(&mut self, name: &NodeName) -> Option<&mut Record> {
        self.records.get_mut(name)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Record> {
        self.records.values()
    }

    /// Members that are alive, suspected or leaving.
    pub(super) fn present(&self) -> impl Iterator<Item = &Record> {
        self.iter().filter(|record| record.state.is_some_and(MemberState::is_present))
    }

    /// How many members were never met: those that are present, and those that are down or gone.
    pub(super) fn count_unmet(&self) -> (usize, usize) {
        let mut count = (0, 0);
        for record in self.iter().filter(|record| !record.met) {
            match record.state {
                Some(state) if state.is_present() => count.0 += 1,
                Some(MemberState::Down) | None => count.1 += 1,
                Some(_) => {}
            }
        }
        count
    }

    /// A member that this node has met lists this one as down too.
    pub(super) fn vouch(&mut self, now: Duration, identity: &Identity) {
        if let Some(record) = self.records.get_mut(&identity.name)
            && record.state == Some(MemberState::Down)
            && record.identity.generation == identity.generation
        {
            record.vouched_at = now;
        }
    }

    /// Whether a member that is down and was never met has not been listed by another for a while.
    pub(super) fn has_unvouched(&self, now: Duration) -> bool {
        self.iter().any(|record| {
            record.state == Some(MemberState::Down)
                && !record.met
                && record.vouched_at + VOUCH_AGAIN <= now
        })
    }

    pub(super) fn is_present_at(&self, address: SocketAddr) -> bool {
        self.present().any(|record| record.identity.address == address)
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn pop_transition(&mut self) -> Option<Transition> {
        self.transitions.pop_front()
    }

    /// Lists a newcomer that was let in, until it becomes a member or `until` passes.
    pub(super) fn list_newcomer(&mut self, now: Duration, identity: &Identity, until: Duration) {
        let replaceable =
            self.get(&identity.name).is_none_or(|known| known.state == Some(MemberState::Init));
        if replaceable {
            self.set(now, identity, 0, Some(MemberState::Init), until);
        }
    }

    /// Notes that the generation of `said_by` has said goodbye. Returns whether that was new.
    pub(super) fn mark_leaving(&mut self, now: Duration, said_by: &Identity) -> bool {
        let Some(record) = self.records.get_mut(&said_by.name) else { return false };
        if record.identity.generation != said_by.generation {
            return false;
        }
        let claim = record.identity.claim().max(said_by.claim());
        let before = record.farewell.replace(Farewell { claim, at: now });
        if before.is_some() {
            return false;
        }
        let (identity, incarnation) = (record.identity.clone(), record.incarnation);
        match record.state {
            Some(MemberState::Alive | MemberState::Suspected) => {
                let forget_at = record.forget_at;
                self.set(now, &identity, incarnation, Some(MemberState::Leaving), forget_at);
            }
            // It was declared down before its goodbye arrived.
            Some(MemberState::Down) => {
                let forget_at = record.forget_at;
                self.set(now, &identity, incarnation, None, forget_at);
            }
            // A newcomer is not a member yet: it is dropped in time like any that does not become one.
            Some(MemberState::Init | MemberState::Leaving) | None => {}
        }
        true
    }

    /// Compares foca's list with the table. `down_since`: since when members are down that were learned to be so from a
    /// list.
    pub(super) fn update<'a>(
        &mut self,
        now: Duration,
        forget_after: Duration,
        members: impl Iterator<Item = &'a foca::Member<Identity>>,
        down_since: &BTreeMap<NodeName, Duration>,
    ) {
        let mut seen = 0;
        for member in members {
            seen += 1;
            let identity = member.id();
            let is_past = self.records.get(&identity.name).is_some_and(|record| {
                record.state == Some(MemberState::Init)
                    && record.identity.claim() > identity.claim()
            });
            if is_past {
                // A later generation is a newcomer.
                continue;
            }
            let leaving = self.is_leaving(identity);
            let state = match member.state() {
                State::Alive | State::Suspect if leaving => Some(MemberState::Leaving),
                State::Alive => Some(MemberState::Alive),
                State::Suspect => Some(MemberState::Suspected),
                State::Down if leaving => None,
                State::Down => Some(MemberState::Down),
            };
            let unchanged = self.records.get(&identity.name).is_some_and(|record| {
                record.state == state
                    && record.incarnation == member.incarnation()
                    && record.identity == *identity
            });
            if !unchanged {
                let since = down_since.get(&identity.name).copied().unwrap_or(now);
                let forget_at = since + forget_after;
                self.set(now, identity, member.incarnation(), state, forget_at);
            }
        }
        debug_assert!(seen <= self.records.len(), "each member of foca's list has a record");
    }

    /// Whether the generation of `identity` has said goodbye. If the member is listed as gone and its claim exceeds the claim
    /// in the goodbye, the goodbye was forged and is dropped.
    fn is_leaving(&mut self, identity: &Identity) -> bool {
        let Some(record) = self.records.get_mut(&identity.name) else { return false };
        let Some(farewell) = record.farewell else { return false };
        if record.identity.generation != identity.generation {
            return false;
        }
        let is_refuted = record.state.is_none() && identity.claim() > farewell.claim;
        if is_refuted {
            record.farewell = None;
        }
        !is_refuted
    }

    /// Drops goodbyes of members that are present and have not repeated them. Compare with foca's list after this.
    pub(super) fn expire_goodbyes(&mut self, now: Duration) {
        for record in self.records.values_mut() {
            let is_leaving = record.state == Some(MemberState::Leaving);
            if is_leaving && record.farewell.is_some_and(|f| f.at + GOODBYE_LASTS <= now) {
                record.farewell = None;
            }
        }
    }

    /// Drops records whose time is over. Returns those that foca must forget too.
    pub(super) fn sweep(&mut self, now: Now, max: usize) -> Vec<Identity> {
        let over = |record: &Record| match record.state {
            Some(MemberState::Init) => record.forget_at <= now.mono,
            Some(MemberState::Down) | None => {
                record.forget_at <= now.mono
                    || record.identity.is_absurd(now)
                    || (!record.met && record.vouched_at + VOUCHED_FOR <= now.mono)
            }
            Some(MemberState::Alive | MemberState::Suspected | MemberState::Leaving) => false,
        };
        let mut gone: Vec<NodeName> = self
            .records
            .values()
            .filter(|record| over(record))
            .map(|record| record.identity.name.clone())
            .collect();
        // A full table drops those that would be forgotten first.
        let excess = self.records.len().saturating_sub(gone.len()).saturating_sub(max);
        if excess > 0 {
            let mut absent: Vec<_> = self
                .records
                .values()
                .filter(|record| {
                    !over(record) && !record.state.is_some_and(MemberState::is_present)
                })
                .map(|record| (record.forget_at, record.identity.name.clone()))
                .collect();
            absent.sort();
            gone.extend(absent.into_iter().take(excess).map(|(_, name)| name));
        }
        gone.iter().filter_map(|name| self.forget(name)).collect()
    }

    /// Drops the record of the member that is down or gone and would be forgotten first; `None` if there is none.
    pub(super) fn forget_oldest_absent(&mut self) -> Option<Identity> {
        let absent = self.records.values().filter(|record| match record.state {
            Some(MemberState::Down) | None => true,
            Some(_) => false,
        });
        let first = absent.min_by_key(|record| (record.met, record.forget_at))?;
        let name = first.identity.name.clone();
        self.forget(&name)
    }

    /// Drops a record that is not present.
    pub(super) fn forget(&mut self, name: &NodeName) -> Option<Identity> {
        let record = self.records.remove(name)?;
        self.version += 1;
        if let Some(state) = record.state {
            self.transitions.push_back(Transition {
                node: record.identity.node(),
                from: Some(state),
                to: None,
            });
        }
        Some(record.identity)
    }

    fn set(
        &mut self,
        now: Duration,
        identity: &Identity,
        incarnation: u16,
        state: Option<MemberState>,
        forget_at: Duration,
    ) {
        self.version += 1;
        let before = self.records.get(&identity.name);
        let same_generation = before.is_some_and(|b| b.identity.generation == identity.generation);
        let from = before.and_then(|before| before.state);
        if let Some(before) = before.filter(|before| !same_generation && before.state.is_some()) {
            self.transitions.push_back(Transition {
                node: before.identity.node(),
                from: before.state,
                to: None,
            });
        }
        let from = from.filter(|_| same_generation);
        if from != state {
            self.transitions.push_back(Transition { node: identity.node(), from, to: state });
        }
        let since = match before {
            Some(before) if same_generation && before.state == state => before.since,
            Some(_) | None => now,
        };
        let vouched_at = match before {
            Some(before) if same_generation && before.state == state => before.vouched_at,
            Some(_) | None => now,
        };
        let farewell = before.filter(|_| same_generation).and_then(|before| before.farewell);
        let rtt = before.and_then(|before| before.rtt);
        let met = before.is_some_and(|before| before.met);
        let record = Record {
            identity: identity.clone(),
            incarnation,
            state,
            since,
            farewell,
            met,
            vouched_at,
            forget_at,
            rtt,
        };
        self.records.insert(identity.name.clone(), record);
    }
}

#[cfg(test)]
mod tests {
    use foca::Member;
    use smg_types::ids::Generation;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn at(mono: Duration) -> Now {
        Now { mono, wall: Duration::from_secs(1_800_000_000) }
    }

    /// Notes that a member has answered.
    fn meet(table: &mut Table, name: &str) {
        table.get_mut(&name.parse().unwrap()).unwrap().met = true;
    }

    fn identity(name: &str, generation: u64) -> Identity {
        Identity {
            name: name.parse().unwrap(),
            generation: Generation(generation),
            renewal: 0,
            address: "10.0.0.1:39527".parse().unwrap(),
        }
    }

    fn transitions(table: &mut Table) -> Vec<String> {
        std::iter::from_fn(|| table.pop_transition())
            .map(|t| {
                let word = |state: Option<MemberState>| state.map_or("-", MemberState::as_str);
                assert!(MemberState::is_legal(t.from, t.to), "{t:?}");
                format!("{} {} {}", t.node, word(t.from), word(t.to))
            })
            .collect()
    }

    fn update(table: &mut Table, members: &[Member<Identity>]) -> Vec<String> {
        table.update(Duration::from_secs(1), HOUR, members.iter(), &BTreeMap::new());
        transitions(table)
    }

    #[test]
    fn each_change_is_one_transition() {
        let mut table = Table::default();
        let alive = [Member::alive(identity("a", 1))];
        assert_eq!(update(&mut table, &alive), ["a@1 - ALIVE"]);
        assert_eq!(update(&mut table, &alive), [""; 0]);
        let suspect = [Member::new(identity("a", 1), 0, State::Suspect)];
        assert_eq!(update(&mut table, &suspect), ["a@1 ALIVE SUSPECTED"]);
        assert_eq!(update(&mut table, &[Member::down(identity("a", 1))]), ["a@1 SUSPECTED DOWN"]);
    }

    #[test]
    fn a_later_generation_ends_the_earlier_one() {
        let mut table = Table::default();
        update(&mut table, &[Member::alive(identity("a", 1))]);
        assert_eq!(
            update(&mut table, &[Member::alive(identity("a", 2))]),
            ["a@1 ALIVE -", "a@2 - ALIVE"]
        );
    }

    #[test]
    fn a_member_that_said_goodbye_is_gone_and_not_down() {
        let mut table = Table::default();
        update(&mut table, &[Member::alive(identity("a", 1))]);
        assert!(table.mark_leaving(HOUR, &identity("a", 1)));
        assert!(!table.mark_leaving(HOUR, &identity("a", 1)), "the second time it is not new");
        assert_eq!(transitions(&mut table), ["a@1 ALIVE LEAVING"]);
        assert_eq!(update(&mut table, &[Member::down(identity("a", 1))]), ["a@1 LEAVING -"]);
        // It returns as a later generation.
        assert_eq!(update(&mut table, &[Member::alive(identity("a", 2))]), ["a@2 - ALIVE"]);
    }

    #[test]
    fn a_goodbye_of_another_generation_is_ignored() {
        let mut table = Table::default();
        update(&mut table, &[Member::alive(identity("a", 2))]);
        assert!(!table.mark_leaving(HOUR, &identity("a", 1)));
    }

    #[test]
    fn a_newcomer_that_leaves_before_it_is_a_member_is_dropped() {
        let mut table = Table::default();
        table.list_newcomer(Duration::ZERO, &identity("a", 1), Duration::from_secs(5));
        table.mark_leaving(Duration::ZERO, &identity("a", 1));
        assert_eq!(transitions(&mut table), ["a@1 - INIT"]);
        table.sweep(at(Duration::from_secs(5)), 10);
        assert_eq!(transitions(&mut table), ["a@1 INIT -"]);
    }

    #[test]
    fn members_that_are_down_are_listed_until_they_are_forgotten() {
        let mut table = Table::default();
        update(&mut table, &[Member::down(identity("a", 1))]);
        transitions(&mut table);
        meet(&mut table, "a");
        assert_eq!(table.sweep(at(HOUR), 10), []);
        assert_eq!(table.sweep(at(HOUR + Duration::from_secs(1)), 10), [identity("a", 1)]);
        assert_eq!(transitions(&mut table), ["a@1 DOWN -"]);
    }

    #[test]
    fn a_full_table_forgets_members_that_are_down_and_no_others() {
        let mut table = Table::default();
        let members: Vec<_> = (0..20)
            .map(|i| {
                let id = identity(&format!("n{i}"), 1);
                if i < 10 { Member::alive(id) } else { Member::down(id) }
            })
            .collect();
        update(&mut table, &members);
        assert_eq!(table.sweep(at(Duration::from_secs(2)), 5).len(), 10);
        assert_eq!(table.present().count(), 10);
    }
}
