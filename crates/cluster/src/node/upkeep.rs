//! What a node compares once a second, writers and peers with the members, and its counts of refused frames.

use std::collections::BTreeMap;
use std::time::Duration;

use smg_types::now::Now;

use crate::codec::FrameError;
use crate::node::Node;

/// A writer that has not ended, and whose name is not listed for this long, has ended.
const UNLISTED_FOR: Duration = Duration::from_secs(30);

/// A member is informed of a later generation of its name when it was known for this long: it takes a moment until a restart is
/// known everywhere.
const OUTDATED_FOR: Duration = Duration::from_secs(3);

impl Node {
    /// Ends writers that left before this node joined: it receives their rows, but not the report of their departure (R34). It
    /// is enough that a peer has retired them. Otherwise they are ended when they were not listed for a while (R48): a member
    /// that is down may be unknown here at first, but the others list it, and a writer that no member ever was would
    /// stay for ever.
    pub(super) fn end_unlisted_writers(&mut self, now: Now) {
        let writers = self.replication.state().writers();
        let me = &self.replication.me().name;
        let unlisted = writers.current().filter(|(writer, id)| {
            id.name != *me && !writers.has_ended(*writer) && !self.membership.lists(&id.name)
        });
        let (mut still, mut ended) = (BTreeMap::new(), Vec::new());
        for (writer, id) in unlisted {
            let since = self.unlisted.get(id).copied().unwrap_or(now.mono);
            if self.replication.is_retired_by_a_peer(writer) || now.mono >= since + UNLISTED_FOR {
                ended.push(id.clone());
            } else {
                still.insert(id.clone(), since);
            }
        }
        self.unlisted = still;
        for id in ended {
            self.replication.peer_forgotten(now, &id);
        }
    }

    /// Connects members that are present and that replication could not take when they came, because it remembered too many
    /// writers then. Informs those that have ended here of the later generation (R45): if that generation is forged, they must
    /// exceed it to be accepted as current.
    pub(super) fn connect_missing_peers(&mut self, now: Now) {
        let members = self.membership.members().filter(|member| member.state.is_present());
        let mut outdated = BTreeMap::new();
        for member in members.collect::<Vec<_>>() {
            let later = self.replication.state().writers().later_generation(&member.node);
            if let Some(later) = later {
                let since = self.outdated.get(&member.node).copied().unwrap_or(now.mono);
                if now.mono >= since + OUTDATED_FOR {
                    self.membership.report_generation(&member, later);
                }
                outdated.insert(member.node, since);
            } else if !self.replication.reaches(&member.node) {
                self.replication.peer_up(now, &member.node);
            }
        }
        self.outdated = outdated;
    }

    pub(super) fn count_refused(&mut self, error: FrameError) {
        match error {
            FrameError::UnknownKind(_) | FrameError::UnknownFlags(_) => {
                self.frames.unknown_kind += 1;
            }
            FrameError::Version { .. } => self.frames.unknown_version += 1,
            FrameError::TooShort(_)
            | FrameError::TooLong(_)
            | FrameError::Length { .. }
            | FrameError::Checksum => self.frames.corrupted += 1,
        }
    }
}
