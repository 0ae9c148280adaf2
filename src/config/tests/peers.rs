//! Tests for users of other routers: each flag and variable of those has its effect or its message, and their
//! documented launch commands are parsed word for word.

use std::collections::BTreeSet;

use super::settings::Files;
use super::{check_golden, given};
use crate::cli;
use crate::config::migrating;
use crate::config::peers::{self, Here, METRICS, PeerFlag, ROUTERS, Takes, VARIABLES};

/// The flags of the programs, as lines of `router flag`: first those of their help, then those of their documentation
/// only.
const FLAGS: &str = include_str!("../../../tests/golden/peer-flags.txt");

fn words_for(flag: &PeerFlag, value: &str) -> Vec<String> {
    let mut words = vec![flag.flag.to_owned()];
    if flag.takes != Takes::Nothing {
        words.push(value.to_owned());
    }
    words
}

fn with(words: &[String]) -> super::Given {
    given().flags(&words.iter().map(String::as_str).collect::<Vec<_>>())
}

#[test]
fn the_table_has_every_flag_of_every_router() {
    let theirs: BTreeSet<&str> =
        FLAGS.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let mut ours = BTreeSet::new();
    for (router, name) in ROUTERS {
        for flag in peers::flags().filter(|flag| flag.routers.contains(router)) {
            assert!(ours.insert(format!("{name} {}", flag.flag)), "{} stands twice", flag.flag);
        }
    }
    let ours: BTreeSet<&str> = ours.iter().map(String::as_str).collect();
    assert_eq!(
        theirs.difference(&ours).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "not in the table"
    );
    assert_eq!(
        ours.difference(&theirs).collect::<Vec<_>>(),
        Vec::<&&str>::new(),
        "not in the list"
    );
    assert!(theirs.len() > 384, "the three programs take 384 flags by their help");
}

#[test]
fn a_flag_marked_as_the_same_is_a_flag_here() {
    let command = cli::command();
    let ours: BTreeSet<&str> =
        command.get_arguments().filter_map(clap::Arg::get_long).chain(["help"]).collect();
    for flag in peers::flags() {
        assert_eq!(
            ours.contains(flag.name()),
            flag.is_ours(),
            "{} is in the table as {:?}",
            flag.flag,
            flag.here
        );
        if let Here::Alias { of, .. } = flag.here {
            assert!(ours.contains(of), "{} is named as another name of --{of}", flag.flag);
        }
    }
}

#[test]
fn every_flag_has_its_effect_or_its_message() {
    let plain = given().config();
    for flag in peers::flags() {
        let routers = flag.routers.names();
        let one_line = |words: &[String], expected: &str| {
            let errors = with(words).errors();
            assert_eq!(errors.lines().count(), 1, "{words:?}: {errors}");
            assert!(
                errors.starts_with(&format!("error: flag {} of {routers}", flag.flag)),
                "{errors}"
            );
            assert!(errors.ends_with(expected), "{words:?}: {errors}");
        };
        let changes_nothing = |words: &[String], expected: &str| {
            let given = with(words);
            assert_eq!(given.config(), plain, "{words:?}");
            let line = format!("flag {} of {routers} changes nothing: {expected}", flag.flag);
            assert_eq!(given.warnings(), [line]);
        };
        match flag.here {
            // The tests in `settings` check their effect.
            Here::Same { .. } | Here::Alias { .. } => {}
            Here::Refused(why) => {
                one_line(&words_for(flag, "x"), why);
                one_line(&[flag.flag.to_owned()], why);
                one_line(&[words_for(flag, "-1"), words_for(flag, "x")].concat(), why);
                if flag.takes == Takes::Many {
                    one_line(&[words_for(flag, "x"), vec!["y".to_owned()]].concat(), why);
                }
            }
            Here::Always(why) => changes_nothing(&words_for(flag, "7"), why),
            Here::Only(values, why) => {
                for value in values {
                    changes_nothing(&words_for(flag, value), why);
                }
                one_line(&words_for(flag, "another"), why);
            }
        }
    }
}

#[test]
fn everything_wrong_on_a_command_line_is_reported_together() {
    let given = given()
        .flags(&["launch", "--pd-disaggregation", "--prefill", "http://p1:30001", "9001"])
        .flags(&["--prefill", "http://p2:30002", "none", "--decode", "http://d:30011"])
        .flags(&["--policy", "kv_aware", "--prot", "1", "--enable-igw", "--log-dir=/var/log"])
        .flags(&["--worker-urls", "grpc://w:1", "http://w:8000@0", "--ca-cert-paths", ""]);
    let (status, out, err) = given.run();
    assert_eq!((status, out.as_str()), (2, ""));
    check_golden("tests/golden/peer-mistakes.txt", &err);
    let checked = super::Given {
        arguments: [&["check-config".to_owned()], &given.arguments[1..]].concat(),
        ..given
    };
    assert_eq!(checked.run(), (2, String::new(), err), "check-config prints the same");
}

#[test]
fn check_config_warns_of_an_accepted_flag_without_effect() {
    let (status, out, err) = given()
        .flags(&["check-config", "--enable-igw", "--max-idle-secs", "77", "--log-level", "warning"])
        .run();
    assert_eq!(status, 0, "{err}");
    assert!(out.contains("session-ttl-secs = 77  # by --max-idle-secs\n"), "{out}");
    assert!(out.contains("log-level = \"warning\"  # by --log-level\n"), "{out}");
    assert!(
        err.starts_with("warning: flag --enable-igw of smg, sglang-router and vllm-router "),
        "{err}"
    );
    assert_eq!(err.lines().count(), 1, "{err}");
    assert_eq!(
        given().file(&out).config(),
        given().flags(&["--session-ttl-secs=77", "--log-level=warn"]).config()
    );
}

#[test]
fn a_setting_may_be_given_by_only_one_of_its_names() {
    for (flags, expected) in [
        (
            &["--session-ttl-secs=1", "--max-idle-secs=2"][..],
            "flag --session-ttl-secs and flag --max-idle-secs are the same setting",
        ),
        (
            &["--max-idle-secs=1", "--sticky-key-idle-secs=1"],
            "flag --max-idle-secs and flag --sticky-key-idle-secs are the same setting",
        ),
        (&["--max-idle-secs=1", "--max-idle-secs=2"], "flag --max-idle-secs is given 2 times"),
        (&["--max-idle-secs=x"], "flag --max-idle-secs: \"x\" is not a number of seconds"),
        (&["--max-idle-secs"], "flag --max-idle-secs needs a value"),
        (&["--upstream-pool-idle-timeout-secs=0"], "0 keeps connections for ever in smg"),
        (&["--ca-cert-path", "/a", "--ca-cert-path", "/b"], "flag --ca-cert-path is given 2 times"),
    ] {
        let errors = given().flags(flags).errors();
        assert!(errors.contains(expected), "{flags:?}: {errors}");
        assert_eq!(errors.matches("error: ").count(), 1, "{errors}");
    }
}

#[test]
fn policies_and_levels_may_have_their_names_of_other_routers() {
    for (theirs, ours) in [
        ("--policy=consistent_hash", "--policy=consistent_hashing"),
        ("--policy=rendezvous_hash", "--policy=consistent_hashing"),
        ("--log-level=warning", "--log-level=warn"),
        ("--log-level=critical", "--log-level=error"),
    ] {
        assert_eq!(given().flags(&[theirs]).config(), given().flags(&[ours]).config(), "{theirs}");
        let (flag, value) = theirs.trim_start_matches("--").split_once('=').unwrap();
        let by_file = given().file(&format!("{flag} = '{value}'"));
        assert_eq!(by_file.config(), given().flags(&[ours]).config(), "{theirs} by the file");
    }
    for (value, hint) in
        [("kv_aware", "hint: cache_aware"), ("sticky_least_loaded", "hint: manual")]
    {
        let errors = given().flags(&["--policy", value]).errors();
        assert!(errors.contains(hint), "{errors}");
    }
}

#[test]
fn keys_of_the_control_plane_are_keys_of_administrators() {
    let theirs = given().flags(&[
        "--control-plane-api-keys",
        "key1:Service Account:admin:secret123",
        "key2:Read Only, please:user:secret456",
    ]);
    let ours = given().flags(&["--admin-api-key=key1:a:admin:secret123,key2:b:user:secret456"]);
    assert_eq!(theirs.config().http.admin_api_keys, ours.config().http.admin_api_keys);
    assert_eq!(theirs.config().http.admin_api_keys.len(), 2);
}

#[test]
fn a_subcommand_that_starts_engines_is_one_mistake() {
    for name in ["serve", "server"] {
        for rest in
            [&[][..], &["--model-path", "m", "--data-parallel-size", "2"], &["--help"], &["-x"]]
        {
            let (status, out, err) = given().flags(&[name]).flags(rest).run();
            assert_eq!((status, out.as_str()), (2, ""), "{name} {rest:?}");
            assert_eq!(err.lines().count(), 1, "{err}");
            assert!(err.starts_with(&format!("error: subcommand {name} of ")), "{err}");
        }
    }
}

#[test]
fn keys_and_variables_named_for_their_flags_get_a_hint() {
    for (key, expected) in [
        (
            "client-cert-path",
            "named for --client-cert-path of smg and sglang-router: write worker-tls-cert",
        ),
        (
            "client_cert_path",
            "named for --client-cert-path of smg and sglang-router: write worker-tls-cert",
        ),
        ("enable-igw", "which changes nothing: several models"),
        ("history-backend", "responses and conversations are not stored here"),
        ("prefill", "disaggregation is not supported"),
    ] {
        let errors = given().file(&format!("{key} = 'x'")).errors();
        assert!(
            errors.starts_with(&format!("error: key {key} in smg.toml is {expected}"))
                || errors.contains(expected),
            "{errors}"
        );
        assert_eq!(errors.lines().count(), 1, "{errors}");
        let name = format!("SMG_{}", key.to_uppercase().replace('-', "_"));
        let warnings = given().variable(&name, "x").warnings();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        let expected = expected.replace("worker-tls-cert", "SMG_WORKER_TLS_CERT");
        assert!(warnings[0].starts_with(&format!("variable {name} is ")), "{warnings:?}");
        assert!(warnings[0].contains(&expected), "{warnings:?}");
    }
}

#[test]
fn every_variable_of_another_router_causes_a_warning() {
    for variable in VARIABLES {
        let given = given().variable(variable.name, "x");
        let line = format!("variable {} is not read: {}", variable.name, variable.instead);
        let expected = if variable.is_provider_key { Vec::new() } else { vec![line.clone()] };
        assert_eq!(given.warnings(), expected, "{}", variable.name);
        let given = given.flags(&["--worker-urls", "https://api.example"]);
        assert_eq!(given.warnings(), [line], "{}", variable.name);
        let given = given.flags(&["--worker-api-key", "k"]);
        assert_eq!(given.warnings().len(), expected.len(), "{}", variable.name);
    }
    let both =
        given().variable("REDIS_URL", "redis://r").variable("POSTGRES_DB_URL", "x").warnings();
    assert_eq!(both.len(), 1, "{both:?}");
    assert!(both[0].starts_with("variables POSTGRES_DB_URL, REDIS_URL are not read: "), "{both:?}");
}

#[test]
fn a_warning_shows_no_secret() {
    let secret = "hunter2";
    for flag in peers::flags().filter(|flag| matches!(flag.here, Here::Refused(_))) {
        let errors = with(&words_for(flag, secret)).errors();
        assert!(!errors.contains(secret), "{errors}");
    }
    for variable in VARIABLES {
        let warnings = given().variable(variable.name, secret).warnings();
        assert!(!warnings.concat().contains(secret), "{warnings:?}");
    }
}

#[test]
fn the_metrics_in_the_table_exist() {
    let ours = include_str!("../../../tests/golden/metrics.txt");
    let ours: BTreeSet<&str> = ours
        .lines()
        .filter(|line| !line.starts_with(' '))
        .filter_map(|line| line.split(' ').next())
        .chain(["process_resident_memory_bytes"])
        .collect();
    for metric in METRICS {
        for name in metric.ours {
            assert!(ours.contains(name), "{name}, which shows {}, is unknown", metric.name);
        }
        assert!(!metric.ours.is_empty() || !metric.note.is_empty(), "{} has no note", metric.name);
    }
}

#[test]
fn the_page_matches_the_table() {
    check_golden("docs/migrating.md", &migrating());
}

/// The documented launch commands of other routers, each with this router's messages. Lines that begin with `$ ` are
/// theirs.
#[test]
fn their_launch_commands_start_or_are_refused_with_reasons() {
    let files = Files::new();
    let text = include_str!("../../../tests/golden/peer-commands.txt");
    let mut page = String::new();
    let mut commands = 0;
    for line in text.lines().filter(|line| line.starts_with("# ") || line.starts_with("$ ")) {
        if let Some(command) = line.strip_prefix("$ ") {
            commands += 1;
            page.push_str(&format!("\n{line}\n{}", messages_for(command, &files)));
        } else {
            page.push_str(&format!("{}{line}\n", if page.is_empty() { "" } else { "\n" }));
        }
    }
    assert!(commands >= 40, "{commands} commands");
    check_golden("tests/golden/peer-commands.txt", &page);
}

/// The router's messages for a documented command: `starts` with its warnings, or all mistakes.
fn messages_for(command: &str, files: &Files) -> String {
    // Paths that the documentation uses are replaced by paths of this test.
    let words: Vec<String> = arguments(command)
        .iter()
        .map(|word| match word.rsplit('.').next() {
            Some("crt") => files.path("CERT"),
            Some("key") if word.contains('/') => files.path("KEY"),
            Some(_) | None => word.clone(),
        })
        .collect();
    let given = with(&words);
    let lines: Vec<String> = match given.loaded() {
        Ok(loaded) => {
            let notes = loaded.warnings.into_iter().map(|note| format!("warning: {note}"));
            ["starts".to_owned()].into_iter().chain(notes).collect()
        }
        Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
    };
    let refused: BTreeSet<&str> = words
        .iter()
        .filter_map(|word| peers::flag(word.strip_prefix("--")?.split('=').next()?))
        .filter(|flag| matches!(flag.here, Here::Refused(_)))
        .map(|flag| flag.flag)
        .collect();
    let is_refused_whole = lines[0].starts_with("error: subcommand ");
    for flag in refused.into_iter().filter(|_| !is_refused_whole) {
        let about = lines.iter().filter(|line| line.contains(&format!("flag {flag} "))).count();
        assert_eq!(about, 1, "{flag} in {command}: {lines:#?}");
    }
    for line in &lines {
        assert!(
            !line.contains("there is no flag") && !line.contains("is not the value of a flag"),
            "{line}"
        );
    }
    lines.iter().map(|line| format!("  {line}\n")).collect()
}

/// The words after the program's name in a documented command line.
fn arguments(command: &str) -> Vec<String> {
    const PROGRAMS: [&str; 14] = [
        "python -m smg.launch_router ",
        "python -m sglang_router.launch_router ",
        "python3 -m sglang_router.launch_router ",
        "python -m vllm_router.launch_router ",
        "docker run -d --name smg -p 30000:30000 -p 29000:29000 lightseekorg/smg:latest ",
        "./target/release/sgl-model-gateway ",
        "./target/release/vllm-router ",
        "cargo run --release -- ",
        "sglang-router ",
        "sgl-model-gateway ",
        "vllm-router ",
        "RUST_LOG=debug smg ",
        "RUST_LOG=smg=debug,hyper=warn smg ",
        "smg ",
    ];
    let program = PROGRAMS.iter().find(|program| command.starts_with(*program));
    let rest = &command[program.unwrap_or_else(|| panic!("no known program in {command}")).len()..];
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    for c in rest.chars() {
        match (c, quote) {
            ('"' | '\'', None) => quote = Some(c),
            (c, Some(open)) if c == open => quote = None,
            (' ', None) => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            (c, _) => word.push(c),
        }
    }
    words.extend((!word.is_empty()).then_some(word));
    words
}
