//! Checks that each rule of `docs/replication.md` names tests, and that these tests exist.

use std::path::Path;

/// The short forms of `docs/replication.md`, each with the module below `crates/cluster` that it stands for.
const SHORT_FORMS: &[(&str, &str)] = &[
    ("table", "src/state/table/tests"),
    ("rules", "src/state/table/tests/rules"),
    ("rt", "src/replication/tests"),
    ("streams", "src/replication/tests/streams"),
    ("snapshots", "src/replication/tests/snapshots"),
    ("ended", "src/replication/tests/ended"),
    ("audits", "src/replication/tests/audits"),
    ("receipts", "src/replication/tests/receipts"),
    ("sim", "tests/sim"),
    ("hostile", "tests/hostile"),
];
/// The only test that is named by one word.
const HISTORIES: &str = "state::policy::tests::policies_hold_what_an_add_wins_set_holds";

/// The rows of the tables of rules: the number of each rule, and the tests that it names.
fn rules(document: &str) -> Vec<(usize, Vec<&str>)> {
    let rows = document.lines().filter_map(|line| line.strip_prefix("| **R"));
    rows.map(|row| {
        let (number, _) = row.split_once("**").unwrap();
        let (_, tests) = row.trim_end_matches([' ', '|']).rsplit_once(" | ").unwrap();
        (number.parse().unwrap(), tests.split('`').skip(1).step_by(2).collect())
    })
    .collect()
}

/// Whether a file of the module `path`, below the folder `cluster`, has the test or the module of tests `name`.
fn exists(cluster: &Path, name: &str) -> bool {
    let name = if name == "histories" { HISTORIES } else { name };
    let Some((module, test)) = name.rsplit_once("::") else { return false };
    let module = module.strip_suffix("::tests").unwrap_or(module);
    let (first, rest) = module.split_once("::").unwrap_or((module, ""));
    let short = SHORT_FORMS.iter().find(|(short, _)| *short == first);
    let mut path = short.map_or_else(|| format!("src/{first}"), |(_, long)| (*long).to_owned());
    for segment in rest.split("::").filter(|segment| !segment.is_empty()) {
        path.push('/');
        path.push_str(segment);
    }
    let files = [format!("{path}.rs"), format!("{path}/mod.rs"), format!("{path}/main.rs")];
    let wanted = if test == "tests" { "mod tests".to_owned() } else { format!("fn {test}(") };
    files.iter().any(|file| {
        std::fs::read_to_string(cluster.join(file)).is_ok_and(|text| text.contains(&wanted))
    })
}

#[test]
fn every_replication_rule_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/replication.md")).unwrap();
    let rules = rules(&document);
    let numbers: Vec<usize> = rules.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=51).collect::<Vec<_>>(), "one row for each rule");
    let cluster = root.join("crates/cluster");
    let mut wrong = Vec::new();
    for (number, tests) in rules {
        if tests.is_empty() {
            wrong.push(format!("R{number} names no test"));
        }
        let missing = tests.into_iter().filter(|test| !exists(&cluster, test));
        wrong.extend(missing.map(|test| format!("R{number}: there is no test {test}")));
    }
    assert!(wrong.is_empty(), "docs/replication.md:\n{}", wrong.join("\n"));
}

#[test]
fn every_lease_rule_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let document = std::fs::read_to_string(root.join("docs/lease.md")).unwrap();
    let document = document.replace("| **L", "| **R");
    let rules = rules(&document);
    let numbers: Vec<usize> = rules.iter().map(|(number, _)| *number).collect();
    assert_eq!(numbers, (1..=20).collect::<Vec<_>>(), "one row for each rule");
    let lease = root.join("crates/lease");
    for (number, tests) in rules {
        assert!(!tests.is_empty(), "L{number} names no test");
        for test in tests {
            let below = match test.split_once("::") {
                Some(("safety" | "progress", _)) => format!("tests::{test}"),
                _ => test.to_owned(),
            };
            let exists = exists(&lease, &below) || root.join(test).exists();
            assert!(exists, "L{number}: there is no test {test}");
        }
    }
}

#[test]
fn a_test_that_does_not_exist_is_found() {
    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates/cluster");
    for name in ["histories", "rt::worlds::a_write_is_visible_on_all_nodes_in_time"] {
        assert!(exists(&cluster, name), "{name}");
    }
    for name in ["rt::no_such_test", "no_such_module::tests::no_test", "no_path"] {
        assert!(!exists(&cluster, name), "{name}");
    }
    let row = "| **R7** A rule with a `name`. | A reason. | ✓ `rt::one`, `rt::two` |";
    assert_eq!(rules(row), [(7, vec!["rt::one", "rt::two"])]);
}
