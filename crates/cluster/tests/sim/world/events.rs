//! The events of a node that show that a history has reached a rare state.

use smg_cluster::Event;
use smg_cluster::membership;

use crate::world::World;

impl World {
    pub(super) fn note_event(&mut self, slot: usize, event: &Event) {
        let Event::Membership(event) = event else { return };
        match event {
            membership::Event::Renewed(_) => self.reached.insert("a false DOWN was renewed"),
            membership::Event::NewGeneration { .. } => {
                self.reached.insert("a node went on as a later generation")
            }
            membership::Event::Refused(membership::RefusalReason::DuplicateName(_)) => {
                self.reached.insert("a duplicate name was refused")
            }
            membership::Event::Refused(membership::RefusalReason::ForeignCluster(_)) => {
                self.reached.insert("a foreign cluster was refused")
            }
            membership::Event::NameContested(_) => {
                self.reached.insert("a holder noticed its namesake")
            }
            membership::Event::OwnState { .. } => false,
            membership::Event::Member(transition) => {
                use smg_cluster::membership::MemberState::{Alive, Down, Leaving, Suspected};
                match (transition.from, transition.to) {
                    (Some(Suspected), Some(Alive)) => {
                        self.reached.insert("a suspicion was refuted")
                    }
                    (Some(Suspected), Some(Down)) => {
                        self.reached.insert("a suspected member went down")
                    }
                    (Some(Down), Some(Alive)) => {
                        self.reached.insert("a member that was down came back")
                    }
                    (Some(Leaving), None) => self.reached.insert("a leaving member was gone"),
                    _ => false,
                }
            }
        };
        let text = format!("{slot}: {event:?}");
        self.note(&text);
    }
}
