//! Checks the structure that ARCHITECTURE.md describes: which crate depends on which, which module may import which,
//! which modules may do no I/O, and that each file starts by saying what it is.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates of this workspace, each with the crates of this workspace that it may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("smg-types", &[]),
    ("smg-cluster", &["smg-types"]),
    ("smg-routing", &["smg-types"]),
    ("smg-runtime", &["smg-types"]),
    ("smg-mesh", &["smg-types", "smg-cluster", "smg-runtime"]),
    ("smg-proxy", &["smg-types", "smg-routing", "smg-runtime"]),
    ("smg-mock", &["smg-types", "smg-runtime"]),
    (
        "smg",
        &[
            "smg-types",
            "smg-cluster",
            "smg-routing",
            "smg-runtime",
            "smg-mesh",
            "smg-proxy",
            "smg-mock",
        ],
    ),
];

/// The top-level modules, lowest first, each with what it may import. A module may only name modules above it in this
/// list, so the list is the proof that there is no cycle.
const LAYERS: &[(&str, &[&str])] = &[
    // vocabulary
    ("ids", &[]),
    ("now", &[]),
    ("spec", &["ids"]),
    // plain computation
    ("crdt", &["ids", "now"]),
    ("prefix", &["ids", "now"]),
    ("policy", &["ids", "now", "prefix"]),
    ("limit", &["ids", "now"]),
    // state machines without I/O
    ("cluster", &["ids", "now", "spec", "crdt"]),
    ("fleet", &["ids", "now", "spec"]),
    // edges
    ("clock", &["now"]),
    ("tasks", &[]),
    ("tls", &["now"]),
    ("upstream", &["ids", "spec", "now", "clock", "tls"]),
    ("mesh", &["ids", "now", "cluster", "clock", "tasks", "tls"]),
    // joints
    (
        "dispatch",
        &["ids", "now", "spec", "policy", "prefix", "limit", "fleet", "clock", "upstream"],
    ),
    ("prober", &["ids", "now", "spec", "fleet", "clock", "tasks", "upstream"]),
    ("bridge", &["ids", "now", "spec", "policy", "cluster", "fleet", "clock", "mesh", "dispatch"]),
    // surface
    (
        "http",
        &[
            "ids", "now", "spec", "policy", "prefix", "limit", "fleet", "clock", "tasks", "tls",
            "upstream", "mesh", "dispatch", "bridge",
        ],
    ),
    ("mock", &["clock", "tasks"]),
    ("console", &["spec", "clock", "tls", "upstream"]),
    ("cli", &["ids", "spec", "policy", "mesh", "console", "mock"]),
    ("telemetry", &[]),
    (
        "config",
        &[
            "ids",
            "now",
            "spec",
            "policy",
            "prefix",
            "limit",
            "cluster",
            "fleet",
            "clock",
            "tls",
            "upstream",
            "mesh",
            "dispatch",
            "prober",
            "bridge",
            "http",
            "console",
            "cli",
            "telemetry",
            "mock",
        ],
    ),
    (
        "app",
        &[
            "ids",
            "now",
            "spec",
            "policy",
            "prefix",
            "limit",
            "fleet",
            "clock",
            "tasks",
            "tls",
            "upstream",
            "mesh",
            "dispatch",
            "prober",
            "bridge",
            "http",
            "mock",
            "cli",
            "telemetry",
            "config",
        ],
    ),
];

/// Modules below the I/O line: plain values in, plain values out.
const PURE: &[&str] =
    &["ids", "now", "spec", "crdt", "policy", "prefix", "limit", "cluster", "fleet"];

/// What a pure module may not name.
const IMPURE: &[&str] = &[
    "tokio::",
    ".await",
    "async fn",
    "Instant::now",
    "SystemTime::now",
    "rand::rng()",
    "std::net::Tcp",
    "std::fs",
    "std::thread",
];

fn rust_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(rust_files(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Production code of a file: without comments and without what follows the unit tests.
fn production(text: &str) -> String {
    let body = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    body.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n")
}

/// Crates whose root is one module of [`LAYERS`].
const WHOLE: &[&str] = &["cluster", "mesh", "mock"];

/// Production source files: the module of [`LAYERS`] that each belongs to, its path and its text.
fn modules() -> Vec<(String, PathBuf, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut sources = vec![(None, root.join("src"))];
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        sources.push((Some(name), path.join("src")));
    }
    let mut found = Vec::new();
    for (name, src) in sources {
        for path in rust_files(&src) {
            let inside = path.strip_prefix(&src).unwrap();
            let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
            let first = first.trim_end_matches(".rs");
            let module = match &name {
                Some(name) if WHOLE.contains(&name.as_str()) && first != "crdt" => name.as_str(),
                Some(_) | None => first,
            };
            let is_test = path.file_stem().is_some_and(|s| s == "tests")
                || path.components().any(|c| c.as_os_str() == "tests");
            if !is_test && module != "main" && module != "lib" {
                let text = fs::read_to_string(&path).unwrap();
                found.push((module.to_owned(), path, text));
            }
        }
    }
    found
}

/// The modules of [`LAYERS`] that a line of `module` names.
fn named_in(line: &str, module: &str) -> Vec<String> {
    let ident = |text: &str| -> String {
        text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
    };
    let mut named = Vec::new();
    for rest in line.split("crate::").skip(1) {
        let first = ident(rest);
        let is_one_module = WHOLE.contains(&module) || module == "crdt";
        if !is_one_module || first == "crdt" {
            named.push(first);
        }
    }
    for rest in line.split("smg_").skip(1) {
        let name = ident(rest);
        let inside = rest[name.len()..].strip_prefix("::").unwrap_or_default();
        match name.as_str() {
            "cluster" if ident(inside) == "crdt" => named.push("crdt".to_owned()),
            "cluster" | "mesh" | "mock" => named.push(name),
            "types" | "routing" | "runtime" | "proxy" => match inside.strip_prefix('{') {
                Some(group) => {
                    let group = group.split('}').next().unwrap_or_default();
                    named.extend(group.split(',').map(|item| ident(item.trim())));
                }
                None => named.push(ident(inside)),
            },
            _ => {}
        }
    }
    named.retain(|name| !name.is_empty() && name != module);
    named
}

#[test]
fn crates_depend_only_on_what_is_allowed() {
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", String::from_utf8_lossy(&cargo.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&cargo.stdout).unwrap();
    let mut wrong = Vec::new();
    let packages = metadata["packages"].as_array().unwrap();
    assert_eq!(packages.len(), CRATES.len(), "CRATES of tests/tidy.rs lists every crate");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name}: not in CRATES of tests/tidy.rs"));
            continue;
        };
        for dependency in package["dependencies"].as_array().unwrap() {
            let dependency = dependency["name"].as_str().unwrap();
            if dependency.starts_with("smg") && !allowed.contains(&dependency) {
                wrong.push(format!("{name} may not depend on {dependency}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_import_only_what_stands_above_them() {
    let order: BTreeMap<&str, usize> =
        LAYERS.iter().enumerate().map(|(i, (name, _))| (*name, i)).collect();
    let mut wrong = Vec::new();
    for (module, path, text) in modules() {
        let Some(&at) = order.get(module.as_str()) else {
            wrong.push(format!("{module}: not in LAYERS of tests/tidy.rs"));
            continue;
        };
        for (line_number, line) in production(&text).lines().enumerate() {
            for named in named_in(line, &module) {
                if !LAYERS[at].1.contains(&named.as_str()) {
                    wrong.push(format!(
                        "{}:{}: {module} may not import {named}",
                        path.display(),
                        line_number + 1
                    ));
                }
            }
        }
    }
    for (at, (module, imports)) in LAYERS.iter().enumerate() {
        for import in *imports {
            if order.get(import).is_none_or(|i| *i >= at) {
                wrong.push(format!(
                    "LAYERS: {module} imports {import}, which does not stand above it"
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn pure_modules_touch_neither_clock_nor_socket_nor_chance() {
    let mut wrong = Vec::new();
    for (module, path, text) in modules() {
        if !PURE.contains(&module.as_str()) {
            continue;
        }
        for (line_number, line) in production(&text).lines().enumerate() {
            for impure in IMPURE.iter().filter(|impure| line.contains(**impure)) {
                wrong.push(format!(
                    "{}:{}: {module} is pure, `{impure}` is not",
                    path.display(),
                    line_number + 1
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = rust_files(&root.join("src"));
    files.extend(rust_files(&root.join("crates")));
    files.extend(rust_files(&root.join("tests")));
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{}: no //! header", path.display());
    }
}

#[test]
fn no_file_promises_to_be_done_later() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = rust_files(&root.join("src"));
    files.extend(rust_files(&root.join("crates")));
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        for word in ["TODO", "FIXME", "XXX", "unimplemented!(", "todo!("] {
            assert!(!text.contains(word), "{}: {word}", path.display());
        }
    }
}

#[test]
fn every_metric_that_is_shown_or_paged_for_is_exported() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap();
    let exported = read("tests/golden/metrics.txt");
    let families: BTreeMap<&str, &str> = exported
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.split_once(' ').unwrap())
        .collect();
    let is_exported = |name: &str| {
        let of_histogram = |end| {
            let family = name.strip_suffix(end);
            family.is_some_and(|family| families.get(family) == Some(&"histogram"))
        };
        families.contains_key(name) || ["_bucket", "_sum", "_count"].into_iter().any(of_histogram)
    };
    let mut wrong = Vec::new();
    for path in ["grafana/dashboards/smg.json", "deploy/prometheus/smg-rules.yml"] {
        let text = read(path);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let named: Vec<&str> = words.filter(|word| word.starts_with("smg_")).collect();
        assert!(!named.is_empty(), "{path} names no metric");
        wrong.extend(
            named.into_iter().filter(|name| !is_exported(name)).map(|n| format!("{path}: {n}")),
        );
    }
    wrong.dedup();
    assert!(wrong.is_empty(), "not in tests/golden/metrics.txt:\n{}", wrong.join("\n"));
}
