//! The TOML file: every key checked, every problem named with its line and remedy.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use toml::de::{DeTable, DeValue};

use super::flags::parse_listen;
use super::registry::parse_place;
use super::{Origin, Partial, Sourced};
use crate::units::{parse_duration, parse_ports, parse_size, parse_tcp_listen};

const KEYS: [&str; 34] = [
    "data_dir",
    "listen",
    "node",
    "registry",
    "registry_ca",
    "registry_cert",
    "registry_key",
    "registry_user",
    "registry_password_file",
    "data_ports",
    "bind",
    "advertise",
    "bin_dir",
    "runtime_dir",
    "log_format",
    "log_level",
    "stop_instances",
    "replica_timeout",
    "suspend_timeout",
    "min_in_sync",
    "read_lease",
    "replica_lag_max",
    "heartbeat",
    "start_patience",
    "rebuild_inflight",
    "rebuild_bandwidth",
    "rebuild_concurrency",
    "spin",
    "trash_ttl",
    "orphan_auto_cleanup",
    "orphan_grace_period",
    "replenish_after",
    "disk_reserve",
    "metrics",
];

/// What the file says. Problems are appended; what is left of the file is still checked.
pub(super) fn parse(path: &Path, text: &str, problems: &mut Vec<String>) -> Partial {
    let mut partial = Partial::default();
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        let line = error.span().map_or(1, |span| line_of(text, span.start));
        problems.push(format!(
            "{}:{line}: {}; remedy: correct the TOML here",
            path.display(),
            error.message()
        ));
    }
    if !problems.is_empty() {
        // Half a file would only add problems that are not there.
        return partial;
    }
    for (key, value) in table.get_ref() {
        let place = Place { path, line: line_of(text, key.span().start), value: value.get_ref() };
        match KEYS.iter().find(|known| **known == key.get_ref().as_ref()) {
            Some(known) => place.read(known, &mut partial, problems),
            None => problems.push(unknown(&place, key.get_ref())),
        }
    }
    partial
}

/// Where a key stands and what it is set to.
struct Place<'a> {
    path: &'a Path,
    line: usize,
    value: &'a DeValue<'a>,
}

impl Place<'_> {
    fn read(&self, key: &'static str, into: &mut Partial, problems: &mut Vec<String>) {
        let result = match key {
            "data_dir" => self.set(key, &mut into.data_dir, full_path),
            "listen" => self.set(key, &mut into.listen, |t| full_path(&parse_listen(t)?.to_string_lossy())),
            "node" => self.set(key, &mut into.node, from_str),
            "registry" => self.set(key, &mut into.registry, parse_place),
            "registry_ca" => self.set(key, &mut into.registry_ca, full_path),
            "registry_cert" => self.set(key, &mut into.registry_cert, full_path),
            "registry_key" => self.set(key, &mut into.registry_key, full_path),
            "registry_user" => self.set(key, &mut into.registry_user, from_str),
            "registry_password_file" => self.set(key, &mut into.registry_password_file, full_path),
            "data_ports" => self.set(key, &mut into.data_ports, parse_ports),
            "bind" => self.set(key, &mut into.bind, ip_address),
            "advertise" => self.set(key, &mut into.advertise, ip_address),
            "bin_dir" => self.set(key, &mut into.bin_dir, full_path),
            "runtime_dir" => self.set(key, &mut into.runtime_dir, full_path),
            "log_format" => self.set(key, &mut into.log_format, from_str),
            "log_level" => self.set(key, &mut into.log_level, from_str),
            "stop_instances" => self.set_bool(key, &mut into.stop_instances),
            "replica_timeout" => self.set(key, &mut into.replica_timeout, parse_duration),
            "suspend_timeout" => self.set(key, &mut into.suspend_timeout, parse_duration),
            "min_in_sync" => self.set_number(key, &mut into.min_in_sync),
            "read_lease" => self.set(key, &mut into.read_lease, parse_duration),
            "replica_lag_max" => self.set(key, &mut into.replica_lag_max, parse_duration),
            "heartbeat" => self.set(key, &mut into.heartbeat, parse_duration),
            "start_patience" => self.set(key, &mut into.start_patience, parse_duration),
            "rebuild_inflight" => self.set_number(key, &mut into.rebuild_inflight),
            "rebuild_bandwidth" => self.set(key, &mut into.rebuild_bandwidth, parse_size),
            "rebuild_concurrency" => self.set_number(key, &mut into.rebuild_concurrency),
            "spin" => self.set(key, &mut into.spin, from_str),
            "trash_ttl" => self.set(key, &mut into.trash_ttl, parse_duration),
            "orphan_auto_cleanup" => self.set_list(key, &mut into.orphan_auto_cleanup),
            "orphan_grace_period" => self.set(key, &mut into.orphan_grace_period, parse_duration),
            "replenish_after" => self.set(key, &mut into.replenish_after, parse_duration),
            "disk_reserve" => self.set(key, &mut into.disk_reserve, from_str),
            "metrics" => self.set(key, &mut into.metrics, parse_tcp_listen),
            _ => Err("is not a key of this build".to_owned()),
        };
        if let Err(problem) = result {
            problems.push(format!("{}: {problem}; remedy: {}", self.origin(key), example(key)));
        }
    }

    fn set<T, E: ToString>(
        &self,
        key: &'static str,
        slot: &mut Option<Sourced<T>>,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> Result<(), String> {
        let text = self.value.as_str().ok_or_else(|| self.wrong_type("a string"))?;
        let value = parse(text).map_err(|error| error.to_string())?;
        *slot = Some(Sourced { value, origin: self.origin(key) });
        Ok(())
    }

    fn set_list<T: FromStr<Err: ToString> + Ord>(
        &self,
        key: &'static str,
        slot: &mut Option<Sourced<BTreeSet<T>>>,
    ) -> Result<(), String> {
        let list = self.value.as_array().ok_or_else(|| self.wrong_type("a list of strings"))?;
        let item = |item: &toml::Spanned<DeValue<'_>>| match item.get_ref().as_str() {
            Some(text) => from_str(text),
            None => Err(self.wrong_type("a list of strings")),
        };
        let value = list.iter().map(item).collect::<Result<_, _>>()?;
        *slot = Some(Sourced { value, origin: self.origin(key) });
        Ok(())
    }

    fn set_bool(&self, key: &'static str, slot: &mut Option<Sourced<bool>>) -> Result<(), String> {
        let value = self.value.as_bool().ok_or_else(|| self.wrong_type("true or false"))?;
        *slot = Some(Sourced { value, origin: self.origin(key) });
        Ok(())
    }

    fn set_number(&self, key: &'static str, slot: &mut Option<Sourced<u32>>) -> Result<(), String> {
        let number = self.value.as_integer().ok_or_else(|| self.wrong_type("a whole number"))?;
        let value = u32::from_str_radix(number.as_str(), number.radix())
            .map_err(|_| format!("{} is not a number that can be counted to here", number.as_str()))?;
        *slot = Some(Sourced { value, origin: self.origin(key) });
        Ok(())
    }

    fn origin(&self, key: &'static str) -> Origin {
        Origin::File { path: self.path.to_owned(), line: self.line, key }
    }

    fn wrong_type(&self, expected: &str) -> String {
        format!("expected {expected}, found {}", self.value.type_str())
    }
}

fn from_str<T: FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| error.to_string())
}

fn ip_address(text: &str) -> Result<IpAddr, String> {
    text.parse().map_err(|_| format!("{text:?} is not an IPv4 or IPv6 address"))
}

/// A file has no current directory.
fn full_path(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') {
        Ok(PathBuf::from(text))
    } else {
        Err(format!("{text:?} is not an absolute path"))
    }
}

fn example(key: &str) -> &'static str {
    match key {
        "data_dir" => "data_dir = \"/var/lib/holdfast\"",
        "listen" => "listen = \"unix:/run/holdfast/agent.sock\"",
        "node" => "node = \"node-1\"",
        "registry" => "registry = \"etcd://10.0.0.1:2379,10.0.0.2:2379/holdfast\" or \"file\"",
        "registry_ca" => "registry_ca = \"/etc/holdfast/etcd-ca.pem\"",
        "registry_cert" => "registry_cert = \"/etc/holdfast/etcd-client.pem\"",
        "registry_key" => "registry_key = \"/etc/holdfast/etcd-client.key\"",
        "registry_user" => "registry_user = \"holdfast\"",
        "registry_password_file" => "registry_password_file = \"/etc/holdfast/etcd-password\"",
        "data_ports" => "data_ports = \"20000-29999\"",
        "bind" => "bind = \"127.0.0.1\" or \"::1\"",
        "advertise" => "advertise = \"10.0.0.7\"",
        "bin_dir" => "bin_dir = \"/usr/lib/holdfast\"",
        "runtime_dir" => "runtime_dir = \"/run/holdfast\"",
        "log_format" => "log_format = \"text\" or \"json\"",
        "log_level" => "log_level = \"info\"",
        "stop_instances" => "stop_instances = false",
        "replica_timeout" => "replica_timeout = \"8s\"",
        "suspend_timeout" => "suspend_timeout = \"5m\"",
        "min_in_sync" => "min_in_sync = 1",
        "read_lease" => "read_lease = \"5s\"",
        "replica_lag_max" => "replica_lag_max = \"2s\"",
        "heartbeat" => "heartbeat = \"1s\"",
        "start_patience" => "start_patience = \"3s\"",
        "rebuild_inflight" => "rebuild_inflight = 4",
        "rebuild_bandwidth" => "rebuild_bandwidth = \"100MiB\"",
        "rebuild_concurrency" => "rebuild_concurrency = 4",
        "spin" => "spin = \"auto\", \"off\" or \"50\"",
        "trash_ttl" => "trash_ttl = \"24h\"",
        "orphan_auto_cleanup" => "orphan_auto_cleanup = [\"instance\", \"replica-data\"], or []",
        "orphan_grace_period" => "orphan_grace_period = \"5m\"",
        "replenish_after" => "replenish_after = \"10m\"",
        "disk_reserve" => "disk_reserve = \"10%\" or \"50GiB\"",
        "metrics" => "metrics = \"9464\" or \"10.0.0.7:9464\"",
        _ => "remove the line",
    }
}

fn unknown(place: &Place<'_>, key: &str) -> String {
    let shown: String = key.chars().take(60).collect();
    let head = format!("{}:{}: unknown key {shown:?}", place.path.display(), place.line);
    let plain = key.to_ascii_lowercase().replace('-', "_");
    match KEYS.iter().map(|known| (distance(&plain, known), known)).min() {
        Some((near, known)) if near <= 2 => format!("{head}; remedy: did you mean {known}?"),
        _ => format!("{head}; remedy: remove it, or use one of {}", KEYS.join(", ")),
    }
}

/// Letters to insert, remove or replace (Levenshtein), capped by the words' own length.
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(60).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        let mut next = vec![left];
        for (cb, above) in b.iter().zip(row.iter().skip(1)) {
            let best = (diagonal + usize::from(ca != *cb)).min(left + 1).min(above + 1);
            diagonal = *above;
            left = best;
            next.push(best);
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

fn line_of(text: &str, offset: usize) -> usize {
    text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
}
