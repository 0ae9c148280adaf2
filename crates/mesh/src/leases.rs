//! Who leads the cluster: what the rest of the router reads of the lease `leader`, and how it hands it over.

use std::time::Duration;

use serde::Serialize;
use smg_lease::{Status, Term, TransferError};
use smg_types::ids::NodeName;

use crate::handle::{Handle, VisitError};
use crate::lease_view::{HaMode, LEADER};

/// `GET /ha/leader`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leadership {
    /// This router's part.
    pub ha_mode: HaMode,
    /// The router that leads, if this one knows it.
    pub leader: Option<String>,
    /// Its URL for clients, if it is known.
    pub leader_url: Option<String>,
    /// The term of the leader; without one, the last that is known. 0 for a router alone.
    pub term: Term,
    /// Whether this router reaches a majority of the configured routers.
    pub quorum: bool,
    /// The configured routers whose names are known.
    pub voters: Vec<String>,
    /// How many of them are a majority.
    pub majority: usize,
}

/// Why the cluster has not got another leader.
#[derive(Debug, thiserror::Error)]
pub enum LeaderError {
    /// No other router can join.
    #[error("this router is alone: it was started without --enable-mesh")]
    Standalone,
    /// This router can't hand the lease over.
    #[error(transparent)]
    Transfer(#[from] TransferError),
    /// The node does not answer.
    #[error(transparent)]
    Node(#[from] VisitError),
}

/// How long a transfer waits until the next leader is known here.
const NEXT_LEADER: Duration = Duration::from_secs(3);

impl Handle {
    /// This router's part in the cluster, and who leads it.
    #[must_use]
    pub fn leadership(&self) -> Leadership {
        let me = self.view().me.node.name.to_string();
        let own_url = || Some(self.dialler.me.load().client_url.clone());
        if !self.is_networked() {
            return Leadership {
                ha_mode: HaMode::Standalone,
                leader: Some(me.clone()),
                leader_url: own_url(),
                term: Term(0),
                quorum: true,
                voters: vec![me],
                majority: 1,
            };
        }
        let view = self.leases.borrow().clone();
        let has_failed = *self.failed.borrow();
        let at = self.dialler.clock.boot();
        let quorum = view.reaches_majority && !has_failed;
        let counts = |status: &&Status| at < status.known_until && !has_failed;
        let current = view.leader.as_ref().filter(counts);
        let holder = current.and_then(|status| status.holder.as_ref());
        let is_leader = current.is_some_and(|status| status.held_until.is_some());
        let ha_mode = match (is_leader, quorum) {
            (true, _) => HaMode::Leader,
            (false, true) => HaMode::Follower,
            (false, false) => HaMode::ReadOnly,
        };
        let leader = holder.map(|holder| holder.name.to_string());
        let url_of = |name: &String| {
            self.routers().1.into_iter().find(|router| router.name == *name).and_then(|r| r.url)
        };
        Leadership {
            ha_mode,
            leader_url: if is_leader { own_url() } else { leader.as_ref().and_then(url_of) },
            leader,
            term: view.leader.as_ref().map(|status| status.term).unwrap_or_default(),
            quorum,
            voters: view.voters.iter().map(ToString::to_string).collect(),
            majority: view.needed,
        }
    }

    /// The term in which this router leads at this moment; `None`: it does not. Call it before each act of the leader, and give the
    /// term to whatever receives the act.
    #[must_use]
    pub fn leads(&self) -> Option<Term> {
        let Leadership { ha_mode, term, .. } = self.leadership();
        matches!(ha_mode, HaMode::Leader | HaMode::Standalone).then_some(term)
    }

    /// The value of `ha_mode` on `/health` and `/ha/*`.
    #[must_use]
    pub fn ha_mode(&self) -> &'static str {
        self.leadership().ha_mode.as_str()
    }

    /// Makes another router the leader, and waits until it is.
    ///
    /// # Errors
    /// If this router does not lead, or the other one can't. Then nothing has changed.
    pub async fn transfer_leadership(&self, to: NodeName) -> Result<Leadership, LeaderError> {
        let name = to.clone();
        self.hand_over(move |leases, at| leases.transfer(at, &LEADER, &name)).await?;
        Ok(self.next_leader(|leader| leader == to.as_str()).await)
    }

    /// Gives the leadership up in favour of any other router, and waits until there is one.
    ///
    /// # Errors
    /// If this router does not lead. Then nothing has changed.
    pub async fn step_down(&self) -> Result<Leadership, LeaderError> {
        self.hand_over(|leases, at| leases.step_down(at, &LEADER)).await?;
        let me = self.view().me.node.name.to_string();
        Ok(self.next_leader(|leader| leader != me).await)
    }

    async fn hand_over(
        &self,
        act: impl FnOnce(&mut smg_cluster::NodeLeases, Duration) -> Result<(), TransferError>
        + Send
        + 'static,
    ) -> Result<(), LeaderError> {
        if !self.is_networked() {
            return Err(LeaderError::Standalone);
        }
        let done = self.visit(move |node, _, now| node.update_leases(now, act)).await?;
        done.unwrap_or(Ok(()))?;
        Ok(())
    }

    /// Waits until a router leads of which `is_next` is true, at most for a while.
    async fn next_leader(&self, is_next: impl Fn(&str) -> bool) -> Leadership {
        let mut views = self.leases.clone();
        let found = async {
            loop {
                let leadership = self.leadership();
                let is_known = leadership.leader.as_deref().is_some_and(&is_next);
                if is_known || views.changed().await.is_err() {
                    return;
                }
            }
        };
        let _is_found = tokio::time::timeout(NEXT_LEADER, found).await.is_ok();
        self.leadership()
    }
}
