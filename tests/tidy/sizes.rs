//! Bounds on the length of functions and files.

use std::path::Path;

use proc_macro2::{Delimiter, TokenTree};

use crate::source::{tokens, word};
use crate::{crate_roots, read_text, rust_files};

/// Lines of a function at most, from `fn` to its closing brace.
const MAX_FUNCTION_LINES: usize = 80;

/// Lines of a file at most, unless its header gives a reason.
const MAX_FILE_LINES: usize = 500;

/// How a header begins the sentence that gives the reason for a longer file.
const REASON: &str = "//! This file is long because ";

/// Functions that may be longer, as `file: function`, each with a comment that says why.
const LONG_FUNCTIONS: &[&str] = &[];

/// A function with a body.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    first_line: usize,
    lines: usize,
}

/// All functions in `tokens`, those within functions and macros too.
fn functions(tokens: &[TokenTree]) -> Vec<Function> {
    let mut found = Vec::new();
    for (at, token) in tokens.iter().enumerate() {
        if let (Some("fn"), Some(name)) = (word(tokens, at).as_deref(), word(tokens, at + 1)) {
            let end = tokens[at..].iter().find(|token| match token {
                TokenTree::Group(group) => group.delimiter() == Delimiter::Brace,
                TokenTree::Punct(punct) => punct.as_char() == ';',
                TokenTree::Ident(_) | TokenTree::Literal(_) => false,
            });
            // A function of a trait may end with a semicolon.
            if let Some(TokenTree::Group(body)) = end {
                let first_line = token.span().start().line;
                let lines = body.span_close().end().line + 1 - first_line;
                found.push(Function { name, first_line, lines });
            }
        }
        if let TokenTree::Group(group) = token {
            let inside: Vec<_> = group.stream().into_iter().collect();
            found.extend(functions(&inside));
        }
    }
    found
}

/// What is too long in the file `path` with this text.
fn too_long(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for Function { name, first_line, lines } in functions(&tokens(text, Path::new(path))) {
        let is_allowed = LONG_FUNCTIONS.contains(&format!("{path}: {name}").as_str());
        if lines > MAX_FUNCTION_LINES && !is_allowed {
            found.push(format!("{path}:{first_line}: {name} has {lines} lines"));
        }
    }
    let lines = text.lines().count();
    if lines > MAX_FILE_LINES && !text.lines().any(|line| line.starts_with(REASON)) {
        found.push(format!("{path}: {lines} lines, and no line that begins with {REASON:?}"));
    }
    found
}

/// What is too long in the crate `name` whose root file is `root`.
fn problems(name: &str, root: &Path) -> Vec<String> {
    let folder = root.parent().unwrap();
    let mut found = Vec::new();
    for path in rust_files(folder) {
        let shown = format!("{name}: {}", path.strip_prefix(folder).unwrap().display());
        found.extend(too_long(&shown, &read_text(&path).unwrap()));
    }
    found
}

#[test]
fn functions_and_files_are_short_or_say_why_not() {
    let mut wrong = Vec::new();
    for (name, root) in crate_roots() {
        wrong.extend(problems(&name, &root));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_is_too_long_is_found() {
    let lines = |n: usize| "    drop(());\n".repeat(n);
    let function = |n: usize| format!("fn f() -> [u8; 3] {{\n{}}}\n", lines(n));
    assert_eq!(too_long("a.rs", &function(78)), [""; 0]);
    assert_eq!(too_long("a.rs", &function(79)), ["a.rs:1: f has 81 lines"]);
    let hidden = format!(
        "mod m {{ wrap! {{ fn a();\n const T: &str = \"fn b() {{\";\n{} }} }}",
        function(79)
    );
    assert_eq!(too_long("a.rs", &hidden), ["a.rs:3: f has 81 lines"]);
    let file = |header: &str, n: usize| format!("{header}\n{}", "const A: u8 = 1;\n".repeat(n));
    assert_eq!(too_long("a.rs", &file("//! A.", 499)), [""; 0]);
    assert_eq!(too_long("a.rs", &file("//! A.", 500)).len(), 1);
    assert_eq!(
        too_long("a.rs", &file("//! This file is long because it is one table.", 500)),
        [""; 0]
    );
}
