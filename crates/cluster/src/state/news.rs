//! What has changed since somebody last looked: for who keeps a picture of the state in step without reading all of it.
//!
//! Keys, not values: whoever is told looks at the state as it is by then, so a thousand changes of one key are one piece
//! of news, and telling it twice does no harm.

use std::collections::BTreeSet;

use smg_types::ids::{ModelId, WorkerId};

use crate::state::State;
use crate::state::prefixes::HintRun;
use crate::state::session::SessionKey;

/// What has changed, by store.
#[derive(Debug, Default)]
pub struct News {
    /// Workers that were told of, changed, overridden or removed.
    pub workers: BTreeSet<WorkerId>,
    /// Models whose policy was set or unset.
    pub policies: BTreeSet<ModelId>,
    /// Sessions that were bound, used or ended.
    pub sessions: BTreeSet<SessionKey>,
    /// Workers of which a router sees something else than before.
    pub observations: BTreeSet<WorkerId>,
    /// Workers at which a router has another load than before.
    pub load: BTreeSet<WorkerId>,
    /// Hints that others have told, in the order in which they came.
    pub hints: Vec<HintRun>,
}

impl News {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers.is_empty()
            && self.policies.is_empty()
            && self.sessions.is_empty()
            && self.observations.is_empty()
            && self.load.is_empty()
            && self.hints.is_empty()
    }
}

impl State {
    /// From now on news is kept until it is taken.
    pub(crate) fn follow(&mut self) {
        self.workers.follow();
        self.policies.follow();
        self.sessions.follow();
        self.observations.follow();
        self.load.follow();
        self.prefixes.follow();
    }

    /// What has changed since this was last asked.
    pub(crate) fn take_news(&mut self) -> News {
        News {
            workers: self.workers.take_news(),
            policies: self.policies.take_news(),
            sessions: self.sessions.take_news(),
            observations: self.observations.take_news(),
            load: self.load.take_news(),
            hints: self.prefixes.take_news(),
        }
    }
}
