//! Leaving: a node announces that it leaves before anything stops, so that its silence is not taken for a crash.
//!
//! It sends a goodbye to all members and repeats it; a member that receives it for the first time relays it. When the
//! node is gone, that is announced in the same way.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use foca::Member;
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::codec::Kind;
use crate::membership::identity::Identity;
use crate::membership::message::Goodbye;
use crate::membership::state::MemberState;
use crate::membership::table::Record;
use crate::membership::{Due, Membership, RANK_OWN};

/// Goodbyes that are relayed at a time. More are still applied, and they are part of member lists.
const MAX_RELAYS: usize = 64;

/// How often a goodbye is relayed.
const RELAY_ROUNDS: u32 = 4;

impl Membership {
    pub(super) fn announce_leaving(&mut self, now: Now) {
        if self.me.state == MemberState::Leaving {
            self.send_goodbye(false);
            self.timers.schedule(now.mono + self.config.goodbye_period, RANK_OWN, Due::Goodbye);
        }
    }

    pub(super) fn send_goodbye(&mut self, gone: bool) {
        let goodbye = Goodbye { identity: self.swim.identity().clone(), gone };
        let everybody: Vec<_> = self.table.present().map(address_of).collect();
        for (peer, address) in everybody {
            self.send_message(address, Some(peer), Kind::Goodbye, &goodbye);
        }
    }

    pub(super) fn handle_goodbye(&mut self, now: Now, goodbye: &Goodbye) {
        let is_known = self
            .table
            .get(&goodbye.identity.name)
            .is_some_and(|record| record.identity.generation == goodbye.identity.generation);
        if !is_known {
            self.counters.stray_messages += 1;
        } else if self.apply_goodbye(now, goodbye) {
            self.relay_goodbye(goodbye);
            let is_idle = self.relays.is_empty();
            self.relays.retain(|(relayed, _)| relayed.identity.name != goodbye.identity.name);
            if self.relays.len() < MAX_RELAYS {
                self.relays.push((goodbye.clone(), RELAY_ROUNDS));
            }
            if is_idle {
                let at = now.mono + self.config.goodbye_period;
                self.timers.schedule(at, RANK_OWN, Due::RelayGoodbyes);
            }
        }
    }

    /// Notes that a member is leaving or gone. Returns whether that was new.
    pub(super) fn apply_goodbye(&mut self, now: Now, goodbye: &Goodbye) -> bool {
        let Goodbye { identity, gone } = goodbye;
        if identity.is_absurd(now) && !self.is_known_as_absurd(now, identity) {
            self.counters.absurd_claims += 1;
            return false;
        }
        let Some(record) = self.table.get(&identity.name) else { return false };
        if record.identity.generation != identity.generation {
            return false;
        }
        let was_listed = record.state.is_some();
        // With the higher claim of the two: if the member has not left after all, it learns how much it must claim.
        let held = &record.identity;
        let last = if identity.claim() > held.claim() { identity } else { held }.clone();
        let news = self.table.mark_leaving(now.mono, identity);
        if *gone && was_listed {
            let dead = Member::down(last);
            self.drive(now, |swim, effects| swim.apply_many(std::iter::once(dead), true, effects));
            return true;
        }
        self.update_table(now, &BTreeMap::new());
        news
    }

    /// Whether the member that `identity` names is known with a claim that is as absurd.
    fn is_known_as_absurd(&self, now: Now, identity: &Identity) -> bool {
        self.table.get(&identity.name).is_some_and(|record| record.identity.is_absurd(now))
    }

    /// Relays goodbyes to a few members, several times: the leaving node may not reach all of them.
    pub(super) fn relay_goodbyes(&mut self, now: Now) {
        let relays = std::mem::take(&mut self.relays);
        for (goodbye, _) in &relays {
            self.relay_goodbye(goodbye);
        }
        self.relays = relays
            .into_iter()
            .map(|(goodbye, rounds)| (goodbye, rounds - 1))
            .filter(|(_, rounds)| *rounds > 0)
            .collect();
        if !self.relays.is_empty() {
            let at = now.mono + self.config.goodbye_period;
            self.timers.schedule(at, RANK_OWN, Due::RelayGoodbyes);
        }
    }

    fn relay_goodbye(&mut self, goodbye: &Goodbye) {
        let others: Vec<_> = self
            .table
            .present()
            .filter(|record| record.identity.name != goodbye.identity.name)
            .map(address_of)
            .collect();
        for (peer, address) in self.pick(others, self.config.gossip_fanout.get()) {
            self.send_message(address, Some(peer), Kind::Goodbye, goodbye);
        }
    }
}

fn address_of(record: &Record) -> (NodeName, SocketAddr) {
    (record.identity.name.clone(), record.identity.address)
}
