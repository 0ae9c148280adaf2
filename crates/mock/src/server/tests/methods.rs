//! Tests of the endpoints that SDKs use besides generated text: sound, edited images, moderations, counted tokens, and
//! stored responses.

use super::*;

/// A form with a file under `name` and the fields that follow.
fn form(name: &str, fields: &[(&str, &str)]) -> String {
    let disposition = "content-disposition: form-data;";
    let mut form = format!("--B\r\n{disposition} name=\"{name}\"; filename=\"a\"\r\n\r\nbytes\r\n");
    for (field, value) in fields {
        form.push_str(&format!("--B\r\n{disposition} name=\"{field}\"\r\n\r\n{value}\r\n"));
    }
    form + "--B--\r\n"
}

impl Serving {
    async fn upload(&self, target: &str, form: &str) -> (u16, Value) {
        let mut connection = Connection::open(self.address).await.unwrap();
        let upload = String::from_utf8(request("POST", target, "mock", "", form.as_bytes()));
        let upload = upload.unwrap().replace("application/json", "multipart/form-data; boundary=B");
        let mut answer = Vec::new();
        let (head, _) = connection
            .exchange(upload.as_bytes(), |piece| answer.extend_from_slice(piece))
            .await
            .unwrap();
        (head.status, serde_json::from_slice(&answer).unwrap())
    }

    async fn json(&self, method: &str, target: &str) -> (u16, Value) {
        let (status, answer) = self.exchange(method, target, "", b"").await.unwrap();
        (status, serde_json::from_slice(&answer).unwrap())
    }
}

#[tokio::test]
async fn forms_and_sound_are_answered() {
    let mock = serving(Config::default()).await;
    let (status, answer) = mock.upload("/v1/audio/translations", &form("file", &[])).await;
    assert_eq!(status, 200, "{answer}");
    assert!(answer["text"].as_str().unwrap().starts_with("w0 w1 "), "{answer}");
    for path in ["/v1/images/edits", "/v1/images/variations"] {
        for name in ["image", "image[]"] {
            let (status, answer) = mock.upload(path, &form(name, &[("n", "2")])).await;
            assert_eq!((status, answer["data"].as_array().map(Vec::len)), (200, Some(2)), "{path}");
        }
        let (status, answer) = mock.upload(path, &form("prompt", &[])).await;
        assert_eq!(status, 400, "{answer}");
        let (status, answer) = mock.upload(path, &form("image", &[("n", "many")])).await;
        assert_eq!(status, 400, "{answer}");
        let (status, _) = mock.upload(path, &form("image", &[("model", "none")])).await;
        assert_eq!(status, 404, "{path}");
    }
    let asked = json!({ "input": "twelve bytes", "voice": "alloy" }).to_string();
    let said = mock.exchange("POST", "/v1/audio/speech", "", asked.as_bytes()).await.unwrap();
    assert_eq!(said, (200, b"twelve bytes".to_vec()));
    assert_eq!(mock.post("/v1/audio/speech", &json!({})).await.0, 400);
}

#[tokio::test]
async fn each_moderated_input_has_its_own_result() {
    let mock = serving(Config::default()).await;
    let asked = async |input: Value| {
        mock.post("/v1/moderations", &json!({ "input": input })).await.1["results"].clone()
    };
    let inputs: Vec<String> = (0..16).map(|number| format!("input {number}")).collect();
    let all = asked(json!(inputs)).await;
    for (index, input) in inputs.iter().enumerate() {
        assert_eq!(asked(json!(input)).await[0], all[index]);
    }
    let flagged = |flagged: bool| all.as_array().unwrap().iter().any(|r| r["flagged"] == flagged);
    assert!(flagged(true) && flagged(false), "{all}");
}

#[tokio::test]
async fn counting_tokens_gives_the_number_that_a_message_uses_and_caches_nothing() {
    let mock = serving(Config::default()).await;
    let body = json!({ "model": "mock-model", "system": "s", "max_tokens": 1, "messages": [{ "role": "user",
        "content": "a longer text, so that it fills several blocks of the prefix cache ".repeat(20) }] });
    let counted = mock.post("/v1/messages/count_tokens", &body).await.1;
    assert_eq!(mock.worker.stats().cache_blocks, 0);
    let usage = mock.post("/v1/messages", &body).await.1["usage"].clone();
    assert_eq!(
        (&counted["input_tokens"], &usage["cache_read_input_tokens"]),
        (&usage["input_tokens"], &json!(0))
    );
}

#[tokio::test]
async fn a_response_is_stored_until_it_is_deleted() {
    let mock = serving(Config::default()).await;
    let body = json!({ "model": "mock-model", "input": "hello", "max_output_tokens": 3 });
    let (_, made) = mock.post("/v1/responses", &body).await;
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    assert_eq!(mock.json("GET", &path).await, (200, made.clone()));
    assert_eq!(mock.json("POST", &format!("{path}/cancel")).await.0, 400, "it is complete");
    let (status, deleted) = mock.json("DELETE", &path).await;
    assert_eq!((status, &deleted["id"], &deleted["deleted"]), (200, &made["id"], &json!(true)));
    for (method, path) in [("GET", path.clone()), ("DELETE", path.clone())] {
        assert_eq!(mock.json(method, &path).await.0, 404, "{method}");
    }
    assert_eq!(mock.json("POST", &path).await.0, 405);

    let (events, _) = mock.stream("/v1/responses", body.clone()).await;
    let streamed = events.last().unwrap()["response"].clone();
    let path = format!("/v1/responses/{}", streamed["id"].as_str().unwrap());
    assert_eq!(mock.json("GET", &path).await, (200, streamed));

    let mut body = body;
    body["store"] = json!(false);
    let (_, made) = mock.post("/v1/responses", &body).await;
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    assert_eq!(mock.json("GET", &path).await.0, 404, "it was not to be stored");
}

#[tokio::test]
async fn a_response_in_the_background_is_in_progress_until_it_is_complete_or_cancelled() {
    let mock = serving(Config::default()).await;
    let body = json!({ "model": "mock-model", "input": "hello", "background": true });
    let make = async |body: &Value| {
        let (status, made) = mock.post("/v1/responses", body).await;
        assert_eq!((status, &made["status"]), (200, &json!("queued")), "{made}");
        format!("/v1/responses/{}", made["id"].as_str().unwrap())
    };
    let quick = make(&body).await;
    let (_, read) = mock.json("GET", &quick).await;
    assert_eq!(read["status"], "completed");
    assert!(read["output"][0]["content"][0]["text"].as_str().unwrap().starts_with("w0 w1 "));

    let mut stalled = body.clone();
    stalled["mock"] = json!({ "stall_after_chunks": 0 });
    let stalled = make(&stalled).await;
    assert_eq!(mock.json("GET", &stalled).await.1["status"], "in_progress");
    let (status, cancelled) = mock.json("POST", &format!("{stalled}/cancel")).await;
    assert_eq!((status, &cancelled["status"]), (200, &json!("cancelled")));
    assert_eq!(mock.json("GET", &stalled).await.1["status"], "cancelled");

    let mut unstored = body;
    unstored["store"] = json!(false);
    assert_eq!(mock.post("/v1/responses", &unstored).await.0, 400);
}

#[tokio::test]
async fn workers_give_responses_different_ids_and_keep_a_bounded_number() {
    let (one, other) = (serving(Config::default()).await, serving(Config::default()).await);
    let body = json!({ "model": "mock-model", "input": "hello", "max_output_tokens": 1 });
    let mut ids = std::collections::BTreeSet::new();
    for mock in [&one, &other] {
        for _ in 0..300 {
            let (_, made) = mock.post("/v1/responses", &body).await;
            ids.insert(made["id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(ids.len(), 600);
    let mut kept = 0;
    for id in &ids {
        for mock in [&one, &other] {
            kept += usize::from(mock.json("GET", &format!("/v1/responses/{id}")).await.0 == 200);
        }
    }
    assert_eq!(kept, 2 * 256, "the oldest are forgotten");
}
