//! Hands what has changed to the disk, before other routers learn of it.

use std::time::Duration;

use crate::driver::Driver;

/// How often the positions of all logs are compared with the saved ones. They change with the rows, which are compared each
/// time; a position that is older than it might be costs a repetition after a restart.
const POSITIONS_INTERVAL: Duration = Duration::from_secs(1);

impl Driver {
    /// Hands over what has changed. Never waits for the disk.
    pub(super) fn save(&mut self) {
        let Some(disk) = &self.outputs.disk else { return };
        let now = self.clock.mono();
        let with_positions = now >= self.saved_positions_at + POSITIONS_INTERVAL;
        if with_positions {
            self.saved_positions_at = now;
        }
        disk.push(self.node.take_unsaved(with_positions));
    }
}
