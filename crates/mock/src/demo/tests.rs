//! The demo without a screen, with a worker of its own in the router's place.

use super::*;

fn args() -> Args {
    Args { once: true, seconds: 1, users: 8, routers: 1, seed: 1 }
}

/// In the router's place: nothing between the users and `addresses`.
fn straight_to(addresses: Vec<SocketAddr>, stopped: Arc<Mutex<bool>>) -> RunningRouter {
    RunningRouter { addresses, stop: Box::pin(async move { *stopped.lock() = true }) }
}

fn addresses(urls: &[String]) -> Vec<SocketAddr> {
    urls.iter().map(|url| url.strip_prefix("http://").unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn it_runs_once_and_leaves_nothing_behind() {
    let stopped = Arc::new(Mutex::new(false));
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (in_router, kept) = (Arc::clone(&stopped), Arc::clone(&seen));
    run(args(), |urls| async move {
        *kept.lock() = addresses(&urls);
        Ok(straight_to(addresses(&urls), in_router))
    })
    .await
    .unwrap();
    assert!(*stopped.lock());
    let workers = seen.lock().clone();
    assert_eq!(workers.len(), usize::from(WORKERS));
    for worker in workers {
        let refused = tokio::net::TcpStream::connect(worker).await;
        assert!(refused.is_err(), "{worker} still listens");
    }
}

#[tokio::test]
async fn a_failed_request_fails_the_demo_and_the_router_is_stopped_all_the_same() {
    let stopped = Arc::new(Mutex::new(false));
    let in_router = Arc::clone(&stopped);
    let nobody = SocketAddr::from(([127, 0, 0, 1], 1));
    let error =
        run(args(), |_| async move { Ok(straight_to(vec![nobody], in_router)) }).await.unwrap_err();
    assert!(
        matches!(&error, DemoError::Failed { first, .. } if first.contains("127.0.0.1:1")),
        "{error}"
    );
    assert!(*stopped.lock());
}

#[tokio::test]
async fn a_router_that_does_not_start_is_named() {
    let error = run(args(), |_| async { Err("port in use".into()) }).await.unwrap_err();
    assert_eq!(error.to_string(), "the router can't start: port in use");
}
