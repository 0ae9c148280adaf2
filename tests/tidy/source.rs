//! Rust source as the tests of this binary read it: a crate as a tree of modules, each as tokens.
//!
//! `proc_macro2` splits the text into tokens, so that comments, strings and braces cannot mislead a test. Items that are
//! compiled for tests only (`#[cfg(test)]`) are left out, together with the files that they declare.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

/// The path of a module within its crate; empty for the root.
pub(crate) type Module = Vec<String>;

/// A source file of a crate.
#[derive(Debug)]
pub(crate) struct File {
    /// Where it is, relative to the folder of its crate's root file.
    pub(crate) path: PathBuf,
    /// Its own module, and the modules that are written inline in it.
    pub(crate) modules: BTreeMap<Module, Items>,
}

/// What one module of a file contains.
#[derive(Debug, Default)]
pub(crate) struct Items {
    /// The names that its `use` declarations bring in.
    pub(crate) uses: Vec<Use>,
    /// Paths of two segments or more outside of `use` declarations, each with its line.
    pub(crate) paths: Vec<(Vec<String>, usize)>,
    /// The first identifier of each path, and each identifier alone, outside of `use` declarations.
    pub(crate) words: BTreeSet<String>,
}

/// One name that a `use` declaration brings in.
#[derive(Debug)]
pub(crate) struct Use {
    /// The path of what is imported, without `*`.
    pub(crate) path: Vec<String>,
    /// What it is called here; `None` for `as _` and for `*`.
    pub(crate) name: Option<String>,
    /// Whether it imports all names of `path`.
    pub(crate) is_glob: bool,
    /// Whether the declaration is public, to whomever: a re-export.
    pub(crate) is_public: bool,
    /// The line of the declaration's branch.
    pub(crate) line: usize,
}

/// Reads the crate whose root file is `root`, following its `mod` declarations. `read` returns the text of a file, or
/// `None` if there is no such file.
pub(crate) fn read_crate(root: &Path, read: &dyn Fn(&Path) -> Option<String>) -> Vec<File> {
    let base = root.parent().unwrap();
    let mut files = Vec::new();
    let mut waiting = vec![(Module::new(), root.to_owned(), base.to_owned())];
    while let Some((module, path, folder)) = waiting.pop() {
        let text = read(&path).unwrap();
        let mut modules = BTreeMap::new();
        let mut declared = Vec::new();
        read_module(&tokens(&text, &path), &module, &mut modules, &mut declared);
        for child in declared {
            let folder =
                child[module.len()..].iter().fold(folder.clone(), |at, name| at.join(name));
            let file = [folder.with_extension("rs"), folder.join("mod.rs")]
                .into_iter()
                .find(|file| read(file).is_some())
                .unwrap_or_else(|| panic!("module {} has no file", child.join("::")));
            waiting.push((child, file, folder));
        }
        files.push(File { path: path.strip_prefix(base).unwrap().to_owned(), modules });
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// The tokens of `text`, which is that of the file `path`.
pub(crate) fn tokens(text: &str, path: &Path) -> Vec<TokenTree> {
    let stream: TokenStream =
        text.parse().unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    stream.into_iter().collect()
}

/// Reads a module into `modules`, and which modules it declares that have files of their own.
fn read_module(
    tokens: &[TokenTree],
    module: &Module,
    modules: &mut BTreeMap<Module, Items>,
    declared: &mut Vec<Module>,
) {
    modules.entry(module.clone()).or_default();
    let tokens = without_tests(tokens);
    let mut at = 0;
    while at < tokens.len() {
        match (word(&tokens, at).as_deref(), word(&tokens, at + 1)) {
            (Some("mod"), Some(name)) => {
                let child: Module = module.iter().cloned().chain([name]).collect();
                if let Some(TokenTree::Group(body)) = tokens.get(at + 2) {
                    let body: Vec<_> = body.stream().into_iter().collect();
                    read_module(&body, &child, modules, declared);
                } else {
                    declared.push(child);
                }
                at += 3;
            }
            // `use<…>` is a bound, not a declaration.
            (Some("use"), _) if !is_punct(&tokens, at + 1, '<') => {
                let end = (at..tokens.len()).find(|end| is_punct(&tokens, *end, ';')).unwrap();
                let uses = &mut modules.get_mut(module).unwrap().uses;
                read_use(&tokens[at + 1..end], &[], is_public(&tokens[..at]), uses);
                at = end + 1;
            }
            (Some(_), _) => {
                let line = tokens[at].span().start().line;
                let path = read_path(&tokens, at);
                at += 3 * path.len() - 2;
                let items = modules.get_mut(module).unwrap();
                items.words.insert(path[0].clone());
                if path.len() > 1 {
                    items.paths.push((path, line));
                }
            }
            (None, _) => {
                if let TokenTree::Group(group) = &tokens[at] {
                    let inside: Vec<_> = group.stream().into_iter().collect();
                    // `pub(in some::path)` imports nothing.
                    if word(&inside, 0).as_deref() != Some("in") {
                        read_module(&inside, module, modules, declared);
                    }
                }
                at += 1;
            }
        }
    }
}

/// The path that begins at `at`: identifiers with `::` between them.
fn read_path(tokens: &[TokenTree], at: usize) -> Vec<String> {
    let is_segment = |nth: &usize| {
        let colons = at + 3 * nth - 2;
        is_punct(tokens, colons, ':') && is_punct(tokens, colons + 1, ':')
    };
    let more = (1..).take_while(is_segment).map_while(|nth| word(tokens, at + 3 * nth));
    word(tokens, at).into_iter().chain(more).collect()
}

/// Reads a tree of `use`: `a::{b, c as d, e::*}`.
fn read_use(tree: &[TokenTree], before: &[String], is_public: bool, uses: &mut Vec<Use>) {
    for branch in tree.split(|token| matches!(token, TokenTree::Punct(p) if p.as_char() == ',')) {
        let Some(first) = branch.first() else { continue };
        let line = first.span().start().line;
        let mut path = before.to_owned();
        let mut name = None;
        let mut is_glob = false;
        let mut is_renamed = false;
        let mut is_group = false;
        for token in branch {
            match token {
                TokenTree::Ident(word) if word == "as" => is_renamed = true,
                TokenTree::Ident(word) if is_renamed => {
                    name = Some(word.to_string()).filter(|name| name != "_");
                }
                // In a group, `self` is what the group belongs to.
                TokenTree::Ident(word) if word == "self" && !path.is_empty() => {
                    name = path.last().cloned();
                }
                TokenTree::Ident(word) => {
                    path.push(word.to_string());
                    name = path.last().cloned();
                }
                TokenTree::Punct(punct) if punct.as_char() == '*' => {
                    is_glob = true;
                    name = None;
                }
                TokenTree::Group(group) => {
                    let inside: Vec<_> = group.stream().into_iter().collect();
                    read_use(&inside, &path, is_public, uses);
                    is_group = true;
                }
                TokenTree::Punct(_) | TokenTree::Literal(_) => {}
            }
        }
        if !is_group {
            uses.push(Use { path, name, is_glob, is_public, line });
        }
    }
}

/// Whether `before` ends with a visibility: `pub`, `pub(crate)` or alike.
fn is_public(before: &[TokenTree]) -> bool {
    let is_pub = |token: &TokenTree| matches!(token, TokenTree::Ident(word) if word == "pub");
    match before {
        [.., token] if is_pub(token) => true,
        [.., token, TokenTree::Group(_)] => is_pub(token),
        _ => false,
    }
}

/// `tokens` without the items that only tests are compiled with.
fn without_tests(tokens: &[TokenTree]) -> Vec<TokenTree> {
    let mut kept = Vec::with_capacity(tokens.len());
    let mut at = 0;
    while at < tokens.len() {
        let is_for_tests = is_punct(tokens, at, '#')
            && tokens
                .get(at + 1)
                .is_some_and(|attribute| attribute.to_string().replace(' ', "") == "[cfg(test)]");
        if is_for_tests {
            at = item_end(tokens, at + 2);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Where the item that begins at `at` has ended: after its braces, its `;` or its `,`.
fn item_end(tokens: &[TokenTree], mut at: usize) -> usize {
    let mut is_use = false;
    while at < tokens.len() {
        is_use |= word(tokens, at).as_deref() == Some("use");
        let ends = match &tokens[at] {
            TokenTree::Group(group) => group.delimiter() == Delimiter::Brace && !is_use,
            TokenTree::Punct(punct) => matches!(punct.as_char(), ';' | ','),
            TokenTree::Ident(_) | TokenTree::Literal(_) => false,
        };
        at += 1;
        if ends {
            break;
        }
    }
    at
}

/// The identifier at `at`.
pub(crate) fn word(tokens: &[TokenTree], at: usize) -> Option<String> {
    match tokens.get(at) {
        Some(TokenTree::Ident(word)) => Some(word.to_string()),
        Some(TokenTree::Group(_) | TokenTree::Punct(_) | TokenTree::Literal(_)) | None => None,
    }
}

fn is_punct(tokens: &[TokenTree], at: usize, wanted: char) -> bool {
    matches!(tokens.get(at), Some(TokenTree::Punct(punct)) if punct.as_char() == wanted)
}
