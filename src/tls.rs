//! TLS by rustls: what the listener shows and what workers are checked against.

use std::path::PathBuf;

/// What the HTTP listener shows to clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that client certificates must come from; `None`: none are asked for.
    pub client_ca: Option<PathBuf>,
}

/// What workers behind `https://` are checked against.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientConfig {
    /// PEM file with the authorities that workers' certificates must come from; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files with the certificate chain and private key that the router shows to workers.
    pub identity: Option<(PathBuf, PathBuf)>,
}
