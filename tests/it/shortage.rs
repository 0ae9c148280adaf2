//! Tests of the router's own shortages: they count against no worker, are logged once, and have no effect after they
//! end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::support::client::{self, Connection};
use crate::support::eventually;
use crate::support::router::Router;
use crate::support::worker::Worker;

const CHAT: &[u8] = br#"{"model":"m","messages":[{"role":"user","content":"hello"}]}"#;

/// Starts a program with this limit on open files.
const FEW: [&str; 3] = ["sh", "-c", "ulimit -n 96 && exec \"$0\" \"$@\""];

/// Probes are frequent, so that they are affected by the shortage as well.
const PROBES: [&str; 4] =
    ["--health-check-interval-secs", "0.1", "--health-failure-threshold", "2"];

/// Starts a router with few descriptors for `workers`.
async fn with_few(workers: &[Worker], flags: &[&str]) -> Router {
    let urls: Vec<_> = workers.iter().map(Worker::url).collect();
    let mut arguments = vec!["--worker-urls"];
    arguments.extend(urls.iter().map(String::as_str));
    arguments.extend(PROBES);
    arguments.extend(flags);
    let router = Router::start_in(&FEW, &arguments).await;
    router.knows_ready(workers.len()).await;
    router
}

async fn workers(count: usize) -> Vec<Worker> {
    let mut workers = Vec::new();
    for _ in 0..count {
        workers.push(Worker::plain().await);
    }
    workers
}

/// The breaker and state of each worker, read over a connection that is open already.
async fn verdicts(connection: &mut Connection) -> Vec<(String, String)> {
    let answer = connection.send("GET", "/workers", &[], "").await.unwrap();
    let all = answer.json();
    let of = |worker: &serde_json::Value, key: &str| worker[key].as_str().unwrap().to_owned();
    let workers = all["workers"].as_array().unwrap().iter();
    workers.map(|worker| (of(worker, "breaker"), of(worker, "state"))).collect()
}

fn all_well(count: usize) -> Vec<(String, String)> {
    vec![("closed".to_owned(), "ready".to_owned()); count]
}

async fn connect(address: SocketAddr, count: usize) -> Vec<TcpStream> {
    let mut idle = Vec::new();
    for _ in 0..count {
        idle.push(TcpStream::connect(address).await.unwrap());
    }
    idle
}

/// The log lines about a shortage of descriptors.
fn lines(router: &Router) -> Vec<String> {
    let log = router.log();
    log.lines()
        .filter(|line| line.contains("\"kind\":\"descriptors\""))
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn idle_clients_leave_descriptors_for_workers() {
    let workers = workers(3).await;
    let router = with_few(&workers, &["--policy", "round_robin"]).await;
    assert!(router.log().contains("limit on open files is 96"), "{}", router.log());
    let address = router.address();
    let mut clients = Vec::new();
    for _ in 0..8 {
        // Those that never send a request would give way.
        let mut client = Connection::open(address).await.unwrap();
        assert_eq!(client.send("GET", "/liveness", &[], "").await.unwrap().status, 200);
        clients.push(client);
    }
    let idle = connect(address, 150).await;
    eventually("the router is short of descriptors", || async {
        if lines(&router).is_empty() { Err(()) } else { Ok(()) }
    })
    .await;
    for client in &mut clients {
        let answer = client.send("POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Many probes take place in this time.
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(verdicts(&mut clients[0]).await, all_well(3));
    }
    drop(idle);
    let answer = client::send(address, "POST", "/v1/chat/completions", &[], CHAT).await;
    assert_eq!(answer.status, 200);
    assert_eq!(lines(&router).len(), 1, "{:?}", lines(&router));
    for part in ["\"limit\":\"96\"", "ulimit -Hn", "--max-connections"] {
        assert!(lines(&router)[0].contains(part), "{:?}", lines(&router));
    }
}

#[tokio::test]
async fn a_request_that_cannot_be_served_is_answered_503_and_counts_against_no_worker() {
    let gate = Arc::new(Semaphore::new(0));
    let opens = Arc::clone(&gate);
    let mut workers = Vec::new();
    for _ in 0..3 {
        let gate = Arc::clone(&opens);
        workers.push(
            Worker::start(move |mut talk| {
                let gate = Arc::clone(&gate);
                async move {
                    gate.acquire().await.unwrap().forget();
                    talk.answer(200, "content-type: application/json\r\n", b"{}").await;
                    talk
                }
            })
            .await,
        );
    }
    let router = with_few(&workers, &["--policy", "round_robin"]).await;
    let address = router.address();
    let mut watching = Connection::open(address).await.unwrap();
    // Each client holds a descriptor and needs another one for the connection to a worker. Together they need more than
    // there are. A client asks as soon as it has connected, because the router closes idle connections in a shortage.
    let asking = (0..40).map(|_| {
        tokio::spawn(async move {
            let mut client = Connection::open(address).await.unwrap();
            let answer = client.send("POST", "/v1/chat/completions", &[], CHAT).await;
            (client, answer.unwrap())
        })
    });
    let asking: Vec<_> = asking.collect();
    let shortages = "smg_own_shortages_total{kind=\"descriptors\"} ";
    let count = async |watching: &mut Connection| {
        let text = watching.send("GET", "/metrics", &[], "").await.unwrap().text();
        let line = text.lines().find_map(|line| line.strip_prefix(shortages)).unwrap().to_owned();
        line.parse::<f64>().unwrap()
    };
    let began = Instant::now();
    while count(&mut watching).await < 5.0 {
        assert!(began.elapsed() < Duration::from_secs(10), "no shortage");
    }
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        assert_eq!(verdicts(&mut watching).await, all_well(3));
    }
    gate.add_permits(1000);
    let mut statuses = Vec::new();
    let mut kept = Vec::new();
    for asked in asking {
        let (client, answer) = asked.await.unwrap();
        if answer.status != 200 {
            assert_eq!((answer.status, answer.code().as_str()), (503, "router_out_of_resources"));
            assert_eq!(answer.header("retry-after"), Some("1"));
        }
        statuses.push(answer.status);
        kept.push(client);
    }
    let served = statuses.iter().filter(|status| **status == 200).count();
    assert!((10..40).contains(&served), "{served} of 40 were served");
    // The shortage ends at once, with all clients still connected.
    for client in &mut kept {
        let answer = client.send("POST", "/v1/chat/completions", &[], CHAT).await.unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    assert_eq!(verdicts(&mut watching).await, all_well(3));
    assert!(lines(&router).len() <= 2, "{:?}", lines(&router));
    assert!(!router.log().contains("attempt failed"), "{}", router.log());
}
