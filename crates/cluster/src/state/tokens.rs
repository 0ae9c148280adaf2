//! The tokens store: the tokens that each node has reserved and returned, per window of a limit.

use std::time::Duration;

use serde::{Deserialize, Serialize};

#[cfg(test)]
use crate::state::golden::{self, Golden};
use crate::state::operations::{Draw, StoreOperations};
use crate::state::store::{Ownership, Retention, Store};
use crate::state::store_id::StoreId;
use crate::state::table::{NodeParts, RefusedRow, Table};
use crate::state::usage::UsageKey;

/// The tokens store. The rows of a window are the slots of a `PnCounter`.
#[derive(Debug)]
pub enum Tokens {}

impl Store for Tokens {
    const NAME: &'static str = "tokens";
    const ID: StoreId = StoreId::Tokens;
    const OWNERSHIP: Ownership = Ownership::PerNode;
    const RETENTION: Retention = Retention::TimeToLive;
    const COALESCING: Duration = Duration::from_millis(5);
    const MAX_ROWS: usize = 262_144;
    const MAX_CONTENT_BYTES: usize = 512;
    const IS_AWAITED: bool = false;
    const IS_IN_USE: bool = true;
    const IS_DURABLE: bool = false;

    type Key = UsageKey;
    type Value = TokenFlow;

    fn validate(key: &UsageKey, _: &TokenFlow) -> Result<(), String> {
        key.validate()
    }

    fn expires_ms(key: &UsageKey, _: &TokenFlow) -> Option<u64> {
        Some(key.expires_ms())
    }
}

impl StoreOperations for Tokens {
    type Write = TokenWrite;

    fn write(
        table: &mut Table<Self>,
        parts: &mut NodeParts<'_>,
        TokenWrite { key, flow }: TokenWrite,
    ) -> Result<Option<u64>, RefusedRow> {
        table.put(parts, key, flow).map(Some)
    }

    fn sample(draw: &mut Draw<'_>) -> Option<TokenWrite> {
        let flow = TokenFlow { taken: u64::from(draw.number), given_back: 0, wanted: 0 };
        Some(TokenWrite { key: UsageKey::sample(draw), flow })
    }

    #[cfg(test)]
    fn golden() -> Golden {
        let flow = TokenFlow { taken: 300, given_back: 1, wanted: 2 };
        Golden {
            writes: vec![TokenWrite { key: golden::window(), flow }.into()],
            key: golden::WINDOW_HEX,
            content: "0101fb2c0101020000",
        }
    }
}

/// All tokens that this node has reserved and returned in a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokenWrite {
    /// The window.
    pub key: UsageKey,
    /// The counts since the window began.
    pub flow: TokenFlow,
}

/// Tokens that a node has reserved and returned in a window; the first two counts only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TokenFlow {
    /// Tokens reserved when requests were admitted.
    pub taken: u64,
    /// Tokens returned because requests used fewer.
    pub given_back: u64,
    /// Tokens for which the node expects demand beyond its rights, by which other nodes decide how many to grant.
    pub wanted: u64,
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use crdts::{CmRDT, PNCounter};
    use proptest::prelude::*;

    use super::*;
    use crate::state::table::tests::KEYS;
    use crate::state::table::tests::own::{OwnSample, counts, events, play};

    impl OwnSample for Tokens {
        fn key(_: usize, n: u8) -> UsageKey {
            UsageKey::numbered(n)
        }

        fn value(number: u64) -> TokenFlow {
            TokenFlow { taken: number, given_back: number / 3, wanted: 0 }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(10_000))]

        #[test]
        fn tokens_read_as_a_pn_counter(events in events()) {
            let rows = play::<Tokens>(&events)?;
            for n in 0..KEYS {
                let mut oracle = PNCounter::new();
                let mut before: BTreeMap<usize, TokenFlow> = BTreeMap::new();
                for (at, number) in counts(&events, n) {
                    let flow = Tokens::value(number);
                    let last = before.insert(at, flow).unwrap_or_default();
                    oracle.apply(oracle.inc_many(at, flow.taken - last.taken));
                    oracle.apply(oracle.dec_many(at, flow.given_back - last.given_back));
                }
                let here: i128 = rows
                    .iter()
                    .filter(|((_, key), _)| *key == UsageKey::numbered(n))
                    .map(|(_, flow)| i128::from(flow.taken) - i128::from(flow.given_back))
                    .sum();
                prop_assert_eq!(oracle.read().to_string(), here.to_string());
            }
        }
    }
}
