//! How the certificates of workers are checked.
//!
//! A certificate that stands itself in the CA file is trusted, as curl and OpenSSL do: webpki refuses a certificate that is
//! its own authority. A worker may have settings of its own: pins, or no check at all. Whatever is (not) checked of the
//! certificate, the handshake proves that the worker has its private key.

use std::sync::Arc;

use aws_lc_rs::digest;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    Resumption, WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, OtherError, RootCertStore, SignatureScheme};
use smg_types::spec::{Pin, WorkerTls};

/// The configuration of connections to a worker with these settings.
#[must_use]
pub fn for_worker(
    common: Arc<rustls::ClientConfig>,
    settings: &WorkerTls,
) -> Arc<rustls::ClientConfig> {
    let pins = match settings {
        WorkerTls::Authorities => return common,
        WorkerTls::Pins(pins) => Some(pins.clone()),
        WorkerTls::Unchecked => None,
    };
    let provider = Arc::clone(common.crypto_provider());
    let mut own = (*common).clone();
    // A session that began without the common check must not be resumed under it.
    own.resumption = Resumption::disabled();
    own.dangerous().set_certificate_verifier(Arc::new(PinVerifier { pins, provider }));
    Arc::new(own)
}

/// Checks certificates against authorities, and trusts those that are listed themselves.
#[derive(Debug)]
pub(super) struct AuthorityVerifier {
    webpki: Arc<WebPkiServerVerifier>,
    /// The certificates of the CA file; empty if the authorities are those of the system.
    listed: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl AuthorityVerifier {
    /// `None`: there are no authorities.
    pub(super) fn new(
        roots: RootCertStore,
        listed: Vec<CertificateDer<'static>>,
        provider: Arc<CryptoProvider>,
    ) -> Option<Self> {
        let builder =
            WebPkiServerVerifier::builder_with_provider(roots.into(), Arc::clone(&provider));
        Some(Self { webpki: builder.build().ok()?, listed, provider })
    }
}

impl ServerCertVerifier for AuthorityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let checked = self.webpki.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        if checked.is_ok() || !self.listed.iter().any(|listed| listed == end_entity) {
            return checked;
        }
        check_dates(end_entity, &self.provider, now)?;
        verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

/// Refuses a certificate that has expired or is not yet valid.
fn check_dates(
    certificate: &CertificateDer<'_>,
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    match check_alone(&ParsedCertificate::try_from(certificate)?, &[], provider, now) {
        Err(
            error @ rustls::Error::InvalidCertificate(
                CertificateError::Expired
                | CertificateError::ExpiredContext { .. }
                | CertificateError::NotValidYet
                | CertificateError::NotValidYetContext { .. },
            ),
        ) => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Checks a certificate against no authority: rustls checks the dates first, and then fails for another reason.
pub(super) fn check_alone(
    certificate: &ParsedCertificate<'_>,
    rest: &[CertificateDer<'_>],
    provider: &CryptoProvider,
    now: UnixTime,
) -> Result<(), rustls::Error> {
    let algorithms = provider.signature_verification_algorithms.all;
    let none = RootCertStore::empty();
    verify_server_cert_signed_by_trust_anchor(certificate, &none, rest, now, algorithms)
}

/// Checks the certificate against pins, or not at all.
#[derive(Debug)]
struct PinVerifier {
    /// `None`: nothing is checked.
    pins: Option<Vec<Pin>>,
    provider: Arc<CryptoProvider>,
}

/// The certificate matches no pin.
#[derive(Debug, thiserror::Error)]
#[error("it matches no pin of the worker: its public key has the pin {0}")]
struct NoPin(Pin);

fn sha256(bytes: &[u8]) -> Pin {
    let digest = digest::digest(&digest::SHA256, bytes);
    Pin(digest.as_ref().try_into().expect("a SHA-256 has 32 bytes"))
}

impl ServerCertVerifier for PinVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let Some(pins) = &self.pins else { return Ok(ServerCertVerified::assertion()) };
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let key = sha256(parsed.subject_public_key_info().as_ref());
        if pins.contains(&key) || pins.contains(&sha256(end_entity)) {
            return Ok(ServerCertVerified::assertion());
        }
        let error = CertificateError::Other(OtherError(Arc::new(NoPin(key))));
        Err(rustls::Error::InvalidCertificate(error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
