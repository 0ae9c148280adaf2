//! Keys of clients, tenants and administrators, and where they must not go.

use crate::support::router::Router;
use crate::support::worker::Worker;

const BODY: &[u8] = b"{\"model\":\"m\"}";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn clients_show_a_key_and_workers_never_see_it() {
    let worker = Worker::plain().await;
    let flags =
        ["--api-key", "one,two", "--tenant-api-key", "acme:three", "--worker-api-key", "its-own"];
    let router = Router::before(&[worker.url()], &flags).await;
    for key in ["one", "two", "three"] {
        let bearer = format!("Bearer {key}");
        for header in [("authorization", bearer.as_str()), ("x-api-key", key)] {
            let answer = router.send("POST", "/generate", &[header], BODY).await;
            assert_eq!(answer.status, 200, "{header:?}: {}", answer.text());
            let seen = worker.seen().pop().unwrap();
            assert_eq!(seen.all("authorization"), ["Bearer its-own"]);
            assert_eq!(seen.all("x-api-key"), Vec::<&str>::new());
        }
    }
    let before = worker.seen().len();
    let wrong: [&[(&str, &str)]; 4] = [
        &[],
        &[("authorization", "Bearer on")],
        &[("authorization", "Basic one")],
        &[("x-api-key", "")],
    ];
    for headers in wrong {
        for (method, path) in
            [("POST", "/generate"), ("POST", "/v1/messages"), ("GET", "/v1/models")]
        {
            let answer = router.send(method, path, headers, BODY).await;
            assert_eq!(
                (answer.status, answer.code().as_str()),
                (401, "invalid_api_key"),
                "{path} {headers:?}"
            );
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
            assert!(answer.header("x-request-id").is_some());
        }
    }
    assert_eq!(worker.seen().len(), before);
    for path in ["/liveness", "/readiness", "/health", "/metrics", "/openapi.yaml"] {
        assert_eq!(router.get(path).await.status, 200, "{path} is public");
    }
}

#[tokio::test]
async fn without_keys_the_clients_own_credentials_pass() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &[]).await;
    let headers = [("authorization", "Bearer theirs"), ("x-api-key", "theirs")];
    assert_eq!(router.send("POST", "/generate", &headers, BODY).await.status, 200);
    let seen = worker.seen().pop().unwrap();
    assert_eq!(
        (seen.all("authorization"), seen.all("x-api-key")),
        (vec!["Bearer theirs"], vec!["theirs"])
    );
}

#[tokio::test]
async fn admin_routes_need_the_admin_key() {
    let worker = Worker::plain().await;
    let flags = ["--api-key", "client", "--tenant-api-key", "t:tenant", "--admin-api-key", "admin"];
    let router = Router::before(&[worker.url()], &flags).await;
    let routes = smg::http::ROUTES.iter().filter(|route| route.access == smg::http::Access::Admin);
    for route in routes {
        let path = route.path.replace("{id}", "w-0000000000000000");
        let answer = router.send(route.method, &path, &[JSON], b"{}").await;
        assert_eq!(answer.status, 401, "{} {path}", route.method);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        let answer =
            router.send(route.method, &path, &[JSON, ("x-api-key", "client")], b"{}").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "forbidden"),
            "{} {path}",
            route.method
        );
        let answer =
            router.send(route.method, &path, &[JSON, ("x-api-key", "tenant")], b"{}").await;
        assert!(
            matches!(answer.status, 401 | 403),
            "{} {path}: a tenant got {}",
            route.method,
            answer.status
        );
        let answer = router
            .send(route.method, &path, &[JSON, ("authorization", "Bearer admin")], b"{}")
            .await;
        assert!(!matches!(answer.status, 401 | 403), "{} {path}: {}", route.method, answer.text());
    }
    let answer = router.send("POST", "/generate", &[("x-api-key", "admin")], BODY).await;
    assert_eq!(answer.status, 401, "the admin key is no client's key");
}

#[tokio::test]
async fn a_right_key_beside_a_foreign_one_is_enough_and_only_ours_is_taken() {
    let worker = Worker::plain().await;
    let router = Router::before(&[worker.url()], &["--api-key", "ours"]).await;
    let foreign = ("authorization", "Bearer foreign");
    let cases: [&[(&str, &str)]; 4] = [
        &[foreign, ("x-api-key", "ours")],
        &[("x-api-key", "foreign"), ("authorization", "Bearer  ours")],
        &[foreign, ("authorization", "Bearer ours")],
        &[("authorization", "bearer\tours ")],
    ];
    for headers in cases {
        let answer = router.send("POST", "/generate", headers, BODY).await;
        assert_eq!(answer.status, 200, "{headers:?}");
        let seen = worker.seen().pop().unwrap();
        let shown = [seen.all("authorization"), seen.all("x-api-key")].concat();
        assert!(!shown.iter().any(|value| value.contains("ours")), "{headers:?}: {shown:?}");
        let sent_foreign = headers.iter().any(|(_, value)| value.contains("foreign"));
        assert_eq!(shown.iter().any(|value| value.contains("foreign")), sent_foreign);
    }
}

/// Each admin route, with a path that can be asked for.
fn admin_routes() -> Vec<(&'static str, String)> {
    let routes = smg::http::ROUTES.iter().filter(|route| route.access == smg::http::Access::Admin);
    let path = |path: &str| path.replace("{id}", "w-0000000000000000").replace("{model}", "m");
    routes.map(|route| (route.method, path(route.path))).collect()
}

#[tokio::test]
async fn a_clients_key_opens_the_admin_surface_only_where_there_is_no_admin_key() {
    let router = Router::start(&["--api-key", "client", "--tenant-api-key", "t:tenant"]).await;
    for (method, path) in admin_routes() {
        let shows =
            async |key| router.send(method, &path, &[JSON, ("x-api-key", key)], b"{}").await.status;
        assert_eq!(router.send(method, &path, &[JSON], b"{}").await.status, 401, "{method} {path}");
        assert_eq!(shows("tenant").await, 401, "{method} {path}");
        assert!(!matches!(shows("client").await, 401 | 403), "{method} {path}");
    }
}

#[tokio::test]
async fn roles_say_what_an_admin_key_allows() {
    let router = Router::start(&["--admin-api-key", "1:Ann:admin:writes,2:Bob:user:reads"]).await;
    for (method, path) in admin_routes() {
        let shows =
            async |key| router.send(method, &path, &[JSON, ("x-api-key", key)], b"{}").await.status;
        assert!(!matches!(shows("writes").await, 401 | 403), "{method} {path}");
        let refused = shows("reads").await == 403;
        assert_eq!(refused, method != "GET", "{method} {path}");
    }
}

#[tokio::test]
async fn without_keys_admin_writes_are_for_this_machine_and_not_through_a_proxy() {
    let router = Router::start(&[]).await;
    let open = Router::start(&["--admin-open"]).await;
    assert!(open.log().contains("--admin-open"), "it is said aloud");
    for (method, path) in admin_routes() {
        let through = [JSON, ("x-forwarded-for", "10.0.0.1")];
        let status = router.send(method, &path, &through, b"{}").await.status;
        assert_eq!(status == 403, method != "GET", "{method} {path}: {status}");
        let status = router.send(method, &path, &[JSON], b"{}").await.status;
        assert!(!matches!(status, 401 | 403), "{method} {path}: {status}");
        let status = open.send(method, &path, &through, b"{}").await.status;
        assert!(!matches!(status, 401 | 403), "{method} {path}: {status}");
    }
    let through = [JSON, ("forwarded", "for=10.0.0.1")];
    assert_eq!(open.send("POST", "/ha/shutdown", &through, b"").await.status, 403);
}

#[tokio::test]
async fn a_page_of_another_site_changes_nothing() {
    let router = Router::start(&[]).await;
    let host = router.address().to_string();
    let same = format!("http://{host}");
    for (headers, wanted) in [
        (vec![("content-type", "text/plain")], 415),
        (vec![("content-type", "text/plain"), ("origin", "http://evil.test")], 403),
        (vec![JSON, ("origin", "http://evil.test")], 403),
        (vec![JSON, ("origin", "null")], 403),
        (vec![JSON, ("sec-fetch-site", "cross-site")], 403),
        (vec![JSON, ("origin", same.as_str()), ("sec-fetch-site", "same-origin")], 202),
    ] {
        let worker = Worker::plain().await;
        let spec = format!("{{\"url\":\"{}\"}}", worker.url());
        let answer = router.send("POST", "/workers", &headers, spec.as_bytes()).await;
        assert_eq!(answer.status, wanted, "{headers:?}: {}", answer.text());
    }
    let cross = [("origin", "http://evil.test")];
    assert_eq!(router.send("POST", "/ha/shutdown", &cross, b"").await.status, 403);
}
