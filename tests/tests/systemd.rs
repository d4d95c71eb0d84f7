//! The unit file as systemd sees it: it verifies, and the settings on which running instances depend are there.
#![forbid(unsafe_code)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

const UNIT: &str = "holdfast-agent.service";

fn systemd_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../systemd")
}

fn unit_text() -> String {
    fs::read_to_string(systemd_dir().join(UNIT)).unwrap()
}

/// The binary that cargo put beside this test: `target/PROFILE/deps/systemd-HASH` and `target/PROFILE/holdfast`.
fn built_binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.parent().and_then(Path::parent).unwrap().join("holdfast");
    assert!(
        binary.is_file(),
        "{} is missing: run `cargo build --workspace --bins` first (tests/run does)",
        binary.display()
    );
    binary
}

fn run(program: &str, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap_or_else(|error| panic!("failed to run {program}: {error}; tests/run installs it"))
}

/// `[Section]` and `Key=Value` of every setting, in order.
fn settings(unit: &str) -> Vec<(String, String, String)> {
    let mut section = String::new();
    let mut found = Vec::new();
    for line in unit.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut section);
        } else {
            let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("not a setting: {line:?}"));
            found.push((section.clone(), key.to_owned(), value.to_owned()));
        }
    }
    found
}

fn values(section: &str, key: &str) -> Vec<String> {
    settings(&unit_text())
        .into_iter()
        .filter(|(s, k, _)| s == section && k == key)
        .map(|(_, _, value)| value)
        .collect()
}

/// What `systemd-analyze verify` says about `unit` itself; units of the machine that it pulls in may have faults too.
fn complaints(unit: &str) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(UNIT);
    fs::write(&path, unit).unwrap();
    let output = run("systemd-analyze", &["verify", "--man=no", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let ours: Vec<String> = said.lines().filter(|line| line.contains(UNIT)).map(str::to_owned).collect();
    assert!(
        output.status.success() || !ours.is_empty(),
        "systemd-analyze failed without a word about our unit: {}\n{said}",
        output.status
    );
    ours
}

fn with_built_binary() -> String {
    let text = unit_text();
    let installed = "ExecStart=/usr/bin/holdfast agent";
    assert_eq!(text.matches(installed).count(), 1, "the unit starts the installed agent, once");
    text.replace(installed, &format!("ExecStart={} agent", built_binary().display()))
}

#[test]
fn unit_verifies() {
    assert_eq!(complaints(&with_built_binary()), Vec::<String>::new());
}

/// The check above can fail: a misspelt key and a missing program are both noticed.
#[test]
fn verification_notices_faults() {
    let misspelt = with_built_binary().replace("OOMPolicy=", "OOMPolice=");
    assert!(
        complaints(&misspelt).iter().any(|line| line.contains("OOMPolice")),
        "{:?}",
        complaints(&misspelt)
    );
    let missing = unit_text().replace("/usr/bin/holdfast", "/nonexistent/holdfast");
    assert!(
        complaints(&missing).iter().any(|line| line.contains("/nonexistent")),
        "{:?}",
        complaints(&missing)
    );
}

/// Each of these keeps instances alive and reachable without the agent; the unit's comments say how.
#[test]
fn instances_outlive_the_agent() {
    for (section, key, expected) in [
        ("Unit", "RequiresMountsFor", "/var/lib/holdfast"),
        ("Unit", "StartLimitIntervalSec", "0"),
        ("Service", "Type", "notify"),
        ("Service", "NotifyAccess", "main"),
        ("Service", "ExecStart", "/usr/bin/holdfast agent"),
        ("Service", "ExecReload", "/bin/kill -HUP $MAINPID"),
        ("Service", "KillMode", "process"),
        ("Service", "Delegate", "yes"),
        ("Service", "ProtectControlGroups", "no"),
        ("Service", "Restart", "on-failure"),
        ("Service", "WatchdogSec", "30"),
        ("Service", "RuntimeDirectory", "holdfast"),
        ("Service", "RuntimeDirectoryPreserve", "yes"),
        ("Service", "StateDirectory", "holdfast"),
        ("Service", "OOMPolicy", "continue"),
        ("Service", "TasksMax", "infinity"),
        ("Service", "LimitMEMLOCK", "infinity"),
        ("Service", "PrivateTmp", "no"),
        ("Service", "NoNewPrivileges", "yes"),
        ("Service", "ProtectSystem", "strict"),
    ] {
        assert_eq!(values(section, key), [expected], "[{section}] {key}");
    }
}

/// These tie what the instances use to the life of the unit, or take away what they need.
#[test]
fn nothing_ties_instances_to_the_unit() {
    for key in [
        "DynamicUser",
        "TemporaryFileSystem",
        "PrivateNetwork",
        "JoinsNamespaceOf",
        "NoExecPaths",
        "ExecStopPost",
        "RuntimeMaxSec",
        "MemoryMax",
        "BindsTo",
        "PartOf",
    ] {
        let found: Vec<_> = settings(&unit_text()).into_iter().filter(|(_, k, _)| k == key).collect();
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn io_uring_and_pidfds_pass_the_filter() {
    let filters = values("Service", "SystemCallFilter");
    let (denied, allowed): (Vec<_>, Vec<_>) = filters.iter().partition(|value| value.starts_with('~'));
    let allowed: Vec<&str> = allowed.iter().flat_map(|value| value.split_whitespace()).collect();
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register", "pidfd_open", "pidfd_send_signal"] {
        assert!(allowed.contains(&call), "{call} is not in {allowed:?}");
    }
    // A later `~` line wins over the list: no group in it may hold one of them.
    for group in denied.iter().flat_map(|value| value.trim_start_matches('~').split_whitespace()) {
        let output = run("systemd-analyze", &["syscall-filter", group]);
        assert!(output.status.success(), "systemd does not know the group {group}");
        let calls = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!calls.lines().any(|line| allowed.contains(&line.trim())), "{group} takes back {calls}");
    }
}

#[test]
fn user_and_directories_agree_with_the_unit() {
    let user = values("Service", "User").concat();
    assert_eq!(values("Service", "Group"), [user.as_str()]);
    let sysusers = fs::read_to_string(systemd_dir().join("holdfast.sysusers")).unwrap();
    assert!(sysusers.lines().any(|line| line.starts_with(&format!("u {user} "))), "{sysusers}");
    let tmpfiles = fs::read_to_string(systemd_dir().join("holdfast.tmpfiles")).unwrap();
    let mode = values("Service", "RuntimeDirectoryMode").concat();
    assert!(tmpfiles.contains(&format!("d /run/holdfast {mode} {user} {user} -")), "{tmpfiles}");
}
