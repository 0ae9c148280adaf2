//! Tests of workers that are described in `[[workers]]` tables.

use std::num::NonZeroU32;
use std::time::Duration;

use smg_types::ids::ModelId;
use smg_types::spec::{HealthSpec, Pin, Secret, Weight, WorkerSpec, WorkerTls};

use super::{check_mistake, given};

#[test]
fn a_table_describes_a_worker_in_full() {
    let given = given().file(
        "[[workers]]
         url = 'https://GPU-1.example:8443/base/'
         models = ['a', 'b']
         aliases = { default = 'a', c = 'b' }
         worker-type = 'regular'
         labels = { policy = 'least_load', rack = '7' }
         region = 'eu'
         zone = 'eu-a'
         priority = -3
         weight = 2
         api_key = 'k'
         max_concurrent = 64
         [workers.tls]
         pin-sha256 = 'sha256//AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA='
         [workers.health]
         endpoint = '/ok'
         interval_secs = 2.5
         timeout_secs = 1
         failure_threshold = 4
         success-threshold = 5
         disabled = true",
    );
    let expected = WorkerSpec {
        models: vec![ModelId::from("a"), ModelId::from("b")],
        aliases: [("default".into(), "a".into()), ("c".into(), "b".into())].into(),
        labels: [("policy", "least_load"), ("rack", "7")]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
        region: Some("eu".to_owned()),
        zone: Some("eu-a".to_owned()),
        priority: -3,
        weight: Weight::try_from(2).unwrap(),
        api_key: Some(Secret::new("k")),
        tls: WorkerTls::Pins(vec![Pin([0; 32])]),
        health: HealthSpec {
            endpoint: Some("/ok".to_owned()),
            interval: Some(Duration::from_millis(2500)),
            timeout: Some(Duration::from_secs(1)),
            failure_threshold: NonZeroU32::new(4),
            success_threshold: NonZeroU32::new(5),
            disabled: true,
        },
        max_concurrent: NonZeroU32::new(64),
        ..WorkerSpec::new("https://gpu-1.example:8443/base".parse().unwrap())
    };
    assert_eq!(given.config().workers, [expected]);
}

#[test]
fn a_url_is_enough() {
    let given = given().file("[[workers]]\nurl = 'http://a'");
    assert_eq!(given.config().workers, [WorkerSpec::new("http://a".parse().unwrap())]);
}

#[test]
fn a_key_comes_from_the_table_a_file_or_a_variable() {
    let key = |line: &str| {
        let given = given()
            .flags(&["--worker-api-key", "of-all"])
            .variable("GPU_KEY", "of-variable")
            .other_file("/run/key", "of-file\n")
            .file(&format!("[[workers]]\nurl = 'http://a'\n{line}"));
        given.config().workers[0].api_key.as_ref().map(|key| key.expose().to_owned())
    };
    assert_eq!(key("").as_deref(), Some("of-all"));
    assert_eq!(key("api_key = 'own'").as_deref(), Some("own"));
    assert_eq!(key("api_key_file = '/run/key'").as_deref(), Some("of-file"));
    assert_eq!(key("api-key-env = 'GPU_KEY'").as_deref(), Some("of-variable"));
}

#[test]
fn the_table_overrides_the_same_worker_in_the_list() {
    let given = given()
        .flags(&["--worker-urls", "http://a", "http://b"])
        .file("[[workers]]\nurl = 'http://b:80/'\nweight = 5");
    let workers = given.config().workers;
    let found: Vec<_> = workers.iter().map(|w| (w.url.as_str(), w.weight.get())).collect();
    assert_eq!(found, [("http://b:80", 5), ("http://a:80", 1)]);
}

#[test]
fn every_mistake_of_a_worker_names_its_key() {
    for (line, expected) in [
        (
            "weight = 0",
            &["workers[0].weight in smg.toml: \"0\" is not a whole number from 1 to 1000"][..],
        ),
        ("wieght = 1", &["workers[0].wieght in smg.toml: is not known", "did you mean weight?"]),
        ("weight = [1]", &["workers[0].weight", "is a list"]),
        ("worker_type = 'both'", &["workers[0].worker_type", "\"both\" is refused, only regular"]),
        (
            "worker_type = 'prefill'",
            &[
                "workers[0].worker_type in smg.toml: \"prefill\" is refused",
                "disaggregated prefill is not supported yet",
            ],
        ),
        ("worker-type = 'decode'", &["workers[0].worker_type", "\"decode\"", "not supported yet"]),
        ("worker_type = 'regular'\nworker-type = 'regular'", &["stands there twice"]),
        ("models = ['']", &["workers[0].models", "\"\" is not a model's name"]),
        ("models = [1]\naliases = { a = 'b' }", &["workers[0].aliases.a", "\"b\" is not among"]),
        ("models = ['a']\naliases = { a = 'a' }", &["is a model that the worker serves"]),
        ("aliases = 'a'", &["workers[0].aliases", "is not a table"]),
        ("labels = { policy = 'best' }", &["workers[0].labels.policy", "\"best\" is no policy"]),
        ("labels = { 'a b' = 'c' }", &["\"a b\" is not a label's name"]),
        ("region = ''", &["workers[0].region", "is empty"]),
        ("priority = 9999999", &["workers[0].priority", "-1000000 to 1000000"]),
        (
            "bootstrap_port = 8998",
            &["workers[0].bootstrap_port in smg.toml: \"8998\" is refused", "not supported yet"],
        ),
        ("max_concurrent = 0", &["workers[0].max_concurrent", "from 1 to 1000000"]),
        ("health = { interval_secs = 0 }", &["workers[0].health.interval_secs", "0.001"]),
        (
            "health = { intervall_secs = 1 }",
            &["workers[0].health.intervall_secs", "mean interval_secs?"],
        ),
        ("health = { endpoint = 'health' }", &["workers[0].health.endpoint", "begins with /"]),
        ("health = true", &["workers[0].health", "is not a table"]),
        ("api_key = ''", &["workers[0].api_key", "is empty"]),
        (
            "api_key = 'k'\napi_key_env = 'GPU_KEY'",
            &["api_key_env", "and api_key exclude each other"],
        ),
        ("api_key_file = '/absent'", &["workers[0].api_key_file", "\"/absent\" can't be read"]),
        ("api_key_file = '/run/bad'", &["names a file whose text has a character"]),
        ("api_key_env = 'ABSENT'", &["\"ABSENT\" names a variable that is not set"]),
    ] {
        let given = given()
            .variable("GPU_KEY", "k")
            .other_file("/run/bad", "hunter two")
            .file(&format!("[[workers]]\nurl = 'http://a'\n{line}"));
        check_mistake(&given, expected);
        assert!(!given.errors().contains("hunter"));
    }
    check_mistake(&given().file("[[workers]]\nweight = 1"), &["workers[0].url", "is missing"]);
    check_mistake(
        &given().file("[[workers]]\nurl = 'http://a'\n[[workers]]\nurl = 'http://A:80'"),
        &["workers[1].url", "worker http://a:80 is described by workers[0] already"],
    );
    let secret = given().file("[[workers]]\nurl = 'http://a'\napi_key = 'hunter two'");
    check_mistake(&secret, &["workers[0].api_key", "not visible ASCII"]);
    assert!(!secret.errors().contains("hunter"));
}
