//! How the certificates of workers are checked: self-signed ones in the CA file, pins, and no check at all.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair, date_time_ymd};
use serde_json::{Value, json};

use crate::mesh::{mesh_address, router as member, sees};
use crate::support::eventually;
use crate::support::router::Router;
use crate::tls::serve_tls;

/// A self-signed certificate in `dir`, changed by `change`; the files of the certificate and its key.
fn self_signed(dir: &Path, change: impl FnOnce(&mut CertificateParams)) -> (PathBuf, PathBuf) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    change(&mut params);
    let name = format!("{:x}", rand::random::<u64>());
    let files = (dir.join(format!("{name}.pem")), dir.join(format!("{name}.key")));
    std::fs::write(&files.0, params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(&files.1, key.serialize_pem()).unwrap();
    files
}

fn usual(_: &mut CertificateParams) {}

/// Waits until the router's view of its worker is as `is` wants it.
async fn worker(router: &Router, is: impl Fn(&Value) -> bool) -> Value {
    eventually("the worker is shown as expected", || async {
        let shown = router.get("/workers").await.json()["workers"][0].clone();
        if is(&shown) { Ok(shown) } else { Err(shown.to_string()) }
    })
    .await
}

async fn serves(router: &Router) {
    router.knows_ready(1).await;
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
}

/// What the router says of the certificate of its worker.
async fn tls_error(router: &Router) -> String {
    let shown = worker(router, |shown| shown["last_error"]["cause"] == "tls").await;
    shown["last_error"]["error"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_self_signed_certificate_is_its_own_authority() {
    let dir = tempfile::tempdir().unwrap();
    let is_ca = |params: &mut CertificateParams| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    };
    for (certificate, key) in [self_signed(dir.path(), usual), self_signed(dir.path(), is_ca)] {
        let url = serve_tls(certificate.clone(), key, None).await;
        let ca = certificate.to_str().unwrap();
        let router = Router::start(&["--worker-urls", &url, "--worker-tls-ca", ca]).await;
        serves(&router).await;
    }
}

#[tokio::test]
async fn a_self_signed_certificate_is_trusted_for_its_names_and_dates_only() {
    let dir = tempfile::tempdir().unwrap();
    let other_name = self_signed(dir.path(), |params| {
        *params = CertificateParams::new(vec!["gpu-1.test".to_owned()]).unwrap();
    });
    let expired = self_signed(dir.path(), |params| {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    let expired_ca = self_signed(dir.path(), |params| {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    });
    for ((certificate, key), why) in
        [(other_name, "not valid for name"), (expired, "expired"), (expired_ca, "expired")]
    {
        // The router checks the dates of its own certificate, so the worker is one that does not.
        let url = serve_unchecked(&certificate, &key).await;
        let ca = certificate.to_str().unwrap();
        let router = Router::start(&["--worker-urls", &url, "--worker-tls-ca", ca]).await;
        let error = tls_error(&router).await;
        assert!(error.contains(why), "{error}");
    }
    let (certificate, key) = self_signed(dir.path(), usual);
    let url = serve_tls(certificate, key, None).await;
    let (another, _) = self_signed(dir.path(), usual);
    let ca = another.to_str().unwrap();
    let router = Router::start(&["--worker-urls", &url, "--worker-tls-ca", ca]).await;
    assert!(tls_error(&router).await.contains("invalid peer certificate"), "another certificate");
}

#[tokio::test]
async fn a_pin_is_enough_and_a_wrong_one_says_the_right_one() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(dir.path(), usual);
    let url = serve_tls(certificate, key, None).await;
    let router = Router::start(&[]).await;
    let wrong = format!("sha256//{}=", "A".repeat(43));
    let spec = |pin: &str| json!({ "url": url, "tls": { "pin_sha256": pin } }).to_string();
    assert_eq!(router.post("/workers", spec(&wrong)).await.status, 202);
    let error = tls_error(&router).await;
    let pin = error.split("sha256//").nth(1).unwrap_or_else(|| panic!("{error}"));
    let pin = format!("sha256//{}", &pin[..44]);
    let id = worker(&router, |_| true).await["id"].as_str().unwrap().to_owned();
    let both = format!("{wrong};{pin}");
    let path = format!("/workers/{id}");
    let headers = [("content-type", "application/json")];
    let changed = router.send("PUT", &path, &headers, spec(&both).as_bytes()).await;
    assert_eq!(changed.status, 200, "{}", changed.text());
    serves(&router).await;
    let shown = worker(&router, |_| true).await;
    assert_eq!(shown["spec"]["tls"], json!({ "pin_sha256": both, "insecure_skip_verify": false }));
    // Connections that were made under the right pin are not used under another one.
    let changed = router.send("PUT", &path, &headers, spec(&wrong).as_bytes()).await;
    assert_eq!(changed.status, 200);
    let answer = router.post("/generate", r#"{"model":"m"}"#).await;
    assert_eq!((answer.status, answer.code().as_str()), (502, "upstream_connection_failed"));
}

#[tokio::test]
async fn an_unchecked_worker_is_served_warned_of_shown_and_replicated() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(dir.path(), usual);
    let url = serve_tls(certificate, key, None).await;
    let first = member("node1", &[], &[]).await;
    let second = member("node2", &[mesh_address(&first)], &[]).await;
    sees(&first, &[("node1", "ALIVE"), ("node2", "ALIVE")]).await;
    let spec = json!({ "url": url, "tls": { "insecure_skip_verify": true } });
    assert_eq!(first.post("/workers?wait=all", spec.to_string()).await.status, 202);
    for router in [&first, &second] {
        serves(router).await;
        let shown = worker(router, |_| true).await;
        assert_eq!(shown["spec"]["tls"]["insecure_skip_verify"], true, "{shown}");
        let log = router.log();
        let warned =
            log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()).any(|event| {
                let message = event["message"].as_str().unwrap_or_default().to_owned();
                event["level"] == "WARN"
                    && event["url"] == *url
                    && message.contains("is not checked")
            });
        assert!(warned, "{log}");
    }
}

#[tokio::test]
async fn a_configured_worker_may_have_its_own_check() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = self_signed(dir.path(), usual);
    let url = serve_tls(certificate, key, None).await;
    let file = dir.path().join("smg.toml");
    let text = format!("[[workers]]\nurl = '{url}'\n[workers.tls]\ninsecure_skip_verify = true\n");
    std::fs::write(&file, text).unwrap();
    let router = Router::start(&["--config", file.to_str().unwrap()]).await;
    serves(&router).await;
}

#[tokio::test]
async fn settings_without_effect_are_refused() {
    let router = Router::start(&[]).await;
    let pin = format!("sha256//{}=", "A".repeat(43));
    for (url, tls, why) in [
        ("https://gpu-1", json!({ "pin_sha256": pin, "insecure_skip_verify": true }), "exclude"),
        ("https://gpu-1", json!({ "pin_sha256": "sha1" }), "sha1"),
        ("http://gpu-1", json!({ "insecure_skip_verify": true }), "https://"),
        ("http://gpu-1", json!({ "pin_sha256": pin }), "https://"),
    ] {
        let spec = json!({ "url": url, "tls": tls });
        let answer = router.post("/workers", spec.to_string()).await;
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some("tls")), "{error}");
        assert!(error["message"].as_str().unwrap().contains(why), "{error}");
    }
}

/// A TLS server that shows a certificate whatever its dates, and answers nothing; its URL. It lives as long as the test.
async fn serve_unchecked(certificate: &Path, key: &Path) -> String {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let chain = vec![CertificateDer::from_pem_file(certificate).unwrap()];
    let key = PrivateKeyDer::from_pem_file(key).unwrap();
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _refused = acceptor.accept(stream).await.is_err();
        }
    });
    url
}
