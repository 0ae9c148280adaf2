//! Driving foca: what goes into it, and what it wants done.
//!
//! foca requires three things of its driver, and loses members without them: timers in its own order, none of which may
//! be lost; timers of refuted suspicions must not fire (a defect of 2.0.0); suspects that gossip did not reach must be
//! notified.

use std::collections::BTreeMap;
use std::time::Duration;

use foca::{Member, State, Timer};
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::codec::Kind;
use crate::membership::event::Event;
use crate::membership::identity::Identity;
use crate::membership::message::Suspicion;
use crate::membership::state::MemberState;
use crate::membership::swim::{Effects, Swim, rank};
use crate::membership::{Due, Membership, NEWCOMER_LISTED, RANK_OWN};
use crate::timers::next_beat;

impl Membership {
    pub(super) fn handle_packet(&mut self, now: Now, packet: &[u8]) {
        if self.me.refused.is_some() {
            return;
        }
        let Some(packet) = self.without_claims(now, packet) else { return };
        let packet = &packet[..];
        let mut from_ourselves = false;
        self.drive(now, |swim, effects| {
            let result = swim.handle_data(packet, effects);
            from_ourselves = matches!(result, Err(foca::Error::DataFromOurselves));
            result
        });
        if from_ourselves {
            self.notice_namesake_packet(now, packet);
        }
    }

    pub(super) fn handle_swim_timer(&mut self, now: Now, timer: Timer<Identity>) {
        // When the timer of a suspicion fires, foca 2.0.0 treats a suspicion that was refuted like one that was
        // confirmed, and notifies the refuting member that it is dead. So such timers never reach foca.
        if let Timer::ChangeSuspectToDown { member_id, incarnation, .. } = &timer {
            let still_suspected = self.swim.iter_members().any(|member| {
                member.id() == member_id
                    && member.incarnation() == *incarnation
                    && member.state() == State::Suspect
            });
            if !still_suspected {
                self.counters.stale_suspicions += 1;
                return;
            }
        }
        self.drive(now, |swim, effects| swim.handle_timer(timer, effects));
    }

    /// Lets foca act, then does what it wants done.
    pub(super) fn drive(
        &mut self,
        now: Now,
        act: impl FnOnce(&mut Swim, &mut Effects) -> Result<(), foca::Error>,
    ) {
        let mut effects = std::mem::take(&mut self.effects);
        if let Err(error) = act(&mut self.swim, &mut effects) {
            self.counters.refused_packets += 1;
            tracing::debug!(%error, "refused by the membership protocol");
        }
        for (to, packet) in effects.packets.drain(..) {
            self.send_packet(&to, &packet);
        }
        for (after, timer) in effects.timers.drain(..) {
            match timer {
                // The table decides when a member is forgotten; one timer per DOWN would pile up.
                Timer::RemoveDown(_) => {}
                gossip @ Timer::PeriodicGossip(_) => self.gossip = Some((now.mono + after, gossip)),
                other => {
                    let rank = rank(&other);
                    self.timers.schedule(now.mono + after, rank, Due::Swim(other));
                }
            }
        }
        if let Some((peer, number)) = effects.pinged.take() {
            self.probe = Some((peer, number, now.mono));
        }
        if let Some((peer, number)) = effects.acked.take()
            && let Some((probed, expected, since)) = &self.probe
            && (probed, expected) == (&peer, &number)
        {
            let rtt = now.mono.saturating_sub(*since);
            self.probe = None;
            if let Some(record) = self.table.get_mut(&peer) {
                record.rtt = Some(rtt);
                record.met = true;
            }
        }
        self.counters.failed_probes += u64::from(std::mem::take(&mut effects.failed_probes));
        let connected = std::mem::take(&mut effects.connected);
        let defunct = std::mem::take(&mut effects.defunct);
        let sender = effects.sender.take();
        self.effects = effects;
        self.update_table(now, &BTreeMap::new());
        self.resume_gossip(now);
        if connected && self.me.state == MemberState::Init {
            self.set_own_state(now, MemberState::Alive);
        }
        if defunct {
            self.handle_defunct(now, sender.as_ref());
        }
    }

    /// Schedules the next round of gossip, at the time at which it would have come anyway, if there is something to
    /// send. A node with nothing to send is not woken ten times a second to find that out. It is woken while a member
    /// is suspected: a process that was frozen must notice that by its lateness before it declares the member down.
    fn resume_gossip(&mut self, now: Now) {
        if (self.swim.updates_backlog() > 0 || self.notifies_suspects)
            && let Some((at, gossip)) = self.gossip.take()
        {
            let at = next_beat(at, self.config.gossip_period, now.mono);
            self.timers.schedule(at, rank(&gossip), Due::Swim(gossip));
        }
    }

    /// The cluster takes this node for dead, but it is alive. It renews its identity, at once the first time and then
    /// at most once per probe period, and sends a join probe to the node that said so, to learn how high its claim must
    /// be.
    pub(super) fn handle_defunct(&mut self, now: Now, accuser: Option<&Identity>) {
        if self.me.departed || self.me.refused.is_some() {
            return;
        }
        // Once per probe period: the answer leads to an announcement, which may lead back to here at once.
        if let Some(accuser) = accuser
            && !self.was_asked_within(self.config.probe_period, now, accuser.address)
        {
            self.send_join_probe(now, accuser.address);
        }
        if now.mono >= self.me.renew_at {
            self.renew(now);
        } else if self.me.renewal_scheduled_for != Some(self.me.renew_at) {
            let at = self.me.renew_at;
            self.me.renewal_scheduled_for = Some(at);
            self.timers.schedule(at, RANK_OWN, Due::Renew { at });
        }
    }

    pub(super) fn renew(&mut self, now: Now) {
        if self.me.departed || self.me.refused.is_some() {
            return;
        }
        self.me.renew_at = now.mono + self.config.probe_period;
        self.counters.renewals += 1;
        let identity = self.swim.identity();
        let renewed = identity.raised_above(identity.claim());
        self.change_identity(now, renewed.clone());
        self.events.push_back(Event::Renewed(renewed));
    }

    /// SWIM leaves a gap: if the suspected member never learns of it, because the gossip was lost or the accuser died
    /// or was reset meanwhile, the suspicion is neither refuted nor confirmed as long as probes succeed. So suspects
    /// are notified directly.
    ///
    /// foca leaves it to the accuser to declare a suspect down. If the suspicion is made up there is none, so a suspect that
    /// has not refuted for three times as long as it may take is declared down here.
    pub(super) fn notify_suspects(&mut self, now: Now) {
        let limit = self.config.suspicion_at(self.configured_for) * 3;
        let is_overdue = |since: Duration| now.mono >= since + limit;
        let suspects = self.table.iter().filter(|r| r.state == Some(MemberState::Suspected));
        let overdue: Vec<_> = suspects
            .filter(|record| is_overdue(record.since))
            .map(|record| Member::new(record.identity.clone(), record.incarnation, State::Down))
            .collect();
        if !overdue.is_empty() {
            self.drive(now, |swim, effects| swim.apply_many(overdue.into_iter(), true, effects));
        }
        let suspects: Vec<_> = self
            .table
            .iter()
            .filter(|record| record.state == Some(MemberState::Suspected))
            .map(|record| (record.identity.clone(), record.incarnation))
            .collect();
        self.notifies_suspects = !suspects.is_empty();
        for (suspect, incarnation) in suspects {
            let (to, name) = (suspect.address, suspect.name.clone());
            self.send_message(to, Some(name), Kind::Suspicion, &Suspicion { suspect, incarnation });
        }
        if self.notifies_suspects {
            let at = now.mono + self.config.probe_period;
            self.timers.schedule(at, RANK_OWN, Due::NotifySuspects);
        }
    }

    pub(super) fn handle_suspicion(&mut self, now: Now, suspicion: Suspicion) {
        let Suspicion { suspect, incarnation } = suspicion;
        if suspect == *self.swim.identity() && self.me.refused.is_none() {
            let about_me = Member::new(suspect, incarnation, State::Suspect);
            self.drive(now, |swim, effects| {
                swim.apply_many(std::iter::once(about_me), false, effects)
            });
        } else {
            self.counters.stray_messages += 1;
        }
    }

    pub(super) fn change_identity(&mut self, now: Now, identity: Identity) {
        self.me.gave_up_name = false;
        self.drive(now, |swim, effects| {
            swim.change_identity(identity, &mut *effects)?;
            // foca probes again only after the next packet, and there may be none.
            swim.apply_many(std::iter::empty(), false, effects)
        });
    }

    pub(super) fn update_table(&mut self, now: Now, down_since: &BTreeMap<NodeName, Duration>) {
        let mine = &self.swim.identity().name;
        let others = self.swim.iter_membership_state().filter(|member| member.id().name != *mine);
        self.table.update(now.mono, self.config.forget_after, others, down_since);
        while let Some(transition) = self.table.pop_transition() {
            if transition.to == Some(MemberState::Suspected) && !self.notifies_suspects {
                self.notifies_suspects = true;
                let at = now.mono + self.config.probe_period;
                self.timers.schedule(at, RANK_OWN, Due::NotifySuspects);
            }
            self.events.push_back(Event::Member(transition));
        }
        self.notice_namesake_in_list(now);
        self.adapt_to_size();
        if self.table.len() > 0 {
            self.resume_rounds(now);
        }
    }

    /// Schedules the rounds that pause while no other node is known: sweeps of the table, and join probes.
    fn resume_rounds(&mut self, now: Now) {
        if !std::mem::replace(&mut self.is_sweep_scheduled, true) {
            self.next_sweep = next_beat(self.next_sweep, self.sweep_period(), now.mono);
            self.timers.schedule(self.next_sweep, RANK_OWN, Due::Sweep);
        }
        self.resume_join_rounds(now);
    }

    /// The time to refute and the number of transmissions grow with the cluster; small changes of its size are ignored.
    pub(super) fn adapt_to_size(&mut self) {
        let size = self.swim.num_members() + 1;
        if size * 5 > self.configured_for * 6 || size * 5 < self.configured_for * 4 {
            self.configured_for = size;
            self.swim
                .set_config(self.config.foca(size))
                .expect("the periods that foca fixes never change");
        }
    }

    pub(super) fn set_own_state(&mut self, now: Now, to: MemberState) {
        let from = std::mem::replace(&mut self.me.state, to);
        if from != to {
            self.me.since = now.mono;
            self.events.push_back(Event::OwnState { from, to });
        }
    }

    pub(super) fn sweep(&mut self, now: Now) {
        self.table.expire_goodbyes(now.mono);
        // All at once: comparing the table with foca's list in between would list those again that foca still has.
        let forgotten = self.table.sweep(now, self.config.max_members.get());
        for identity in &forgotten {
            self.joining.note_forgotten(now.mono, identity.name.clone());
        }
        let mut forgotten = forgotten.into_iter();
        self.drive(now, |swim, effects| {
            forgotten.try_for_each(|identity| {
                swim.handle_timer(Timer::RemoveDown(identity), &mut *effects)
            })
        });
        self.is_sweep_scheduled = false;
        self.next_sweep = now.mono + self.sweep_period();
        // Schedules the next sweep, unless the table is empty.
        self.update_table(now, &BTreeMap::new());
        self.seek_vouchers(now);
    }

    pub(super) fn sweep_period(&self) -> Duration {
        (self.config.forget_after / 16).clamp(Duration::from_millis(100), NEWCOMER_LISTED)
    }
}
