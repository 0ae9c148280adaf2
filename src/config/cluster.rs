//! What the mesh's settings mean together.

use std::net::{IpAddr, SocketAddr};

use crate::cli::{MeshArgs, MeshProfile};
use crate::cluster::codec::ClusterId;
use crate::cluster::{self, membership, replication};
use crate::config::layers::Settings;
use crate::config::mistakes::{Mistake, shown};
use crate::config::process::Process;
use crate::ids::NodeName;
use crate::mesh;

/// The router's name among the others: what was said, else the host's, with the port where that is not the usual one, so
/// that two routers of one host differ and each is the same after a restart.
pub(super) fn node_name(args: &MeshArgs, process: &Process<'_>) -> Result<NodeName, Mistake> {
    if let Some(name) = &args.mesh_server_name {
        return Ok(name.clone());
    }
    let host = &process.host_name;
    let name = if args.mesh_port == mesh::DEFAULT_PORT {
        host.clone()
    } else {
        format!("{host}-{}", args.mesh_port)
    };
    name.parse().map_err(|_| {
        Mistake::of_settings(
            &["mesh_server_name"],
            format!("the host's name {} can't be the router's: give one", shown(host)),
        )
    })
}

/// The mesh, if there is to be one.
pub(super) fn mesh_config(
    settings: &Settings,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
    warnings: &mut Vec<String>,
) -> Option<mesh::Config> {
    let args = &settings.args.mesh;
    if !args.enable_mesh {
        let unused = ["mesh_server_name", "mesh_peer_urls", "mesh_advertise_host"]
            .into_iter()
            .find(|id| settings.was_given(id));
        if let Some(id) = unused {
            let flag = crate::config::mistakes::flag(id);
            warnings.push(format!("{flag} has no effect without --enable-mesh"));
        }
        return None;
    }
    let name = match node_name(args, process) {
        Ok(name) => name,
        Err(mistake) => {
            mistakes.push(mistake);
            return None;
        }
    };
    if args.mesh_advertise_host.is_some_and(|address| address.is_unspecified()) {
        mistakes.push(Mistake::of_settings(
            &["mesh_advertise_host"],
            "--mesh-advertise-host is all addresses, which nobody can connect to",
        ));
    }
    let pod = process.variable("POD_IP").and_then(|text| match text.parse::<IpAddr>() {
        Ok(address) => Some(address),
        Err(_) => {
            mistakes.push(Mistake::new(format!(
                "variable POD_IP: {} is not an IP address",
                shown(text)
            )));
            None
        }
    });
    let membership = membership_config(args);
    mistakes.extend(membership.mistakes().into_iter().map(|error| {
        let (id, named) = match error {
            membership::ConfigError::ProbeTimeout { .. } => ("mesh_probe_timeout", true),
            membership::ConfigError::Suspicion { .. } => ("mesh_suspicion_timeout", true),
            membership::ConfigError::Zero(_) | membership::ConfigError::PacketBytes(_) => {
                ("mesh_profile", false)
            }
        };
        let flag = if named { crate::config::mistakes::flag(id) } else { "the mesh".to_owned() };
        Mistake::of_settings(&[id], format!("{flag}: {error}"))
    }));
    let node = cluster::Config {
        cluster: ClusterId::of(args.mesh_cluster_id.as_str()),
        membership,
        replication: replication::Config {
            digest_interval: args.mesh_sync_interval,
            ..replication::Config::default()
        },
    };
    Some(mesh::Config {
        name,
        cluster_name: args.mesh_cluster_id.to_string(),
        listen: SocketAddr::new(args.mesh_host, args.mesh_port),
        advertise: mesh::Wanted { flag: args.mesh_advertise_host, pod },
        join: args.mesh_peer_urls.clone(),
        node,
    })
}

fn membership_config(args: &MeshArgs) -> membership::Config {
    let profile = match args.mesh_profile {
        MeshProfile::Lan => membership::Config::lan(),
        MeshProfile::Wan => membership::Config::wan(),
    };
    membership::Config {
        probe_period: args.mesh_probe_interval.unwrap_or(profile.probe_period),
        probe_timeout: args.mesh_probe_timeout.unwrap_or(profile.probe_timeout),
        suspicion: args.mesh_suspicion_timeout.unwrap_or(profile.suspicion),
        forget_after: args.mesh_forget_after,
        ..profile
    }
}
