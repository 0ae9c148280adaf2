//! Counts of membership, for metrics and tests.

/// Counts since the process started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Times that this node was declared down while alive, and renewed its identity.
    pub renewals: u64,
    /// Timers of suspicions that were refuted in time and therefore dropped: each would have declared a live member
    /// down.
    pub stale_suspicions: u64,
    /// Probes that were not answered, neither directly nor through other members.
    pub failed_probes: u64,
    /// Calls of `handle_timeout` that were so late that the process must have been frozen.
    pub stalls: u64,
    /// Packets that foca refused.
    pub refused_packets: u64,
    /// Messages that answer another generation, come from this node itself, or name members that are not known.
    pub stray_messages: u64,
    /// Frames of another cluster.
    pub foreign_cluster: u64,
    /// Newcomers that were refused.
    pub refusals: u64,
    /// Holders of a name that did not answer when a newcomer claimed it.
    pub unanswered_challenges: u64,
    /// Reports of members, and claims to this node's name, whose claim is absurd against the clock.
    pub absurd_claims: u64,
    /// Reports of unknown members that were not believed, because too many members have not answered a probe yet.
    pub refused_strangers: u64,
    /// Reports of unknown members that were refused because the list is full of members that are present.
    pub refused_members: u64,
    /// Times that this node was to begin a later generation, but had begun several a moment ago.
    pub refused_generations: u64,
    /// Frames that were dropped because nobody took them.
    pub dropped_frames: u64,
}
