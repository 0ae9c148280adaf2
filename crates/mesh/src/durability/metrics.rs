//! The metrics of the data folder, which exist only if there is one.

use std::time::Duration;

use prometheus::{
    Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, IntGaugeVec, Opts, Registry,
};
use smg_persist::{Counters, FolderFiles, Journal, State, Turn};

/// The metrics of the data folder.
#[derive(Debug, Clone)]
pub struct Metrics {
    degraded: IntGauge,
    bytes: IntGaugeVec,
    written: IntCounter,
    fsync: Histogram,
    snapshots: IntCounter,
    errors: IntCounter,
    unsynced: Gauge,
    last_snapshot: Gauge,
}

impl Metrics {
    /// Registers the metrics.
    ///
    /// # Errors
    /// If a name is already registered.
    pub fn register(registry: &Registry) -> prometheus::Result<Self> {
        let metrics = Self {
            degraded: IntGauge::new(
                "smg_persist_degraded",
                "Whether changes do not reach the data folder and are kept in memory only: 1, or 0 if they do.",
            )?,
            bytes: IntGaugeVec::new(
                Opts::new(
                    "smg_persist_bytes",
                    "Size of the present file in the data folder, in bytes.",
                ),
                &["file"],
            )?,
            written: IntCounter::new(
                "smg_persist_written_bytes_total",
                "Bytes written to the data folder.",
            )?,
            fsync: Histogram::with_opts(
                HistogramOpts::new(
                    "smg_persist_fsync_seconds",
                    "Time to write and sync the changes of one interval to the data folder.",
                )
                .buckets(vec![
                    0.000_5, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0,
                ]),
            )?,
            snapshots: IntCounter::new(
                "smg_persist_snapshots_total",
                "Snapshots of the state that were written to the data folder.",
            )?,
            errors: IntCounter::new(
                "smg_persist_errors_total",
                "Operations on the data folder that failed.",
            )?,
            unsynced: Gauge::new(
                "smg_persist_unsynced_seconds",
                "Age of the oldest change that is not in the data folder yet; 0 if there is none.",
            )?,
            last_snapshot: Gauge::new(
                "smg_persist_last_snapshot_timestamp_seconds",
                "Wall time when the last snapshot was written to the data folder.",
            )?,
        };
        registry.register(Box::new(metrics.degraded.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        registry.register(Box::new(metrics.written.clone()))?;
        registry.register(Box::new(metrics.fsync.clone()))?;
        registry.register(Box::new(metrics.snapshots.clone()))?;
        registry.register(Box::new(metrics.errors.clone()))?;
        registry.register(Box::new(metrics.unsynced.clone()))?;
        registry.register(Box::new(metrics.last_snapshot.clone()))?;
        Ok(metrics)
    }

    /// Shows whether the folder can be used, before its thread runs or without one.
    pub(super) fn note_state(&self, degraded: bool) {
        self.degraded.set(i64::from(degraded));
    }

    /// Takes the state of the journal after a turn, which took `took`.
    pub(super) fn note(
        &self,
        journal: &Journal<FolderFiles>,
        turn: Turn,
        took: Duration,
        unsynced: Duration,
        wall: Duration,
    ) {
        let Counters { written_bytes, snapshots, errors, log_bytes, snapshot_bytes, .. } =
            journal.counters();
        self.degraded.set(i64::from(matches!(journal.state(), State::Degraded { .. })));
        for (file, bytes) in [("log", log_bytes), ("snapshot", snapshot_bytes)] {
            self.bytes.with_label_values(&[file]).set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.written.inc_by(written_bytes.saturating_sub(self.written.get()));
        self.snapshots.inc_by(snapshots.saturating_sub(self.snapshots.get()));
        self.errors.inc_by(errors.saturating_sub(self.errors.get()));
        self.unsynced.set(unsynced.as_secs_f64());
        if turn.snapshot {
            self.last_snapshot.set(wall.as_secs_f64());
        } else if turn.synced {
            self.fsync.observe(took.as_secs_f64());
        }
    }
}
