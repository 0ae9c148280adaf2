//! Tests of what is printed instead of running a router: configurations, help, completions, documentation.

use super::*;

#[test]
fn a_checked_configuration_is_printed_and_resolves_to_itself() {
    let given = given()
        .flags(&["--port", "9000", "--worker-urls", "http://a", "http://b", "--api-key", "hunter2"])
        .flags(&["--queue-timeout-secs", "0.25", "--max-concurrent-requests=-1"])
        .variable("SMG_LOG_JSON", "on")
        .variable("SMG_BALANCE_REL_THRESHOLD", "2.25")
        .variable("SMG_TENANT_API_KEY", "t:hunter3")
        .variable("GPU_KEY", "hunter4")
        .file(
            "policy = 'random'\nsession-header = []\n\
             [[workers]]\nhealth = { interval-secs = 3 }\nurl = 'http://C/'\napi-key-env = 'GPU_KEY'\n\
             [[workers]]\nurl = 'http://d'\napi_key = 'hunter5'\nlabels = { policy = 'bucket' }\n",
        );
    let config = given.config();
    let checked = Given {
        arguments: [&["check-config".to_owned()], &given.arguments[..]].concat(),
        ..given.clone()
    };
    let (status, toml, err) = checked.run();
    assert_eq!((status, err.as_str()), (0, ""));
    assert!(!toml.contains("hunter"), "a secret is shown: {toml}");
    let debug = format!("{:?}", given.loaded().unwrap());
    assert!(debug.contains("9000") && !debug.contains("hunter"), "a secret is shown: {debug}");
    check_golden("tests/golden/check-config.toml", &toml);

    let again = tests::given().variable("GPU_KEY", "hunter4").file(&toml);
    assert_eq!(again.errors().matches("which check-config prints in place of a secret").count(), 3);
    let filled = toml
        .replace("api-key = [\"***\"]  # by --api-key, not shown", "api-key = ['hunter2']")
        .replace(
            "tenant-api-key = [\"***\"]  # by SMG_TENANT_API_KEY, not shown",
            "tenant-api-key = ['t:hunter3']",
        )
        .replace("api_key = \"***\"", "api_key = 'hunter5'");
    let again = tests::given().variable("GPU_KEY", "hunter4").file(&filled);
    assert_eq!(again.config(), config);
}

#[test]
fn the_default_configuration_is_printed_and_resolves_to_itself() {
    let (status, toml, err) = given().flags(&["check-config"]).run();
    assert_eq!((status, err.as_str()), (0, ""));
    assert_eq!(given().file(&toml).config(), given().config());
}

#[test]
fn check_config_refuses_disaggregated_workers() {
    for (line, value) in [("worker_type = 'prefill'", "prefill"), ("bootstrap_port = 1", "1")] {
        let given = given()
            .flags(&["check-config"])
            .file(&format!("[[workers]]\nurl = 'http://a'\n{line}"));
        let (status, out, err) = given.run();
        assert_eq!((status, out.as_str()), (2, ""), "{line}");
        assert!(err.contains(&format!("{value:?} is refused")), "{err}");
        assert!(err.contains("disaggregated prefill is not supported yet"), "{err}");
    }
}

#[test]
fn check_config_prints_warnings_and_mistakes() {
    let (status, out, err) = given().flags(&["check-config"]).variable("SMG_PROT", "1").run();
    assert_eq!((status, out.is_empty()), (0, false));
    assert_eq!(err, "warning: variable SMG_PROT is unknown and ignored; did you mean SMG_PORT?\n");
    let (status, out, err) = given().flags(&["check-config", "--port=x"]).run();
    assert_eq!((status, out.as_str()), (2, ""));
    assert!(err.starts_with("error: flag --port: \"x\""), "{err}");
}

#[test]
fn the_help_matches_its_golden_files() {
    let help = |flag: &str| {
        let mut command = cli::shown_command().term_width(100);
        let help = if flag == "-h" { command.render_help() } else { command.render_long_help() };
        let lines: Vec<_> =
            help.to_string().lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n") + "\n"
    };
    check_golden("tests/golden/help-short.txt", &help("-h"));
    check_golden("tests/golden/help.txt", &help("--help"));
}

#[test]
fn help_and_version_go_to_standard_output() {
    for words in [
        &["--help"][..],
        &["-h"],
        &["launch", "--help"],
        &["help", "start"],
        &["--port=x", "--help"],
    ] {
        let (status, out, err) = given().flags(words).run();
        assert_eq!((status, err.as_str()), (0, ""), "{words:?}");
        assert!(
            out.contains("--worker-urls") && out.contains("SMG_WORKER_URLS"),
            "{words:?}: {out}"
        );
    }
    let (status, out, _) = given().flags(&["--version"]).run();
    assert_eq!((status, out), (0, format!("smg {}\n", env!("CARGO_PKG_VERSION"))));
}

#[test]
fn no_help_shows_the_value_of_a_variable() {
    let command = cli::shown_command();
    assert!(
        command.get_arguments().filter(|arg| cli::variable_of(arg).is_some()).all(cli::is_secret)
    );
}

#[test]
fn completions_and_the_manual_page_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let (status, out, err) = given().flags(&["completions", shell]).run();
        assert_eq!((status, err.as_str()), (0, ""));
        assert!(out.contains("worker-urls") && out.contains("check-config"), "{shell}");
    }
    let (status, out, _) = given().flags(&["man"]).run();
    assert_eq!(status, 0);
    assert!(
        out.contains(".TH smg 1")
            && out.contains("SMG_WORKER_URLS")
            && out.contains("\\-\\-worker\\-urls"),
        "{out}"
    );
}

#[test]
fn the_documentation_matches_the_flags() {
    check_golden("docs/configuration.md", &reference());
}

#[test]
fn a_reader_that_closes_the_pipe_is_no_failure() {
    struct FailingOutput(io::ErrorKind);
    impl Write for FailingOutput {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    for (kind, status) in [(io::ErrorKind::BrokenPipe, 0), (io::ErrorKind::StorageFull, 1)] {
        given().flags(&["man"]).with(|process| {
            let done = start(process, &mut FailingOutput(kind), &mut Vec::new());
            assert!(matches!(done, Start::Done(s) if s == status), "{done:?}");
        });
        // The mistakes cannot be written; the exit status still shows that there are some.
        given().flags(&["check-config", "--port=x"]).with(|process| {
            let done = start(process, &mut Vec::new(), &mut FailingOutput(kind));
            assert!(matches!(done, Start::Done(2)), "{done:?}");
        });
    }
}
