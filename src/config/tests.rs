//! Tests of every setting by flag, variable and key, of every kind of mistake, and of the printed output.

use std::ffi::OsString;
use std::io;

use smg_proxy::dispatch;
use smg_proxy::upstream;
use smg_routing::fleet;
use smg_routing::limit;
use smg_routing::policy;
use smg_routing::prefix;
use smg_runtime::telemetry;
use smg_types::now::Now;

use given::{Given, check_golden, given};

use super::*;

mod given;
mod peers;
mod places;
mod printed;
mod reread;
mod settings;
mod workers;

#[test]
fn without_arguments_the_modules_have_their_defaults() {
    let config = given().config();
    assert_eq!(config.policy, policy::Config::default());
    assert_eq!(config.prefix, prefix::Config::default());
    assert_eq!(config.fleet, fleet::Config::default());
    assert_eq!(config.upstream, upstream::Config::default());
    assert_eq!(config.dispatch, dispatch::Config::default());
    assert_eq!(config.telemetry, telemetry::Config::default());
    assert_eq!(config.limit, limit::Config { max_concurrent: None, queue_size: 100 });
    assert_eq!(config.http.listen.to_string(), "0.0.0.0:8000");
    assert_eq!(config.http.threads, 3, "one per CPU");
    assert_eq!(config.http.node_name, "router-0");
    assert!(config.workers.is_empty() && config.http.tls.is_none());
    assert!(given().warnings().is_empty());
}

#[test]
fn three_names_of_the_subcommand_run_the_router() {
    let flags = ["--port", "1234", "--policy", "random"];
    let plain = given().flags(&flags).config();
    assert_eq!(plain.http.listen.port(), 1234);
    for name in ["launch", "start"] {
        assert_eq!(given().flags(&[name]).flags(&flags).config(), plain, "{name}");
    }
}

#[test]
fn a_short_match_counts_unless_requests_are_compared() {
    for (flags, threshold) in [
        (&[][..], 0.0),
        (&["--cache-aware-by", "requests"], 0.3),
        (&["--cache-aware-by", "requests", "--cache-threshold", "0"], 0.0),
    ] {
        assert_eq!(given().flags(flags).config().policy.cache_threshold, threshold, "{flags:?}");
    }
}

#[test]
fn a_list_is_split_at_commas_blanks_and_repetitions() {
    let two = given().flags(&["--worker-urls", "http://a", "http://b"]).config();
    let urls: Vec<_> = two.workers.iter().map(|worker| worker.url.as_str()).collect();
    assert_eq!(urls, ["http://a:80", "http://b:80"]);
    let variable = |text| given().variable("SMG_WORKER_URLS", text);
    for same in [
        given().flags(&["--worker-urls", "http://a,http://b"]),
        given().flags(&["--worker-urls", "http://a http://b"]),
        given().flags(&["--worker-urls=http://a, http://b,"]),
        given().flags(&["--worker-urls", "http://a", "--worker-urls", "http://b"]),
        given().flags(&["launch", "--worker-urls", "http://a", "http://b", "--port=8000"]),
        variable("http://a,http://b"),
        variable("http://a http://b"),
        variable(" http://a ,\n http://b "),
        given().file("worker-urls = ['http://a', 'http://b']"),
        given().file("worker_urls = 'http://a,http://b'"),
        given().file("worker_urls = ['http://a http://b']"),
    ] {
        assert_eq!(same.config().workers, two.workers, "{:?} {:?}", same.arguments, same.variables);
    }
}

#[test]
fn a_reference_to_an_unset_variable_is_an_empty_list_of_workers() {
    for (arguments, urls) in [
        (&["--worker-urls=$(WORKER_URLS)"][..], &[][..]),
        (&["--worker-urls", "$(WORKER_URLS)", "http://a"], &["http://a:80"]),
        (&["--worker-urls=$(WORKER_URLS),http://a"], &["http://a:80"]),
    ] {
        let loaded = given().flags(arguments).loaded().unwrap();
        let workers: Vec<_> = loaded.config.workers.iter().map(|w| w.url.as_str()).collect();
        assert_eq!(workers, urls, "{arguments:?}");
        let [warning] = &loaded.warnings[..] else { panic!("{:?}", loaded.warnings) };
        assert!(warning.starts_with("flag --worker-urls contains $(WORKER_URLS)"), "{warning}");
    }
    for wrong in ["$(A B)", "$()", "$(A", "$A", "http://$(A)"] {
        assert!(given().flags(&["--worker-urls", wrong]).loaded().is_err(), "{wrong}");
    }
    // A list of something else must not become empty: a router without peers would be a cluster of its own.
    assert!(given().flags(&["--enable-mesh", "--mesh-peer-urls=$(PEERS)"]).loaded().is_err());
}

#[test]
fn a_worker_counts_once_however_it_is_spelt() {
    let config = given().flags(&["--worker-urls", "http://a", "HTTP://A:80/", "http://b"]).config();
    assert_eq!(config.workers.len(), 2);
}

#[test]
fn an_empty_list_in_the_file_empties_the_default() {
    assert_eq!(given().config().http.session_headers, ["x-session-id"]);
    assert!(given().file("session-header = []").config().http.session_headers.is_empty());
}

#[test]
fn yes_and_no_have_many_spellings() {
    let json = |given: Given| given.config().telemetry.json;
    assert!(json(given().flags(&["--log-json"])));
    assert!(json(given().flags(&["--log-json", "--port", "1"])));
    for yes in ["1", "true", "yes", "on", "TRUE", "On"] {
        assert!(json(given().flags(&[&format!("--log-json={yes}")])), "{yes}");
        assert!(json(given().variable("SMG_LOG_JSON", yes)), "{yes}");
        assert!(json(given().file(&format!("log-json = '{yes}'"))), "{yes}");
    }
    for no in ["0", "false", "no", "off", "False"] {
        let given = given().file("log-json = true");
        assert!(!json(given.clone().flags(&[&format!("--log-json={no}")])), "{no}");
        assert!(!json(given.variable("SMG_LOG_JSON", no)), "{no}");
    }
    assert!(json(given().file("log-json = 1")) && !json(given().file("log-json = false")));
}

#[test]
fn an_empty_variable_counts_as_unset() {
    for (name, empty) in
        [("SMG_PORT", ""), ("SMG_LOG_JSON", " "), ("SMG_API_KEY", ""), ("SMG_WORKER_URLS", "\t")]
    {
        assert_eq!(given().variable(name, empty).config(), given().config(), "{name}");
    }
}

#[test]
fn variables_of_kubernetes_are_ignored_with_a_warning() {
    let given = given()
        .variable("SMG_PORT", "tcp://10.0.0.7:80")
        .variable("SMG_SERVICE_HOST", "10.0.0.7")
        .variable("SMG_SERVICE_PORT", "80")
        .variable("SMG_PORT_80_TCP", "tcp://10.0.0.7:80")
        .variable("SMG_PROMETHEUS_PORT", "tcp://10.0.0.8:9090");
    assert_eq!(given.config().http.listen.port(), 8000);
    assert_eq!(given.config().http.metrics_listen.map(|m| m.asked_for), Some(false));
    let warnings = given.warnings();
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    for part in
        ["Kubernetes", "SMG_PORT, ", "SMG_SERVICE_HOST", "SMG_PORT_80_TCP", "SMG_PROMETHEUS_PORT"]
    {
        assert!(warnings[0].contains(part), "{warnings:?}");
    }
    // The file can set what the variable cannot.
    assert_eq!(given.file("port = 9").config().http.listen.port(), 9);
}

#[test]
fn an_unknown_variable_is_a_warning_with_the_nearest_name() {
    let given = given().variable("SMG_WORKER_URL", "http://a").variable("SMG_REVISION", "abc");
    assert_eq!(
        given.warnings(),
        ["variable SMG_WORKER_URL is unknown and ignored; did you mean SMG_WORKER_URLS?"]
    );
}

#[test]
fn the_metrics_port_records_whether_it_was_given() {
    let asked =
        |given: Given| given.config().http.metrics_listen.map(|m| (m.address.port(), m.asked_for));
    assert_eq!(asked(given()), Some((29000, false)));
    assert_eq!(asked(given().flags(&["--prometheus-port=29000"])), Some((29000, true)));
    assert_eq!(asked(given().variable("SMG_PROMETHEUS_PORT", "1")), Some((1, true)));
    assert_eq!(asked(given().file("prometheus-port = 0")), None);
}

#[test]
fn rust_log_overrides_the_level() {
    let filter = |given: Given| given.config().telemetry.filter;
    assert_eq!(filter(given().flags(&["--log-level=debug"])), "debug");
    let given = given().flags(&["--log-level=debug"]).variable("RUST_LOG", "warn,smg::http=info");
    assert_eq!(filter(given), "warn,smg::http=info");
    let errors = tests::given().variable("RUST_LOG", "smg=loud").errors();
    assert!(
        errors.starts_with("error: variable RUST_LOG:") && errors.contains("smg=loud"),
        "{errors}"
    );
}

#[test]
fn no_color_is_respected() {
    assert!(given().config().telemetry.colour);
    assert!(!given().variable("NO_COLOR", "1").config().telemetry.colour);
}

#[test]
fn all_mistakes_are_reported_together() {
    let given = given()
        .flags(&[
            "--port",
            "99999",
            "--prot",
            "1",
            "--cache-threshold=2",
            "--worker-urls",
            "a:1",
            "ftp://b",
        ])
        .flags(&["--retry-max-backoff-ms", "10", "--tls-cert-path=/absent.pem", "--nonsense"])
        .variable("SMG_QUEUE_SIZE", "many")
        .variable("SMG_LOG_JSON", "maybe")
        .variable("SMG_TENANT_API_KEY", "hunter2")
        .file(
            "worker_url = 'http://a'\npolicy = 'cache-aware'\nmax-payload-size = 'x'\nport = [1]\n\
             cb_timeout_duration_secs = 0\nhost = 2026-01-01\n\
             [[workers]]\nweight = 0\nurl = 'http://u:hunter2@a'\n[[workers]]\nulr = 'http://b'",
        );
    check_golden("tests/golden/mistakes.txt", &format!("{}\n", given.errors()));
    let (status, out, err) = given.run();
    assert_eq!((status, out.as_str()), (2, ""));
    assert_eq!(err, format!("{}\n", given.errors()));
    assert!(!err.contains("hunter2"), "a secret is shown: {err}");
}

/// Checks that there is exactly one mistake, and that its text contains all of `expected`.
#[track_caller]
fn check_mistake(given: &Given, expected: &[&str]) {
    let errors = given.errors();
    assert_eq!(errors.matches("error: ").count(), 1, "one mistake: {errors}");
    for part in expected {
        assert!(errors.contains(part), "{part:?} is not in: {errors}");
    }
}

#[test]
fn the_mistake_of_a_wrong_value_has_its_place_and_three_names() {
    let names = "(flag --port, variable SMG_PORT, key port)";
    let why = "is not a whole number from 0 to 65535";
    check_mistake(&given().flags(&["--port=x"]), &["flag --port: \"x\"", why, names]);
    check_mistake(&given().variable("SMG_PORT", "x"), &["variable SMG_PORT: \"x\"", why, names]);
    check_mistake(&given().file("port = 'x'"), &["key port in smg.toml: \"x\"", why, names]);
    check_mistake(&given().variable("SMG_PORT", "tcp//10.0.0.1"), &["tcp//10.0.0.1"]);
}

#[test]
fn the_mistake_of_an_unknown_policy_lists_the_known_ones() {
    check_mistake(
        &given().flags(&["--policy", "roundrobin"]),
        &["\"roundrobin\"", "is none of cache_aware, round_robin, ", "passthrough"],
    );
}

#[test]
fn unknown_words_are_named() {
    check_mistake(
        &given().flags(&["--worker-url", "http://a", "--port", "1"]),
        &["there is no flag --worker-url", "hint: did you mean --worker-urls?"],
    );
    check_mistake(
        &given().flags(&["--log-json", "no"]),
        &["\"no\" is not the value of a flag", "--log-json=false"],
    );
    check_mistake(&given().flags(&["--port"]), &["flag --port needs a value"]);
    check_mistake(
        &given().flags(&["--port", "1", "--port", "2"]),
        &["flag --port is given 2 times"],
    );
    check_mistake(&given().flags(&["--port="]), &["flag --port: \"\" is not a whole number"]);
    check_mistake(&given().flags(&["--worker-urls="]), &["flag --worker-urls: worker url \"\""]);
    check_mistake(
        &given().flags(&["--worker-urls", "http://a", "check-config"]),
        &["worker url \"check-config\"", "hint: a subcommand comes first: smg check-config FLAGS"],
    );
    check_mistake(
        &given().flags(&["--port", "1", "check-config"]),
        &["subcommand check-config stands after flags", "hint: it comes first"],
    );
    let (status, _, err) = given().flags(&["lunch"]).run();
    assert_eq!(status, 2);
    assert!(err.starts_with("error: unrecognized subcommand 'lunch'"), "{err}");
    assert!(err.contains("launch"), "the nearest is named: {err}");
    let (status, _, err) = given().flags(&["completions", "tcsh"]).run();
    assert_eq!(status, 2);
    assert!(err.contains("tcsh") && err.contains("bash"), "{err}");
}

#[test]
fn a_wrong_value_of_a_subcommand_is_one_mistake() {
    for (words, expected) in [
        (&["demo", "--users", "0"][..], &["'--users <N>'", "0 is not in 1..=1000"][..]),
        (&["demo", "--users=0"], &["0 is not in 1..=1000"]),
        (&["demo", "--users", "1", "--users", "2"], &["--users", "multiple times"]),
        (
            &["mesh", "status", "--router", "node1:8000"],
            &["worker url \"node1:8000\" does not begin with http:// or https://"],
        ),
        (&["mock-worker", "--port", "99999"], &["99999 is not in 0..=65535"]),
        (&["mesh", "foo", "--router", "x"], &["unrecognized subcommand 'foo'"]),
        (&["mesh"], &["a subcommand is missing", "smg mesh <COMMAND>"]),
    ] {
        let given = given().flags(words);
        check_mistake(&given, expected);
        let errors = given.errors();
        assert!(!errors.contains("--help'") && !errors.contains("Usage"), "{errors}");
    }
    let errors = given().flags(&["demo", "--users", "0", "--routers", "99", "--onec"]).errors();
    assert_eq!(errors.matches("error: ").count(), 3, "{errors}");
}

#[test]
fn a_subcommand_has_its_own_help() {
    for words in [
        &["mesh", "status", "--help"][..],
        &["mesh", "status", "-h", "--router", "x"],
        &["mesh", "help", "status"],
        &["help", "mesh", "status"],
    ] {
        let (status, out, err) = given().flags(words).run();
        assert_eq!((status, err.as_str()), (0, ""), "{words:?}");
        assert!(out.contains("Usage: smg mesh status [OPTIONS]"), "{words:?}: {out}");
        assert!(out.contains("--router <URL>"), "{words:?}: {out}");
    }
    let (_, out, _) = given().flags(&["mesh", "--help"]).run();
    assert!(out.contains("Usage: smg mesh <COMMAND>"), "{out}");
}

#[test]
fn a_file_that_cannot_be_used_is_a_mistake_with_the_reason() {
    check_mistake(
        &given().flags(&["--config", "/absent.toml"]),
        &["flag --config: \"/absent.toml\" can't be read", "variable SMG_CONFIG"],
    );
    check_mistake(&given().variable("SMG_CONFIG", "/absent.toml"), &["variable SMG_CONFIG: "]);
    let broken = given().file("port = 1\napi-key = 'hunter2");
    check_mistake(&broken, &["smg.toml:2: "]);
    assert!(!broken.errors().contains("hunter2"));
    // The mistakes that the file might cause are not reported.
    check_mistake(&broken.flags(&["--tls-cert-path=/c"]), &["smg.toml:2: "]);
    check_mistake(
        &given().file("worker-ulrs = 'http://a'"),
        &["key worker-ulrs in smg.toml is not known", "did you mean worker-urls?"],
    );
    check_mistake(
        &given().file("[routing]\npolicy = 'random'"),
        &["key routing in smg.toml is not known"],
    );
    check_mistake(&given().file("port = 1\n[host]\n"), &["key host in smg.toml is a table"]);
    check_mistake(&given().file("port = [1, 2]"), &["takes one value, not a list"]);
    check_mistake(&given().file("log-json = 1\nlog_json = 1"), &["stands there twice"]);
    check_mistake(&given().file("config = 'x'"), &["a file can't name another one"]);
    check_mistake(
        &given().file("worker-urls = [['http://a']]"),
        &["key worker-urls in smg.toml is a list"],
    );
    check_mistake(&given().file("workers = 'http://a'"), &["[[workers]]"]);
}

#[test]
fn settings_that_contradict_each_other_name_both() {
    for (flags, expected) in [
        (&["--tls-cert-path=/c"][..], "--tls-key-path is missing: --tls-cert-path is \"/c\""),
        (&["--tls-key-path=/k"], "--tls-cert-path is missing: --tls-key-path is \"/k\""),
        (&["--client-ca-path=/c"], "--tls-cert-path is missing"),
        (&["--worker-tls-cert=/c"], "--worker-tls-key is missing"),
        (&["--worker-tls-key=/c"], "--worker-tls-cert is missing"),
        (
            &["--retry-initial-backoff-ms=6000"],
            "is 5000, less than --retry-initial-backoff-ms, which is 6000",
        ),
        (&["--port=9", "--health-check-port=9"], "--health-check-port and --port are both 9"),
        (&["--port=9", "--prometheus-port=9"], "--prometheus-port and --port are both 9"),
        (&["--tenant-api-key", "a:k", "b:k"], "tenants a and b have the same key"),
        (
            &["--tenant-api-key", "a:k", "--api-key", "k"],
            "the key of tenant a is one of --api-key too",
        ),
        (&["--api-key", "j", "k", "--admin-api-key=k"], "--admin-api-key is one of --api-key too"),
        (
            &["--tenant-api-key", "a:k", "--admin-api-key=k"],
            "--admin-api-key is the key of tenant a too",
        ),
    ] {
        check_mistake(&given().flags(flags), &[expected, "variable SMG_"]);
    }
    let many: Vec<String> = (0..17).map(|n| format!("--session-header=x-{n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    check_mistake(&given().flags(&many), &["--session-header has 17 names, more than 16"]);
    // These settings do not conflict: another address, a default that is dropped, the same tenant's second key.
    given()
        .flags(&[
            "--host=127.0.0.1",
            "--port=9",
            "--prometheus-host=127.0.0.2",
            "--prometheus-port=9",
        ])
        .config();
    given().flags(&["--port=29000"]).config();
    given().flags(&["--port=0", "--health-check-port=0", "--prometheus-port=0"]).config();
    given().flags(&["--tenant-api-key", "a:k", "a:l"]).config();
}

#[test]
fn a_wrong_value_causes_no_second_mistake() {
    check_mistake(
        &given().flags(&["--retry-max-backoff-ms=x", "--retry-initial-backoff-ms=6000"]),
        &["flag --retry-max-backoff-ms: \"x\""],
    );
}

#[test]
fn mistakes_of_certificates_name_the_flag() {
    let errors = given().flags(&["--tls-cert-path=/absent/c", "--tls-key-path=/absent/k"]).errors();
    assert_eq!(errors.matches("error: ").count(), 2, "{errors}");
    assert!(errors.contains("--tls-cert-path /absent/c: can't be read"), "{errors}");
    assert!(errors.contains("key tls-key-path)"), "{errors}");
    check_mistake(
        &given().flags(&["--worker-tls-ca=/absent"]),
        &["--worker-tls-ca /absent: can't be read"],
    );
}

#[test]
fn disabling_retries_overrides_their_number() {
    let config = given().flags(&["--retry-max-retries=7", "--disable-retries"]).config();
    assert_eq!(config.dispatch.max_retries, 0);
}

#[test]
fn push_back_statuses_may_be_none_but_not_none_and_a_status() {
    let statuses = |given: Given| given.config().dispatch.push_back_statuses;
    assert_eq!(statuses(given()), [429, 503]);
    assert_eq!(statuses(given().flags(&["--push-back-statuses=529"])), [529]);
    assert_eq!(statuses(given().flags(&["--push-back-statuses=none"])), [0u16; 0]);
    let errors = given().flags(&["--push-back-statuses=none,503"]).errors();
    assert!(errors.contains("--push-back-statuses has none beside other values"), "{errors}");
}

#[test]
fn an_empty_variable_is_named_in_one_warning() {
    let given = given().variable("SMG_API_KEY", "").variable("SMG_PORT", " ").variable("SMG_X", "");
    let warnings = given.warnings();
    assert_eq!(warnings[1], "empty variables count as not set: SMG_API_KEY, SMG_PORT");
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(given.config().http.api_keys.is_empty());
}

#[cfg(unix)]
#[test]
fn a_value_that_is_not_utf_8_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt;
    let process = Process {
        arguments: Vec::new(),
        variables: [("SMG_API_KEY".to_owned(), OsString::from_vec(vec![0xff]))].into(),
        read: &|_| unreachable!("no file is named"),
        cpus: 1,
        memory: Some(8 << 30),
        host_name: "r".to_owned(),
        now: Now::default(),
    };
    let (mut out, mut err) = (Vec::new(), Vec::new());
    assert!(matches!(start(&process, &mut out, &mut err), Start::Done(2)));
    let err = String::from_utf8(err).unwrap();
    assert!(err.starts_with("error: variable SMG_API_KEY is not UTF-8"), "{err}");
}
