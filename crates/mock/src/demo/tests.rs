//! Tests of the demo without a screen, and without a router.

use super::*;

fn args() -> Args {
    Args { once: true, seconds: 1, users: 8, routers: 1, seed: 1 }
}

/// A replacement for the router: the users connect directly to `addresses`.
fn straight_to(addresses: Vec<SocketAddr>, stopped: Arc<Mutex<bool>>) -> RunningRouter {
    RunningRouter { addresses, stop: Box::pin(async move { *stopped.lock() = true }) }
}

fn addresses(urls: &[String]) -> Vec<SocketAddr> {
    urls.iter().map(|url| url.strip_prefix("http://").unwrap().parse().unwrap()).collect()
}

#[tokio::test]
async fn the_demo_runs_once_and_stops_its_workers() {
    let stopped = Arc::new(Mutex::new(false));
    let started = Arc::new(Mutex::new(Vec::new()));
    let (in_router, kept) = (Arc::clone(&stopped), Arc::clone(&started));
    run(args(), |urls| async move {
        *kept.lock() = addresses(&urls);
        Ok(straight_to(addresses(&urls), in_router))
    })
    .await
    .unwrap();
    assert!(*stopped.lock());
    let workers = started.lock().clone();
    assert_eq!(workers.len(), usize::from(WORKERS));
    for worker in workers {
        let refused = tokio::net::TcpStream::connect(worker).await;
        assert!(refused.is_err(), "{worker} still listens");
    }
}

#[tokio::test]
async fn a_failed_request_fails_the_demo_and_the_router_is_stopped_nevertheless() {
    let stopped = Arc::new(Mutex::new(false));
    let in_router = Arc::clone(&stopped);
    let unused = SocketAddr::from(([127, 0, 0, 1], 1));
    let error =
        run(args(), |_| async move { Ok(straight_to(vec![unused], in_router)) }).await.unwrap_err();
    assert!(
        matches!(&error, DemoError::Failed { first, .. } if first.contains("127.0.0.1:1")),
        "{error}"
    );
    assert!(*stopped.lock());
}

#[tokio::test]
async fn the_error_of_a_router_that_does_not_start_is_reported() {
    let error = run(args(), |_| async { Err("port in use".into()) }).await.unwrap_err();
    assert_eq!(error.to_string(), "the router can't start: port in use");
}
