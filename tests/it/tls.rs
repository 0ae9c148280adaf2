//! Tests of TLS on both sides: what the listener presents and requires, and how workers are verified.

use std::path::PathBuf;
use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::SendRequest;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::ServerName;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::signals::{mistakes, reload};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

/// A certificate authority, and a directory with the files that it signed: `ca.pem`, and `own.pem` with `own.key` for
/// this machine.
pub(crate) struct Authority {
    dir: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        std::fs::write(dir.path().join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(params, key);
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let own = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.path().join("own.pem"), own.pem()).unwrap();
        std::fs::write(dir.path().join("own.key"), key.serialize_pem()).unwrap();
        Self { dir }
    }

    /// Replaces a file by that of another authority.
    fn take(&self, name: &str, of: &Self) {
        std::fs::copy(of.path(name), self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }
}

fn now() -> smg_types::now::Now {
    smg_runtime::clock::Clock::start().now()
}

/// A client that trusts `server`, presents a certificate of `own`, and offers the protocols `alpn`.
pub(crate) fn connector(
    server: &Authority,
    own: Option<&Authority>,
    alpn: &[&[u8]],
) -> TlsConnector {
    let config = smg_runtime::tls::ClientConfig {
        ca: Some(server.path("ca.pem")),
        identity: own.map(|own| (own.path("own.pem"), own.path("own.key"))),
    };
    let mut config = smg_runtime::tls::client(&config, now()).unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

/// Sends a chat request over TLS with the negotiated protocol. Returns the protocol, the status and the request id.
async fn ask(
    router: &Router,
    connector: &TlsConnector,
) -> Result<(Vec<u8>, u16, bool), Box<dyn std::error::Error>> {
    let tcp = TcpStream::connect(router.address()).await?;
    let tls = connector.connect(ServerName::try_from("localhost")?, tcp).await?;
    let agreed = tls.get_ref().1.alpn_protocol().unwrap_or_default().to_vec();
    let body = Full::new(bytes::Bytes::from_static(b"{\"model\":\"m\"}"));
    let request = http::Request::post("https://localhost/generate").header("host", "localhost");
    let request = request.body(body)?;
    let response = if agreed == b"h2" {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    } else {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(tls)).await?;
        tokio::spawn(connection);
        sender.send_request(request).await?
    };
    let (parts, body) = response.into_parts();
    body.collect().await?;
    Ok((agreed, parts.status.as_u16(), parts.headers.contains_key("x-request-id")))
}

/// A connection over TLS whose server presents a certificate of `authority`; `None` if it presents another one.
pub(crate) async fn open(
    address: std::net::SocketAddr,
    authority: &Authority,
) -> Option<SendRequest<Full<bytes::Bytes>>> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    let open = TokioIo::new(connector(authority, None, &[]).connect(name, tcp).await.ok()?);
    let (open, connection) = hyper::client::conn::http1::handshake(open).await.unwrap();
    tokio::spawn(connection);
    Some(open)
}

/// The status of a request on an open connection.
pub(crate) async fn liveness(open: &mut SendRequest<Full<bytes::Bytes>>) -> u16 {
    let request = http::Request::get("/liveness").header("host", "localhost");
    let request = request.body(Full::new(bytes::Bytes::new())).unwrap();
    open.send_request(request).await.unwrap().status().as_u16()
}

/// Waits until the log reports that the worker is up, because the probe paths are behind TLS, too.
async fn worker_is_up(router: &Router) {
    eventually("the worker is up", || async {
        let log = router.log();
        if log.contains("worker is up") { Ok(()) } else { Err(log) }
    })
    .await;
}

#[tokio::test]
async fn clients_speak_http_1_and_2_by_alpn() {
    let authority = Authority::new();
    let worker = Worker::plain().await;
    let (cert, key) = (authority.text("own.pem"), authority.text("own.key"));
    let router = Router::start(&[
        "--worker-urls",
        &worker.url(),
        "--tls-cert-path",
        &cert,
        "--tls-key-path",
        &key,
    ])
    .await;
    worker_is_up(&router).await;
    for (offered, agreed) in
        [(&[&b"h2"[..], b"http/1.1"][..], &b"h2"[..]), (&[b"http/1.1"], b"http/1.1"), (&[], b"")]
    {
        let answer = ask(&router, &connector(&authority, None, offered)).await.unwrap();
        assert_eq!(answer, (agreed.to_vec(), 200, true));
    }
    let stranger = connector(&Authority::new(), None, &[]);
    assert!(ask(&router, &stranger).await.is_err(), "the router shows its own certificate");
    assert!(!router.log().contains("panicked"));
}

#[tokio::test]
async fn client_certificates_can_be_required() {
    let (server, clients) = (Authority::new(), Authority::new());
    let worker = Worker::plain().await;
    let (cert, key, ca) = (server.text("own.pem"), server.text("own.key"), clients.text("ca.pem"));
    let router = Router::start(&[
        "--worker-urls",
        &worker.url(),
        "--tls-cert-path",
        &cert,
        "--tls-key-path",
        &key,
        "--client-ca-path",
        &ca,
    ])
    .await;
    worker_is_up(&router).await;
    for alpn in [&[&b"h2"[..]][..], &[b"http/1.1"]] {
        let (_, status, _) = ask(&router, &connector(&server, Some(&clients), alpn)).await.unwrap();
        assert_eq!(status, 200);
        for wrong in [None, Some(&server)] {
            assert!(ask(&router, &connector(&server, wrong, alpn)).await.is_err());
        }
    }
    assert_eq!(worker.seen().len(), 2, "no other client was admitted");
}

/// Starts a worker with TLS that requires a certificate of `clients`, and returns its URL. It runs as long as the test.
async fn tls_worker(own: &Authority, clients: &Authority) -> String {
    serve_tls(own.path("own.pem"), own.path("own.key"), Some(clients.path("ca.pem"))).await
}

/// A worker behind TLS; its URL. It lives as long as the test.
pub(crate) async fn serve_tls(
    certificate: PathBuf,
    key: PathBuf,
    client_ca: Option<PathBuf>,
) -> String {
    let config = smg_runtime::tls::ServerConfig { certificate, key, client_ca };
    let mut config = smg_runtime::tls::server(&config, now()).unwrap();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(async |request: http::Request<hyper::body::Incoming>| {
                    let body = match request.uri().path() {
                        "/v1/models" => "{\"data\":[{\"id\":\"m\"}]}",
                        _ => "{}",
                    };
                    Ok::<_, std::convert::Infallible>(http::Response::new(body.to_owned()))
                });
                let connection = hyper::server::conn::http1::Builder::new();
                let _client_gone =
                    connection.serve_connection(TokioIo::new(stream), service).await.is_err();
            });
        }
    });
    url
}

#[tokio::test]
async fn workers_are_verified_and_get_a_client_certificate() {
    let (own, routers) = (Authority::new(), Authority::new());
    let url = tls_worker(&own, &routers).await;
    let (ca, cert, key) = (own.text("ca.pem"), routers.text("own.pem"), routers.text("own.key"));
    let right = ["--worker-tls-ca", &ca, "--worker-tls-cert", &cert, "--worker-tls-key", &key];
    let router = Router::before(std::slice::from_ref(&url), &right).await;
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);

    // The worker counts as healthy without a probe and its model is configured, so that the request itself reaches it.
    let foreign = routers.text("ca.pem");
    let wrong_ca =
        ["--worker-tls-ca", &foreign, "--worker-tls-cert", &cert, "--worker-tls-key", &key];
    let no_certificate = ["--worker-tls-ca", &ca];
    for flags in [&wrong_ca[..], &no_certificate] {
        let mut all = vec!["--disable-retries"];
        all.extend(flags);
        let router = Router::start(&all).await;
        let spec =
            serde_json::json!({ "url": url, "models": ["m"], "health": { "disabled": true } });
        assert_eq!(router.post("/workers", spec.to_string()).await.status, 202);
        let answer = router.post("/generate", r#"{"model":"m"}"#).await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (502, "upstream_connection_failed"),
            "{flags:?}: {}",
            answer.text()
        );
        assert!(!answer.text().contains("127.0.0.1"), "no worker's address may be shown");
    }
}

#[tokio::test]
async fn sighup_replaces_the_certificate_for_new_connections() {
    let (files, first, second) = (Authority::new(), Authority::new(), Authority::new());
    let install = |authority: &Authority| {
        files.take("own.pem", authority);
        files.take("own.key", authority);
    };
    install(&first);
    let worker = Worker::plain().await;
    let (cert, key) = (files.text("own.pem"), files.text("own.key"));
    let flags = ["--tls-cert-path", &cert, "--tls-key-path", &key];
    let router = Router::start(&[&["--worker-urls", &worker.url()][..], &flags].concat()).await;
    worker_is_up(&router).await;
    let (of_first, of_second) = (connector(&first, None, &[]), connector(&second, None, &[]));
    let status = async |connector: &TlsConnector| ask(&router, connector).await.map(|a| a.1).ok();
    assert_eq!((status(&of_first).await, status(&of_second).await), (Some(200), None));
    // An open connection continues as before.
    let mut open_one = open(router.address(), &first).await.unwrap();

    install(&second);
    let events = reload(&router).await;
    assert_eq!((events.len(), &events[0]["changed"]), (1, &"listener TLS".into()));
    assert_eq!((status(&of_first).await, status(&of_second).await), (None, Some(200)));
    assert_eq!(liveness(&mut open_one).await, 200);

    // An incomplete renewal: the key belongs to another certificate.
    files.take("own.key", &first);
    let events = reload(&router).await;
    assert!(mistakes(&events).contains(&key), "{events:#?}");
    assert_eq!(status(&of_second).await, Some(200), "the former one stays");
}

#[tokio::test]
async fn sighup_replaces_the_authority_for_workers() {
    let (files, own, routers) = (Authority::new(), Authority::new(), Authority::new());
    let url = tls_worker(&own, &routers).await;
    files.take("ca.pem", &routers);
    let (ca, cert, key) = (files.text("ca.pem"), routers.text("own.pem"), routers.text("own.key"));
    let flags = ["--worker-tls-ca", &ca, "--worker-tls-cert", &cert, "--worker-tls-key", &key];
    let router = Router::start(&[&["--disable-retries"][..], &flags].concat()).await;
    let spec = serde_json::json!({ "url": url, "models": ["m"], "health": { "disabled": true } });
    assert_eq!(router.post("/workers", spec.to_string()).await.status, 202);
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 502);
    files.take("ca.pem", &own);
    let events = reload(&router).await;
    assert_eq!((events.len(), &events[0]["changed"]), (1, &"worker TLS".into()));
    assert_eq!(router.post("/generate", r#"{"model":"m"}"#).await.status, 200);
}

#[tokio::test]
async fn sighup_replaces_the_certificate_for_other_routers() {
    let (files, first, second) = (Authority::new(), Authority::new(), Authority::new());
    let install = |authority: &Authority| {
        for name in ["own.pem", "own.key", "ca.pem"] {
            files.take(name, authority);
        }
    };
    install(&first);
    let (cert, key, ca) = (files.text("own.pem"), files.text("own.key"), files.text("ca.pem"));
    let router = Router::start(&[
        "--enable-mesh",
        "--mesh-host",
        "127.0.0.1",
        "--mesh-port",
        "0",
        "--mesh-server-name",
        "localhost",
        "--mesh-tls-cert",
        &cert,
        "--mesh-tls-key",
        &key,
        "--mesh-tls-ca",
        &ca,
    ])
    .await;
    let health = router.get("/ha/health").await.json();
    let address = health["node"]["address"].as_str().unwrap().to_owned();
    let shakes_hands = async |with: &Authority| {
        let tcp = TcpStream::connect(&address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        connector(with, Some(with), &[b"h2"]).connect(name, tcp).await.is_ok()
    };
    assert!(shakes_hands(&first).await && !shakes_hands(&second).await);
    install(&second);
    let events = reload(&router).await;
    assert_eq!((events.len(), &events[0]["changed"]), (1, &"mesh TLS".into()));
    assert!(!shakes_hands(&first).await && shakes_hands(&second).await);
    std::fs::write(&cert, "no certificate").unwrap();
    let events = reload(&router).await;
    assert!(mistakes(&events).contains(&cert), "{events:#?}");
    assert!(shakes_hands(&second).await);
}
