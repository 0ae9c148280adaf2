//! A test of the demo, which is what newcomers run first.

use std::time::Duration;

use crate::support::router::command;

#[tokio::test]
async fn the_demo_runs_once_and_leaves_nothing_behind() {
    let child = command().args(["demo", "--once", "--seconds", "3"]).spawn().unwrap();
    let pid = child.id().unwrap();
    let output = tokio::time::timeout(Duration::from_secs(30), child.wait_with_output()).await;
    let output = output.expect("the demo ends by itself").unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}\n{}", String::from_utf8_lossy(&output.stderr));
    for worker in ["worker-1", "worker-2", "worker-3", "worker-4"] {
        assert!(printed.contains(worker), "{worker} is missing in the summary:\n{printed}");
    }
    let (_, rest) =
        printed.split_once("curl -N http://").expect("the summary shows a curl command");
    let (address, _) = rest.split_once('/').unwrap();
    let refused = std::net::TcpStream::connect(address).expect_err("the port is closed");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let status = std::fs::read_to_string(process.path().join("stat")).unwrap_or_default();
        let parent = status
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1).map(str::to_owned));
        assert_ne!(parent, Some(pid.to_string()), "a child is left: {status}");
    }
}
