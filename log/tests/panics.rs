//! A process that panics anywhere ends, whatever its standard error is. The process is this test again.
#![forbid(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::process::{Command, Output, Stdio};

use holdfast_log::EXIT_PANICKED;

const CHILD: &str = "HOLDFAST_LOG_TEST_CHILD";

fn child(test: &str, stderr: Stdio) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env_remove("RUST_BACKTRACE");
    command.stdout(Stdio::null()).stderr(stderr).spawn().unwrap().wait_with_output().unwrap()
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// One of its threads panics, and the process would go on without it.
fn lose_a_thread() {
    holdfast_log::start().unwrap();
    tracing::info!("before");
    let thread = std::thread::Builder::new().name("data".to_owned());
    let lost = thread.spawn(|| panic!("no\nsuch \x1b[31mthing")).unwrap();
    drop(lost.join());
    std::process::exit(0);
}

#[test]
fn panic_of_a_thread_ends_its_process_with_a_reason() {
    if is_child() {
        lose_a_thread();
    }
    let ended = child("panic_of_a_thread_ends_its_process_with_a_reason", Stdio::piped());
    assert_eq!(ended.status.code(), Some(i32::from(EXIT_PANICKED)));
    let said = String::from_utf8(ended.stderr).unwrap();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines.len(), 2, "{said}");
    assert!(lines[0].contains("INFO") && lines[0].ends_with("before"), "{said}");
    assert!(
        lines[1].contains("ERROR the process ends: thread data panicked at log/tests/panics.rs:"),
        "{said}"
    );
    assert!(lines[1].ends_with("no such  [31mthing"), "one line, and nothing for a terminal: {said}");
}

#[test]
fn panic_ends_its_process_though_nothing_can_be_written() {
    if is_child() {
        lose_a_thread();
    }
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let read_only = File::open("/dev/null").unwrap();
    for stderr in [Stdio::from(full), Stdio::from(read_only)] {
        let ended = child("panic_ends_its_process_though_nothing_can_be_written", stderr);
        assert_eq!(ended.status.code(), Some(i32::from(EXIT_PANICKED)));
    }
}

#[test]
fn full_disk_of_the_log_changes_no_exit_code() {
    if is_child() {
        holdfast_log::start().unwrap();
        for n in 0..100_000 {
            tracing::warn!(volume = format!("v{n}"), "a line");
            tracing::info!(volume = format!("v{n}"), "another");
        }
        holdfast_log::last_words("the end");
        std::process::exit(7);
    }
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let ended = child("full_disk_of_the_log_changes_no_exit_code", Stdio::from(full));
    assert_eq!(ended.status.code(), Some(7));
}
