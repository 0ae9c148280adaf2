//! Claims to a name whose holder is a live member here: the holder is asked first, and the claim waits.
//!
//! foca lets the higher claim to a name win at once. Alone, it would therefore replace a healthy member by any process
//! that starts later under the same name, until that process is refused. So no claim to the name of a live member at
//! another address reaches foca, by whatever way it came (a join probe, a member list, a packet): the holder is
//! challenged, and the claim is taken only if the holder does not answer in time.

use std::borrow::Cow;
use std::net::SocketAddr;

use foca::{Codec as _, Header, Member, Message, State};
use smg_types::ids::NodeName;
use smg_types::now::Now;

use crate::membership::identity::Identity;
use crate::membership::join_state::{Claim, ClaimOutcome, Claimant};
use crate::membership::message::{Hello, StillHere};
use crate::membership::packet::PacketCodec;
use crate::membership::screening::Evidence;
use crate::membership::state::MemberState;
use crate::membership::{Due, Membership, NEWCOMER_LISTED, RANK_OWN};

/// Claims that wait until the holder of the name has answered; more are ignored until they are repeated.
const MAX_CLAIMS: usize = 64;

impl Membership {
    /// The live member here that holds the name of `identity`, if that is another process at another address. A process at
    /// the same address has replaced it, unless the claim is absurd: then the holder is asked too.
    fn live_holder(&self, now: Now, identity: &Identity) -> Option<&Identity> {
        let record = self.table.get(&identity.name)?;
        let is_live = matches!(record.state, Some(MemberState::Alive | MemberState::Suspected));
        let is_another = record.identity.generation != identity.generation
            && (record.identity.address != identity.address || identity.is_absurd(now));
        (is_live && is_another).then_some(&record.identity)
    }

    /// Whether `identity` would replace a live member that may still answer for its name.
    pub(super) fn is_claim(&self, now: Now, identity: &Identity) -> bool {
        self.live_holder(now, identity).is_some_and(|holder| identity.claim() > holder.claim())
            && !self.is_granted(identity)
    }

    /// Whether the holder of the name of `identity` was asked a moment ago and did not answer.
    fn is_granted(&self, identity: &Identity) -> bool {
        self.joining.claims.get(&identity.name).is_some_and(|claim| {
            claim.outcome == ClaimOutcome::Granted
                && claim.claimant.identity().node() == identity.node()
        })
    }

    /// If the sender of a join probe claims the name of a live member, challenges that member. Returns whether it does.
    pub(super) fn defers_newcomer(&mut self, now: Now, from: SocketAddr, hello: &Hello) -> bool {
        let holder =
            self.live_holder(now, &hello.identity).filter(|_| !self.is_granted(&hello.identity));
        let Some(holder) = holder.cloned() else { return false };
        let claimant = Claimant::Newcomer(hello.clone(), from);
        self.begin_claim(now, holder, claimant, hello.joined);
        true
    }

    /// If a member of which another node reports would replace a live member, challenges the live one. Returns whether
    /// the report must not reach foca. That a later process of the name is down says nothing of the live one.
    pub(super) fn defers_member(&mut self, now: Now, member: &Member<Identity>) -> bool {
        if !self.is_claim(now, member.id()) {
            return false;
        }
        if member.state() != State::Down
            && let Some(holder) = self.live_holder(now, member.id()).cloned()
        {
            self.begin_claim(now, holder, Claimant::Listed(member.clone()), true);
        }
        true
    }

    fn begin_claim(&mut self, now: Now, holder: Identity, claimant: Claimant, joined: bool) {
        let identity = claimant.identity().clone();
        let claims = &mut self.joining.claims;
        let is_decided = |claim: &Claim| claim.outcome == ClaimOutcome::Granted;
        if claims.get(&identity.name).is_some_and(|claim| !is_decided(claim))
            || claims.len() == MAX_CLAIMS
        {
            return;
        }
        let ends_at = now.mono + self.config.challenge_timeout;
        let claim = Claim { claimant, outcome: ClaimOutcome::Waiting, ends_at };
        claims.insert(identity.name.clone(), claim);
        self.timers.schedule(ends_at, RANK_OWN, Due::EndChallenge(identity.name.clone()));
        self.challenge(holder, identity, joined);
    }

    /// The holder of a name has answered: the claim is refused. It is remembered until its time is over, so that a claim
    /// that is repeated at once does not begin again.
    pub(super) fn refuse_claim(&mut self, answer: &StillHere) {
        let StillHere { holder, claimant, joined } = answer;
        let claim = self.joining.claims.get_mut(&claimant.name);
        let claim = claim.filter(|claim| claim.claimant.identity().node() == claimant.node());
        if let Some(claim) = claim
            && claim.outcome == ClaimOutcome::Waiting
        {
            claim.outcome = ClaimOutcome::Refused;
            let claimant = claim.claimant.identity().clone();
            self.refuse(&claimant, holder.clone(), *joined);
        }
    }

    /// The time of the holder to answer is over: if it did not, its name is free. Or the claim need not be remembered any
    /// more.
    pub(super) fn end_claim(&mut self, now: Now, name: &NodeName) {
        let Some(claim) = self.joining.claims.get_mut(name) else { return };
        if now.mono < claim.ends_at {
            // The timer is that of an earlier claim.
            return;
        }
        if claim.outcome != ClaimOutcome::Waiting {
            self.joining.claims.remove(name);
            return;
        }
        claim.outcome = ClaimOutcome::Granted;
        claim.ends_at = now.mono + NEWCOMER_LISTED;
        let (claimant, ends_at) = (claim.claimant.clone(), claim.ends_at);
        self.counters.unanswered_challenges += 1;
        self.timers.schedule(ends_at, RANK_OWN, Due::EndChallenge(name.clone()));
        match claimant {
            Claimant::Newcomer(hello, from) => self.send_welcome(now, from, &hello),
            Claimant::Listed(member) => self.drive(now, |swim, effects| {
                swim.apply_many(std::iter::once(member), true, effects)
            }),
        }
    }

    /// The packet without reports of members that are not believed or would replace a live one; `None` if that is so of its
    /// sender itself.
    pub(super) fn without_claims<'a>(
        &mut self,
        now: Now,
        packet: &'a [u8],
    ) -> Option<Cow<'a, [u8]>> {
        // foca counts and refuses what can't be decoded.
        let Some((header, before_members, members)) = parts_of(packet) else {
            return Some(Cow::Borrowed(packet));
        };
        if header.src.name == self.swim.identity().name {
            return Some(Cow::Borrowed(packet));
        }
        let sender = Member::new(header.src, header.src_incarnation, State::Alive);
        let mut room = self.room();
        if !self.believes(now, &sender, Evidence::Sender, &mut room)
            || self.defers_member(now, &sender)
        {
            return None;
        }
        // The sender may report itself too.
        let mut room = self.room();
        let mut kept = Vec::with_capacity(members.len());
        for (member, bytes) in &members {
            let evidence =
                if member.id() == sender.id() { Evidence::Sender } else { Evidence::Relayed };
            if self.believes(now, member, evidence, &mut room) && !self.defers_member(now, member) {
                kept.push(*bytes);
            }
        }
        if kept.len() == members.len() {
            return Some(Cow::Borrowed(packet));
        }
        let count = u16::try_from(kept.len()).unwrap_or(u16::MAX);
        let rest = before_members + 2 + members.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let mut filtered = packet[..before_members].to_vec();
        filtered.extend(count.to_be_bytes());
        kept.into_iter().for_each(|bytes| filtered.extend(bytes));
        filtered.extend(&packet[rest..]);
        Some(Cow::Owned(filtered))
    }
}

/// The members in a packet, each with its bytes.
type MembersInPacket<'a> = Vec<(Member<Identity>, &'a [u8])>;

/// The header of a packet, the place of the count of members, and the members; `None` if they can't be decoded.
fn parts_of(packet: &[u8]) -> Option<(Header<Identity>, usize, MembersInPacket<'_>)> {
    let mut rest = packet;
    let header = PacketCodec.decode_header(&mut rest).ok()?;
    let before_members = packet.len() - rest.len();
    let mut members = Vec::new();
    if header.message != Message::Broadcast
        && let Some((count, after)) = rest.split_first_chunk::<2>()
    {
        rest = after;
        for _ in 0..u16::from_be_bytes(*count) {
            let at = rest;
            let member = PacketCodec.decode_member(&mut rest).ok()?;
            members.push((member, &at[..at.len() - rest.len()]));
        }
    }
    Some((header, before_members, members))
}
