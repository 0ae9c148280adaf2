//! The whole table of flags, and look-ups in it.

use super::{Here, PeerFlag, engine, operations, routing, traffic, workers};

/// Every flag of the table.
pub(in crate::config) fn flags() -> impl Iterator<Item = &'static PeerFlag> {
    [routing::FLAGS, workers::FLAGS, traffic::FLAGS, engine::FLAGS, operations::FLAGS]
        .into_iter()
        .flatten()
}

/// The flag of another router with this name, given without its dashes.
pub(in crate::config) fn flag(name: &str) -> Option<&'static PeerFlag> {
    flags().find(|flag| flag.name() == name)
}

/// The flags of other routers that are names of this one's flag, given without its dashes.
pub(in crate::config) fn aliases(name: &str) -> impl Iterator<Item = &'static PeerFlag> {
    flags().filter(move |flag| matches!(flag.here, Here::Alias { of, .. } if of == name))
}

/// Whether a flag, given with its dashes, does something here: a flag of this router, or another name of one.
pub(in crate::config) fn is_accepted(with_dashes: &str) -> bool {
    flag(with_dashes.trim_start_matches('-'))
        .is_none_or(|flag| matches!(flag.here, Here::Same { .. } | Here::Alias { .. }))
}
