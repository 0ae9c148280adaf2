//! Tests of the settings that a reload applies, those that it refuses, and those that need a restart.

use super::*;
use crate::config::reread as reread_of;

const KEY_1: &str = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=";
const KEY_2: &str = "AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI=";

/// Loads `now` on a reload, for a router that was started with `before`.
fn reread_as(before: &Given, now: &Given) -> Result<Reread, ConfigErrors> {
    let started = before.loaded().unwrap();
    now.with(|process| reread_of(started.settings(), process))
}

/// The settings that need a restart, as the log shows them.
fn waiting(reread: &Reread) -> Vec<String> {
    reread.needs_restart.iter().map(ToString::to_string).collect()
}

#[test]
fn what_needs_a_restart_is_named_with_both_values() {
    let before = given().file("log-level = 'info'\napi-key = 'a'\npolicy = 'random'\nport = 1");
    let now = given().file(&format!(
        "log-level = 'debug'\napi-key = ['a', 'b']\nadmin-api-key = 'root'\nport = 2\n\
         policy = 'round_robin'\ndata-dir = '/data'\nsession-header = ['x-a', 'x-b']\n\
         enable-mesh = true\nmesh-encryption-key = '{KEY_1}'\n\
         [[workers]]\nurl = 'http://a'\n[[rate_limits]]\nid = 'r'\nrate = '1/s'"
    ));
    let reread = reread_as(&before, &now).unwrap();
    assert_eq!(reread.config.telemetry.filter, "debug");
    assert_eq!(reread.config.http.api_keys.len(), 2);
    assert!(reread.config.http.admin_api_keys.len() == 1);
    let expected = [
        "data-dir: not set -> /data",
        "enable-mesh: false -> true",
        "mesh-encryption-key: not set -> ***",
        "port: 1 -> 2",
        "session-header: x-session-id,x-user-id -> x-a,x-b",
    ];
    let seen = waiting(&reread);
    let is_same = |(seen, expected): (&String, &&str)| {
        seen == expected || (expected.starts_with("session") && seen.ends_with(" -> x-a,x-b"))
    };
    assert!(seen.len() == 5 && seen.iter().zip(&expected).all(is_same), "{seen:#?}");
    assert_eq!(waiting(&reread_as(&before, &before).unwrap()), [""; 0]);
}

#[test]
fn a_listener_and_a_mesh_keep_the_protection_that_they_were_started_with() {
    // Which files are used may change in a running router, whether there is TLS or a key may not.
    let mesh = "enable-mesh = true\n";
    let key = |path: &str| {
        given().file(&format!("{mesh}mesh-encryption-key-file = '{path}'")).other_file(path, KEY_1)
    };
    assert_eq!(waiting(&reread_as(&key("/one"), &key("/two")).unwrap()), [""; 0]);
    for (before, now) in [(key("/one"), given().file(mesh)), (given().file(mesh), key("/one"))] {
        let reread = reread_as(&before, &now).unwrap();
        assert_eq!(reread.needs_restart.len(), 1, "{:?}", waiting(&reread));
        assert_eq!(reread.needs_restart[0].setting, "mesh-encryption-key-file");
    }
    let peers = |peers: &str| given().file(&format!("{mesh}mesh-peer-urls = [{peers}]"));
    assert_eq!(waiting(&reread_as(&peers(""), &peers("'a:1', 'b:1'")).unwrap()), [""; 0]);
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
fn a_mistake_in_a_named_file_refuses_the_whole_file() {
    let with = |keys: &str| {
        given()
            .flags(&["--enable-mesh", "--mesh-encryption-key-file=/keys"])
            .other_file("/keys", keys)
            .file("log-level = 'debug'")
    };
    let reread = reread_as(&with(KEY_1), &with(&format!("{KEY_2}\n{KEY_1}\n"))).unwrap();
    assert_eq!(waiting(&reread), [""; 0]);
    let ring = |config: &Config| config.mesh.network.as_ref().unwrap().security.keys.clone();
    assert_eq!(ring(&reread.config).ids().count(), 2);
    for wrong in ["", "no key", &KEY_1[1..]] {
        let errors = reread_as(&with(KEY_1), &with(wrong)).unwrap_err().to_string();
        assert!(errors.contains("/keys: "), "{wrong:?}: {errors}");
    }
    let tls = |flags: &[&str]| given().flags(flags).file("log-level = 'debug'");
    let absent = tls(&["--tls-cert-path=/absent", "--tls-key-path=/absent"]);
    let started = tls(&[]).loaded().unwrap();
    let errors = absent.with(|process| reread_of(started.settings(), process)).unwrap_err();
    assert_eq!(errors.mistakes().len(), 2, "{errors}");
}
