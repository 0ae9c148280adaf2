//! The stream: what replication orders, sends and acknowledges. And the two constants that its parts share.

use std::time::Duration;

use crate::state::StoreId;
use crate::state::writers::Writer;

/// Bytes of rows that a delta or a part of a snapshot holds at most, unless the rows of a single key are more.
pub const CHUNK_BYTES: usize = 256 * 1024;
/// Rows of other writers are relayed, and missing rows are pulled, only after this time: the writer's own delta is
/// usually faster.
pub(super) const SETTLE: Duration = Duration::from_millis(500);

/// The rows of one writer in one store, in the order of their versions.
pub(crate) type Stream = (StoreId, Writer);
