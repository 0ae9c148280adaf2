//! Circles between the files of a crate. Cargo refuses circles between crates; this refuses them between files.
//!
//! File A imports file B if A names something that B defines. The names are followed to the definition:
//!
//! 1. `use` declarations and paths count alike, however they begin: `crate::`, `super::`, `self::`, a child module, or a
//!    name that another `use` has brought in.
//! 2. A name that a module only passes on counts for the file that defines it. If `fleet/mod.rs` says
//!    `pub use worker::Worker`, who imports `fleet::Worker` imports `fleet/worker.rs`.
//! 3. A module that declares children (`mod`) or passes their names on (`pub use`) does not import them by that. It does
//!    as soon as it uses such a name itself. So a `mod.rs` is either the face of its children, which may then not import
//!    what the face itself defines; or it defines what the children build on, and does not use them.
//! 4. Importing a module (`use crate::fleet`) is no import by itself; the paths through it (`fleet::Worker`) are.
//! 5. What only tests are compiled with does not count. Only tests may import all names of a module (`use super::*`),
//!    because such an import hides what it imports.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::source::{File, Module, read_crate};
use crate::{crate_roots, read_text};

/// The files that each file imports, each with a line that imports it.
type Imports = BTreeMap<PathBuf, BTreeMap<PathBuf, usize>>;

/// The modules of a crate, each with the file that holds it.
pub(crate) struct Modules<'a>(BTreeMap<&'a Module, &'a File>);

impl<'a> Modules<'a> {
    pub(crate) fn of(files: &'a [File]) -> Self {
        let in_file = |file: &'a File| file.modules.keys().map(move |module| (module, file));
        Self(files.iter().flat_map(in_file).collect())
    }

    /// What `path` means in `module`: the module that it leads to, and the rest, which names an item there (empty, if the
    /// path names the module). `None`: it is not of this crate.
    pub(crate) fn resolve(
        &self,
        module: &Module,
        path: &[String],
    ) -> Option<(Module, Vec<String>)> {
        self.follow(module, path, &mut BTreeSet::new())
    }

    /// As [`Modules::resolve`]. `seen` holds the names that were followed on the way.
    fn follow(
        &self,
        module: &Module,
        path: &[String],
        seen: &mut BTreeSet<(Module, String)>,
    ) -> Option<(Module, Vec<String>)> {
        let mut at = module.clone();
        let mut rest = path;
        let mut is_of_crate = false;
        while let Some((first, more)) = rest.split_first() {
            match first.as_str() {
                "crate" => at.clear(),
                "self" => {}
                "super" => {
                    at.pop()?;
                }
                _ => break,
            }
            is_of_crate = true;
            rest = more;
        }
        while let Some((first, more)) = rest.split_first() {
            let child: Module = at.iter().cloned().chain([first.clone()]).collect();
            if self.0.contains_key(&child) {
                (at, rest, is_of_crate) = (child, more, true);
                continue;
            }
            let uses = &self.0.get(&at)?.modules[&at].uses;
            let brought = uses.iter().find(|brought| brought.name.as_ref() == Some(first));
            if let Some(brought) = brought
                && seen.insert((at.clone(), first.clone()))
            {
                let path: Vec<String> = brought.path.iter().chain(more).cloned().collect();
                return self.follow(&at, &path, seen);
            }
            break;
        }
        is_of_crate.then(|| (at, rest.to_vec()))
    }

    /// The file that defines the item that `path` means in `module`.
    fn definition(&self, module: &Module, path: &[String]) -> Option<&'a File> {
        let (module, rest) = self.resolve(module, path)?;
        if rest.is_empty() { None } else { self.0.get(&module).copied() }
    }
}

/// Which file imports which.
fn imports(files: &[File]) -> Imports {
    let modules = Modules::of(files);
    let mut imports = Imports::new();
    for file in files {
        let imported = imports.entry(file.path.clone()).or_default();
        for (module, items) in &file.modules {
            let passes_on = |name: &Option<String>| {
                name.as_ref().is_some_and(|name| !items.words.contains(name))
            };
            let used = items.uses.iter().filter(|used| !(used.is_public && passes_on(&used.name)));
            let used = used.map(|used| (&used.path, used.line));
            let named = items.paths.iter().map(|(path, line)| (path, *line));
            for (path, line) in used.chain(named) {
                if let Some(to) = modules.definition(module, path)
                    && to.path != file.path
                {
                    imported.entry(to.path.clone()).or_insert(line);
                }
            }
        }
    }
    imports
}

/// The circles among `imports`, each as `a.rs:3 → b.rs:7 → a.rs`: for each file that is in one, the shortest, unless a
/// circle before has named the file.
fn circles(imports: &Imports) -> Vec<String> {
    let mut named = BTreeSet::new();
    let mut found = Vec::new();
    for start in imports.keys() {
        if named.contains(start) {
            continue;
        }
        if let Some(circle) = shortest_circle(imports, start) {
            let step = |pair: &[&PathBuf]| {
                format!("{}:{} → ", pair[0].display(), imports[pair[0]][pair[1]])
            };
            let steps: String = circle.windows(2).map(step).collect();
            found.push(format!("{steps}{}", start.display()));
            named.extend(circle);
        }
    }
    found
}

/// The shortest way from `start` back to it, `start` at both ends.
fn shortest_circle<'a>(imports: &'a Imports, start: &'a PathBuf) -> Option<Vec<&'a PathBuf>> {
    let mut came_from: BTreeMap<&PathBuf, &PathBuf> = BTreeMap::new();
    let mut reached = vec![start];
    while !reached.is_empty() {
        for from in std::mem::take(&mut reached) {
            for to in imports[from].keys() {
                if to == start {
                    let mut circle = vec![start, from];
                    while circle.last() != Some(&start) {
                        circle.push(came_from[circle.last().unwrap()]);
                    }
                    circle.reverse();
                    return Some(circle);
                }
                if !came_from.contains_key(to) {
                    came_from.insert(to, from);
                    reached.push(to);
                }
            }
        }
    }
    None
}

/// Imports of all names of a module, outside of tests.
fn globs(files: &[File]) -> Vec<String> {
    let modules = Modules::of(files);
    let mut found = Vec::new();
    for file in files {
        for (module, items) in &file.modules {
            for glob in items.uses.iter().filter(|used| used.is_glob) {
                if modules.resolve(module, &glob.path).is_some() {
                    let (path, line) = (file.path.display(), glob.line);
                    found.push(format!("{path}:{line}: {}::*", glob.path.join("::")));
                }
            }
        }
    }
    found
}

/// The circles and the imports of all names in the crate whose root file is `root`.
fn problems(root: &Path) -> Vec<String> {
    let files = read_crate(root, &read_text);
    let imports = imports(&files);
    let count: usize = imports.values().map(BTreeMap::len).sum();
    assert!(files.len() < 3 || count > 0, "{}: no imports were found", root.display());
    let mut found = circles(&imports);
    found.extend(globs(&files));
    found
}

#[test]
fn no_files_of_a_crate_import_each_other_in_a_circle() {
    let mut wrong = Vec::new();
    for (name, root) in crate_roots() {
        wrong.extend(problems(&root).into_iter().map(|problem| format!("{name}: {problem}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The circles of a made-up crate of these files.
fn circles_of(files: &[(&str, &str)]) -> Vec<String> {
    let texts: BTreeMap<PathBuf, String> = files
        .iter()
        .map(|(path, text)| (PathBuf::from("src").join(path), (*text).to_owned()))
        .collect();
    let files = read_crate(Path::new("src/lib.rs"), &|path| texts.get(path).cloned());
    circles(&imports(&files))
}

#[test]
fn a_circle_is_found_however_it_is_written() {
    let root = ("lib.rs", "mod a;\nmod b;\npub use b::B;\n");
    let a = ("a.rs", "\nuse crate::b::B;\npub struct A(B);\n");
    for back in [
        "use crate::a::A;\npub struct B(A);",
        "use super::a::A;\npub struct B(A);",
        "use super::{a::{A as Other}};\npub struct B(Other);",
        "use crate::a;\npub struct B(a::A);",
        "use crate::a as other;\npub struct B(other::A);",
        "use self::inner::A;\nmod inner { pub use crate::a::A; }\npub struct B(A);",
        "mod inner { pub struct I(super::super::a::A); }\npub struct B(inner::I);",
        "pub struct B;\nfn f() { drop(super::a::A::new()) }",
        "pub struct B;\nfn f() { some_macro!(crate::a::A) }",
        "use crate::a::A as _;\npub struct B;",
    ] {
        let found = circles_of(&[root, a, ("b.rs", back)]);
        assert_eq!(found.len(), 1, "{back}: {found:?}");
        assert!(found[0].starts_with("a.rs:2 → b.rs:"), "{back}: {found:?}");
    }
}

#[test]
fn a_circle_through_a_face_is_found() {
    // `a` imports what the face passes on from `b`, and `b` imports `a`.
    let face = ("face/mod.rs", "mod a;\nmod b;\npub use b::B;\n");
    let files = [
        ("lib.rs", "mod face;"),
        face,
        ("face/a.rs", "use super::B;\npub struct A(B);"),
        ("face/b.rs", "use super::a::A;\npub struct B(A);"),
    ];
    assert_eq!(circles_of(&files), ["face/a.rs:1 → face/b.rs:1 → face/a.rs"]);
}

#[test]
fn a_parent_may_not_use_the_child_that_imports_its_definitions() {
    let child = ("child.rs", "use crate::Config;\npub struct Child(Config);");
    let uses = "mod child;\npub use child::Child;\npub struct Config;\npub fn child() -> Child { todo() }\n";
    assert_eq!(circles_of(&[("lib.rs", uses), child]), ["child.rs:1 → lib.rs:2 → child.rs"]);
    let uses = "mod child;\npub struct Config;\npub fn child() { child::Child::new() }\n";
    assert_eq!(circles_of(&[("lib.rs", uses), child]), ["child.rs:1 → lib.rs:3 → child.rs"]);
    let passes_on = "mod child;\npub use child::Child;\npub struct Config;\n";
    assert_eq!(circles_of(&[("lib.rs", passes_on), child]), [""; 0]);
}

#[test]
fn what_is_no_import_makes_no_circle() {
    let files = [
        ("lib.rs", "pub mod a;\npub mod b;\npub use a::A;\npub use b::B;\n"),
        ("a.rs", "pub struct A;\n// crate::b::B\nconst TEXT: &str = \"crate::b::B\";\n"),
        ("b.rs", "use crate::a::A;\npub struct B(A);\n"),
    ];
    assert_eq!(circles_of(&files), [""; 0]);
    let in_tests = "pub struct A;\n#[cfg(test)]\nuse crate::b::{B, C};\n#[cfg(test)]\nmod tests { use crate::b::B; }\n";
    assert_eq!(circles_of(&[files[0], ("a.rs", in_tests), files[2]]), [""; 0]);
}

#[test]
fn an_import_of_all_names_is_found_outside_of_tests_only() {
    let text = "mod a { pub struct A; }\nuse a::*;\n#[cfg(test)]\nmod tests { use super::*; }\n";
    let files = read_crate(Path::new("lib.rs"), &|path| {
        (path == Path::new("lib.rs")).then(|| text.to_owned())
    });
    assert_eq!(globs(&files), ["lib.rs:2: a::*"]);
}
