//! Every period and number of membership. None is left to a library's defaults.
//!
//! foca's `Config::new_lan` sends an update in a cluster of three only twice, which loses it; so nothing is taken from
//! there.

use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

/// Settings of membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Time between two probes, each of a random member.
    pub probe_period: Duration,
    /// Time that a probe waits for its answer before other members are asked to probe. At most half of `probe_period`,
    /// because the others need as long again.
    pub probe_timeout: Duration,
    /// How many other members are asked to probe, and how many are sent a refutation at once.
    pub indirect_probes: NonZeroUsize,
    /// Time that a suspected member has to refute, in a cluster of up to fifty; in a larger one it grows with the
    /// logarithm of the size.
    pub suspicion: Duration,
    /// How often an update is sent, at least; it grows with the logarithm of the size.
    pub transmissions: NonZeroU8,
    /// Time between two rounds of gossip, which are sent only while there are updates.
    pub gossip_period: Duration,
    /// How many members each round of gossip is sent to.
    pub gossip_fanout: NonZeroUsize,
    /// Time between two exchanges of the member list with a random member.
    pub announce_period: Duration,
    /// Time between two rounds in which foca tries to reach members that are down.
    pub announce_down_period: Duration,
    /// How many members that are down each such round tries.
    pub announce_down_fanout: NonZeroUsize,
    /// Largest packet of foca in bytes, from 1,400 to 524,288.
    pub packet_bytes: NonZeroUsize,
    /// Time between two rounds of join probes while this node has no members; varied by a quarter.
    pub join_alone_period: Duration,
    /// The same while it has members: then join addresses without a live member, and members that are down, are probed.
    pub join_period: Duration,
    /// How many addresses a round probes while this node has no members; all have their turn.
    pub join_alone_fanout: NonZeroUsize,
    /// The same while it has members.
    pub join_fanout: NonZeroUsize,
    /// Time that the holder of a name has to answer when another process claims it.
    pub challenge_timeout: Duration,
    /// Time between two repetitions of a goodbye while this node is leaving.
    pub goodbye_period: Duration,
    /// How long a member that is down stays listed.
    pub forget_after: Duration,
    /// A call of `handle_timeout` that is later than this means that the process was frozen: its timers must not count
    /// that time.
    pub stall: Duration,
    /// Most names remembered; beyond, those that have been down for longest are forgotten.
    pub max_members: NonZeroUsize,
}

impl Config {
    /// Settings for one data centre.
    #[must_use]
    pub const fn lan() -> Self {
        Self {
            probe_period: Duration::from_millis(800),
            probe_timeout: Duration::from_millis(300),
            indirect_probes: NonZeroUsize::new(3).expect("3 is not zero"),
            suspicion: Duration::from_secs(3),
            transmissions: NonZeroU8::new(10).expect("10 is not zero"),
            gossip_period: Duration::from_millis(100),
            gossip_fanout: NonZeroUsize::new(3).expect("3 is not zero"),
            announce_period: Duration::from_secs(10),
            announce_down_period: Duration::from_secs(10),
            announce_down_fanout: NonZeroUsize::new(2).expect("2 is not zero"),
            packet_bytes: NonZeroUsize::new(64 * 1024).expect("64 KiB is not zero"),
            join_alone_period: Duration::from_millis(1500),
            join_period: Duration::from_secs(4),
            join_alone_fanout: NonZeroUsize::new(16).expect("16 is not zero"),
            join_fanout: NonZeroUsize::new(3).expect("3 is not zero"),
            challenge_timeout: Duration::from_millis(200),
            goodbye_period: Duration::from_secs(1),
            forget_after: Duration::from_secs(24 * 3600),
            stall: Duration::from_millis(500),
            max_members: NonZeroUsize::new(4096).expect("4096 is not zero"),
        }
    }

    /// Settings for sites with up to half a second between them: everything is slower, so that distance is not taken
    /// for a crash.
    #[must_use]
    pub const fn wan() -> Self {
        Self {
            probe_period: Duration::from_secs(5),
            probe_timeout: Duration::from_millis(1500),
            suspicion: Duration::from_secs(15),
            gossip_period: Duration::from_millis(300),
            gossip_fanout: NonZeroUsize::new(4).expect("4 is not zero"),
            announce_period: Duration::from_secs(30),
            announce_down_period: Duration::from_secs(30),
            announce_down_fanout: NonZeroUsize::new(3).expect("3 is not zero"),
            join_alone_period: Duration::from_secs(4),
            join_period: Duration::from_secs(10),
            challenge_timeout: Duration::from_millis(1500),
            goodbye_period: Duration::from_secs(2),
            stall: Duration::from_secs(2),
            ..Self::lan()
        }
    }

    /// All that is wrong with the numbers; empty if nothing is.
    #[must_use]
    pub fn mistakes(&self) -> Vec<ConfigError> {
        let positive = [
            ("probe period", self.probe_period),
            ("probe timeout", self.probe_timeout),
            ("suspicion", self.suspicion),
            ("gossip period", self.gossip_period),
            ("announce period", self.announce_period),
            ("announce-down period", self.announce_down_period),
            ("join-alone period", self.join_alone_period),
            ("join period", self.join_period),
            ("challenge timeout", self.challenge_timeout),
            ("goodbye period", self.goodbye_period),
            ("forget-after", self.forget_after),
            ("stall", self.stall),
        ];
        let mut mistakes: Vec<_> = positive
            .into_iter()
            .filter(|(_, period)| period.is_zero())
            .map(|(name, _)| ConfigError::Zero(name))
            .collect();
        if self.probe_timeout > self.probe_period / 2 {
            mistakes.push(ConfigError::ProbeTimeout {
                timeout: self.probe_timeout,
                period: self.probe_period,
            });
        }
        if self.suspicion < self.probe_period {
            mistakes.push(ConfigError::Suspicion {
                suspicion: self.suspicion,
                period: self.probe_period,
            });
        }
        if !(1400..=512 * 1024).contains(&self.packet_bytes.get()) {
            mistakes.push(ConfigError::PacketBytes(self.packet_bytes.get()));
        }
        mistakes
    }

    /// Time that a suspected member has to refute in a cluster of `size`: gossip takes longer in a larger one.
    #[must_use]
    pub fn suspicion_at(&self, size: usize) -> Duration {
        self.suspicion.mul_f64(decades(size / 5).max(1.0))
    }

    /// The longest time, after the last fault, until `size` nodes list the same members: a round of join probes, the
    /// longest suspicion twice (a false one may have begun just before, and its refutation may be lost), and the rounds
    /// of gossip.
    #[must_use]
    pub fn convergence(&self, size: usize) -> Duration {
        let rounds = f64::from(u32::try_from(size.max(2)).unwrap_or(u32::MAX)).log2().ceil() + 1.0;
        let join = self.join_period.max(self.join_alone_period).mul_f64(1.25);
        join + self.suspicion_at(size) * 2 + self.gossip_period.mul_f64(rounds)
    }

    /// foca's configuration for a cluster of `size`.
    pub(super) fn foca(&self, size: usize) -> foca::Config {
        let periodic =
            |frequency, num_members| Some(foca::PeriodicParams { frequency, num_members });
        let logarithmic = 4.0 * decades(size.saturating_add(1)).ceil();
        foca::Config {
            probe_period: self.probe_period,
            probe_rtt: self.probe_timeout,
            num_indirect_probes: self.indirect_probes,
            max_transmissions: self.transmissions.max(small(logarithmic)),
            suspect_to_down_after: self.suspicion_at(size),
            remove_down_after: Some(self.forget_after),
            max_packet_size: self.packet_bytes,
            notify_down_members: true,
            periodic_announce: periodic(self.announce_period, NonZeroUsize::MIN),
            periodic_announce_to_down_members: periodic(
                self.announce_down_period,
                self.announce_down_fanout,
            ),
            periodic_gossip: periodic(self.gossip_period, self.gossip_fanout),
        }
    }
}

fn decades(size: usize) -> f64 {
    f64::from(u32::try_from(size.max(1)).unwrap_or(u32::MAX)).log10()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a logarithm times four of a count is between 0 and 255, and `as` saturates"
)]
fn small(value: f64) -> NonZeroU8 {
    NonZeroU8::new(value as u8).unwrap_or(NonZeroU8::MIN)
}

/// A setting that can't work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A period is zero.
    #[error("{0} is zero")]
    Zero(&'static str),
    /// No time is left for indirect probes.
    #[error("probe timeout {timeout:?} is more than half of the probe period {period:?}")]
    ProbeTimeout {
        /// The timeout given.
        timeout: Duration,
        /// The period given.
        period: Duration,
    },
    /// There is less time to refute than between two probes.
    #[error("suspicion {suspicion:?} is shorter than the probe period {period:?}")]
    Suspicion {
        /// The time to refute that was given.
        suspicion: Duration,
        /// The period given.
        period: Duration,
    },
    /// The packet is too small for long names, or too large for a frame.
    #[error("packet size {0} is not between 1400 and 524288 bytes")]
    PacketBytes(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_profiles_are_valid() {
        assert_eq!(Config::lan().mistakes(), []);
        assert_eq!(Config::wan().mistakes(), []);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let wrong = Config {
            probe_timeout: Duration::from_millis(401),
            gossip_period: Duration::ZERO,
            suspicion: Duration::from_millis(799),
            packet_bytes: NonZeroUsize::new(100).unwrap(),
            ..Config::lan()
        };
        let reported: Vec<_> = wrong.mistakes().iter().map(ToString::to_string).collect();
        assert_eq!(
            reported,
            [
                "gossip period is zero",
                "probe timeout 401ms is more than half of the probe period 800ms",
                "suspicion 799ms is shorter than the probe period 800ms",
                "packet size 100 is not between 1400 and 524288 bytes",
            ]
        );
    }

    #[test]
    fn suspicion_and_transmissions_grow_with_the_logarithm() {
        let lan = Config::lan();
        assert_eq!(lan.suspicion_at(3), Duration::from_secs(3));
        assert_eq!(lan.suspicion_at(50), Duration::from_secs(3));
        assert_eq!(lan.suspicion_at(500), Duration::from_secs(6));
        assert_eq!(lan.foca(3).max_transmissions.get(), 10);
        assert_eq!(lan.foca(1000).max_transmissions.get(), 16);
    }
}
