//! The JSON documents of `/ha/*` about the cluster, made from the view, the links and a visit to the node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use serde::Serialize;
use smg_cluster::membership::{MemberState, MemberView, RefusalReason};
use smg_cluster::state::{StoreId, Version};
use smg_cluster::{Lane, Node};
use smg_types::now::Now;

use super::durability::Durability;
use super::handle::{Handle, VisitError};
use super::leases::Leadership;
use super::link::LinkStatus;
use super::metrics::lane_name;
use super::view::Synced;

/// The document of `GET /ha/status`: the fields of the high-availability document, and additional ones.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// The name of the router that answers.
    pub node_name: String,
    /// How many routers are listed, this one included.
    pub node_count: usize,
    /// How many of them are ALIVE or SUSPECTED.
    pub alive_count: usize,
    /// This router's part: `standalone`, `leader`, `follower` or `read_only`.
    pub ha_mode: &'static str,
    /// The router that leads, if this one knows it.
    pub leader: Option<String>,
    /// Whether this router reaches a majority of the configured routers.
    pub quorum: bool,
    /// The cluster's name; absent if no other router can join.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster: Option<String>,
    /// Whether the state of this router is on disk.
    pub durability: Durability,
    /// All listed routers, by name.
    pub nodes: Vec<NodeStatus>,
    /// The stores of this router, by name. A store that no router of this version writes to is left out.
    pub stores: BTreeMap<&'static str, StoreStatus>,
}

/// One router of the cluster.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct NodeStatus {
    /// The router's name.
    pub name: String,
    /// INIT, ALIVE, SUSPECTED, DOWN or LEAVING.
    pub status: &'static str,
    /// The address for other routers, as `host:port`; for a router without a mesh port, the address for clients.
    pub address: String,
    /// The generation grows at each start of the process. It is a text of digits, because JSON readers round numbers
    /// above 2^53.
    pub generation: String,
    /// How long the router has had this status, in seconds.
    pub status_seconds: u64,
}

/// One store of shared state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StoreStatus {
    /// Rows that are not removed.
    pub entry_count: usize,
    /// The time of the last comparison with another router, or change by one; `null` if there was none.
    pub last_sync: Option<String>,
    /// Fingerprint of the rows: equal on routers that hold the same rows.
    pub digest: String,
    /// Size of the encoded rows, in bytes.
    pub bytes: usize,
    /// Removals that this router still remembers.
    pub tombstones: usize,
    /// The version up to which this router has applied each writer's rows.
    pub versions: BTreeMap<String, u64>,
}

/// `GET /ha/health`: the state of this router.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Health {
    /// `ok`, or the worst of `degraded`, `joining`, `leaving`, `refused`, `failed`.
    pub status: &'static str,
    /// The reasons why the status is not `ok`, as sentences.
    pub reasons: Vec<String>,
    /// This router's part: `standalone`, `leader`, `follower` or `read_only`.
    pub ha_mode: &'static str,
    /// Whether the state of this router is on disk.
    pub durability: Durability,
    /// The status of this router itself.
    pub node: NodeStatus,
    /// The configured join addresses.
    pub join: Vec<JoinStatus>,
    /// The other listed routers.
    pub peers: Vec<PeerStatus>,
}

/// The status of a join address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JoinStatus {
    /// The address as configured.
    pub address: String,
    /// The addresses to which it resolves.
    pub resolved: Vec<String>,
    /// Whether a present router, or this one, answers there.
    pub reached: bool,
    /// The error of the last attempt, if it was not reached.
    pub error: Option<String>,
}

/// The status of another router, as this one observes it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerStatus {
    /// Its name, state and address.
    #[serde(flatten)]
    pub node: NodeStatus,
    /// Round-trip time of the last answered probe, in milliseconds.
    pub rtt_ms: Option<f64>,
    /// The number of this router's writes that it has not acknowledged.
    pub lag: Option<u64>,
    /// How far its wall clock is ahead of this router's, in milliseconds.
    pub clock_ahead_ms: Option<i64>,
    /// The connections to it, `swim` and `state`.
    pub connections: BTreeMap<&'static str, ConnectionStatus>,
}

/// One connection to another router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConnectionStatus {
    /// Whether the connection is up.
    pub up: bool,
    /// How long the connection has been up or down, in seconds.
    pub seconds: u64,
    /// The reason why the connection is down.
    pub error: Option<String>,
}

/// One router of `GET /ha/routers`, which clients use to find another router.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Router {
    /// The router's name.
    pub name: String,
    /// INIT, ALIVE, SUSPECTED, DOWN or LEAVING.
    pub status: &'static str,
    /// The URL for clients; `null` while this router does not know it.
    pub url: Option<String>,
    /// Whether this is the router that answers.
    pub is_self: bool,
}

/// `GET /ha/drift`: how far the other routers are behind this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drift {
    /// The name of the router that answers.
    pub node_name: String,
    /// Whether every present router has acknowledged all writes of this one.
    pub in_sync: bool,
    /// The fingerprints of this router's stores, as in [`Status`], to compare with those of other routers.
    pub digests: BTreeMap<&'static str, String>,
    /// How many of this router's writes each other router has not acknowledged, by name; `null`: it has sent no digest yet.
    pub lag: BTreeMap<String, Option<u64>>,
}

impl Handle {
    /// The members of the cluster and this router's stores.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn status(&self) -> Result<Status, VisitError> {
        let cluster = self.is_networked().then(|| self.cluster_name().to_owned());
        let leadership = self.leadership();
        let durability = self.durability();
        let status = move |node: &mut Node, synced: &Synced, now| {
            status_of(node, synced, now, (leadership, durability), cluster)
        };
        self.visit(status).await
    }

    /// The state of this router. Also works after its node has failed.
    ///
    /// # Errors
    /// If the node runs and does not answer in time.
    pub async fn health(&self) -> Result<Health, VisitError> {
        match self.health_of_node().await {
            Err(error @ VisitError::Ended) => Ok(Health {
                status: "failed",
                reasons: vec![error.to_string()],
                ha_mode: self.ha_mode(),
                durability: self.durability(),
                // The view still holds the last state. This router reports DOWN for itself, because the other routers
                // list it so.
                node: NodeStatus {
                    status: MemberState::Down.as_str(),
                    ..node_status(&self.view().me, self.dialler.clock.now())
                },
                join: Vec::new(),
                peers: Vec::new(),
            }),
            answer => answer,
        }
    }

    async fn health_of_node(&self) -> Result<Health, VisitError> {
        let links = self.links();
        let state = self
            .visit(|node, _, now| {
                let replication = node.replication();
                let peers: Vec<_> = node
                    .members()
                    .map(|member| {
                        let name = &member.node.name;
                        let (lag, ahead) = (replication.lag(name), replication.wall_ahead_ms(name));
                        (member, lag, ahead)
                    })
                    .collect();
                let not_applied = replication.not_applied();
                let not_applied: Vec<String> = not_applied
                    .map(|(peer, Version { store, version }, reason)| {
                        let (peer, store) = (&peer.name, store.name());
                        format!("{peer} did not apply row {version} of {store}: {reason}")
                    })
                    .collect();
                (node.me(), node.membership().refused().cloned(), peers, not_applied, now)
            })
            .await?;
        let (me, refused, members, mut not_applied, now) = state;
        let durability = self.durability();
        not_applied.extend(durability.reason());
        let peers: Vec<_> = members
            .iter()
            .map(|(member, lag, ahead)| peer_status(member, *lag, *ahead, &links, now))
            .collect();
        let join = self.join_statuses(&me, &members, &links);
        let (status, reasons) = health_of(&me, refused.as_ref(), &peers, &join, not_applied);
        let (ha_mode, node) = (self.ha_mode(), node_status(&me, now));
        Ok(Health { status, reasons, ha_mode, durability, node, join, peers })
    }

    /// The version of the member list, and the routers with their URLs for clients.
    #[must_use]
    pub fn routers(&self) -> (u64, Vec<Router>) {
        let view = self.view();
        let links = self.links();
        let me = Router {
            name: view.me.node.name.to_string(),
            status: view.me.state.as_str(),
            url: Some(self.dialler.me.load().client_url.clone()),
            is_self: true,
        };
        let others = view.members.iter().map(|member| Router {
            name: member.node.name.to_string(),
            status: member.state.as_str(),
            url: links
                .get(&member.address)
                .filter(|link| link.node.as_ref() == Some(&member.node))
                .and_then(|link| link.client_url.clone()),
            is_self: false,
        });
        let mut routers: Vec<_> = std::iter::once(me).chain(others).collect();
        routers.sort_by(|a, b| a.name.cmp(&b.name));
        (view.version, routers)
    }

    /// How far the other routers are behind this one.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn drift(&self) -> Result<Drift, VisitError> {
        self.visit(|node, _, _| {
            let lag: BTreeMap<_, _> = node
                .members()
                .filter(|member| member.state.is_present())
                .map(|member| {
                    let name = member.node.name;
                    (name.to_string(), node.replication().lag(&name))
                })
                .collect();
            Drift {
                node_name: node.me().node.name.to_string(),
                in_sync: lag.values().all(|lag| *lag == Some(0)),
                digests: StoreId::in_use()
                    .map(|store| (store.name(), digest(node, store)))
                    .collect(),
                lag,
            }
        })
        .await
    }

    fn join_statuses(
        &self,
        me: &MemberView,
        members: &[(MemberView, Option<u64>, Option<i64>)],
        links: &BTreeMap<SocketAddr, LinkStatus>,
    ) -> Vec<JoinStatus> {
        let resolutions = self.resolutions.lock();
        let addresses = self.join_addresses.borrow();
        addresses
            .iter()
            .map(|address| {
                let resolved = resolutions.get(address).cloned().unwrap_or_default();
                let reached = resolved.addresses.iter().any(|address| {
                    *address == me.address
                        || members.iter().any(|(member, ..)| {
                            member.address == *address && member.state.is_present()
                        })
                        || links.get(address).is_some_and(|link| {
                            link.node.as_ref() == Some(&me.node)
                                && link.swim.as_ref().is_some_and(|lane| lane.up)
                        })
                });
                let failure = || {
                    resolved
                        .addresses
                        .iter()
                        .find_map(|address| links.get(address)?.error().map(str::to_owned))
                };
                let error = resolved.error.clone().or_else(failure).filter(|_| !reached);
                JoinStatus {
                    address: address.to_string(),
                    resolved: resolved.addresses.iter().map(ToString::to_string).collect(),
                    reached,
                    error,
                }
            })
            .collect()
    }
}

fn status_of(
    node: &Node,
    synced: &Synced,
    now: Now,
    (leadership, durability): (Leadership, Durability),
    cluster: Option<String>,
) -> Status {
    let mut nodes: Vec<_> =
        std::iter::once(node.me()).chain(node.members()).map(|m| node_status(&m, now)).collect();
    nodes.sort_by(|a, b| a.name.cmp(&b.name));
    let takes_part =
        |member: &MemberView| matches!(member.state, MemberState::Alive | MemberState::Suspected);
    Status {
        node_name: node.me().node.name.to_string(),
        node_count: nodes.len(),
        alive_count: std::iter::once(node.me()).chain(node.members()).filter(takes_part).count(),
        ha_mode: leadership.ha_mode.as_str(),
        leader: leadership.leader,
        quorum: leadership.quorum,
        cluster,
        durability,
        nodes,
        stores: StoreId::in_use()
            .map(|store| (store.name(), store_status(node, store, synced)))
            .collect(),
    }
}

fn store_status(node: &Node, store: StoreId, synced: &Synced) -> StoreStatus {
    let sizes = node.state().sizes(store);
    StoreStatus {
        entry_count: node.state().entries(store),
        last_sync: synced.get(&store).map(|at| rfc3339(*at)),
        digest: digest(node, store),
        bytes: sizes.bytes,
        tombstones: sizes.tombstones,
        versions: node
            .state()
            .versions(store)
            .filter(|(_, version)| *version > 0)
            .map(|(writer, version)| (writer.to_string(), version))
            .collect(),
    }
}

fn digest(node: &Node, store: StoreId) -> String {
    format!("{:016x}", node.state().fingerprint(store))
}

fn node_status(member: &MemberView, now: Now) -> NodeStatus {
    NodeStatus {
        name: member.node.name.to_string(),
        status: member.state.as_str(),
        address: member.address.to_string(),
        generation: member.node.generation.to_string(),
        status_seconds: now.mono.saturating_sub(member.since).as_secs(),
    }
}

fn peer_status(
    member: &MemberView,
    lag: Option<u64>,
    clock_ahead_ms: Option<i64>,
    links: &BTreeMap<SocketAddr, LinkStatus>,
    now: Now,
) -> PeerStatus {
    let link = links.get(&member.address);
    let connections = [Lane::Swim, Lane::State]
        .into_iter()
        .filter_map(|lane| {
            let status = link?.lane(lane)?;
            let seconds = now.mono.saturating_sub(status.since).as_secs();
            let error = status.error.clone();
            Some((lane_name(lane), ConnectionStatus { up: status.up, seconds, error }))
        })
        .collect();
    PeerStatus {
        node: node_status(member, now),
        rtt_ms: member.rtt.map(|rtt| rtt.as_secs_f64() * 1000.0),
        lag,
        clock_ahead_ms,
        connections,
    }
}

/// The value of `status` and the reasons of `/ha/health`.
fn health_of(
    me: &MemberView,
    refused: Option<&RefusalReason>,
    peers: &[PeerStatus],
    join: &[JoinStatus],
    not_applied: Vec<String>,
) -> (&'static str, Vec<String>) {
    let mut reasons = not_applied;
    let mut status = "ok";
    for peer in peers {
        let name = &peer.node.name;
        match peer.node.status {
            "DOWN" => reasons.push(format!("{name} is DOWN")),
            "SUSPECTED" => reasons.push(format!("{name} is SUSPECTED")),
            _ => {}
        }
        if peer.node.status == "ALIVE" || peer.node.status == "SUSPECTED" {
            for (lane, connection) in &peer.connections {
                if !connection.up {
                    let error = connection.error.as_deref().unwrap_or("not connected");
                    reasons.push(format!("no {lane} connection to {name}: {error}"));
                }
            }
        }
    }
    if !reasons.is_empty() {
        status = "degraded";
    }
    if me.state == MemberState::Init {
        status = "joining";
        for address in join {
            let error = address.error.as_deref().unwrap_or("no answer yet");
            reasons.push(format!("{}: {error}", address.address));
        }
    }
    if me.state == MemberState::Leaving {
        status = "leaving";
        reasons.push("this router is shutting down".to_owned());
    }
    if let Some(reason) = refused {
        status = "refused";
        reasons.insert(0, reason.to_string());
    }
    (status, reasons)
}

/// A wall-clock time in UTC as RFC 3339 text with milliseconds. `wall` is the time since the Unix epoch.
#[must_use]
pub fn rfc3339(wall: Duration) -> String {
    humantime::format_rfc3339_millis(std::time::UNIX_EPOCH + wall).to_string()
}

#[cfg(test)]
mod tests {
    use smg_types::ids::{Generation, NodeId};

    use super::*;

    #[test]
    fn rows_that_another_router_did_not_apply_make_the_router_degraded() {
        let me = MemberView {
            node: NodeId { name: "node1".parse().unwrap(), generation: Generation(1) },
            address: "10.0.0.1:39527".parse().unwrap(),
            state: MemberState::Alive,
            since: Duration::ZERO,
            renewal: 0,
            incarnation: 0,
            rtt: None,
        };
        assert_eq!(health_of(&me, None, &[], &[], Vec::new()), ("ok", Vec::new()));
        let reasons = vec!["node2 did not apply row 7 of policies".to_owned()];
        assert_eq!(health_of(&me, None, &[], &[], reasons.clone()), ("degraded", reasons));
    }

    #[test]
    fn times_are_shown_in_utc_with_milliseconds() {
        assert_eq!(rfc3339(Duration::from_millis(1_705_314_600_250)), "2024-01-15T10:30:00.250Z");
    }
}
