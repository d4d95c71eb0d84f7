//! Every refusal names file, line and remedy; flags win over the file; a reload says what it could not do.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use holdfast_dataplane::io::SpinMode;

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    flags: AgentFlags,
}

fn around() -> Surroundings {
    Surroundings {
        host_name: "Node-1".to_owned(),
        current_dir: PathBuf::from("/home/me"),
        runtime_dir_for: |data_dir| Path::new("/run/derived").join(data_dir.file_name().unwrap()),
    }
}

fn resolve(flags: &[&str], file: &str) -> Result<AgentConfig, String> {
    let line = Line::try_parse_from([&["agent"], flags].concat()).map_err(|error| error.to_string())?;
    AgentConfig::resolve(&line.flags, Some((Path::new("/etc/h.toml"), file)), &around())
        .map_err(|complaint| complaint.to_string())
}

#[test]
fn silence_means_the_packaged_defaults() {
    let config = resolve(&[], "").unwrap();
    assert_eq!(config.data_dir, Path::new("/var/lib/holdfast"));
    assert_eq!(config.listen, Path::new("/run/holdfast/agent.sock"));
    assert_eq!(config.runtime_dir, Path::new("/run/holdfast"));
    assert_eq!(config.bin_dir, Path::new("/var/lib/holdfast/bin"));
    assert_eq!(config.node.as_str(), "node-1");
    assert_eq!(config.bind.to_string(), "127.0.0.1");
    assert_eq!(config.data_ports, 20000..=29999);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.limits.replica_timeout, Duration::from_secs(8));
    assert_eq!(config.trash_ttl, Duration::from_secs(86_400));
    assert!(!config.stop_instances);
}

#[test]
fn flags_win_over_the_file_and_relative_flags_start_here() {
    let file = "node = \"from-file\"\ndata_dir = \"/srv/file\"\nbind = \"::1\"\nstop_instances = true\n";
    let config = resolve(&["--node", "from-flag", "--data-dir", "./d"], file).unwrap();
    assert_eq!(config.node.as_str(), "from-flag");
    assert_eq!(config.data_dir, Path::new("/home/me/d"));
    assert_eq!(config.runtime_dir, Path::new("/run/derived/d"));
    assert_eq!(config.bin_dir, Path::new("/home/me/d/bin"));
    assert_eq!(config.bind.to_string(), "::1");
    assert!(config.stop_instances);
}

#[test]
fn every_refusal_names_file_line_and_remedy() {
    for (file, line, words) in [
        ("\nnode = 5\n", 2, "expected a string, found integer; remedy: node = \"node-1\""),
        ("node = \"A b\"", 1, "remedy: node = "),
        ("\n\ndata_ports = \"30000-20000\"", 3, "remedy: data_ports = \"20000-29999\""),
        ("bind = \"localhost\"", 1, "is not an IPv4 or IPv6 address"),
        ("data_dir = \"relative\"", 1, "is not an absolute path"),
        ("listen = \"tcp:0.0.0.0:1\"", 1, "the agent listens on a unix socket"),
        ("log_format = \"yaml\"", 1, "text or json"),
        ("log_level = \"loud\"", 1, "is not a log level"),
        ("stop_instances = \"yes\"", 1, "expected true or false, found string"),
        ("trash_ttl = \"24\"", 1, "remedy: trash_ttl = \"24h\""),
        ("#\nsuspend_timeout = \"5 parsecs\"", 2, "is not a duration"),
        ("\ndata-dir = \"/x\"", 2, "unknown key \"data-dir\"; remedy: did you mean data_dir?"),
        ("replica_timout = \"8s\"", 1, "did you mean replica_timeout?"),
        ("min_in_sync = \"2\"", 1, "expected a whole number, found string; remedy: min_in_sync = 1"),
        ("min_in_sync = -1", 1, "remedy: min_in_sync = 1"),
        ("read_lease = 5", 1, "expected a string, found integer; remedy: read_lease = \"5s\""),
        ("rebuild_bandwidth = \"fast\"", 1, "remedy: rebuild_bandwidth = \"100MiB\""),
        (
            "spin = \"on\"",
            1,
            "1 to 10000 microseconds, found \"on\"; remedy: spin = \"auto\", \"off\" or \"50\"",
        ),
        ("read_leese = \"5s\"", 1, "did you mean read_lease?"),
        ("min_in_sync = 0", 1, "min_in_sync = 0 is out of range; remedy: 1 to "),
        ("rebuild_inflight = 17", 1, "rebuild_inflight = 17 is out of range; remedy: 1 to 16"),
        ("rebuild_concurrency = 0", 1, "rebuild_concurrency = 0 is out of range; remedy: 1 to 1000"),
        ("heartbeat = \"1ms\"", 1, "heartbeat = 1ms is out of range; remedy: 100ms to 1m"),
        ("replica_lag_max = \"0s\"", 1, "is out of range; remedy: 10ms to 7d"),
        ("start_patience = \"0s\"", 1, "is out of range; remedy: 100ms to 7d"),
        ("rebuild_bandwidth = \"1000\"", 1, "remedy: at least 1MiB (a second), or 0 for no limit"),
        ("read_lease = \"1500ms\"\nheartbeat = \"1s\"", 1, "below two heartbeats of 1s"),
        (
            "\nheartbeat = \"5s\"\nread_lease = \"20s\"",
            2,
            "the replica timeout (8s) is below two heartbeats of 5s",
        ),
        ("orphan_auto_cleanup = \"instance\"", 1, "expected a list of strings, found string"),
        (
            "orphan_auto_cleanup = [\"data\"]",
            1,
            "expected instance or replica-data; remedy: orphan_auto_cleanup = [",
        ),
        ("orphan_grace_period = 300", 1, "remedy: orphan_grace_period = \"5m\""),
        ("metrics = 9464", 1, "expected a string, found integer; remedy: metrics = \"9464\""),
        ("metrics = \"localhost:9464\"", 1, "expected PORT, IP:PORT or [IPV6]:PORT"),
        ("colour = \"red\"", 1, "use one of data_dir, listen"),
        ("[agent]\nnode = \"a\"", 1, "unknown key \"agent\""),
        ("node = \"a\"\nnode = \"b\"", 2, "remedy: correct the TOML here"),
        ("node = ", 1, "remedy: correct the TOML here"),
    ] {
        let error = resolve(&[], file).unwrap_err();
        assert!(error.starts_with(&format!("/etc/h.toml:{line}: ")), "{file}: {error}");
        assert!(error.contains(words), "{file}: {error}");
        assert!(error.contains("remedy: "), "{file}: {error}");
    }
}

#[test]
fn impossible_combinations_name_the_setting_to_change() {
    let error = resolve(&["--replica-timeout", "60s"], "suspend_timeout = \"10s\"").unwrap_err();
    assert!(error.contains("/etc/h.toml:1: suspend_timeout") && error.contains("(10s)"), "{error}");
    let error = resolve(&["--replica-timeout", "10m"], "").unwrap_err();
    assert!(error.starts_with("--replica-timeout"), "{error}");
    let error = resolve(&["--bind", "0.0.0.0"], "").unwrap_err();
    assert!(error.starts_with("--bind = 0.0.0.0") && error.contains("remedy"), "{error}");
    let error = resolve(&["--advertise", "::"], "bind = \"::1\"").unwrap_err();
    assert!(error.starts_with("--advertise = ::") && error.contains("remedy"), "{error}");
    let config = resolve(&["--bind", "0.0.0.0"], "advertise = \"10.0.0.7\"").unwrap();
    assert_eq!(config.advertise, Some("10.0.0.7".parse().unwrap()), "all addresses, reached by one");
    let error = resolve(&["--data-dir", "/a", "--runtime-dir", "/a"], "").unwrap_err();
    assert!(error.starts_with("--runtime-dir") && error.contains("cannot share /a"), "{error}");
    let error = resolve(&["--replica-timeout", "10ms"], "").unwrap_err();
    assert!(error.contains("--replica-timeout = 10ms is out of range"), "{error}");
}

#[test]
fn every_limit_can_be_set_by_file_and_flag() {
    let file = "min_in_sync = 2\nread_lease = \"4s\"\nreplica_lag_max = \"500ms\"\nheartbeat = \"500ms\"\n\
                start_patience = \"1s\"\nrebuild_inflight = 8\nrebuild_bandwidth = \"50MiB\"\n\
                rebuild_concurrency = 2\nspin = \"50\"\n";
    let expected = Limits {
        min_in_sync: 2,
        read_lease: Duration::from_secs(4),
        replica_lag_max: Duration::from_millis(500),
        heartbeat: Duration::from_millis(500),
        start_patience: Duration::from_secs(1),
        rebuild_inflight: 8,
        rebuild_bandwidth: 50 << 20,
        rebuild_concurrency: 2,
        spin: SpinMode::For(Duration::from_micros(50)),
        ..Limits::default()
    };
    assert_eq!(resolve(&[], file).unwrap().limits, expected);
    let flags = [
        "--min-in-sync=3",
        "--read-lease=6s",
        "--replica-lag-max=1s",
        "--heartbeat=2s",
        "--start-patience=9s",
        "--rebuild-inflight=1",
        "--rebuild-bandwidth=0",
        "--rebuild-concurrency=9",
        "--spin=off",
    ];
    let over = resolve(&flags, file).unwrap();
    let list: Vec<_> = over.limits.list().into_iter().map(|(_, value)| value).collect();
    assert_eq!(list, ["8s", "5m", "3", "6s", "1s", "2s", "9s", "1", "0", "9", "off"]);
    let quick = resolve(&["--replica-timeout=1s"], "").unwrap().limits;
    assert_eq!(quick.heartbeat, Duration::from_millis(500), "nobody has to set both");
    let reload = resolve(&[], "").unwrap().reload(&over);
    assert!(reload.needs_restart.contains(&"read_lease: 5s -> 6s".to_owned()), "{reload:?}");
}

#[test]
fn metrics_are_served_nowhere_unless_asked_for_and_on_loopback_where_a_port_is_all_that_is_said() {
    assert_eq!(resolve(&[], "").unwrap().metrics, None);
    let served = |flags: &[&str], file| resolve(flags, file).unwrap().metrics.unwrap().to_string();
    assert_eq!(served(&[], "metrics = \"9464\""), "127.0.0.1:9464");
    assert_eq!(served(&["--metrics", "9465"], "metrics = \"10.0.0.7:9464\""), "127.0.0.1:9465");
    assert_eq!(served(&["--metrics", "[::1]:9464"], ""), "[::1]:9464");
    let reload = resolve(&[], "").unwrap().reload(&resolve(&["--metrics", "9464"], "").unwrap());
    assert_eq!(reload.needs_restart, ["metrics: nowhere -> 127.0.0.1:9464"]);
}

#[test]
fn all_problems_are_reported_at_once() {
    let error = resolve(&[], "colour = 1\nnode = 2\nbind = 3\n").unwrap_err();
    assert_eq!(error.lines().count(), 3, "{error}");
}

#[test]
fn a_host_name_that_is_no_node_name_asks_for_one() {
    let mut around = around();
    around.host_name = "my_host".to_owned();
    let error = AgentConfig::resolve(&AgentFlags::default(), None, &around).unwrap_err().to_string();
    assert!(error.contains("my_host") && error.contains("--node"), "{error}");
}

#[test]
fn bad_flags_are_usage_errors_that_name_the_flag() {
    for (flags, words) in [
        (["--data-ports", "9-1"], "--data-ports"),
        (["--listen", "tcp:1.2.3.4:5"], "unix socket"),
        (["--trash-ttl", "1"], "numbers with ms, s, m, h or d"),
        (["--node", "A"], "node name"),
    ] {
        let error = resolve(&flags, "").unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn o14_what_nobody_claims_is_cleaned_only_where_that_is_switched_on_and_both_can_change_at_run_time() {
    let old = resolve(&[], "").unwrap();
    assert_eq!(
        old.orphans,
        orphan::Settings { auto_cleanup: BTreeSet::new(), grace: Duration::from_secs(300) }
    );
    let file = "orphan_auto_cleanup = [\"replica-data\", \"instance\"]\norphan_grace_period = \"0s\"\n";
    let new = resolve(&[], file).unwrap();
    assert_eq!(new.orphans, orphan::Settings { auto_cleanup: Class::ALL.into(), grace: Duration::ZERO });
    let reload = old.reload(&new);
    assert_eq!(
        reload.applied,
        ["orphan_auto_cleanup: [] -> [instance, replica-data]", "orphan_grace_period: 5m -> 0s"]
    );
    assert_eq!(reload.config, new);
    let over = resolve(&["--orphan-auto-cleanup=instance", "--orphan-grace-period=1m"], file).unwrap();
    assert_eq!(over.orphans.auto_cleanup, BTreeSet::from([Class::Instance]));
    assert_eq!(over.orphans.grace, Duration::from_secs(60));
}

#[test]
fn how_long_a_node_may_be_silent_can_change_at_run_time() {
    let old = resolve(&[], "").unwrap();
    assert_eq!(old.replenish_after, Duration::from_secs(600));
    let new = resolve(&[], "replenish_after = \"1h\"\n").unwrap();
    let reload = old.reload(&new);
    assert_eq!((reload.applied, reload.config), (vec!["replenish_after: 10m -> 1h".to_owned()], new));
    let over = resolve(&["--replenish-after=5s"], "replenish_after = \"1h\"\n").unwrap();
    assert_eq!(over.replenish_after, Duration::from_secs(5));
    assert!(resolve(&["--replenish-after=0s"], "").unwrap_err().contains("--replenish-after"));
}

#[test]
fn what_stays_free_of_a_disk_can_change_at_run_time() {
    let old = resolve(&[], "").unwrap();
    assert_eq!(old.disk_reserve, DiskReserve::Percent(10));
    let new = resolve(&[], "disk_reserve = \"50GiB\"\n").unwrap();
    let reload = old.reload(&new);
    assert_eq!((reload.applied, reload.config), (vec!["disk_reserve: 10% -> 50GiB".to_owned()], new));
    let over = resolve(&["--disk-reserve=0"], "disk_reserve = \"50GiB\"\n").unwrap();
    assert_eq!(over.disk_reserve, DiskReserve::Bytes(0));
    let said = resolve(&[], "disk_reserve = \"110%\"\n").unwrap_err();
    assert!(said.contains("disk_reserve: \"110%\" is no part of a disk"), "{said}");
    assert!(said.contains("remedy: disk_reserve = \"10%\""), "{said}");
}

#[test]
fn a_reload_applies_what_it_can_and_says_what_it_cannot() {
    let old = resolve(&[], "node = \"a\"\ntrash_ttl = \"24h\"\n").unwrap();
    let file = "node = \"b\"\ntrash_ttl = \"1h\"\nlog_level = \"debug\"\nstop_instances = true\n";
    let reload = old.reload(&resolve(&[], file).unwrap());
    assert_eq!(reload.applied, ["log_level: info -> debug", "stop_instances: false -> true"]);
    assert_eq!(reload.needs_restart, ["node: a -> b", "trash_ttl: 1d -> 1h"]);
    assert_eq!(reload.config.node.as_str(), "a");
    assert_eq!(reload.config.trash_ttl, Duration::from_secs(86_400));
    assert!(reload.config.stop_instances);
    assert_eq!(old.reload(&old).applied, Vec::<String>::new());
}
