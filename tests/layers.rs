//! The sources keep to the layers of DESIGN.md and to the house rules: imports go downwards, each
//! outside crate is named in its one place, files stay small, plain ASCII, no long lines.

use std::fs;
use std::path::{Path, PathBuf};

/// Modules from the top to the bottom. Those of one row do not import each other.
const LAYERS: &[&[&str]] = &[
    &["cli"],
    &["fuse"],
    &["vfs"],
    &["services"],
    &["pool"],
    &["index", "segments", "journal", "ledger"],
    &["mirrors"],
    &["backing"],
    &["format"],
];

/// Crates and modules that only these layers may name.
const OWNED: &[(&str, &[&str])] = &[
    ("crc32fast::", &["format"]),
    ("xxhash_rust::", &["format"]),
    ("blake3::", &["format"]),
    ("sha2::", &["format"]),
    ("sled::", &["ledger"]),
    ("redb::", &["index"]),
    ("fuser::", &["fuse"]),
    ("clap::", &["cli"]),
    ("std::fs", &["backing", "cli"]),
];

/// Files that may be longer than LONGEST lines without their tests. Each is a debt.
const LONG_FILES: &[&str] = &["src/format/rows.rs", "src/fuse/adapter.rs"];
const LONGEST: usize = 600;
const WIDEST: usize = 100;

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// Every source file below the named directories: its path from the root, and its text.
fn all(dirs: &[&str]) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    for dir in dirs {
        sources(&root.join(dir), &mut found);
    }
    found.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        let name = path.strip_prefix(root).expect("below the root");
        (name.to_string_lossy().into_owned(), text)
    };
    found.into_iter().map(read).collect()
}

/// The layer that a file belongs to: `src/vfs/dir.rs` to `vfs`, `src/lib.rs` to none.
fn layer(file: &str) -> Option<&str> {
    let below = file.strip_prefix("src/")?;
    let name = below.split('/').next()?.trim_end_matches(".rs");
    (!matches!(name, "lib" | "main")).then_some(name)
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|row| row.contains(&layer))
}

/// Text before the file's unit tests: those may reach anywhere and be as long as they need.
fn without_tests(text: &str) -> &str {
    let end = text.find("\n#[cfg(test)]\nmod ").unwrap_or(text.len());
    &text[..end]
}

/// Lines of code, without comments, up to the first string.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = without_tests(text).lines().enumerate();
    lines.filter_map(|(number, line)| {
        let line = line.split("//").next().unwrap_or("");
        // Nor what only stands in a string.
        let line = line.split('"').next().unwrap_or("");
        (!line.trim().is_empty()).then_some((number + 1, line))
    })
}

/// Whether the whole file is compiled for tests only.
fn only_for_tests(file: &str) -> bool {
    let name = file.rsplit('/').next().unwrap_or(file);
    matches!(name, "tests.rs" | "testing.rs") || file.contains("/tests/")
}

/// Names that follow `crate::` in a line, also inside braces on the same line.
fn imported(line: &str) -> Vec<&str> {
    let mut names = Vec::new();
    for (at, _) in line.match_indices("crate::") {
        let before = line[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let rest = &line[at + "crate::".len()..];
        let rest = rest.strip_prefix('{').unwrap_or(rest);
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        names.push(&rest[..end.unwrap_or(rest.len())]);
    }
    names
}

#[test]
fn every_module_is_a_layer() {
    for (file, _) in all(&["src"]) {
        if let Some(layer) = layer(&file) {
            assert!(
                rank(layer).is_some(),
                "{file}: {layer} is no layer of DESIGN.md"
            );
        }
    }
}

#[test]
fn imports_go_downwards_only() {
    let mut wrong = Vec::new();
    for (file, text) in all(&["src"]) {
        let Some(own) = layer(&file) else { continue };
        if only_for_tests(&file) {
            continue;
        }
        for (number, line) in code(&text) {
            for name in imported(line) {
                let allowed = name == own || rank(name) > rank(own);
                if rank(name).is_some() && !allowed {
                    wrong.push(format!("{file}:{number}: {own} uses {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn each_outside_crate_is_named_in_its_one_place() {
    let mut wrong = Vec::new();
    for (file, text) in all(&["src"]) {
        if only_for_tests(&file) {
            continue;
        }
        let own = layer(&file).unwrap_or("");
        for (number, line) in code(&text) {
            for (name, owners) in OWNED {
                let named = line.match_indices(name).any(|(at, _)| {
                    let before = line[..at].chars().next_back();
                    !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
                });
                if named && !owners.contains(&own) {
                    wrong.push(format!("{file}:{number}: {name}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn files_stay_small() {
    let mut long = Vec::new();
    for (file, text) in all(&["src"]) {
        let lines = without_tests(&text).lines().count();
        if lines > LONGEST && !LONG_FILES.contains(&file.as_str()) && !only_for_tests(&file) {
            long.push(format!("{file}: {lines} lines"));
        }
    }
    assert!(
        long.is_empty(),
        "split them, or list them as a debt: {long:#?}"
    );
}

#[test]
fn every_file_says_what_it_owns() {
    for (file, text) in all(&["src", "tests"]) {
        if only_for_tests(&file) && file.starts_with("src/") {
            continue;
        }
        let head = text
            .lines()
            .take_while(|line| line.starts_with("//!"))
            .count();
        assert!(head >= 1, "{file} does not open with a description");
    }
}

#[test]
fn sources_are_plain_and_narrow() {
    let mut wrong = Vec::new();
    for (file, text) in all(&["src", "tests"]) {
        for (number, line) in text.lines().enumerate() {
            if !line.is_ascii() {
                wrong.push(format!("{file}:{}: not ASCII", number + 1));
            }
            if line.chars().count() > WIDEST {
                wrong.push(format!("{file}:{}: longer than {WIDEST}", number + 1));
            }
        }
        if text.contains('\r') || text.contains('\t') {
            wrong.push(format!("{file}: a tab or carriage return"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn no_panicking_shortcut_is_left_in_the_code() {
    let mut wrong = Vec::new();
    for (file, text) in all(&["src"]) {
        if only_for_tests(&file) {
            continue;
        }
        for (number, line) in code(&text) {
            for word in [".unwrap()", "todo!", "unimplemented!", "dbg!("] {
                if line.contains(word) {
                    wrong.push(format!("{file}:{number}: {word}"));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
