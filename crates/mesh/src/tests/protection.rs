//! Tests of keys and certificates: routers without them are refused, and both can be changed while rows are replicated.

use std::fs;
use std::path::PathBuf;
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    date_time_ymd,
};
use smg_runtime::tls::MeshFiles;

use super::*;

const THREE: [&str; 3] = ["a", "b", "c"];

fn key(byte: u8) -> SharedKey {
    SharedKey::new([byte; 32])
}

fn sealed(mode: Mode, keys: &[u8]) -> Plan {
    let keys = Ring::new(keys.iter().copied().map(key)).unwrap();
    Plan::secured(SecurityConfig { tls: None, mode, keys })
}

/// Asserts that `name` stays alone for some time while the others are one cluster.
fn stays_out(world: &mut World, name: &'static str) {
    world.until(SECOND, "the router runs", |w| w.routers.borrow().contains_key(name));
    world.write(name, [900]);
    world.run_for(SECOND * 5);
    assert_eq!(world.state_at("a", name), None, "{}", world.picture());
    assert!(!world.view(name).has_others());
    assert_eq!([world.workers("a"), world.workers(name)], [1, 1], "no row crosses");
}

/// A cluster of a and b that holds one row. `names` are the routers whose addresses they get as join addresses.
fn pair(names: &[&'static str], plan: &Plan) -> World {
    let mut world = World::of(names);
    world.start("a", plan);
    world.start("b", plan);
    world.until(SECOND * 5, "the two routers have joined", |w| {
        w.state_at("a", "b") == Some(MemberState::Alive)
            && w.state_at("b", "a") == Some(MemberState::Alive)
    });
    world.write("a", [0]);
    world
}

#[test]
fn a_router_with_another_key_or_none_is_refused_and_counted() {
    for plan in [sealed(Mode::Required, &[2]), sealed(Mode::Off, &[])] {
        let mut world = pair(&THREE, &sealed(Mode::Required, &[1]));
        assert_eq!(world.rejected("a", "no_shared_key"), 0);
        world.start("c", &plan);
        stays_out(&mut world, "c");
        assert!(world.rejected("a", "no_shared_key") > 0);
        let refused =
            world.handle("c").links().values().any(|link| {
                link.error().is_some_and(|error| error.contains("--mesh-encryption-key"))
            });
        assert!(refused, "the status of c must show the reason: {:?}", world.handle("c").links());
    }
}

#[test]
fn another_cluster_is_refused_and_counted() {
    let mut world = pair(&THREE, &Plan::default());
    world.start("c", &Plan { cluster: "another", ..Plan::default() });
    stays_out(&mut world, "c");
    assert!(world.rejected("a", "cluster") > 0);
}

#[test]
fn keys_rotate_while_rows_are_replicated() {
    let mut world = World::formed(&THREE, &sealed(Mode::Required, &[1]));
    let (old, new) = (key(1).id(), key(2).id());
    let changes = [KeyChange::Install(key(2)), KeyChange::Use(new), KeyChange::Remove(old)];
    let mut written = 0;
    for change in changes.map(Some).into_iter().chain([None]) {
        for _ in 0..20 {
            for name in THREE {
                world.write(name, [written]);
                written += 1;
            }
            world.run_for(Duration::from_millis(5));
        }
        let Some(change) = change else { continue };
        // Rows are in flight at this moment, and more are written while the keys change.
        let receipts =
            world.ask("b", |handle| async move { handle.change_keys(change).await }).unwrap();
        assert_eq!(receipts.len(), 3);
        assert!(receipts.values().all(Result::is_ok), "{receipts:?}");
    }
    world.until(SECOND, "all replicas are equal", |w| w.workers("a") == written && w.agrees());
    for name in THREE {
        assert_eq!(world.handle(name).keys(), (Mode::Required, vec![new]));
        for reason in ["seal", "unknown_key", "plain", "no_shared_key", "keys"] {
            assert_eq!(world.rejected(name, reason), 0, "{name} refused {reason}");
        }
        let (gaps, retries) = world.visit(name, |node, _| {
            let counters = node.replication().counters();
            (counters.gaps, counters.retries)
        });
        assert_eq!((gaps, retries), (0, 0), "{name} lost something on the way");
        assert!(world.handle(name).links().values().all(|link| link.error().is_none()));
    }
}

#[test]
fn with_a_key_no_url_is_sent_in_plain_text() {
    let url = b"http://worker-0.example:8000";
    for (plan, is_readable) in
        [(sealed(Mode::Off, &[]), true), (sealed(Mode::Required, &[1]), false)]
    {
        let mut world = World::of(&THREE);
        *world.wires.record.lock() = Some(Vec::new());
        for name in THREE {
            world.start(name, &plan);
        }
        world.until(SECOND * 5, "the cluster has formed", World::is_whole);
        world.write("a", [0]);
        world.until(SECOND, "all have it", |w| w.workers("c") == 1 && w.agrees());
        let record = world.wires.record.lock().take().unwrap();
        assert!(record.len() > 1000);
        let found = record.windows(url.len()).any(|window| window == url);
        assert_eq!(found, is_readable);
    }
}

/// A certificate authority, and a directory with the files that it signed.
struct Authority {
    dir: tempfile::TempDir,
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { dir: tempfile::tempdir().unwrap(), issuer: Issuer::new(params, key), pem }
    }

    /// A certificate for `name` that is valid until 5 January of `last_year`, and its key, both as PEM.
    fn sign(&self, name: &str, last_year: i32) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 1, 5);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }

    /// Writes the files of a router.
    fn equip(&self, router: &str, shown: &(String, String), authorities: &str) -> SecurityConfig {
        let files = self.files(router);
        for (path, text) in
            [(&files.certificate, &*shown.0), (&files.key, &*shown.1), (&files.ca, authorities)]
        {
            replace(path, text);
        }
        SecurityConfig { tls: Some(files), ..SecurityConfig::default() }
    }

    fn files(&self, router: &str) -> MeshFiles {
        let path = |what: &str| -> PathBuf { self.dir.path().join(format!("{router}.{what}")) };
        MeshFiles { certificate: path("pem"), key: path("key"), ca: path("ca") }
    }
}

/// Writes a file so that its change is detected: simulated time is too short for the timestamps of the file system.
fn replace(path: &PathBuf, text: &str) {
    let before = fs::metadata(path).and_then(|about| about.modified());
    fs::write(path, text).unwrap();
    let later = before.unwrap_or(SystemTime::UNIX_EPOCH) + SECOND;
    fs::File::options().write(true).open(path).unwrap().set_modified(later).unwrap();
}

/// A world with a router of each name, each with a certificate for its name.
fn equipped(authority: &Authority, names: &[&'static str]) -> World {
    let mut world = World::of(names);
    for name in names.iter().filter(|name| **name != "x") {
        let security = authority.equip(name, &authority.sign(name, 2040), &authority.pem);
        world.start(name, &Plan::secured(security));
    }
    world
}

#[test]
fn a_router_with_a_foreign_certificate_is_refused_and_counted() {
    let (ours, theirs) = (Authority::new(), Authority::new());
    for (what, shown, reason) in [
        ("another authority's", theirs.sign("x", 2040), "tls"),
        ("expired", ours.sign("x", 2021), "tls"),
        ("another name's", ours.sign("y", 2040), "name"),
    ] {
        let mut world = equipped(&ours, &["a", "b", "x"]);
        world.until(SECOND * 5, "the two routers have joined", |w| {
            w.state_at("a", "b") == Some(MemberState::Alive)
                && w.state_at("b", "a") == Some(MemberState::Alive)
        });
        assert_eq!(world.rejected("a", reason), 0);
        world.write("a", [0]);
        let both = format!("{}{}", ours.pem, theirs.pem);
        let security = ours.equip("x", &shown, &both);
        // Its own check would reject its own expired certificate, so its clock is set to a time long ago.
        let plan = Plan { begin: Duration::from_secs(1_590_000_000), ..Plan::secured(security) };
        world.start("x", &plan);
        stays_out(&mut world, "x");
        assert!(world.rejected("a", reason) > 0, "a certificate that is {what}");
    }
    // A router with the same name and the right certificate is accepted, so the certificate was the reason.
    let mut world = equipped(&ours, &["a", "b", "x"]);
    let security = ours.equip("x", &ours.sign("x", 2040), &ours.pem);
    world.start("x", &Plan::secured(security));
    world.until(SECOND * 5, "all routers have joined", World::is_whole);
}

#[test]
fn the_authority_is_replaced_while_rows_are_replicated() {
    let (old, new) = (Authority::new(), Authority::new());
    let mut world = equipped(&old, &THREE);
    world.until(SECOND * 5, "the cluster has formed", World::is_whole);
    let mut written = 0;
    let both = format!("{}{}", old.pem, new.pem);
    for step in 0..3 {
        for name in THREE {
            // First both authorities are trusted, then the certificates of the new one are presented, then only the new
            // one is trusted.
            let files = old.files(name);
            match step {
                0 => replace(&files.ca, &both),
                1 => {
                    let (certificate, key) = new.sign(name, 2040);
                    replace(&files.certificate, &certificate);
                    replace(&files.key, &key);
                }
                _ => replace(&files.ca, &new.pem),
            }
            for _ in 0..60 {
                world.write(name, [written]);
                written += 1;
                world.run_for(Duration::from_millis(100));
            }
        }
    }
    world.until(SECOND, "nothing is missing", |w| w.workers("a") == written && w.agrees());
    for name in THREE {
        assert_eq!(world.rejected(name, "tls"), 0);
        assert!(world.handle(name).links().values().all(|link| link.error().is_none()));
    }
    // New connections use the new certificates, and those of the old authority are refused.
    world.kill("c");
    old.equip("c", &old.sign("c", 2040), &both);
    world.restart("c");
    world.run_for(SECOND * 3);
    assert!(!world.view("c").has_others(), "{}", world.picture());
    assert!(world.rejected("a", "tls") > 0);
    old.equip("c", &new.sign("c", 2040), &new.pem);
    world.until(SECOND * 12, "with a new certificate it is accepted again", |w| {
        w.is_whole() && w.workers("c") == written
    });
}
