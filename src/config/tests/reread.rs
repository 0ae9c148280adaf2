//! Tests of the settings that SIGHUP applies, those that it refuses, and those that need a restart.

use super::*;

const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// Loads `now` on a reload, for a router that was started with `before`.
fn reread_as(before: &Given, now: &Given) -> Result<Reread, ConfigErrors> {
    let started = before.loaded().unwrap();
    now.with(|process| reread(started.settings(), process))
}

#[test]
fn keys_and_the_level_apply_at_once_and_the_rest_needs_a_restart() {
    let before = given().file("log-level = 'info'\napi-key = 'a'\npolicy = 'random'\nport = 1");
    let now = given().file(
        "log-level = 'debug'\napi-key = ['a', 'b']\nadmin-api-key = 'root'\nport = 2\n\
         [[workers]]\nurl = 'http://a'",
    );
    let reread = reread_as(&before, &now).unwrap();
    assert_eq!(reread.config.telemetry.filter, "debug");
    assert_eq!(reread.config.http.api_keys.len(), 2);
    assert!(reread.config.http.admin_api_keys.len() == 1);
    assert_eq!(reread.needs_restart, ["policy", "port", "workers"]);
    assert!(reread_as(&before, &before).unwrap().needs_restart.is_empty());
}

#[test]
fn a_flag_still_overrides_the_file() {
    let with =
        |level: &str| given().flags(&["--log-level=warn"]).file(&format!("log-level = '{level}'"));
    let reread = reread_as(&with("info"), &with("debug")).unwrap();
    assert_eq!(reread.config.telemetry.filter, "warn");
}

#[test]
fn a_mistake_refuses_the_whole_file() {
    let before = given().file("log-level = 'info'");
    for (now, expected) in [
        ("log-level = 'debug'\nport = 'x'", "key port in smg.toml: \"x\""),
        ("log-level = 'debug", "smg.toml:1: "),
        ("log-level = 'loud'", "\"loud\""),
        ("api-key = 'k'\nadmin-api-key = 'k'", "--admin-api-key is one of --api-key too"),
    ] {
        let errors = reread_as(&before, &given().file(now)).unwrap_err().to_string();
        assert!(errors.contains(expected), "{now}: {errors}");
    }
}

#[test]
fn the_keys_of_the_mesh_fail_separately() {
    let with = |keys: &str| {
        given()
            .flags(&["--enable-mesh", "--mesh-encryption-key-file=/keys"])
            .other_file("/keys", keys)
            .file("log-level = 'debug'")
    };
    let reread = reread_as(&with(KEY_1), &with(&format!("{KEY_2}\n{KEY_1}\n"))).unwrap();
    assert!(reread.mesh_keys.is_ok() && reread.needs_restart.is_empty());
    let ring = |config: &Config| config.mesh.network.as_ref().unwrap().security.keys.clone();
    assert_eq!(ring(&reread.config).ids().count(), 2);
    assert_ne!(ring(&reread.config), ring(&with(KEY_1).config()));
    for wrong in ["", "no key", &KEY_1[1..]] {
        let reread = reread_as(&with(KEY_1), &with(wrong)).unwrap();
        let errors = reread.mesh_keys.unwrap_err().to_string();
        assert!(errors.contains("/keys: "), "{wrong:?}: {errors}");
        assert_eq!(reread.config.telemetry.filter, "debug", "the rest is right");
    }
}

#[test]
fn certificates_are_not_read() {
    // They would be mistakes at a start. On a reload, the modules that use certificates read and check them.
    let with = |flags: &[&str]| given().flags(flags).file("log-level = 'debug'");
    let absent = with(&["--tls-cert-path=/absent", "--tls-key-path=/absent", "--enable-mesh"])
        .flags(&["--mesh-tls-cert=/absent", "--mesh-tls-key=/absent", "--mesh-tls-ca=/absent"]);
    let started = with(&["--enable-mesh"]).loaded().unwrap();
    let reread = absent.with(|process| reread(started.settings(), process)).unwrap();
    assert_eq!(reread.config.telemetry.filter, "debug");
}

#[test]
fn a_worker_is_rekeyed_only_if_the_rest_of_it_is_unchanged() {
    let with = |key: &str, weight: u8| {
        let tables = "[[workers]]\nurl = 'http://a'\napi-key-file = '/key'\n\
                      [[workers]]\nurl = 'http://b'\nweight = ";
        given().file(&format!("{tables}{weight}")).other_file("/key", key)
    };
    let workers = |given: Given| given.config().workers;
    let (before, now) = (workers(with("one", 1)), workers(with("two", 1)));
    let rekeyed: Vec<_> = rekeyed(&before, &now).into_iter().map(|w| w.url.as_str()).collect();
    assert_eq!(rekeyed, ["http://a:80"]);
    assert!(super::rekeyed(&before, &before).is_empty());
    let reread = reread_as(&with("one", 1), &with("two", 1)).unwrap();
    assert!(reread.needs_restart.is_empty());
    let reread = reread_as(&with("one", 1), &with("one", 2)).unwrap();
    assert_eq!(reread.needs_restart, ["workers"]);
}
