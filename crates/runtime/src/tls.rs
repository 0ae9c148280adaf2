//! TLS by rustls: the certificate that the listener shows, and the authorities that workers are checked against.
//!
//! The provider (aws-lc-rs) is named here and nowhere installed for the process, so that no other library's choice can
//! change it. A [`Live`] configuration can be read again from its files while it is used. An error names the file, the
//! setting that named it and what is wrong.

mod live;
mod mesh;
mod verify;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{CertificateError, RootCertStore};

pub use live::{Files, Live, Prepared};
pub use mesh::{MeshFiles, MeshTls, mesh, names_in};
pub use verify::for_worker;

use smg_types::now::Now;
use verify::{AuthorityVerifier, check_alone};

/// Largest PEM file that is read, in bytes. The system's list of all authorities has about 250,000.
const LARGEST_FILE: u64 = 4 << 20;

/// The files of the HTTP listener's TLS.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerConfig {
    /// PEM file with the certificate chain.
    pub certificate: PathBuf,
    /// PEM file with its private key.
    pub key: PathBuf,
    /// PEM file with the authorities that client certificates must come from; `None`: clients need no certificate.
    pub client_ca: Option<PathBuf>,
}

/// The files of TLS towards workers behind `https://`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ClientConfig {
    /// PEM file with the authorities that workers' certificates must come from; `None`: the system's.
    pub ca: Option<PathBuf>,
    /// PEM files with the certificate chain and private key that the router shows to workers.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// The configuration of a listener: HTTP/2 and HTTP/1.1 by ALPN, TLS 1.2 and 1.3.
///
/// # Errors
///
/// Everything that is wrong with the files.
pub fn server(config: &ServerConfig, now: Now) -> Result<rustls::ServerConfig, TlsErrors> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let files = (Role::ServerCertificate, &*config.certificate, Role::ServerKey, &*config.key);
    let identity = identity(files, &provider, now);
    let roots = config.client_ca.as_deref().map(|path| roots(Role::ClientCa, path)).transpose();
    let (identity, roots) = both(identity, roots.map_err(TlsErrors::from))?;
    let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let builder = match roots {
        Some(roots) => {
            let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider)
                .build()
                .expect("there is at least one authority and no revocation list");
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut server = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(identity)));
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(server)
}

/// The configuration of connections to workers: HTTP/1.1 by ALPN, TLS 1.2 and 1.3.
///
/// Without a CA file this reads the system's authorities, which takes some milliseconds. A machine without any is no
/// error here, since its workers may all be plain: connections to workers behind `https://` fail then.
///
/// # Errors
///
/// Everything that is wrong with the files.
pub fn client(config: &ClientConfig, now: Now) -> Result<rustls::ClientConfig, TlsErrors> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let (authorities, identity) = client_files(config, &provider, now)?;
    let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider supports TLS 1.2 and 1.3");
    let (roots, listed) = authorities.unwrap_or_else(|| (system_roots(), Vec::new()));
    let builder = match AuthorityVerifier::new(roots, listed, provider) {
        Some(verifier) => builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)),
        // Without an authority no certificate is right.
        None => builder.with_root_certificates(RootCertStore::empty()),
    };
    let mut client = match identity {
        Some(identity) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        None => builder.with_no_client_auth(),
    };
    client.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(client)
}

/// Checks the files of a [`ClientConfig`] without reading the system's authorities.
///
/// # Errors
///
/// Everything that is wrong with the files.
pub fn check_client(config: &ClientConfig, now: Now) -> Result<(), TlsErrors> {
    client_files(config, &Arc::new(aws_lc_rs::default_provider()), now).map(drop)
}

/// The purpose of a file that TLS reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The chain that clients are shown.
    ServerCertificate,
    /// The private key of that chain.
    ServerKey,
    /// The authorities of clients' certificates.
    ClientCa,
    /// The authorities of workers' certificates.
    WorkerCa,
    /// The chain that workers are shown.
    WorkerCertificate,
    /// The private key of that chain.
    WorkerKey,
    /// The chain that other routers are shown.
    MeshCertificate,
    /// The private key of that chain.
    MeshKey,
    /// The authorities of routers' certificates.
    MeshCa,
}

impl Role {
    /// The setting that names the file, with underscores.
    #[must_use]
    pub const fn setting(self) -> &'static str {
        match self {
            Self::ServerCertificate => "tls_cert_path",
            Self::ServerKey => "tls_key_path",
            Self::ClientCa => "client_ca_path",
            Self::WorkerCa => "worker_tls_ca",
            Self::WorkerCertificate => "worker_tls_cert",
            Self::WorkerKey => "worker_tls_key",
            Self::MeshCertificate => "mesh_tls_cert",
            Self::MeshKey => "mesh_tls_key",
            Self::MeshCa => "mesh_tls_ca",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "--{}", self.setting().replace('_', "-"))
    }
}

/// What is wrong with one file.
#[derive(Debug, thiserror::Error)]
#[error("{file} {}: {problem}", path.display())]
pub struct TlsError {
    /// Which file.
    pub file: Role,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file does not exist, may not be read, or is too large.
    #[error("can't be read: {0}")]
    Unreadable(#[from] io::Error),
    /// Something between the markers is not base64, or a marker is missing.
    #[error("is not PEM: {0}")]
    NotPem(String),
    /// The file holds no certificate.
    #[error("has no certificate in it")]
    NoCertificate,
    /// The file holds no private key.
    #[error("has no private key in it")]
    NoKey,
    /// A certificate can't be parsed.
    #[error("has a malformed certificate: {0}")]
    BadCertificate(rustls::Error),
    /// The key can't be parsed, or is of a kind that is not supported.
    #[error("has a private key that can't be used: {0}")]
    BadKey(rustls::Error),
    /// The key belongs to another certificate.
    #[error("is not the key of the certificate in {}", .0.display())]
    Mismatch(PathBuf),
    /// The certificate has expired.
    #[error("has a certificate that expired {} ago", ago(*.0))]
    Expired(std::time::Duration),
}

/// Everything that is wrong with the files; never empty.
#[derive(Debug)]
pub struct TlsErrors(Vec<TlsError>);

impl fmt::Display for TlsErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines: Vec<_> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&lines.join("; "))
    }
}

impl std::error::Error for TlsErrors {}

impl From<TlsError> for TlsErrors {
    fn from(error: TlsError) -> Self {
        Self(vec![error])
    }
}

impl IntoIterator for TlsErrors {
    type Item = TlsError;
    type IntoIter = std::vec::IntoIter<TlsError>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

fn ago(time: std::time::Duration) -> String {
    match time.as_secs() {
        seconds @ 0..172_800 => format!("{} hours", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

/// Both, or the errors of both.
fn both<A, B>(a: Result<A, TlsErrors>, b: Result<B, TlsErrors>) -> Result<(A, B), TlsErrors> {
    match (a, b) {
        (Ok(a), Ok(b)) => Ok((a, b)),
        (Err(a), Err(b)) => Err(TlsErrors(a.into_iter().chain(b).collect())),
        (Err(errors), Ok(_)) | (Ok(_), Err(errors)) => Err(errors),
    }
}

/// Authorities, and the certificates that they were made of.
type Authorities = (RootCertStore, Vec<CertificateDer<'static>>);

type ClientFiles = (Option<Authorities>, Option<CertifiedKey>);

fn client_files(
    config: &ClientConfig,
    provider: &CryptoProvider,
    now: Now,
) -> Result<ClientFiles, TlsErrors> {
    let authorities = config.ca.as_deref().map(authorities).transpose();
    let identity = config.identity.as_ref().map(|(chain, key)| {
        identity((Role::WorkerCertificate, chain, Role::WorkerKey, key), provider, now)
    });
    both(authorities.map_err(TlsErrors::from), identity.transpose())
}

fn authorities(path: &Path) -> Result<Authorities, TlsError> {
    Ok((roots(Role::WorkerCa, path)?, certificates(Role::WorkerCa, path)?))
}

/// A chain and the key that fits it.
fn identity(
    (chain_role, chain_path, key_role, key_path): (Role, &Path, Role, &Path),
    provider: &CryptoProvider,
    now: Now,
) -> Result<CertifiedKey, TlsErrors> {
    let key_error =
        |problem| TlsErrors::from(TlsError { file: key_role, path: key_path.to_owned(), problem });
    let chain = certificates(chain_role, chain_path).and_then(|chain| {
        fit_to_show(&chain, provider, now).map(|()| chain).map_err(|problem| TlsError {
            file: chain_role,
            path: chain_path.to_owned(),
            problem,
        })
    });
    let key = private_key(key_path)
        .and_then(|key| provider.key_provider.load_private_key(key).map_err(Problem::BadKey));
    let (chain, key) = both(chain.map_err(TlsErrors::from), key.map_err(key_error))?;
    let identity = CertifiedKey::new(chain, key);
    match identity.keys_match() {
        // A key that does not reveal its public half can't be compared.
        Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
            Ok(identity)
        }
        Err(_) => Err(key_error(Problem::Mismatch(chain_path.to_owned()))),
    }
}

/// Checks that the certificate at the chain's head can be parsed and has not expired.
fn fit_to_show(
    chain: &[CertificateDer<'static>],
    provider: &CryptoProvider,
    now: Now,
) -> Result<(), Problem> {
    let (head, rest) = chain.split_first().ok_or(Problem::NoCertificate)?;
    let parsed = ParsedCertificate::try_from(head).map_err(Problem::BadCertificate)?;
    match check_alone(&parsed, rest, provider, UnixTime::since_unix_epoch(now.wall)) {
        Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            time,
            not_after,
        })) => {
            let seconds = time.as_secs().saturating_sub(not_after.as_secs());
            Err(Problem::Expired(std::time::Duration::from_secs(seconds)))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn roots(role: Role, path: &Path) -> Result<RootCertStore, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(role, path)? {
        roots.add(certificate).map_err(|error| TlsError {
            file: role,
            path: path.to_owned(),
            problem: Problem::BadCertificate(error),
        })?;
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (taken, _) = roots.add_parsable_certificates(found.certs);
    if taken == 0 {
        let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
        tracing::warn!(
            errors = errors.join("; "),
            "this machine has no authorities: workers behind https:// need --worker-tls-ca"
        );
    }
    roots
}

/// All certificates of a file, at least one.
fn certificates(role: Role, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let read = || {
        let text = read_bounded(path)?;
        let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
            .collect::<Result<_, pem::Error>>()
            .map_err(|e| Problem::NotPem(e.to_string()))?;
        if certificates.is_empty() { Err(Problem::NoCertificate) } else { Ok(certificates) }
    };
    read().map_err(|problem| TlsError { file: role, path: path.to_owned(), problem })
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    let text = read_bounded(path)?;
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| match error {
        pem::Error::NoItemsFound => Problem::NoKey,
        other => Problem::NotPem(other.to_string()),
    })
}

fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other(format!("is larger than {LARGEST_FILE} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests;
