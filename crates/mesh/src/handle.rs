//! What the rest of the router holds of a running mesh.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_types::now::Now;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::driver::Command;
use super::join::Resolutions;
use super::link::{self, Dialler, LinkStatus};
use super::{Config, Happening, KeyChange, KeyId, Mode, RingError, Synced, View};

/// What the rest of the router holds of a running mesh. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) config: Arc<Config>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) happenings: broadcast::Sender<Arc<Happening>>,
    pub(super) dialler: Arc<Dialler>,
    pub(super) resolutions: Resolutions,
    /// Set once the node's thread has ended though nobody asked for it.
    pub(super) failed: watch::Receiver<bool>,
}

impl Handle {
    /// Whether other routers may join this one. Otherwise it is a cluster of one for good.
    #[must_use]
    pub fn is_networked(&self) -> bool {
        self.config.network.is_some()
    }

    /// How this router runs, as `/health` and `/ha/*` call it: `mesh`, or `standalone` for a cluster of one.
    #[must_use]
    pub fn ha_mode(&self) -> &'static str {
        if self.is_networked() { "mesh" } else { "standalone" }
    }

    /// Resolves once the node has failed: it answers no visit any more, and the view stays what it was last.
    pub async fn failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // The node has ended because the router ends.
            std::future::pending::<()>().await;
        }
    }

    /// Who is there, as of now.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The same, with a way to wait for the next.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// What happens from now on. Who is slow misses some, and is told how many.
    #[must_use]
    pub fn happenings(&self) -> broadcast::Receiver<Arc<Happening>> {
        self.happenings.subscribe()
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.config.cluster_name
    }

    /// How the ways to the others are, by address.
    #[must_use]
    pub fn links(&self) -> BTreeMap<SocketAddr, LinkStatus> {
        self.dialler.board.all()
    }

    /// Looks at the node or writes to it, on the mesh's thread. Not for the request path.
    ///
    /// # Errors
    /// If the node has ended, or does not answer within a second; the visit may take place later then.
    pub async fn visit<T: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Node, &Synced, Now) -> T + Send + 'static,
    ) -> Result<T, VisitError> {
        let (answer, answered) = oneshot::channel();
        let visit = Box::new(move |node: &mut Node, synced: &Synced, now| {
            // Who asked may not wait any more.
            let _unheard = answer.send(visit(node, synced, now)).is_err();
        });
        let asking = async {
            self.commands.send(Command::Visit(visit)).await.map_err(|_| VisitError::Ended)?;
            answered.await.map_err(|_| VisitError::Ended)
        };
        tokio::time::timeout(VISIT_TIMEOUT, asking).await.unwrap_or(Err(VisitError::Timeout))
    }

    /// The shared keys, by name, the one that seals first.
    #[must_use]
    pub fn keys(&self) -> (Mode, Vec<KeyId>) {
        let security = &self.dialler.security;
        (security.mode(), security.ring().ids().collect())
    }

    /// Changes the shared keys of this router, then of all that take part; what became of it, by name.
    ///
    /// # Errors
    /// If this router itself refuses the change, or has nothing that could carry it to the others in secret; nothing has
    /// changed then.
    pub async fn change_keys(&self, change: KeyChange) -> Result<KeyReceipts, KeysError> {
        let security = &self.dialler.security;
        if security.mode() == Mode::Off {
            return Err(KeysError::Off);
        }
        let view = self.view();
        let others: Vec<_> = view.present().map(|m| (m.node.name.to_string(), m.address)).collect();
        if !others.is_empty() && !security.can_carry_keys() {
            return Err(KeysError::NoSecret);
        }
        security.change(&change)?;
        let mut receipts = KeyReceipts::new();
        receipts.insert(view.me.node.name.to_string(), Ok(security.ring().ids().collect()));
        let mut telling = tokio::task::JoinSet::new();
        for (name, address) in others {
            let (dialler, change) = (Arc::clone(&self.dialler), change.clone());
            telling
                .spawn(async move { (name, link::change_keys(&dialler, address, change).await) });
        }
        while let Some(told) = telling.join_next().await {
            if let Ok((name, answer)) = told {
                receipts.insert(name, answer);
            }
        }
        Ok(receipts)
    }

    /// Tells everybody that this router is gone, and waits until that is sent.
    pub(super) async fn depart(&self) {
        let (done, departed) = oneshot::channel();
        // An error means that the driver has ended already.
        if self.commands.send(Command::Depart(done)).await.is_ok() {
            let _ended = departed.await.is_err();
        }
    }

    /// Tells everybody that this router will go. It stays a member until it departs.
    pub async fn leave(&self) {
        // An error means that the driver has ended: it can't be a member then.
        let _ended = self.commands.send(Command::Leave).await.is_err();
    }
}

/// What became of a change of keys, by router: its keys now, or why it refused.
pub type KeyReceipts = BTreeMap<String, Result<Vec<KeyId>, String>>;

/// Why the node did not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum VisitError {
    /// The node's thread has ended.
    #[error(
        "this router's cluster node has failed: nothing can be changed here until the router is restarted, requests are \
         still routed"
    )]
    Ended,
    /// It has far too much to do.
    #[error("this router's cluster node did not answer within {VISIT_TIMEOUT:?}; try again")]
    Timeout,
}

/// Why a change of keys was not begun.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Nothing is sealed.
    #[error("nothing is sealed: start the routers with --mesh-encryption permissive or required")]
    Off,
    /// The change would travel in the open.
    #[error("there is neither a shared key nor TLS that could carry a key to the others in secret")]
    NoSecret,
    /// The ring refuses.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// How long the driver may take to answer.
const VISIT_TIMEOUT: Duration = Duration::from_secs(1);
