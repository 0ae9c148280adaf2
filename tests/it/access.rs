//! Tests of the keys of clients, tenants and administrators, and of where these keys must not be sent.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::support::router::Router;
use crate::support::worker::Worker;

const BODY: &[u8] = b"{\"model\":\"m\"}";
const JSON: (&str, &str) = ("content-type", "application/json");

#[tokio::test]
async fn clients_must_send_a_key_and_workers_never_receive_it() {
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
async fn without_keys_the_clients_own_credentials_are_forwarded() {
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
async fn a_valid_key_beside_a_foreign_one_is_accepted_and_only_it_is_removed() {
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

/// Each admin route, with a path that can be requested.
fn admin_routes() -> Vec<(&'static str, String)> {
    let routes = smg::http::ROUTES.iter().filter(|route| route.access == smg::http::Access::Admin);
    let path = |path: &str| path.replace("{id}", "w-0000000000000000").replace("{model}", "m");
    routes.map(|route| (route.method, path(route.path))).collect()
}

#[tokio::test]
async fn a_clients_key_allows_admin_routes_only_without_an_admin_key() {
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
async fn the_role_limits_what_an_admin_key_allows() {
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
async fn without_keys_admin_writes_are_accepted_from_this_machine_and_not_through_a_proxy() {
    let router = Router::start(&[]).await;
    let open = Router::start(&["--admin-open"]).await;
    assert!(open.log().contains("--admin-open"), "the log must warn of it");
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
async fn a_proxy_on_this_machine_that_adds_no_header_is_not_taken_for_this_machine() {
    let router = Router::start(&[]).await;
    let address = router.address();
    let own = address.to_string();
    for (version, host, wanted) in [
        // HAProxy passes the host of its client on, and adds nothing.
        ("1.1", "api.example.com", 403),
        ("1.1", "203.0.113.7:30000", 403),
        // nginx names the router itself, over HTTP/1.0.
        ("1.0", own.as_str(), 403),
        ("1.1", own.as_str(), 202),
        ("1.1", "localhost:30000", 202),
    ] {
        let worker = Worker::plain().await;
        let spec = format!("{{\"url\":\"{}\"}}", worker.url());
        let request = format!(
            "POST /workers HTTP/{version}\r\nhost: {host}\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {}\r\n\r\n{spec}",
            spec.len()
        );
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let status = format!(" {wanted} ");
        assert!(answer[..16].contains(&status), "HTTP/{version} {host}: {answer}");
    }
}

#[tokio::test]
async fn a_page_of_another_site_cannot_change_anything() {
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

/// The table of docs/security.md, generated from the routes.
fn routes_as_a_table() -> String {
    use smg::http::Access;
    let mut table = String::from(
        "| route | no key configured | client key | tenant key | admin key, role user | admin key |\n\
         |---|---|---|---|---|---|\n",
    );
    for route in smg::http::ROUTES {
        let reads = route.method == "GET";
        let columns = match route.access {
            Access::Public => ["yes"; 5],
            Access::Client => ["yes", "yes", "yes", "no", "no"],
            Access::Reader => ["yes"; 5],
            Access::Admin if reads => ["yes", "if no admin key is set", "no", "yes", "yes"],
            Access::Inspect => ["yes", "if no admin key is set", "no", "yes", "yes"],
            Access::Admin => ["here", "if no admin key is set", "no", "no", "yes"],
            Access::Operator => ["here", "no", "no", if reads { "yes" } else { "no" }, "yes"],
        };
        let columns = columns.join(" | ");
        table.push_str(&format!("| `{} {}` | {columns} |\n", route.method, route.path));
    }
    table
}

#[tokio::test]
async fn the_documented_table_of_routes_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/security.md");
    let text = std::fs::read_to_string(path).unwrap();
    let (head, rest) = text.split_once("<!-- routes: begin -->\n").unwrap();
    let (documented, tail) = rest.split_once("<!-- routes: end -->").unwrap();
    let table = routes_as_a_table();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        let whole = format!("{head}<!-- routes: begin -->\n{table}<!-- routes: end -->{tail}");
        std::fs::write(path, whole).unwrap();
    } else {
        assert_eq!(documented, table, "UPDATE_EXPECT=1 cargo test --test it access writes it");
    }
}

/// Requests each route of the table with each kind of key, and compares the result with the table.
#[tokio::test]
async fn routes_allow_the_keys_that_the_table_lists() {
    let worker = Worker::plain().await;
    let flags = [
        "--api-key",
        "client",
        "--tenant-api-key",
        "t:tenant",
        "--admin-api-key",
        "1:a:admin:admin,2:b:user:user",
    ];
    let router = Router::before(&[worker.url()], &flags).await;
    for line in routes_as_a_table().lines().skip(2) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let (method, path) = cells[1].trim_matches('`').split_once(' ').unwrap();
        // These would stop the router of this test, or would never end themselves.
        if path == "/ha/shutdown" || path == "/ha/events" {
            continue;
        }
        let path = path.replace("{id}", "w-0000000000000000").replace("{model}", "m");
        for (key, expected) in ["client", "tenant", "user", "admin"].into_iter().zip(&cells[3..]) {
            let headers = [JSON, ("x-api-key", key)];
            let answer = router.send(method, &path, &headers, BODY).await;
            // `mesh_disabled` and the like mean that the key was accepted.
            let allowed = !matches!(answer.status, 401 | 403);
            assert_eq!(
                allowed,
                *expected == "yes",
                "{method} {path} with {key}: {}",
                answer.status
            );
        }
    }
}
