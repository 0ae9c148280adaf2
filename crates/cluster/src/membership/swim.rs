//! The types of foca, the SWIM protocol, as this crate uses them: foca acts on a [`Swim`] and leaves its wishes in
//! [`Effects`], and `drive` carries them out.

use std::time::Duration;

use foca::{Foca, NoCustomBroadcast, Notification, Runtime, Timer};
use rand::rngs::StdRng;
use smg_types::ids::NodeName;

use crate::membership::identity::Identity;
use crate::membership::packet::PacketCodec;

/// The state of the protocol.
pub(super) type Swim = Foca<Identity, PacketCodec, StdRng, NoCustomBroadcast>;

/// The order in which foca wants timers that are due at the same moment.
pub(super) const fn rank(timer: &Timer<Identity>) -> u8 {
    match timer {
        Timer::SendIndirectProbe { .. } => 0,
        Timer::ProbeRandomMember(_) => 1,
        Timer::ChangeSuspectToDown { .. } => 2,
        Timer::PeriodicAnnounce(_) => 3,
        Timer::PeriodicGossip(_) => 4,
        Timer::RemoveDown(_) => 5,
        Timer::PeriodicAnnounceDown(_) => 6,
    }
}

/// The effects that foca wants, collected while it acts.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) packets: Vec<(Identity, Vec<u8>)>,
    pub(super) timers: Vec<(Duration, Timer<Identity>)>,
    pub(super) connected: bool,
    pub(super) defunct: bool,
    pub(super) failed_probes: u32,
    /// The sender of the packet that foca handles.
    pub(super) sender: Option<Identity>,
    pub(super) pinged: Option<(NodeName, u8)>,
    pub(super) acked: Option<(NodeName, u8)>,
}

impl Runtime<Identity> for Effects {
    fn notify(&mut self, notification: Notification<'_, Identity>) {
        match notification {
            Notification::Active => self.connected = true,
            Notification::Defunct => self.defunct = true,
            Notification::ProbeFailed(..) => self.failed_probes += 1,
            Notification::DataReceived(header) => {
                if let foca::Message::Ack(number) = header.message {
                    self.acked = Some((header.src.name.clone(), number));
                }
                self.sender = Some(header.src.clone());
            }
            Notification::DataSent(header) => {
                if let foca::Message::Ping(number) = header.message {
                    self.pinged = Some((header.dst.name.clone(), number));
                }
            }
            // The table compares the member lists instead, because foca does not notify of suspicions.
            Notification::MemberUp(_)
            | Notification::MemberDown(_)
            | Notification::Rename(..)
            | Notification::Idle
            | Notification::Rejoin(_) => {}
        }
    }

    fn send_to(&mut self, to: Identity, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, timer: Timer<Identity>, after: Duration) {
        self.timers.push((after, timer));
    }
}
