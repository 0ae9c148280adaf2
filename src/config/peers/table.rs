//! The whole table of flags, and how to find a flag in it.

use super::{Here, PeerFlag, engine, operations, routing, traffic, workers};

/// Every flag of the table.
pub(in crate::config) fn flags() -> impl Iterator<Item = &'static PeerFlag> {
    [routing::FLAGS, workers::FLAGS, traffic::FLAGS, engine::FLAGS, operations::FLAGS]
        .into_iter()
        .flatten()
}

/// The flag of another router with this name, which is given without dashes.
pub(in crate::config) fn flag(name: &str) -> Option<&'static PeerFlag> {
    flags().find(|flag| flag.name() == name)
}

/// The flags of other routers that are aliases of the flag with this name, which is given without dashes.
pub(in crate::config) fn aliases(name: &str) -> impl Iterator<Item = &'static PeerFlag> {
    flags().filter(move |flag| matches!(flag.here, Here::Alias { of, .. } if of == name))
}

/// Whether a flag, given with its dashes, has an effect here: a flag of this router, or an alias of one.
pub(in crate::config) fn is_accepted(with_dashes: &str) -> bool {
    flag(with_dashes.trim_start_matches('-'))
        .is_none_or(|flag| matches!(flag.here, Here::Same { .. } | Here::Alias { .. }))
}
