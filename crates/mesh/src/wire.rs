//! The protobuf messages of the mesh, checked when they are received.
//!
//! All limits on what others send are here and in `cluster::codec`, which decodes the content of frames. Only this
//! file, `server`, `link`, `keys` and `security` use protobuf.

use std::net::SocketAddr;

use bytes::Bytes;
use smg_cluster::codec::{self, ClusterId};
use smg_types::ids::{Generation, NodeId, NodeName};

/// The code that tonic generated from `proto/mesh.proto`.
#[expect(unreachable_pub, reason = "generated; the documentation is in the .proto file")]
#[allow(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::str_to_string,
    clippy::uninlined_format_args,
    unused_qualifications,
    reason = "generated"
)]
pub(super) mod proto {
    tonic::include_proto!("smg.mesh.v1");

    /// The compiled descriptors, for reflection.
    pub(crate) const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mesh.bin"));
}

use proto::envelope::Content;
use proto::{Envelope, Opening};

/// The largest message on a stream: an encrypted frame with its protobuf framing, in bytes.
pub(super) const MAX_MESSAGE_BYTES: usize = codec::MAX_FRAME_BYTES + 1024;

/// The longest text in an opening, in bytes.
const MAX_TEXT_BYTES: usize = 512;

/// The identity that a router sends at the beginning of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Introduction {
    /// The name and the generation of the router.
    pub(super) node: NodeId,
    /// The address at which other routers reach it, as far as it knows.
    pub(super) address: SocketAddr,
    /// The cluster to which it belongs.
    pub(super) cluster: ClusterId,
    /// The URL for clients, for users and for clients that follow `/ha/routers`.
    pub(super) client_url: String,
}

/// Why a stream was refused at its beginning.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum OpeningError {
    /// The other router has another major version of the protocol.
    #[error("it has version {major}.{minor} of the mesh protocol, and this router has {ours}.{ours_minor}", ours = codec::VERSION.0, ours_minor = codec::VERSION.1)]
    Version {
        /// The major version of the other router.
        major: u32,
        /// The minor version of the other router.
        minor: u32,
    },
    /// The other router has none of this router's keys, or does not encrypt.
    #[error("it does not share the key of this router; check --mesh-encryption-key")]
    NoSharedKey,
    /// The certificate of the other router is for another name.
    #[error("it introduces itself as {claimed}, but its certificate is for {proven}")]
    Name {
        /// The name in its opening.
        claimed: NodeName,
        /// The names in its certificate.
        proven: String,
    },
    /// The other router belongs to another cluster.
    #[error("it belongs to another cluster; check --mesh-cluster-id and --mesh-peer-urls")]
    Cluster,
    /// There is no opening, or it is not valid.
    #[error("its introduction is not valid: {0}")]
    Malformed(&'static str),
}

impl OpeningError {
    /// A value from a fixed set, for metrics.
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Version { .. } => "version",
            Self::Cluster => "cluster",
            Self::NoSharedKey => "no_shared_key",
            Self::Name { .. } => "name",
            Self::Malformed(_) => "opening",
        }
    }
}

/// The opening that this router sends. `seen_as` is the address of the other side, if that made the connection.
pub(super) fn opening(me: &Introduction, seen_as: Option<SocketAddr>) -> Opening {
    let (major, minor) = codec::VERSION;
    Opening {
        major: major.into(),
        minor: minor.into(),
        cluster: me.cluster.0,
        node_name: me.node.name.as_str().to_owned(),
        generation: me.node.generation.0,
        release: env!("CARGO_PKG_VERSION").to_owned(),
        address: me.address.to_string(),
        seen_as: seen_as.map(|address| address.to_string()).unwrap_or_default(),
        salt: Bytes::new(),
        key_ids: Vec::new(),
        client_url: me.client_url.clone(),
        sealed: Vec::new(),
    }
}

/// Checks that the other side has our major version of the protocol.
pub(super) fn check_version(opening: &Opening) -> Result<(), OpeningError> {
    if opening.major == u32::from(codec::VERSION.0) {
        Ok(())
    } else {
        Err(OpeningError::Version { major: opening.major, minor: opening.minor })
    }
}

/// Checks the opening of the other side. `proven` holds the names in the certificate that it presented.
pub(super) fn introduced(
    opening: &Opening,
    cluster: ClusterId,
    proven: Option<&[String]>,
) -> Result<Introduction, OpeningError> {
    check_version(opening)?;
    if opening.cluster != cluster.0 {
        return Err(OpeningError::Cluster);
    }
    let texts = [&opening.release, &opening.address, &opening.client_url];
    if texts.into_iter().any(|text| text.len() > MAX_TEXT_BYTES) {
        return Err(OpeningError::Malformed("a text is too long"));
    }
    let name: NodeName = opening
        .node_name
        .parse()
        .map_err(|_| OpeningError::Malformed("its name is not that of a node"))?;
    if let Some(proven) = proven
        && !proven.iter().any(|proven| is_for(proven, name.as_str()))
    {
        return Err(OpeningError::Name { claimed: name, proven: proven.join(", ") });
    }
    let address = opening
        .address
        .parse()
        .map_err(|_| OpeningError::Malformed("its address is not host:port"))?;
    let node = NodeId { name, generation: Generation(opening.generation) };
    let client_url = opening.client_url.clone();
    Ok(Introduction { node, address, cluster, client_url })
}

/// Whether a name in a certificate is valid for a router: the router's name itself, a host name that begins with it (as
/// that of a pod does), or a wildcard.
fn is_for(proven: &str, name: &str) -> bool {
    proven.eq_ignore_ascii_case(name)
        || proven.starts_with("*.")
        || proven.split_once('.').is_some_and(|(first, _)| first.eq_ignore_ascii_case(name))
}

/// Wraps an opening into a message.
pub(super) fn opening_envelope(opening: Opening) -> Envelope {
    Envelope { content: Some(Content::Opening(opening)) }
}

/// The opening in the first message of a stream.
pub(super) fn first(message: Option<Envelope>) -> Result<Opening, OpeningError> {
    match message.and_then(|envelope| envelope.content) {
        Some(Content::Opening(opening)) => Ok(opening),
        Some(
            Content::Frame(_) | Content::Sealed(_) | Content::KeyChange(_) | Content::KeyAnswer(_),
        ) => Err(OpeningError::Malformed("a frame comes before the opening")),
        None => Err(OpeningError::Malformed("the stream is empty")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn me() -> Introduction {
        Introduction {
            node: NodeId { name: "node1".parse().unwrap(), generation: Generation(7) },
            address: "10.0.0.1:39527".parse().unwrap(),
            cluster: ClusterId::of("smg"),
            client_url: "http://10.0.0.1:8000".to_owned(),
        }
    }

    #[test]
    fn an_opening_contains_the_identity() {
        let opening = opening(&me(), Some("10.0.0.9:4711".parse().unwrap()));
        assert_eq!(introduced(&opening, ClusterId::of("smg"), None), Ok(me()));
        assert_eq!(opening.seen_as, "10.0.0.9:4711");
    }

    #[test]
    fn refusals_have_different_names() {
        let cluster = ClusterId::of("smg");
        let ours = || opening(&me(), None);
        let refused = |opening| introduced(&opening, cluster, None).unwrap_err().name();
        assert_eq!(refused(Opening { major: 2, ..ours() }), "version");
        assert_eq!(refused(Opening { cluster: 1, ..ours() }), "cluster");
        assert_eq!(refused(Opening { node_name: "a b".into(), ..ours() }), "opening");
        assert_eq!(refused(Opening { address: "here".into(), ..ours() }), "opening");
        assert_eq!(refused(Opening { release: "x".repeat(513), ..ours() }), "opening");
    }

    #[test]
    fn a_certificate_binds_the_name() {
        for (proven, fits) in [
            ("node1", true),
            ("NODE1", true),
            ("node1.smg-mesh.default.svc", true),
            ("*.smg-mesh", true),
            ("node11", false),
            ("node2", false),
            ("mesh.node1", false),
        ] {
            let opening = opening(&me(), None);
            let names = [proven.to_owned()];
            let introduced = introduced(&opening, ClusterId::of("smg"), Some(&names));
            assert_eq!(introduced.is_ok(), fits, "{proven}");
        }
    }

    #[test]
    fn a_stream_begins_with_its_opening() {
        assert!(first(None).is_err());
        let frame = Content::Frame(Bytes::from_static(b"x"));
        assert!(first(Some(Envelope { content: Some(frame) })).is_err());
        assert!(first(Some(opening_envelope(opening(&me(), None)))).is_ok());
    }
}
