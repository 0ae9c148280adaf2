//! Races between injected connections, mostly under a paused clock, and dialling with an injected resolver.

use std::sync::mpsc;

use super::*;
use crate::clock::Clock;

fn at(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn all(text: &str) -> Vec<SocketAddr> {
    text.split_whitespace().map(at).collect()
}

const V4: &str = "10.0.0.1:1 10.0.0.2:1";
const V6: &str = "[fd00::1]:1 [fd00::2]:1";

fn dialer(resolver: Resolver) -> Dialer {
    let shortages = Shortages::unregistered(Clock::start());
    Dialer::new(resolver, shortages, Descriptors::new(None))
}

fn resolving_to(text: &str) -> Resolver {
    let addresses = all(text);
    Resolver::with(Clock::start(), move |_, _| Ok(addresses.clone()))
}

/// How an address behaves: `+` connects at once, `~` after 100 ms, `-` refuses, `?` never answers, or an error's number.
async fn behaves(how: &'static str) -> io::Result<()> {
    match how {
        "+" => Ok(()),
        "~" => {
            tokio::time::sleep(Duration::from_millis(100)).await;
            Ok(())
        }
        "-" => Err(io::ErrorKind::ConnectionRefused.into()),
        "?" => std::future::pending().await,
        code => Err(io::Error::from_raw_os_error(code.parse().unwrap())),
    }
}

/// Races addresses that behave as `script` says, in order. Returns the index of the winner, or the failures, and the
/// elapsed milliseconds.
async fn play(script: &'static [&'static str]) -> (Result<usize, Failures>, u128) {
    let addresses: Vec<_> =
        (0..script.len()).map(|nth| SocketAddr::from(([10, 0, 0, nth as u8], 1))).collect();
    let of = |address: SocketAddr| addresses.iter().position(|a| *a == address).unwrap();
    let clock = Clock::start();
    let raced = race(&addresses, |address| behaves(script[of(address)])).await;
    (raced.map(|(address, ())| of(address)), clock.mono().as_millis())
}

#[tokio::test(start_paused = true)]
async fn the_first_that_answers_wins() {
    async fn check(script: &'static [&'static str], winner: usize, millis: u128) {
        let (raced, took) = play(script).await;
        assert_eq!((raced.unwrap(), took), (winner, millis), "{script:?}");
    }
    check(&["+"], 0, 0).await;
    check(&["+", "+"], 0, 0).await;
    check(&["?", "+"], 1, 250).await;
    check(&["?", "?", "?", "~"], 3, 850).await;
    check(&["-", "+"], 1, 0).await;
    check(&["-", "?", "-", "~"], 3, 350).await;
    // The first address answers before the second attempt starts.
    check(&["~", "+"], 0, 100).await;
    // This machine has no route to the first two addresses, but one to the third.
    check(&["99", "101", "+"], 2, 0).await;
}

#[tokio::test(start_paused = true)]
async fn losing_attempts_are_dropped() {
    let alive = Arc::new(());
    let addresses = all(V4);
    let raced = race(&addresses, |address| {
        let alive = Arc::clone(&alive);
        let how = if address == addresses[0] { "?" } else { "+" };
        async move {
            let answer = behaves(how).await;
            drop(alive);
            answer
        }
    });
    assert_eq!(raced.await.unwrap().0, addresses[1]);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[tokio::test(start_paused = true)]
async fn without_a_descriptor_no_further_address_is_tried() {
    let (raced, _) = play(&["24", "+"]).await;
    assert_eq!(raced.unwrap_err().len(), 1);
    let (raced, took) = play(&["~", "24"]).await;
    assert_eq!((raced.unwrap(), took), (0, 100));
}

#[test]
fn families_alternate_and_the_last_winner_comes_first() {
    let order = |addresses: &str, winner: Option<&str>| {
        let order = in_turn(&all(addresses), winner.map(at));
        order.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    let both = format!("{V6} {V4}");
    assert_eq!(order(V4, None), V4);
    assert_eq!(order(&both, None), "[fd00::1]:1 10.0.0.1:1 [fd00::2]:1 10.0.0.2:1");
    assert_eq!(order(&both, Some("10.0.0.2:1")), "10.0.0.2:1 [fd00::1]:1 10.0.0.1:1 [fd00::2]:1");
    assert_eq!(order(&both, Some("[fd00::2]:1")), "[fd00::2]:1 10.0.0.1:1 [fd00::1]:1 10.0.0.2:1");
    assert_eq!(
        order(V4, Some("10.0.0.9:1")),
        V4,
        "a winner that the name no longer has is ignored"
    );
    assert_eq!(order("10.0.0.1:1 10.0.0.1:1", None), "10.0.0.1:1");
    assert_eq!(order("", None), "");
}

#[test]
fn several_failures_are_summed_up_in_one_error() {
    fn check(codes: &[i32], has_source: bool, meaning: &str) {
        let failures = codes
            .iter()
            .map(|code| (at("10.0.0.1:1"), io::Error::from_raw_os_error(*code)))
            .collect();
        let shown = match verdict(failures, |_| has_source) {
            DialError::Shortage(shortage) => shortage.kind.name().to_owned(),
            DialError::Connect(error) => format!("{:?}", error.kind()),
            other => format!("{other:?}"),
        };
        assert_eq!(shown, meaning, "{codes:?}");
    }
    const EMFILE: i32 = 24;
    const REFUSED: i32 = 111;
    const TIMED_OUT: i32 = 110;
    const NOT_AVAILABLE: i32 = 99;
    const NET_UNREACHABLE: i32 = 101;
    check(&[REFUSED], true, "ConnectionRefused");
    check(&[REFUSED, REFUSED], true, "ConnectionRefused");
    // The address that timed out may have a listener.
    check(&[REFUSED, TIMED_OUT], true, "TimedOut");
    check(&[TIMED_OUT, REFUSED], true, "TimedOut");
    check(&[REFUSED, EMFILE], true, "descriptors");
    check(&[EMFILE, REFUSED], true, "descriptors");
    check(&[NOT_AVAILABLE], true, "ports");
    check(&[NOT_AVAILABLE, REFUSED], true, "ports");
    // This machine has no IPv6. That is no shortage of ports, and the other address decides.
    check(&[NOT_AVAILABLE, REFUSED], false, "ConnectionRefused");
    check(&[REFUSED, NET_UNREACHABLE], false, "ConnectionRefused");
    check(&[NOT_AVAILABLE], false, "AddrNotAvailable");
    check(&[], true, "NotFound");
}

#[test]
fn this_machine_can_reach_itself() {
    assert!(has_source_address(at("127.0.0.1:1")));
}

#[tokio::test]
async fn the_winner_is_tried_first_the_next_time() {
    let dialer = dialer(resolving_to(V4));
    let dead = at("10.0.0.1:1");
    for tried in [&all(V4)[..], &all("10.0.0.2:1"), &all("10.0.0.2:1")] {
        let attempted = Mutex::new(Vec::new());
        let connect = |address| {
            attempted.lock().push(address);
            behaves(if address == dead { "?" } else { "+" })
        };
        dialer.dial_with("w", 1, Duration::from_secs(10), connect).await.unwrap();
        assert_eq!(*attempted.lock(), tried);
    }
}

#[tokio::test]
async fn a_silent_resolver_is_a_shortage_of_the_router() {
    let (go, gate) = mpsc::channel::<()>();
    let gate = Mutex::new(gate);
    let dialer = dialer(Resolver::with(Clock::start(), move |_, _| {
        let _at_the_end = gate.lock().recv();
        Ok(all(V4))
    }));
    let dialed = dialer.dial_with("w", 1, Duration::from_millis(50), |_| behaves("+")).await;
    let error = dialed.unwrap_err();
    let DialError::Shortage(shortage) = error else { panic!("{error:?}") };
    assert_eq!(shortage.kind, Kind::Resolver);
    drop(go);
}

#[tokio::test]
async fn the_last_addresses_stay_in_use_while_the_resolver_fails() {
    let (answers, next) = mpsc::channel::<io::Result<Vec<SocketAddr>>>();
    let next = Mutex::new(next);
    let dialer = dialer(Resolver::with(Clock::start(), move |_, _| next.lock().recv().unwrap()));
    let second = Duration::from_secs(1);
    let failed = || io::Error::other("Temporary failure in name resolution");
    answers.send(Err(failed())).unwrap();
    let error = dialer.dial_with("w", 1, second, |_| behaves("+")).await.unwrap_err();
    assert!(matches!(error, DialError::Shortage(Shortage { kind: Kind::Resolver, .. })), "{error}");
    answers.send(Ok(all(V4))).unwrap();
    dialer.dial_with("w", 1, second, |_| behaves("+")).await.unwrap();
    answers.send(Err(failed())).unwrap();
    dialer.dial_with("w", 1, second, |_| behaves("+")).await.unwrap();
    // A name that no longer exists is an error nevertheless.
    answers.send(Err(io::Error::other("Name or service not known"))).unwrap();
    let error = dialer.dial_with("w", 1, second, |_| behaves("+")).await.unwrap_err();
    assert!(matches!(error, DialError::NoSuchName(_)), "{error}");
}

#[tokio::test]
async fn a_connection_is_counted_as_long_as_its_guard_exists() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let descriptors = Descriptors::new(Some(4));
    let clock = Clock::start();
    let shortages = Shortages::unregistered(clock);
    let dialer = Dialer::new(Resolver::system(clock), shortages, Arc::clone(&descriptors));
    let mut held = Vec::new();
    for scarce in [false, false, true] {
        held.push(dialer.dial("127.0.0.1", port, Duration::from_secs(10)).await.unwrap());
        assert_eq!(descriptors.is_scarce(), scarce);
    }
    held.pop();
    assert!(!descriptors.is_scarce());
}

#[tokio::test]
async fn a_name_that_resolves_to_a_metadata_service_is_not_connected_to() {
    let dial = async |addresses: &str| {
        let dialer = dialer(resolving_to(addresses)).within(WorkerNetworks::default());
        let connect = |address: SocketAddr| async move { Ok(address) };
        dialer.dial_with("gpu-1", 1, Duration::from_secs(10), connect).await
    };
    match dial("169.254.169.254:1 [fe80::1]:1").await {
        Err(DialError::Connect(error)) => {
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            assert!(error.to_string().contains("--allow-worker-cidr"), "{error}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(dial("169.254.169.254:1 10.0.0.1:1").await.unwrap(), at("10.0.0.1:1"));
}
