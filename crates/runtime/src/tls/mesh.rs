//! TLS between routers: both sides show a certificate of the same authority.
//!
//! Routers are dialled by address and known by name, so a certificate's name is not compared with what was dialled but
//! with who the other side says it is: see [`names_in`].

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature,
    verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::sign::SingleCertAndKey;
use rustls::{DigitallySignedStruct, RootCertStore, SignatureScheme};
use smg_types::now::Now;

use super::{Role, TlsErrors, both, identity, roots};

/// The PEM files of a router in the mesh.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MeshFiles {
    /// Certificate chain, shown as server and as client.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities that routers' certificates come from.
    pub ca: PathBuf,
}

/// What both ends of the mesh's connections need: HTTP/2 by ALPN, TLS 1.3.
#[derive(Debug, Clone)]
pub struct MeshTls {
    /// For connections that come in.
    pub server: Arc<rustls::ServerConfig>,
    /// For connections that go out.
    pub client: Arc<rustls::ClientConfig>,
}

/// Reads the files.
///
/// # Errors
///
/// Everything that is wrong with them.
pub fn mesh(files: &MeshFiles, now: Now) -> Result<MeshTls, TlsErrors> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let names = (Role::MeshCertificate, &*files.certificate, Role::MeshKey, &*files.key);
    let identity = identity(names, &provider, now);
    let roots = roots(Role::MeshCa, &files.ca).map_err(TlsErrors::from);
    let (identity, roots) = both(identity, roots)?;
    let (identity, roots) = (Arc::new(SingleCertAndKey::from(identity)), Arc::new(roots));
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .expect("there is at least one authority and no revocation list");
    let versions = &[&rustls::version::TLS13];
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(versions)
        .expect("the provider supports TLS 1.3")
        .with_client_cert_verifier(clients)
        .with_cert_resolver(Arc::clone(&identity) as Arc<_>);
    server.alpn_protocols = vec![b"h2".to_vec()];
    let verifier = OfOurAuthority { roots, algorithms: algorithms(&provider) };
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .expect("the provider supports TLS 1.3")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(identity);
    client.alpn_protocols = vec![b"h2".to_vec()];
    Ok(MeshTls { server: Arc::new(server), client: Arc::new(client) })
}

fn algorithms(provider: &CryptoProvider) -> WebPkiSupportedAlgorithms {
    provider.signature_verification_algorithms
}

/// The names that a certificate proves.
#[must_use]
pub fn names_in(certificate: &CertificateDer<'_>) -> Vec<String> {
    webpki::EndEntityCert::try_from(certificate)
        .map(|parsed| parsed.valid_dns_names().map(str::to_owned).collect())
        .unwrap_or_default()
}

/// Takes a certificate of our authority that is valid now, whatever it is called.
#[derive(Debug)]
struct OfOurAuthority {
    roots: Arc<RootCertStore>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for OfOurAuthority {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialled: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let parsed = ParsedCertificate::try_from(certificate)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.roots,
            intermediates,
            now,
            self.algorithms.all,
        )?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
