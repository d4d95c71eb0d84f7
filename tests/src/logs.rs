//! The logs that a test's processes wrote.

use std::path::{Path, PathBuf};

const TAIL_LINES: usize = 60;

/// Every log under `dir`, rotated ones too.
#[must_use]
pub fn find(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            let Ok(kind) = entry.file_type() else { continue };
            if kind.is_dir() {
                dirs.push(path);
            } else if kind.is_file() && is_log(&entry.file_name().to_string_lossy()) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

fn is_log(name: &str) -> bool {
    name == "log" || name.starts_with("log.") || name.contains(".log")
}

fn read(path: &Path) -> String {
    // Lossy, and empty where the file has just been rotated away: a log is for looking at.
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// Lines of level ERROR that hold none of the `allowed` texts, with the file they stand in.
#[must_use]
pub fn errors(dir: &Path, allowed: &[String]) -> Vec<String> {
    let mut lines = Vec::new();
    for path in find(dir) {
        for line in read(&path).lines().filter(|line| is_error(line)) {
            if !allowed.iter().any(|a| line.contains(a.as_str())) {
                lines.push(format!("{}: {line}", path.display()));
            }
        }
    }
    lines
}

/// Text logs carry the level as one of the first words, JSON logs as a field; a panic is an error at any level.
fn is_error(line: &str) -> bool {
    let plain = without_colours(line);
    plain.split_whitespace().take(3).any(|word| word == "ERROR")
        || plain.contains("\"level\":\"ERROR\"")
        || plain.contains("panicked at")
}

fn without_colours(line: &str) -> String {
    let mut plain = String::new();
    let mut rest = line;
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').map_or("", |(_, tail)| tail);
    }
    plain + rest
}

/// The lines of all logs under `dir` (or of the log `dir`) that hold `text`.
#[must_use]
pub fn lines(dir: &Path, text: &str) -> Vec<String> {
    let logs = if dir.is_file() { vec![dir.to_owned()] } else { find(dir) };
    let lines_of = |path: &PathBuf| {
        let all = read(path);
        all.lines().filter(|line| line.contains(text)).map(str::to_owned).collect::<Vec<_>>()
    };
    logs.iter().flat_map(lines_of).collect()
}

/// Whether a line of any log under `dir` holds `text`.
#[must_use]
pub fn contain(dir: &Path, text: &str) -> bool {
    find(dir).iter().any(|path| read(path).contains(text))
}

/// Prints the end of every log, for a test that failed.
pub fn dump(dir: &Path) {
    for path in find(dir) {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL_LINES);
        eprintln!("---- {} (last {} of {} lines)", path.display(), lines.len() - from, lines.len());
        for line in &lines[from..] {
            eprintln!("{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_seen_in_text_colour_and_json() {
        assert!(is_error("2026-11-20T10:00:00Z ERROR engine{volume=demo}: no"));
        assert!(is_error("\u{1b}[2m2026-11-20T10:00:00Z\u{1b}[0m \u{1b}[31mERROR\u{1b}[0m engine: no"));
        assert!(is_error("{\"timestamp\":\"...\",\"level\":\"ERROR\",\"message\":\"no\"}"));
        assert!(is_error("thread 'main' panicked at src/main.rs:1:1:"));
        assert!(!is_error("2026-11-20T10:00:00Z  WARN engine: the client got an ERROR answer"));
    }
}
