//! Resolves the settings of the mesh, and checks them against each other.

use std::net::{IpAddr, SocketAddr};
use std::str::FromStr as _;
use std::time::Duration;

use smg_cluster::codec::ClusterId;
use smg_cluster::{self as cluster, membership, replication};
use smg_mesh::{self as mesh, Mode, Ring, SecurityConfig, SharedKey};
use smg_persist::Fsync;
use smg_runtime::tls::{self, MeshFiles};
use smg_types::ids::NodeName;

use crate::cli::{MeshArgs, MeshEncryption, MeshProfile, PersistFsync};
use crate::config::layers::Settings;
use crate::config::mistakes::{Mistake, flag, shown};
use crate::config::process::Process;

/// How long changes are gathered with `--persist-fsync interval` before they are written and synced together.
const PERSIST_INTERVAL: Duration = Duration::from_millis(50);

/// The router's name in the cluster: the given one, else the host's name, with the port if that is not the default. So
/// two routers of one host have different names, and each keeps its name after a restart.
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
            format!(
                "the host's name {} is not valid as the router's name: set another one",
                shown(host)
            ),
        )
    })
}

/// A name for a router without a cluster: the host's name with every invalid character replaced.
fn lone_name(host: &str) -> NodeName {
    let visible = |c: char| if c.is_ascii_graphic() { c } else { '-' };
    let name: String = host.chars().take(NodeName::MAX_BYTES).map(visible).collect();
    name.parse().unwrap_or_else(|_| NodeName::from_str("router").expect("`router` is a valid name"))
}

/// The configuration of the router's cluster node, with a network if other routers may join.
pub(super) fn mesh_config(
    settings: &Settings,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
    warnings: &mut Vec<String>,
) -> mesh::Config {
    let args = &settings.args.mesh;
    let name = node_name(args, process).unwrap_or_else(|mistake| {
        if args.enable_mesh {
            mistakes.push(mistake);
        }
        lone_name(&process.host_name)
    });
    let cluster = ClusterId::of(args.mesh_cluster_id.as_str());
    let cluster_name = args.mesh_cluster_id.to_string();
    let data = data_config(args);
    if data.is_none() && settings.was_given("persist_fsync") {
        warnings.push("--persist-fsync has no effect without --data-dir".to_owned());
    }
    if !args.enable_mesh {
        let unused = ["mesh_server_name", "mesh_peer_urls", "mesh_advertise_host"]
            .into_iter()
            .find(|id| settings.was_given(id));
        if let Some(id) = unused {
            warnings.push(format!("{} has no effect without --enable-mesh", flag(id)));
        }
        let membership = membership::Config::lan();
        let node =
            cluster::Config { cluster, membership, replication: replication::Config::default() };
        return mesh::Config { name, cluster_name, node, network: None, data };
    }
    let membership = membership_config(args);
    check_membership(&membership, mistakes);
    let replication = replication::Config {
        digest_interval: args.mesh_sync_interval,
        ..replication::Config::default()
    };
    let node = cluster::Config { cluster, membership, replication };
    let network = Some(network_config(args, process, mistakes, warnings));
    mesh::Config { name, cluster_name, node, network, data }
}

/// The folder in which the state is kept.
fn data_config(args: &MeshArgs) -> Option<mesh::DataConfig> {
    let fsync = match args.persist_fsync {
        PersistFsync::Interval => Fsync::Interval(PERSIST_INTERVAL),
        PersistFsync::Always => Fsync::Always,
    };
    args.data_dir.clone().map(|folder| mesh::DataConfig { folder, fsync })
}

fn network_config(
    args: &MeshArgs,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
    warnings: &mut Vec<String>,
) -> mesh::NetworkConfig {
    if args.mesh_advertise_host.is_some_and(|address| address.is_unspecified()) {
        mistakes.push(Mistake::of_settings(
            &["mesh_advertise_host"],
            "--mesh-advertise-host is the unspecified address, to which nobody can connect",
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
    mesh::NetworkConfig {
        listen: SocketAddr::new(args.mesh_host, args.mesh_port),
        advertise: mesh::Wanted { flag: args.mesh_advertise_host, pod },
        join: args.mesh_peer_urls.clone(),
        security: security_config(args, process, mistakes, warnings),
    }
}

fn check_membership(config: &membership::Config, mistakes: &mut Vec<Mistake>) {
    mistakes.extend(config.mistakes().into_iter().map(|error| {
        let (id, named) = match error {
            membership::ConfigError::ProbeTimeout { .. } => ("mesh_probe_timeout", true),
            membership::ConfigError::Suspicion { .. } => ("mesh_suspicion_timeout", true),
            membership::ConfigError::Zero(_) | membership::ConfigError::PacketBytes(_) => {
                ("mesh_profile", false)
            }
        };
        let what = if named { flag(id) } else { "the mesh".to_owned() };
        Mistake::of_settings(&[id], format!("{what}: {error}"))
    }));
}

fn security_config(
    args: &MeshArgs,
    process: &Process<'_>,
    mistakes: &mut Vec<Mistake>,
    warnings: &mut Vec<String>,
) -> SecurityConfig {
    let tls = match (&args.mesh_tls_cert, &args.mesh_tls_key, &args.mesh_tls_ca) {
        (Some(certificate), Some(key), Some(ca)) => {
            Some(MeshFiles { certificate: certificate.clone(), key: key.clone(), ca: ca.clone() })
        }
        (None, None, None) => None,
        (certificate, key, ca) => {
            for (id, given) in
                [("mesh_tls_cert", certificate), ("mesh_tls_key", key), ("mesh_tls_ca", ca)]
            {
                if given.is_none() {
                    mistakes.push(Mistake::of_settings(
                        &[id],
                        format!("{} is missing: the three --mesh-tls-* go together", flag(id)),
                    ));
                }
            }
            None
        }
    };
    if let Some(files) = &tls
        && let Err(errors) = tls::mesh(files, process.now)
    {
        mistakes.extend(
            errors.into_iter().map(|e| Mistake::of_settings(&[e.file.setting()], e.to_string())),
        );
    }
    let keys = keys(args, process, mistakes);
    let mode = match args.mesh_encryption {
        None if keys.is_empty() => Mode::Off,
        None | Some(MeshEncryption::Required) => Mode::Required,
        Some(MeshEncryption::Permissive) => Mode::Permissive,
        Some(MeshEncryption::Off) => Mode::Off,
    };
    let has_keys = args.mesh_encryption_key_file.is_some() || !args.mesh_encryption_key.is_empty();
    match mode {
        Mode::Off if has_keys => {
            warnings.push("--mesh-encryption is off: the shared key is not used".to_owned());
        }
        Mode::Required if !has_keys => mistakes.push(Mistake::of_settings(
            &["mesh_encryption_key", "mesh_encryption"],
            "--mesh-encryption is required, but there is no key",
        )),
        Mode::Off | Mode::Permissive | Mode::Required => {}
    }
    SecurityConfig { tls, mode, keys }
}

/// The shared keys: those of the file first, then those of the flag.
fn keys(args: &MeshArgs, process: &Process<'_>, mistakes: &mut Vec<Mistake>) -> Ring {
    let mut keys: Vec<SharedKey> = Vec::new();
    if let Some(path) = &args.mesh_encryption_key_file {
        let id = "mesh_encryption_key_file";
        match (process.read)(path) {
            Ok(text) => {
                let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
                for (at, line) in lines {
                    match line.parse() {
                        Ok(key) => keys.push(key),
                        Err(error) => mistakes.push(Mistake::of_settings(
                            &[id],
                            format!("{}: line {} {error}", path.display(), at + 1),
                        )),
                    }
                }
                if text.trim().is_empty() {
                    let text = format!("{}: has no key in it", path.display());
                    mistakes.push(Mistake::of_settings(&[id], text));
                }
            }
            Err(error) => mistakes.push(Mistake::of_settings(
                &[id],
                format!("{}: can't be read: {error}", path.display()),
            )),
        }
    }
    for (at, key) in args.mesh_encryption_key.iter().enumerate() {
        match key.expose().parse() {
            Ok(key) => keys.push(key),
            Err(error) => mistakes.push(Mistake::of_settings(
                &["mesh_encryption_key"],
                format!("key {} of --mesh-encryption-key {error}", at + 1),
            )),
        }
    }
    Ring::new(keys).unwrap_or_else(|error| {
        mistakes.push(Mistake::of_settings(&["mesh_encryption_key"], error.to_string()));
        Ring::default()
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
