//! The handle through which the rest of the router reads and writes the cluster node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use smg_cluster::Node;
use smg_runtime::tls::{MeshFiles, Prepared};
use smg_types::now::Now;
use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::config::Config;
use crate::driver::Command;
use crate::durability::{DiskHandle, Durability};
use crate::join::Resolutions;
use crate::join_address::JoinAddress;
use crate::lease_view::LeaseView;
use crate::link::{self, Dialler, LinkStatus};
use crate::seal::{KeyId, Mode, Ring, RingError};
use crate::security::KeyChange;
use crate::view::{ClusterEvent, Synced, View};

/// Reads and writes the cluster node. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Handle {
    pub(super) config: Arc<Config>,
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) view: watch::Receiver<Arc<View>>,
    pub(super) events: broadcast::Sender<Arc<ClusterEvent>>,
    pub(super) leases: watch::Receiver<Arc<LeaseView>>,
    pub(super) dialler: Arc<Dialler>,
    /// `None`: there is no data folder.
    pub(super) disk: Option<DiskHandle>,
    /// Whether the node began with a state that an earlier process has saved.
    pub(super) is_restored: bool,
    pub(super) resolutions: Resolutions,
    /// The addresses of other routers to join.
    pub(super) join_addresses: Arc<watch::Sender<Vec<JoinAddress>>>,
    /// Set when the node's thread has ended without a request.
    pub(super) failed: watch::Receiver<bool>,
}

impl Handle {
    /// Whether other routers may join this one. Otherwise it always is a cluster of one.
    #[must_use]
    pub fn is_networked(&self) -> bool {
        self.config.network.is_some()
    }

    /// Whether the state of this router is on disk.
    #[must_use]
    pub fn durability(&self) -> Durability {
        self.disk.as_ref().map_or_else(Durability::memory, DiskHandle::durability)
    }

    /// Whether the node began with a state that an earlier process of this router has saved.
    #[must_use]
    pub const fn is_restored(&self) -> bool {
        self.is_restored
    }

    /// With `--persist-fsync always`, waits until all writes that were made so far are on disk, or it is known that the disk
    /// does not work; not longer than some seconds.
    pub async fn synced(&self) {
        if let Some(disk) = self.disk.as_ref().filter(|disk| disk.is_waited_for()) {
            // The driver hands over what a visit has written before it runs the next one.
            if self.visit(|_, _, _| ()).await.is_ok() {
                disk.synced().await;
            }
        }
    }

    /// Resolves when the node has failed. After that no visit is answered, and the view does not change.
    pub async fn failed(&self) {
        let mut failed = self.failed.clone();
        if failed.wait_for(|failed| *failed).await.is_err() {
            // The node has ended because the router shuts down.
            std::future::pending::<()>().await;
        }
    }

    /// The newest view of the members.
    #[must_use]
    pub fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }

    /// The newest view of the members, with a way to wait for the next one.
    #[must_use]
    pub fn views(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// Subscribes to the events from now on. A slow subscriber misses some, and is informed how many.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Arc<ClusterEvent>> {
        self.events.subscribe()
    }

    /// The cluster's name.
    #[must_use]
    pub fn cluster_name(&self) -> &str {
        &self.config.cluster_name
    }

    /// The status of the connections to other routers, by address.
    #[must_use]
    pub fn links(&self) -> BTreeMap<SocketAddr, LinkStatus> {
        self.dialler.board.all()
    }

    /// Runs `visit` on the mesh's thread, to read or write the node. Not for the request path.
    ///
    /// # Errors
    /// If the node has ended, or does not answer within a second; then the visit may still take place later.
    pub async fn visit<T: Send + 'static>(
        &self,
        visit: impl FnOnce(&mut Node, &Synced, Now) -> T + Send + 'static,
    ) -> Result<T, VisitError> {
        let (answer, answered) = oneshot::channel();
        let visit = Box::new(move |node: &mut Node, synced: &Synced, now| {
            // The caller may have timed out.
            let _timed_out = answer.send(visit(node, synced, now)).is_err();
        });
        let asking = async {
            self.commands.send(Command::Visit(visit)).await.map_err(|_| VisitError::Ended)?;
            answered.await.map_err(|_| VisitError::Ended)
        };
        tokio::time::timeout(VISIT_TIMEOUT, asking).await.unwrap_or(Err(VisitError::Timeout))
    }

    /// Whether messages are encrypted, and the ids of the shared keys, that of the encrypting key first.
    #[must_use]
    pub fn keys(&self) -> (Mode, Vec<KeyId>) {
        let security = &self.dialler.security;
        (security.mode(), security.ring().ids().collect())
    }

    /// Whether only routers with a shared key or a certificate can be members of the cluster.
    #[must_use]
    pub fn members_are_authenticated(&self) -> bool {
        self.dialler.security.authenticates_members()
    }

    /// Replaces the shared keys of this router alone, as a restart with other keys would. Returns false and changes
    /// nothing if messages must be encrypted and `keys` is empty.
    #[must_use]
    pub fn replace_keys(&self, keys: Ring) -> bool {
        self.dialler.security.replace(keys)
    }

    /// Uses these certificates for future connections. Returns whether they differ from before; never if the mesh was
    /// started without certificates.
    #[must_use]
    pub fn replace_tls(&self, prepared: Prepared<MeshFiles>) -> bool {
        self.dialler.security.replace_tls(prepared)
    }

    /// Replaces the join addresses. The names are resolved at once. Returns whether they differ from before; never if this
    /// router has no network.
    #[must_use]
    pub fn replace_join_addresses(&self, addresses: Vec<JoinAddress>) -> bool {
        self.is_networked()
            && self.join_addresses.send_if_modified(|known| {
                let differs = *known != addresses;
                *known = addresses;
                differs
            })
    }

    /// Changes the shared keys of this router, then those of all present members. Returns each router's answer.
    ///
    /// # Errors
    /// If this router refuses the change, or has no secret channel to the others. Then nothing has changed.
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
        security.saved().await;
        let mut receipts = KeyReceipts::new();
        receipts.insert(view.me.node.name.to_string(), Ok(security.ring().ids().collect()));
        let mut sending = tokio::task::JoinSet::new();
        for (name, address) in others {
            let (dialler, change) = (Arc::clone(&self.dialler), change.clone());
            sending
                .spawn(async move { (name, link::change_keys(&dialler, address, change).await) });
        }
        while let Some(sent) = sending.join_next().await {
            if let Ok((name, answer)) = sent {
                receipts.insert(name, answer);
            }
        }
        Ok(receipts)
    }

    /// Leaves the cluster, and waits until the message about it is sent.
    pub(super) async fn depart(&self) {
        let (done, departed) = oneshot::channel();
        // The send fails if the driver has ended already.
        if self.commands.send(Command::Depart(done)).await.is_ok() {
            let _ended = departed.await.is_err();
        }
    }

    /// Announces to all members that this router will leave. It stays a member until it departs.
    pub async fn leave(&self) {
        // The send fails if the driver has ended: then the router is no longer a member.
        let _ended = self.commands.send(Command::Leave).await.is_err();
    }
}

/// The answers of all routers to a change of keys, by name: the ids of their keys, or why they refused.
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
    /// The node was too busy to answer in time.
    #[error("this router's cluster node did not answer within {VISIT_TIMEOUT:?}; try again")]
    Timeout,
}

/// Why this router refused to change the shared keys.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// Messages are not encrypted, so there are no keys to change.
    #[error("encryption is off: start the routers with --mesh-encryption permissive or required")]
    Off,
    /// The new key would be sent unencrypted.
    #[error("there is neither a shared key nor TLS that could carry a key to the others in secret")]
    NoSecret,
    /// The key ring rejects the change.
    #[error(transparent)]
    Ring(#[from] RingError),
}

/// How long the driver may take to answer.
const VISIT_TIMEOUT: Duration = Duration::from_secs(1);
