//! Keys of clients, tenants and administrators, and where they must not go.

use crate::support::router::Router;
use crate::support::worker::Worker;

const BODY: &[u8] = b"{\"model\":\"m\"}";

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
        let answer = router.send(route.method, &path, &[], b"{}").await;
        assert_eq!(answer.status, 401, "{} {path}", route.method);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        let answer = router.send(route.method, &path, &[("x-api-key", "client")], b"{}").await;
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (403, "forbidden"),
            "{} {path}",
            route.method
        );
        let answer = router.send(route.method, &path, &[("x-api-key", "tenant")], b"{}").await;
        assert!(
            matches!(answer.status, 401 | 403),
            "{} {path}: a tenant got {}",
            route.method,
            answer.status
        );
        let answer =
            router.send(route.method, &path, &[("authorization", "Bearer admin")], b"{}").await;
        assert!(!matches!(answer.status, 401 | 403), "{} {path}: {}", route.method, answer.text());
    }
    let answer = router.send("POST", "/generate", &[("x-api-key", "admin")], BODY).await;
    assert_eq!(answer.status, 401, "the admin key is no client's key");
}
