//! What a page looks like, and that every page is one that Prometheus can read.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use holdfast_proto::pb::{agent as pb, instance as ipb};
use holdfast_proto::status::ErrorKind;
use holdfast_tests::exposition::Page;

use super::*;
use crate::core::inventory::{Change, Snapshot};
use crate::core::moves::Step;
use crate::core::orphan::{Class, Notice, Stats, Subject, Totals};

fn io(kind: &str, requests: u64) -> ipb::IoCounters {
    let mut latency_buckets = vec![0; 21];
    latency_buckets[1] = requests;
    ipb::IoCounters {
        kind: kind.into(),
        requests,
        errors: u64::from(requests > 1),
        bytes: requests * 4096,
        latency_sum_ns: requests * 50_000,
        latency_buckets,
    }
}

fn replica(id: &str, mode: &str, progress: Option<pb::Progress>) -> pb::VolumeReplicaInfo {
    let (copied_bytes, compared_bytes) = if progress.is_some() { (4096, 8192) } else { (0, 0) };
    pb::VolumeReplicaInfo {
        id: id.into(),
        node: "node-1".into(),
        mode: mode.into(),
        data_dir: "/var/lib/holdfast/replicas/db.r1".into(),
        reason: Some("a secret reason".into()),
        progress,
        copied_bytes,
        compared_bytes,
        ..Default::default()
    }
}

fn since(volume: &str, seconds: u64) -> Since {
    Since { volume: volume.into(), since: Duration::from_secs(seconds) }
}

fn observed() -> Observed {
    let mut counts = Counts::default();
    counts.reconciled(Duration::from_millis(2), true);
    counts.reconciled(Duration::from_secs(11), false);
    counts.asked_registry("list", "ok", Duration::from_micros(500));
    counts.asked_registry("list", "error", Duration::from_secs(3));
    counts.instance_is("replica", "running");
    counts.stepped("failed");
    counts.volume_moves(Step::Begun);
    counts.replica_moves("begun");
    counts.orphan_request("hold");
    counts.changed(&Change::VolumeRemoved("old".into()));
    counts.orphan_is(&Notice {
        subject: Subject { class: Class::ReplicaData, name: "x".into(), uuid: uuid::Uuid::from_u128(1) },
        from: "",
        to: "orphaned",
        reason: "a secret reason".into(),
        remaining: Duration::ZERO,
    });
    let instance = |name: &str, kind: &str, restarts| pb::InstanceInfo {
        name: name.into(),
        kind: kind.into(),
        volume: "db".into(),
        state: "running".into(),
        claim: "claimed".into(),
        restarts,
        ..Default::default()
    };
    let progress =
        pb::Progress { done_bytes: 10, total_bytes: 30, bytes_per_second: 5, remaining_s: Some(4) };
    let volume = pb::VolumeInfo {
        name: "db".into(),
        state: "suspended".into(),
        size_bytes: 1 << 30,
        generation: 3,
        epoch: 9,
        clients: 2,
        engine: Some(pb::EngineInfo::default()),
        replicas: vec![replica("r1", "member", None), replica("r2", "rebuilding", Some(progress))],
        ..Default::default()
    };
    let stats = Stats {
        count: BTreeMap::from([((Class::Instance, "orphaned-held"), 4)]),
        oldest: BTreeMap::from([(Class::Instance, Duration::from_secs(77))]),
        held_by_breaker: BTreeMap::from([(Class::Instance, 4)]),
        totals: BTreeMap::from([(Class::ReplicaData, Totals { cleaned: 1, cancelled: 2 })]),
    };
    Observed {
        node: "node-1".into(),
        started_unix_s: 1_700_000_000,
        process: Some(ProcessUse { cpu_seconds: 1.5, resident_bytes: 4096 }),
        counts,
        inventory: Snapshot {
            revision: 7,
            instances: vec![instance("db.engine", "engine", 0), instance("db.r1", "replica", 3)],
            volumes: vec![volume],
        },
        io: BTreeMap::from([("db".to_owned(), vec![io("read", 0), io("write", 2)])]),
        clients_stalled: BTreeMap::from([("db".to_owned(), 3)]),
        suspended: vec![since("db", 12)],
        blocked: vec![since("db", 95), since("old", 3)],
        moving: vec![since("db", 90)],
        moves_blocked: 1,
        instances_blocked: vec![(since("db", 80), "db.r2".into(), "replica")],
        replica_moves_blocked: 3,
        orphans: stats,
        waiting_to_restart: BTreeMap::from([("replica", 1)]),
        retrying: 1,
        registry_up: true,
        watch_restarts: 5,
        space: Some(Space {
            capacity_bytes: 100,
            available_bytes: 40,
            trash: Some(InTrash { entries: 1, bytes: 8 }),
        }),
    }
}

#[test]
fn the_page_is_as_recorded() {
    let text = render(observed());
    let recorded = include_str!("page.txt").replace("@VERSION@", env!("CARGO_PKG_VERSION"));
    assert!(text == recorded, "found:\n{text}");
}

#[test]
fn every_family_is_said_once_and_every_series_is_one() {
    for observed in [observed(), Observed::default()] {
        let page = Page::parse(&render(observed)).unwrap();
        assert!(page.families().len() > 30, "{page:?}");
    }
}

#[test]
fn nothing_but_names_and_fixed_words_is_a_label() {
    let text = render(observed());
    assert!(!text.contains("secret") && !text.contains('/') && !text.contains("127.0"), "{text}");
}

#[test]
fn names_in_labels_are_escaped() {
    let mut observed = observed();
    observed.node = "a\"b\\c\nd".into();
    let page = Page::parse(&render(observed)).unwrap();
    let labels = [("node", "a\"b\\c\nd"), ("version", env!("CARGO_PKG_VERSION"))];
    assert_eq!(page.value("holdfast_build_info", &labels), Some(1.0));
}

#[test]
fn a_latency_is_in_the_bucket_of_its_bound_in_seconds() {
    let page = Page::parse(&render(observed())).unwrap();
    let bucket = |le| {
        page.value("holdfast_io_duration_seconds_bucket", &[("volume", "db"), ("kind", "write"), ("le", le)])
    };
    assert_eq!((bucket("3.2e-05"), bucket("6.4e-05"), bucket("+Inf")), (Some(0.0), Some(2.0), Some(2.0)));
    assert_eq!(bucket("16.777216"), Some(2.0), "the last bound");
    let sum = page.value("holdfast_io_duration_seconds_sum", &[("volume", "db"), ("kind", "write")]);
    assert_eq!(sum, Some(0.0001));
}

#[test]
fn a_port_in_use_names_the_address_and_what_to_do() {
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = taken.local_addr().unwrap();
    let error = MetricsListener::bind(address).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict);
    let said = error.to_string();
    assert!(
        said.contains(&address.to_string()) && said.contains("remedy: ") && said.contains("--metrics"),
        "{said}"
    );
    let foreign = SocketAddr::from(([192, 0, 2, 1], 9464));
    let said = MetricsListener::bind(foreign).unwrap_err().to_string();
    assert!(said.contains("192.0.2.1:9464") && said.contains("an address of this node"), "{said}");
}
