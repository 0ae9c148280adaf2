//! Tests with certificates that are made here: which are accepted, which handshakes succeed, and the texts of the errors.

use std::fs;
use std::io::{Read as _, Write as _};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection};

use super::*;

/// The day of all tests: 2027-01-15.
const TODAY: Now = Now::at(Duration::from_secs(1_800_000_000));

/// An authority, and a folder with what it signed.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Writes `ca.pem`, and `NAME.pem` with `NAME.key` for each name.
    fn with(names: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let authority = Self { dir, issuer: Issuer::new(params, key) };
        for name in names {
            authority.sign(name, 2030);
        }
        authority
    }

    fn sign(&self, name: &str, last_year: i32) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 5);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.path(&format!("{name}.pem")), certificate.pem()).unwrap();
        fs::write(self.path(&format!("{name}.key")), key.serialize_pem()).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path
    }

    fn server(&self, name: &str) -> ServerConfig {
        ServerConfig {
            certificate: self.path(&format!("{name}.pem")),
            key: self.path(&format!("{name}.key")),
            client_ca: None,
        }
    }

    fn client(&self) -> ClientConfig {
        ClientConfig { ca: Some(self.path("ca.pem")), identity: None }
    }

    fn client_as(&self, name: &str) -> ClientConfig {
        let identity = (self.path(&format!("{name}.pem")), self.path(&format!("{name}.key")));
        ClientConfig { identity: Some(identity), ..self.client() }
    }
}

/// Shakes hands in memory: the protocol that was agreed on, or who refused and why.
fn shake_hands(server: &ServerConfig, client: &ClientConfig) -> Result<String, String> {
    let server = super::server(server, TODAY).map_err(|e| format!("server: {e}"))?;
    let client = super::client(client, TODAY).map_err(|e| format!("client: {e}"))?;
    shake_hands_with(server, Arc::new(client))
}

fn shake_hands_with(
    server: rustls::ServerConfig,
    client: Arc<rustls::ClientConfig>,
) -> Result<String, String> {
    // rustls reads the machine's clock in a handshake; the certificates are good on that day too.
    let name = ServerName::try_from("localhost").unwrap();
    let mut client = ClientConnection::new(client, name).unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    client.writer().write_all(b"hello").unwrap();
    let mut received = [0; 5];
    for _ in 0..10 {
        let mut wire = Vec::new();
        while client.wants_write() {
            client.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            server.read_tls(&mut unread).unwrap();
            server.process_new_packets().map_err(|e| format!("server: {e}"))?;
        }
        if server.reader().read(&mut received).is_ok_and(|n| n == 5) {
            assert_eq!(&received, b"hello");
            let agreed = client.alpn_protocol().unwrap_or_default();
            return Ok(String::from_utf8(agreed.to_vec()).unwrap());
        }
        let mut wire = Vec::new();
        while server.wants_write() {
            server.write_tls(&mut wire).unwrap();
        }
        let mut unread = wire.as_slice();
        while !unread.is_empty() {
            client.read_tls(&mut unread).unwrap();
            client.process_new_packets().map_err(|e| format!("client: {e}"))?;
        }
    }
    Err("the handshake does not end".to_owned())
}

#[test]
fn router_and_worker_shake_hands_under_their_own_authority() {
    let ours = Authority::with(&["server"]);
    assert_eq!(shake_hands(&ours.server("server"), &ours.client()).as_deref(), Ok("http/1.1"));
    let theirs = Authority::with(&[]);
    let refused = shake_hands(&ours.server("server"), &theirs.client()).unwrap_err();
    assert!(refused.starts_with("client: invalid peer certificate"), "{refused}");
}

#[test]
fn the_listener_offers_http_2_first() {
    let ours = Authority::with(&["server"]);
    let config = server(&ours.server("server"), TODAY).unwrap();
    assert_eq!(config.alpn_protocols, [b"h2".to_vec(), b"http/1.1".to_vec()]);
}

#[test]
fn a_client_authority_lets_in_only_its_own() {
    let ours = Authority::with(&["server", "client"]);
    let theirs = Authority::with(&["stranger"]);
    let strict = ServerConfig { client_ca: Some(ours.path("ca.pem")), ..ours.server("server") };
    assert!(shake_hands(&strict, &ours.client_as("client")).is_ok());
    let nobody = shake_hands(&strict, &ours.client()).unwrap_err();
    assert!(nobody.starts_with("server: peer sent no certificates"), "{nobody}");
    let stranger = ClientConfig { ca: Some(ours.path("ca.pem")), ..theirs.client_as("stranger") };
    let refused = shake_hands(&strict, &stranger).unwrap_err();
    assert!(refused.starts_with("server: invalid peer certificate"), "{refused}");
}

#[test]
fn a_worker_may_be_shown_a_certificate() {
    let ours = Authority::with(&["worker", "router"]);
    let strict = ServerConfig { client_ca: Some(ours.path("ca.pem")), ..ours.server("worker") };
    assert!(shake_hands(&strict, &ours.client_as("router")).is_ok());
}

#[test]
fn system_authorities_are_not_needed_to_begin() {
    assert!(client(&ClientConfig::default(), TODAY).is_ok());
    assert!(check_client(&ClientConfig::default(), TODAY).is_ok());
}

/// Checks that exactly one file is wrong: the setting that names it, and a part of the error.
#[track_caller]
fn check_server(config: &ServerConfig, setting: &str, expected: &str) {
    let errors: Vec<_> = server(config, TODAY).unwrap_err().into_iter().collect();
    let [error] = errors.as_slice() else { panic!("not one error: {errors:?}") };
    assert_eq!(error.file.setting(), setting);
    let text = error.to_string();
    assert!(text.contains(expected) && text.contains(&*error.path.to_string_lossy()), "{text}");
}

#[test]
fn each_wrong_file_is_named_with_what_is_wrong() {
    let ours = Authority::with(&["server", "other"]);
    ours.sign("old", 2026);
    let good = ours.server("server");
    let certificate = |path| ServerConfig { certificate: path, ..good.clone() };
    let key = |path| ServerConfig { key: path, ..good.clone() };
    let client_ca = |path| ServerConfig { client_ca: Some(path), ..good.clone() };
    let begin = "-----BEGIN CERTIFICATE-----\n";
    let end = "-----END CERTIFICATE-----\n";

    check_server(&certificate(ours.path("absent")), "tls_cert_path", "can't be read");
    check_server(&certificate(ours.path("")), "tls_cert_path", "can't be read");
    check_server(&certificate(ours.write("empty", "")), "tls_cert_path", "no certificate in it");
    check_server(&certificate(ours.path("server.key")), "tls_cert_path", "no certificate in it");
    let cut = ours.write("cut", &format!("{begin}AAAA\n"));
    check_server(&certificate(cut), "tls_cert_path", "is not PEM");
    let garbage = ours.write("garbage", &format!("{begin}AAAA\n{end}"));
    check_server(&certificate(garbage.clone()), "tls_cert_path", "malformed certificate");
    check_server(&ours.server("old"), "tls_cert_path", "expired 375 days ago");
    let large = ours.write("large", &"x".repeat(5 << 20));
    check_server(&certificate(large), "tls_cert_path", "larger than 4194304 bytes");

    check_server(&key(ours.path("absent")), "tls_key_path", "can't be read");
    check_server(&key(ours.path("server.pem")), "tls_key_path", "no private key in it");
    check_server(&key(ours.path("other.key")), "tls_key_path", "is not the key of the certificate");
    let bad_key = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n";
    check_server(&key(ours.write("bad.key", bad_key)), "tls_key_path", "can't be used");

    check_server(&client_ca(ours.path("absent")), "client_ca_path", "can't be read");
    check_server(&client_ca(garbage), "client_ca_path", "malformed certificate");
    check_server(&client_ca(ours.path("server.key")), "client_ca_path", "no certificate in it");
}

#[test]
fn all_wrong_files_are_reported_together() {
    let ours = Authority::with(&[]);
    let config = ServerConfig { client_ca: Some(ours.path("absent.ca")), ..ours.server("absent") };
    let settings: Vec<_> =
        server(&config, TODAY).unwrap_err().into_iter().map(|e| e.file.setting()).collect();
    assert_eq!(settings, ["tls_cert_path", "tls_key_path", "client_ca_path"]);
    let config = ClientConfig {
        ca: Some(ours.path("absent")),
        identity: Some((ours.path("absent"), ours.path("absent"))),
    };
    let settings: Vec<_> =
        check_client(&config, TODAY).unwrap_err().into_iter().map(|e| e.file.setting()).collect();
    assert_eq!(settings, ["worker_tls_ca", "worker_tls_cert", "worker_tls_key"]);
}

#[test]
fn files_are_read_again_and_what_is_wrong_keeps_the_former() {
    let ours = Authority::with(&["server"]);
    let live = Live::read(ours.server("server"), TODAY).unwrap();
    let first = live.current();
    assert!(!live.reload(TODAY).unwrap(), "nothing has changed");
    assert!(Arc::ptr_eq(&first, &live.current()));
    ours.sign("server", 2031);
    assert!(live.reload(TODAY).unwrap());
    let second = live.current();
    assert!(!Arc::ptr_eq(&first, &second));
    // The key of another certificate, half a renewal.
    ours.sign("other", 2031);
    fs::copy(ours.path("other.key"), ours.path("server.key")).unwrap();
    let error = live.reload(TODAY).unwrap_err().to_string();
    assert!(error.contains("is not the key of the certificate"), "{error}");
    assert!(Arc::ptr_eq(&second, &live.current()));
    fs::copy(ours.path("other.pem"), ours.path("server.pem")).unwrap();
    assert!(live.reload(TODAY).unwrap(), "the second half has come");
}

#[test]
fn an_authority_that_is_gone_is_not_trusted_any_more() {
    let (ours, theirs) = (Authority::with(&["worker"]), Authority::with(&["worker"]));
    let live = Live::read(ours.client(), TODAY).unwrap();
    let trusts = |authority: &Authority| {
        shake_hands_with(server(&authority.server("worker"), TODAY).unwrap(), live.current())
    };
    assert!(trusts(&ours).is_ok() && trusts(&theirs).is_err());
    fs::copy(theirs.path("ca.pem"), ours.path("ca.pem")).unwrap();
    assert!(live.reload(TODAY).unwrap());
    assert!(trusts(&ours).is_err() && trusts(&theirs).is_ok());
}

#[test]
fn prepared_files_of_other_paths_are_used_once_they_are_applied() {
    let ours = Authority::with(&["one", "two"]);
    let live = Live::read(ours.server("one"), TODAY).unwrap();
    let first = live.current();
    let prepared = Live::prepare(ours.server("two"), TODAY).unwrap();
    assert!(Arc::ptr_eq(&first, &live.current()), "nothing changes before");
    assert!(live.apply(prepared));
    assert!(!Arc::ptr_eq(&first, &live.current()));
    assert_eq!(*live.files(), ours.server("two"));
    assert!(!live.reload(TODAY).unwrap(), "the other files are the ones that are read again");
    assert!(Live::prepare(ours.server("absent"), TODAY).is_err());
}
