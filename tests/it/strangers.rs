//! Tests of what strangers get on the mesh port of a router with a shared key: they read who it is from nothing that it
//! sends. Real processes on loopback.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use tokio::net::{TcpListener, TcpStream};

use crate::mesh::{KEYS, mesh_address, router};
use crate::support::eventually;
use crate::support::router::Router;

/// A name that no message has by chance.
const NAME: &str = "node-of-the-first-rack";
const MESH: &str = "/smg.mesh.v1.Mesh/";

async fn keyed(peers: &[SocketAddr]) -> Router {
    router(NAME, peers, &["--mesh-encryption-key", KEYS[0]]).await
}

/// A gRPC message: a flag, its length, its bytes.
fn message(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, bytes].concat().into()
}

/// The opening of somebody who knows the protocol and the name of the cluster, but has no key: version 1, a name, an
/// address, and 32 bytes for the keys of the stream.
fn opening_without_a_key() -> Vec<u8> {
    let text = |field: u8, text: &[u8]| {
        [&[field << 3 | 2, u8::try_from(text.len()).unwrap()], text].concat()
    };
    let opening =
        [vec![1 << 3, 1], text(4, b"stranger"), text(7, b"127.0.0.1:1"), text(9, &[7; 32])]
            .concat();
    text(1, &opening)
}

async fn dial(to: SocketAddr) -> Option<SendRequest<Bytes>> {
    let stream = TcpStream::connect(to).await.ok()?;
    let (sender, connection) = h2::client::handshake(stream).await.ok()?;
    tokio::spawn(async move {
        let _ended = connection.await.is_err();
    });
    Some(sender)
}

fn call(path: &str) -> http::Request<()> {
    http::Request::post(format!("http://mesh{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap()
}

/// All that the router at `to` answers to a call: headers, messages, trailers.
///
/// The router reads a whole call before it answers one that has a single request; `is_single` says so.
async fn answer(to: SocketAddr, path: &str, sent: &[u8], is_single: bool) -> Vec<u8> {
    let mut sender = dial(to).await.unwrap().ready().await.unwrap();
    let (response, mut outbound) = sender.send_request(call(path), false).unwrap();
    outbound.send_data(message(sent), is_single).unwrap();
    let mut heard = Vec::new();
    let response = response.await.unwrap_or_else(|error| panic!("{path}: {error}"));
    heard.extend(format!("{:?}", response.headers()).into_bytes());
    let mut body = response.into_body();
    let reading = async {
        while let Some(Ok(data)) = body.data().await {
            heard.extend_from_slice(&data);
        }
        if let Ok(Some(trailers)) = body.trailers().await {
            heard.extend(format!("{trailers:?}").into_bytes());
        }
    };
    // The router ends every call of a stranger within seconds.
    tokio::time::timeout(Duration::from_secs(30), reading).await.unwrap();
    heard
}

/// The texts that only a member may read.
async fn secrets(router: &Router, mesh: SocketAddr) -> Vec<Vec<u8>> {
    let keys = router.get("/ha/keys").await.json();
    let id = keys["in_use"].as_str().unwrap().to_owned();
    let bytes = u64::from_str_radix(&id, 16).unwrap();
    let texts = [NAME, &router.address().to_string(), &mesh.to_string(), &id, "0.1.0"];
    let mut secrets: Vec<Vec<u8>> = texts.iter().map(|text| text.as_bytes().to_vec()).collect();
    secrets.extend([bytes.to_be_bytes().to_vec(), bytes.to_le_bytes().to_vec()]);
    secrets
}

fn assert_hidden(secrets: &[Vec<u8>], heard: &[u8], what: &str) {
    for secret in secrets {
        let is_shown = heard.windows(secret.len()).any(|bytes| bytes == secret);
        let (secret, heard) = (String::from_utf8_lossy(secret), String::from_utf8_lossy(heard));
        assert!(!is_shown, "{what} shows {secret}: {heard}");
    }
}

#[tokio::test]
async fn whoever_connects_without_the_key_does_not_learn_who_the_router_is() {
    let router = keyed(&[]).await;
    let mesh = mesh_address(&router);
    let secrets = secrets(&router, mesh).await;
    for method in ["Hello", "Swim", "Sync", "Keys"] {
        for (what, sent) in [("an opening", opening_without_a_key()), ("nothing", Vec::new())] {
            let heard = answer(mesh, &format!("{MESH}{method}"), &sent, method == "Hello").await;
            assert!(!heard.is_empty());
            assert_hidden(&secrets, &heard, &format!("the answer of {method} to {what}"));
        }
    }
    for path in [
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/smg.mesh.v1.Mesh/Nothing",
        "/",
    ] {
        assert_hidden(&secrets, &answer(mesh, path, b"", true).await, path);
    }
}

#[tokio::test]
async fn whoever_is_dialled_without_the_key_does_not_learn_who_the_router_is() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let router = keyed(&[listener.local_addr().unwrap()]).await;
    let secrets = secrets(&router, mesh_address(&router)).await;
    // It reads what comes, and answers with an opening.
    let (stream, _) = listener.accept().await.unwrap();
    let mut connection = h2::server::handshake(stream).await.unwrap();
    let (request, mut respond) = connection.accept().await.unwrap().unwrap();
    let heard: Arc<Mutex<Vec<u8>>> = Arc::default();
    let heard_by_stream = Arc::clone(&heard);
    heard.lock().unwrap().extend(format!("{request:?}").into_bytes());
    let reading = tokio::spawn(async move {
        let response = http::Response::builder().header("content-type", "application/grpc");
        let mut outbound = respond.send_response(response.body(()).unwrap(), false).unwrap();
        outbound.send_data(message(&opening_without_a_key()), false).unwrap();
        let mut body = request.into_body();
        while let Some(Ok(data)) = body.data().await {
            heard_by_stream.lock().unwrap().extend_from_slice(&data);
        }
    });
    let driving = tokio::spawn(async move { while connection.accept().await.is_some() {} });
    eventually("the router gives the reason why it sends no more", || async {
        let health = router.get("/ha/health").await.json();
        let error = health["join"][0]["error"].as_str().unwrap_or_default().to_owned();
        if error.contains("key") { Ok(()) } else { Err(health) }
    })
    .await;
    reading.await.unwrap();
    driving.abort();
    let heard = heard.lock().unwrap().clone();
    assert!(heard.len() > 500, "the router has sent its opening: {} bytes", heard.len());
    assert_hidden(&secrets, &heard, "the call of the router");
}
