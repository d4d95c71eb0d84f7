//! The house rules that a compiler does not check, as a test over the source tree.
//!
//! The sources are read as text: comments and literals are blanked, and what is left is cut into paths such as
//! `std::fs::File`, with the groups of `use` declarations expanded. That is enough for rules about names.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};

const CRATES: [&str; 6] = ["proto", "log", "dataplane", "agent", "tests", "benches"];

/// A file of the workspace: its path from the root, with `/`, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    fn code(&self) -> String {
        blank(&self.text, true)
    }
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn collect(dir: &Path, extension: &str, into: &mut Vec<Source>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    for path in paths {
        if path.is_dir() {
            collect(&path, extension, into);
        } else if path.extension().is_some_and(|found| found == extension) {
            let relative = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
            into.push(Source { path: relative, text: fs::read_to_string(&path).unwrap() });
        }
    }
}

fn rust_sources() -> Vec<Source> {
    let mut sources = Vec::new();
    for name in CRATES {
        collect(&root().join(name), "rs", &mut sources);
    }
    assert!(sources.len() > 10, "the source tree was not found at {}", root().display());
    sources
}

/// `text` with string and character literals blanked, and comments too where `comments`; lines stay where they are.
fn blank(text: &str, comments: bool) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let (length, blanked) = if rest.starts_with(b"//") {
            (rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len()), comments)
        } else if rest.starts_with(b"/*") {
            (block_comment_bytes(rest), comments)
        } else if let Some(length) = literal_bytes(bytes, at) {
            (length, true)
        } else {
            (1, false)
        };
        if blanked {
            for byte in &mut out[at..at + length] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
        }
        at += length;
    }
    String::from_utf8(out).unwrap()
}

/// How long the (nested) block comment is that starts here.
fn block_comment_bytes(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest[at..].starts_with(b"*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    rest.len()
}

/// How long the string or character literal is that starts at `at`, if one does. Lifetimes and raw identifiers are
/// not literals.
fn literal_bytes(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let inside_word = at > 0 && is_word(bytes[at - 1]);
    let prefix = rest.iter().take_while(|b| matches!(b, b'b' | b'c' | b'r')).count();
    if prefix > 0 && (inside_word || prefix > 2) {
        return None;
    }
    let body = &rest[prefix..];
    if rest[..prefix].contains(&b'r') {
        let hashes = body.iter().take_while(|b| **b == b'#').count();
        if body.get(hashes) != Some(&b'"') {
            return None;
        }
        let end: Vec<u8> = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
        let content = &body[hashes + 1..];
        let length = content.windows(end.len()).position(|window| window == end)?;
        return Some(prefix + hashes + 1 + length + end.len());
    }
    match body.first()? {
        b'"' => quoted_bytes(body, b'"').map(|length| prefix + length),
        b'\'' if body.get(1) == Some(&b'\\') => quoted_bytes(body, b'\'').map(|length| prefix + length),
        b'\'' => {
            // One character and a quote, or it is a lifetime.
            let width = std::str::from_utf8(&body[1..]).ok()?.chars().next()?.len_utf8();
            (body.get(1 + width) == Some(&b'\'')).then_some(prefix + width + 2)
        }
        _ => None,
    }
}

fn quoted_bytes(body: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    while at < body.len() {
        match body[at] {
            b'\\' => at += 2,
            byte if byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[derive(Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Colons,
    Other(u8),
}

fn tokens(code: &str) -> Vec<(usize, Token<'_>)> {
    let bytes = code.as_bytes();
    let (mut at, mut line) = (0, 1);
    let mut found = Vec::new();
    while at < bytes.len() {
        let byte = bytes[at];
        if is_word(byte) {
            let length = bytes[at..].iter().take_while(|b| is_word(**b)).count();
            found.push((line, Token::Word(&code[at..at + length])));
            at += length;
        } else if bytes[at..].starts_with(b"::") {
            found.push((line, Token::Colons));
            at += 2;
        } else {
            line += usize::from(byte == b'\n');
            if !byte.is_ascii_whitespace() {
                found.push((line, Token::Other(byte)));
            }
            at += 1;
        }
    }
    found
}

/// Every path that the code names, with its line: `use a::{b, c::d};` gives `a::b` and `a::c::d`, and so do paths in
/// expressions. A word of its own is a path of one.
fn paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    // The prefixes of the open groups; outside of `use` a brace ends a path and opens a group without a prefix.
    let mut groups: Vec<String> = Vec::new();
    let mut path = String::new();
    let mut after_colons = false;
    let mut in_use = false;
    for (line, token) in tokens(code) {
        match token {
            Token::Word("use") => (in_use, path) = (true, String::new()),
            Token::Word(word) if after_colons => {
                path = format!("{path}::{word}");
                found.push((line, path.clone()));
            }
            Token::Word(word) => {
                path = match groups.last() {
                    Some(prefix) if in_use && !prefix.is_empty() => format!("{prefix}::{word}"),
                    _ => word.to_owned(),
                };
                found.push((line, path.clone()));
            }
            Token::Colons | Token::Other(_) => {}
        }
        match token {
            Token::Other(b'{') if in_use => groups.push(std::mem::take(&mut path)),
            Token::Other(b'}') if in_use => drop(groups.pop()),
            Token::Other(b';') => {
                in_use = false;
                groups.clear();
            }
            Token::Word(_) | Token::Colons | Token::Other(_) => {}
        }
        after_colons = token == Token::Colons && !path.is_empty();
    }
    found
}

/// Whether `path` names `rule`: the rule's segments follow each other in it, from the start where the rule is a crate.
fn names(path: &str, rule: &str) -> bool {
    let (path, rule): (Vec<&str>, Vec<&str>) = (path.split("::").collect(), rule.split("::").collect());
    let anchored = rule.len() == 1 || matches!(rule[0], "crate" | "std");
    path.windows(rule.len()).enumerate().any(|(at, window)| window == rule && (at == 0 || !anchored))
}

fn naming(sources: &[Source], prefix: &str, rules: &[&str]) -> Vec<String> {
    let mut broken = Vec::new();
    for source in sources.iter().filter(|source| source.path.starts_with(prefix)) {
        for (line, path) in paths(&source.code()) {
            for rule in rules.iter().filter(|rule| names(&path, rule)) {
                broken.push(format!("{}:{line}: {path} ({rule})", source.path));
            }
        }
    }
    broken.sort();
    broken.dedup();
    broken
}

#[track_caller]
fn assert_none(rule: &str, broken: &[String]) {
    assert!(broken.is_empty(), "{rule}:\n  {}", broken.join("\n  "));
}

/// What decides has no socket, file, task or clock. Addresses are `core::net`, which has no sockets.
const IMPURE: [&str; 9] = [
    "tokio",
    "tokio_uring",
    "tonic",
    "io_uring",
    "std::fs",
    "std::net",
    "std::thread",
    "Instant::now",
    "SystemTime::now",
];

#[test]
fn core_is_pure() {
    let sources = rust_sources();
    for core in ["dataplane/src/core", "agent/src/core"] {
        assert_none("core decides, the shell does", &naming(&sources, core, &IMPURE));
    }
    for types in ["log/src/limit.rs", "dataplane/src/wire", "dataplane/src/units.rs"] {
        assert_none("limits, and the wire's bytes and types, are pure", &naming(&sources, types, &IMPURE));
    }
}

#[test]
fn imports_run_one_way() {
    let sources = rust_sources();
    let dataplane_shell = [
        "crate::io",
        "crate::frontend",
        "crate::engine",
        "crate::replica",
        "crate::control",
        "crate::metrics",
    ];
    let agent_shell =
        ["crate::process", "crate::registry", "crate::store", "crate::rpc", "crate::cli", "crate::telemetry"];
    for (prefix, rules) in [
        // Between the crates: agent -> dataplane -> proto, log.
        ("proto/", ["holdfast_dataplane", "holdfast", "holdfast_log"].as_slice()),
        ("log/", &["holdfast_dataplane", "holdfast", "holdfast_proto"]),
        ("dataplane/", &["holdfast"]),
        // Within them: shell -> core -> wire, layout, units.
        ("dataplane/src/core", &dataplane_shell),
        ("dataplane/src/wire", &dataplane_shell),
        ("dataplane/src/wire", &["crate::core"]),
        ("dataplane/src/layout", &dataplane_shell),
        ("dataplane/src/layout", &["crate::core"]),
        ("dataplane/src/units.rs", &["crate"]),
        ("agent/src/core", &agent_shell),
    ] {
        assert_none(&format!("imports of {prefix} run one way"), &naming(&sources, prefix, rules));
    }
}

#[test]
fn unsafe_stays_in_its_corner() {
    // A counting allocator, which shows that the hot loop allocates nothing, is an unsafe trait's implementation.
    let allowed = ["dataplane/src/io/", "dataplane/src/io.rs", "dataplane/tests/no_alloc_"];
    let broken: Vec<String> = naming(&rust_sources(), "", &["unsafe"])
        .into_iter()
        .filter(|place| !allowed.iter().any(|corner| place.starts_with(corner)))
        .collect();
    assert_none("unsafe is for dataplane/src/io alone", &broken);
}

#[test]
fn other_crates_forbid_unsafe() {
    let mut missing = Vec::new();
    for source in rust_sources() {
        let is_root = ["src/lib.rs", "src/main.rs"].iter().any(|end| source.path.ends_with(end))
            || source.path.starts_with("tests/tests/")
            || source.path.starts_with("benches/benches/");
        let depth = source.path.matches('/').count();
        if is_root
            && depth == 2
            && !source.path.starts_with("dataplane/")
            && !source.code().contains("#![forbid(unsafe_code)]")
        {
            missing.push(source.path);
        }
    }
    assert_none("every crate but dataplane says #![forbid(unsafe_code)] at its root", &missing);
}

#[test]
fn nothing_is_left_for_later() {
    let sources = rust_sources();
    let mut broken: Vec<String> = Vec::new();
    for source in &sources {
        let code = source.code();
        for (number, line) in code.lines().enumerate() {
            let squeezed: String = line.split_whitespace().collect();
            for (mark, why) in [
                ("#[ignore", "a test that does not run is no test"),
                ("todo!", "unfinished"),
                ("unimplemented!", "unfinished"),
                ("#[allow(", "#[expect(lint, reason)] instead"),
                ("#![allow(", "#![expect(lint, reason)] instead"),
            ] {
                // The generated gRPC code breaks lints as it likes.
                let generated = source.path == "proto/src/lib.rs" && mark == "#[allow(";
                if squeezed.contains(mark) && !generated {
                    broken.push(format!("{}:{}: {mark} ({why})", source.path, number + 1));
                }
            }
        }
    }
    // Comments too, but not literals, or this file would accuse itself.
    for source in &sources {
        for (number, line) in blank(&source.text, false).lines().enumerate() {
            for mark in [concat!("FIX", "ME"), concat!("XX", "X"), concat!("TO", "DO")] {
                if line.split(|c: char| !c.is_alphanumeric()).any(|word| word == mark) {
                    broken.push(format!("{}:{}: {mark}", source.path, number + 1));
                }
            }
        }
    }
    assert_none("nothing is left for later in the sources", &broken);
}

/// Links between documents lead somewhere.
#[test]
fn documents_link_to_files_that_exist() {
    let mut documents = Vec::new();
    collect(&root().join("docs"), "md", &mut documents);
    for name in ["README.md", "CHANGELOG.md"] {
        if let Ok(text) = fs::read_to_string(root().join(name)) {
            documents.push(Source { path: name.to_owned(), text });
        }
    }
    let mut broken = Vec::new();
    for document in &documents {
        let dir = root().join(&document.path).parent().unwrap().to_owned();
        for target in document.text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = target.split('#').next().unwrap_or_default();
            if !file.is_empty() && !file.contains("://") && !dir.join(file).exists() {
                broken.push(format!("{}: {target}", document.path));
            }
        }
    }
    assert_none("documents link to files that exist", &broken);
}

#[test]
fn licence_is_there() {
    let licence = fs::read_to_string(root().join("LICENSE")).unwrap();
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0"));
}

/// The rules above are only as good as the reading of the sources.
mod reading {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let text = "a // tokio\n/* b /* tonic */ c */ d \"std::fs\\\" e\" f r#\"g\" h\"# i 'j' '\\'' 'k: &'l b\"m\" n";
        let code = blank(text, true);
        assert_eq!(code.len(), text.len());
        let words: Vec<&str> = code.split_whitespace().collect();
        assert_eq!(words, ["a", "d", "f", "i", "'k:", "&'l", "n"]);
        assert!(blank(text, false).contains("tokio"));
        assert!(!blank(text, false).contains("std::fs"));
    }

    #[test]
    fn groups_are_expanded() {
        let code = "use std::{io, fs::{File, self}, net as n};\nfn f() { crate::io::x(Instant::now()); }";
        let found = paths(code);
        let names: Vec<&str> = found.iter().map(|(_, path)| path.as_str()).collect();
        for path in ["std::io", "std::fs", "std::fs::File", "std::net", "crate::io", "Instant::now"] {
            assert!(names.contains(&path), "{path} not in {names:?}");
        }
        assert!(found.contains(&(2, "crate::io::x".to_owned())));
        assert!(!names.contains(&"std::Instant"));
    }

    #[test]
    fn rules_match_whole_names() {
        for (path, rule, expected) in [
            ("std::fs::File", "std::fs", true),
            ("std::fsync", "std::fs", false),
            ("tokio::spawn", "tokio", true),
            ("tokio_uring::start", "tokio", false),
            ("crate::io", "crate::io", true),
            ("std::io", "crate::io", false),
            ("std::time::Instant::now", "Instant::now", true),
            ("time::Instant", "Instant::now", false),
            ("my::tokio", "tokio", false),
        ] {
            assert_eq!(names(path, rule), expected, "{path} against {rule}");
        }
    }
}
