//! Goodbyes: a node that will go says so before anything stops, so that nobody takes its silence for a death.
//!
//! It tells everybody and repeats it; whoever hears it for the first time passes it on. Its end is told the same way.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use foca::Member;

use crate::cluster::codec::Kind;
use crate::cluster::membership::message::Goodbye;
use crate::cluster::membership::state::MemberState;
use crate::cluster::membership::table::Record;
use crate::cluster::membership::{Due, Membership, RANK_OWN};
use crate::ids::NodeName;
use crate::now::Now;

impl Membership {
    pub(super) fn repeat_goodbye(&mut self, now: Now) {
        if self.me.state == MemberState::Leaving {
            self.say_goodbye(false);
            self.timers.schedule(now.mono + self.config.goodbye_period, RANK_OWN, Due::Goodbye);
        }
    }

    pub(super) fn say_goodbye(&mut self, gone: bool) {
        let goodbye = Goodbye { identity: self.swim.identity().clone(), gone };
        let everybody: Vec<_> = self.table.present().map(address_of).collect();
        for (peer, address) in everybody {
            self.send_message(address, Some(peer), Kind::Goodbye, &goodbye);
        }
    }

    pub(super) fn handle_goodbye(&mut self, now: Now, goodbye: &Goodbye) {
        let Goodbye { identity, gone } = goodbye;
        let Some(record) = self.table.get(&identity.name) else {
            self.counters.stray_messages += 1;
            return;
        };
        if record.identity.generation != identity.generation {
            self.counters.stray_messages += 1;
            return;
        }
        let was_listed = record.state.is_some();
        let held = record.identity.clone();
        let mut news = self.table.mark_leaving(now.mono, &identity.name, identity.generation);
        if *gone && was_listed {
            news = true;
            let dead = Member::down(held);
            self.drive(now, |swim, effects| swim.apply_many(std::iter::once(dead), true, effects));
        } else {
            self.absorb(now, &BTreeMap::new());
        }
        if news {
            self.relay_goodbye(goodbye);
        }
    }

    /// Whoever hears a goodbye for the first time tells a few more: the leaver may not reach everybody.
    pub(super) fn relay_goodbye(&mut self, goodbye: &Goodbye) {
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
