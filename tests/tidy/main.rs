//! Checks the structure that ARCHITECTURE.md describes: which crate depends on which, which module may import which,
//! which modules may do no I/O, that no files import each other in a circle (`circles` has the exact rules), that
//! functions and files are short (`sizes`), and that each file starts by saying what it is.

#![expect(clippy::unwrap_used, reason = "a test")]

mod circles;
mod rules;
mod sizes;
mod source;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The crates of this workspace, each with the crates of this workspace that it may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("smg-types", &[]),
    ("smg-lease", &["smg-types"]),
    ("smg-limits", &["smg-types"]),
    ("smg-cluster", &["smg-types", "smg-lease", "smg-limits"]),
    ("smg-routing", &["smg-types"]),
    ("smg-runtime", &["smg-types"]),
    ("smg-persist", &[]),
    ("smg-mesh", &["smg-types", "smg-lease", "smg-cluster", "smg-persist", "smg-runtime"]),
    ("smg-proxy", &["smg-types", "smg-routing", "smg-runtime"]),
    ("smg-mock", &["smg-types", "smg-runtime"]),
    (
        "smg",
        &[
            "smg-types",
            "smg-lease",
            "smg-limits",
            "smg-cluster",
            "smg-persist",
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
    ("bounds", &[]),
    ("spec", &["ids", "bounds"]),
    // plain computation
    ("crdt", &["ids", "now"]),
    ("prefix", &["ids", "now"]),
    ("speed", &[]),
    ("policy", &["ids", "now", "prefix", "speed"]),
    ("limit", &["ids", "now"]),
    ("limits", &["ids", "now"]),
    ("lease", &["ids"]),
    // state machines without I/O
    ("cluster", &["ids", "now", "spec", "crdt", "bounds", "limits", "lease"]),
    ("fleet", &["ids", "now", "spec", "speed"]),
    ("policies", &["ids", "now", "policy", "prefix", "fleet"]),
    // edges
    ("clock", &["now"]),
    ("descriptors", &[]),
    ("causes", &[]),
    ("shortage", &["clock", "descriptors"]),
    ("resolve", &["clock", "shortage"]),
    ("dial", &["spec", "clock", "shortage", "descriptors", "resolve"]),
    ("tasks", &[]),
    ("memory", &[]),
    ("tls", &["spec", "now"]),
    (
        "upstream",
        &["ids", "spec", "now", "clock", "tls", "shortage", "descriptors", "resolve", "dial"],
    ),
    ("usage", &[]),
    ("persist", &[]),
    (
        "mesh",
        &[
            "ids", "now", "lease", "cluster", "persist", "clock", "tasks", "tls", "shortage",
            "resolve",
        ],
    ),
    // joints
    (
        "dispatch",
        &[
            "ids", "now", "spec", "causes", "policy", "policies", "prefix", "limit", "fleet",
            "clock", "upstream", "shortage",
        ],
    ),
    (
        "prober",
        &["ids", "now", "spec", "causes", "fleet", "clock", "tasks", "upstream", "shortage"],
    ),
    (
        "bridge",
        &[
            "lease", "ids", "now", "spec", "policy", "policies", "cluster", "fleet", "clock",
            "mesh", "limits",
        ],
    ),
    ("telemetry", &[]),
    // surface
    (
        "http",
        &[
            "limits",
            "ids",
            "now",
            "spec",
            "policies",
            "policy",
            "prefix",
            "limit",
            "fleet",
            "clock",
            "tasks",
            "tls",
            "upstream",
            "usage",
            "mesh",
            "dispatch",
            "bridge",
            "bounds",
            "shortage",
            "descriptors",
            "dial",
            "telemetry",
        ],
    ),
    ("mock", &["clock", "tasks"]),
    ("console", &["spec", "clock", "tls", "upstream", "dial"]),
    ("cli", &["ids", "spec", "policy", "prefix", "limit", "mesh", "console", "mock", "bounds"]),
    (
        "config",
        &[
            "ids",
            "now",
            "spec",
            "policy",
            "prefix",
            "limit",
            "limits",
            "cluster",
            "persist",
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
            "memory",
            "telemetry",
            "mock",
            "bounds",
        ],
    ),
    ("reload", &["tls", "mesh", "bridge", "http", "telemetry", "config"]),
    (
        "doctor",
        &["spec", "clock", "tls", "upstream", "dial", "descriptors", "mesh", "console", "config"],
    ),
    ("signals", &["reload"]),
    ("supervisor", &[]),
    (
        "app",
        &[
            "ids",
            "now",
            "spec",
            "policy",
            "policies",
            "prefix",
            "limit",
            "limits",
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
            "reload",
            "supervisor",
            "shortage",
            "descriptors",
            "resolve",
            "dial",
        ],
    ),
];

/// Modules below the I/O line: plain values in, plain values out.
const PURE: &[&str] = &[
    "ids", "now", "bounds", "spec", "crdt", "policy", "policies", "prefix", "limit", "cluster",
    "fleet", "usage", "limits", "lease",
];

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

/// Crates that are one module of [`LAYERS`], but for `crdt`.
const WHOLE: &[&str] = &["cluster", "lease", "limits", "mesh", "mock", "persist"];

/// The name of each crate and its root file.
fn crate_roots() -> Vec<(String, PathBuf)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut roots = vec![("smg".to_owned(), root.join("src/lib.rs"))];
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        roots.push((format!("smg-{name}"), path.join("src/lib.rs")));
    }
    roots
}

/// The text of a file; `None` if there is no such file.
fn read_text(path: &Path) -> Option<String> {
    path.exists().then(|| fs::read_to_string(path).unwrap())
}

/// The module of [`LAYERS`] that an item belongs to: `inside` is the path of its module in the crate `name`.
fn layer(name: &str, inside: Option<&str>) -> Option<String> {
    let name = name.strip_prefix("smg-").unwrap_or(name);
    match inside {
        Some("crdt") if name == "cluster" => Some("crdt".to_owned()),
        _ if WHOLE.contains(&name) => Some(name.to_owned()),
        inside => inside.map(str::to_owned),
    }
}

/// The modules of [`LAYERS`] that each file imports: the file's own module, then the file and the line, then the module.
fn layers_imported() -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (name, root) in crate_roots() {
        let files = source::read_crate(&root, &read_text);
        let modules = circles::Modules::of(&files);
        for file in &files {
            for (module, items) in &file.modules {
                let Some(own) = layer(&name, module.first().map(String::as_str)) else { continue };
                let uses = items.uses.iter().map(|used| (&used.path, used.line));
                let paths = items.paths.iter().map(|(path, line)| (path, *line));
                for (path, line) in uses.chain(paths) {
                    let second = path.get(1).map(String::as_str);
                    let imported = match path.first().and_then(|first| first.strip_prefix("smg_")) {
                        Some(other) => layer(other, second),
                        None => modules.resolve(module, path).and_then(|(module, rest)| {
                            layer(&name, module.iter().chain(&rest).next().map(String::as_str))
                        }),
                    };
                    if let Some(imported) = imported.filter(|imported| *imported != own) {
                        let place = format!("{name}: {}:{line}", file.path.display());
                        found.push((own.clone(), place, imported));
                    }
                }
            }
        }
    }
    found
}

/// Production source files: the module of [`LAYERS`] that each belongs to, its path and its text.
fn modules() -> Vec<(String, PathBuf, String)> {
    let mut found = Vec::new();
    for (name, root) in crate_roots() {
        let folder = root.parent().unwrap();
        for file in source::read_crate(&root, &read_text) {
            let module = file.modules.keys().next().and_then(|module| module.first());
            if let Some(layer) = layer(&name, module.map(String::as_str)) {
                let path = folder.join(&file.path);
                let text = read_text(&path).unwrap();
                found.push((layer, path, text));
            }
        }
    }
    found
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
    assert_eq!(packages.len(), CRATES.len(), "CRATES of tests/tidy lists every crate");
    for package in packages {
        let name = package["name"].as_str().unwrap();
        let Some((_, allowed)) = CRATES.iter().find(|(known, _)| *known == name) else {
            wrong.push(format!("{name}: not in CRATES of tests/tidy"));
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
    let imported = layers_imported();
    assert!(imported.len() > 100, "only {} imports were found", imported.len());
    for (module, place, imported) in imported {
        let allowed = order.get(module.as_str()).map_or(&[][..], |at| LAYERS[*at].1);
        if !allowed.contains(&imported.as_str()) {
            wrong.push(format!("{place}: LAYERS does not let {module} import {imported}"));
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
