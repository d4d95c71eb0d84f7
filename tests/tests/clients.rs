//! Real NBD clients against a real volume of three replicas: fio, libnbd, qemu.
#![forbid(unsafe_code)]

use std::path::Path;

use holdfast_tests::{AgentOptions, Cluster, MIB, QuickstartOptions, Rng, image, tools};
use serde_json::Value;

fn write_random(path: &Path, bytes: u64, seed: &mut Rng) {
    use std::io::Write as _;
    let mut file = std::fs::File::create(path).unwrap();
    for _ in 0..bytes / MIB {
        file.write_all(&seed.bytes(1 << 20)).unwrap();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn fio_finds_every_random_write_by_its_crc() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let uri = cluster.uri("demo");
    let _ = tools::fio_verify(&uri, "96m").ok();
    // Mixed sizes and depths, unaligned to the block, across the boundaries of requests that are split.
    let mixed = ["--rw=randwrite", "--bsrange=512-300k", "--bs_unaligned=1", "--iodepth=16", "--size=64m"];
    let mut arguments = mixed.to_vec();
    arguments.extend(["--verify=crc32c", "--verify_fatal=1", "--norandommap=0", "--random_generator=lfsr"]);
    arguments.retain(|a| *a != "--random_generator=lfsr");
    let _ = tools::fio(&uri, &arguments).ok();
    cluster.assert_images_equal("demo");
}

#[test]
fn fio_with_several_connections_and_flushes_verifies() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let uri = cluster.uri("demo");
    let jobs =
        ["--rw=randwrite", "--bs=4k", "--iodepth=8", "--numjobs=4", "--size=16m", "--offset_increment=16m"];
    let mut arguments = jobs.to_vec();
    arguments.extend(["--fsync=32", "--verify=crc32c", "--verify_fatal=1"]);
    let _ = tools::fio(&uri, &arguments).ok();
    cluster.assert_images_equal("demo");
}

#[test]
fn a_random_image_comes_back_as_it_went_in() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("256MiB"));
    let uri = cluster.uri("demo");
    let (source, back) = (cluster.root().join("source.img"), cluster.root().join("back.img"));
    write_random(&source, 256 * MIB, &mut Rng::announced("a_random_image_comes_back_as_it_went_in"));
    tools::nbdcopy(text(&source), &uri);
    tools::nbdcopy(&uri, text(&back));
    assert_eq!(tools::sha256(&source), tools::sha256(&back));
    cluster.assert_images_equal("demo");
    // Plain tools read a replica's image without asking anybody.
    for replica in cluster.volume("demo").images() {
        image::assert_same_content(&source, &replica);
    }
}

#[test]
fn qemu_img_converts_in_and_out_and_compares_equal() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("128MiB"));
    let uri = cluster.uri("demo");
    let root = cluster.root();
    let (source, qcow) = (root.join("source.raw"), root.join("out.qcow2"));
    let mut rng = Rng::announced("qemu_img_converts_in_and_out_and_compares_equal");
    write_random(&source, 40 * MIB, &mut rng);
    // The rest of the source is a hole: qemu writes it as zeroes, and unmaps it where it may.
    std::fs::File::options().write(true).open(&source).unwrap().set_len(128 * MIB).unwrap();
    tools::ok("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", text(&source), &uri]);
    tools::ok("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), &uri]);
    tools::ok("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &uri, text(&qcow)]);
    tools::ok("qemu-img", &["compare", "-f", "qcow2", "-F", "raw", text(&qcow), text(&source)]);
    let info = tools::ok("qemu-img", &["info", "--output=json", "-f", "raw", &uri]).stdout;
    let info: Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["virtual-size"].as_u64(), Some(128 * MIB));
    cluster.assert_images_equal("demo");
}

#[test]
fn qemu_io_patterns_at_odd_offsets_read_back() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let uri = cluster.uri("demo");
    tools::qemu_io(
        &uri,
        &[
            "write -P 0x11 0 64k",
            // Inside one block, across two, across many, and up to the last byte.
            "write -P 0x22 513 1000",
            "write -P 0x33 4095 2",
            "write -P 0x44 12289 70001",
            "write -P 0x55 67108863 1",
            "flush",
            "read -P 0x11 0 513",
            "read -P 0x22 513 1000",
            "read -P 0x11 1513 2582",
            "read -P 0x33 4095 2",
            "read -P 0x11 4097 8192",
            "read -P 0x44 12289 70001",
            "read -P 0 82290 100000",
            "read -P 0x55 67108863 1",
            "read -P 0 67108000 863",
        ],
    );
    cluster.assert_images_equal("demo");
}

#[test]
fn qemu_io_zeroes_and_discards_exactly_what_it_names() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let uri = cluster.uri("demo");
    tools::qemu_io(
        &uri,
        &[
            "write -P 0x77 0 8M",
            "write -z 1000 5000",
            "read -P 0x77 0 1000",
            "read -P 0 1000 5000",
            "read -P 0x77 6000 2192",
            "write -z -u 1M 1M",
            "read -P 0x77 1044480 4096",
            "read -P 0 1M 1M",
            "read -P 0x77 2M 4096",
            "discard 4M 1M",
            "read -P 0 4M 1M",
            "read -P 0x77 5M 4096",
            // A discard is a hint: only whole blocks inside are dropped, and nothing outside.
            "discard 6295553 9000",
            "read -P 0x77 6291456 4097",
            "read -P 0x77 6304553 1000",
            "write -P 0x12 -f 7M 4096",
            "read -P 0x12 7M 4096",
            "flush",
        ],
    );
    cluster.assert_images_equal("demo");
    for replica in cluster.volume("demo").images() {
        let allocated = image::allocated_bytes(&replica);
        assert!(allocated <= 7 * MIB, "{}: {allocated} bytes after discards", replica.display());
    }
}

#[test]
fn nbdinfo_shows_size_limits_and_capabilities() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let info = tools::nbdinfo(&cluster.uri("demo"));
    assert_eq!(info["protocol"], "newstyle-fixed", "{info}");
    assert_eq!(info["structured"], Value::Bool(true), "{info}");
    let export = &info["exports"][0];
    assert_eq!(export["export-name"], "demo", "{info}");
    assert_eq!(export["export-size"].as_u64(), Some(64 * MIB));
    for can in ["can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"] {
        assert_eq!(export[can], Value::Bool(true), "{can}: {info}");
    }
    assert_eq!(export["is_read_only"], Value::Bool(false));
    let contexts = export["contexts"].as_array().unwrap();
    assert!(contexts.iter().any(|c| c == "base:allocation"), "{info}");
    assert_eq!(export["block_size_minimum"].as_u64(), Some(1), "{info}");
    assert_eq!(export["block_size_preferred"].as_u64(), Some(4096));
    assert_eq!(export["block_size_maximum"].as_u64(), Some(32 * MIB));
    let list = tools::ok("nbdinfo", &["--list", "--json", &cluster.uri("demo")]).stdout;
    assert!(list.contains("\"demo\""), "{list}");
}

#[test]
fn block_status_tells_data_from_holes() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let uri = cluster.uri("demo");
    let covered = |uri: &str, wanted: u64| -> u64 {
        let map = tools::nbdinfo_map(uri);
        let total: u64 = map.iter().map(|run| run["length"].as_u64().unwrap()).sum();
        assert_eq!(total, 64 * MIB, "the runs cover the volume: {map:?}");
        let of_type = map.iter().filter(|run| run["type"].as_u64() == Some(wanted));
        of_type.map(|run| run["length"].as_u64().unwrap()).sum()
    };
    const HOLE_AND_ZERO: u64 = 3;
    assert_eq!(covered(&uri, HOLE_AND_ZERO), 64 * MIB, "a new volume is one hole");
    tools::qemu_io(&uri, &["write -P 0x21 16M 4M", "flush"]);
    let data = covered(&uri, 0);
    // Room is taken in larger extents than one block, but not in much larger ones.
    assert!((4 * MIB..=8 * MIB).contains(&data), "{data} bytes of data after a write of 4 MiB");
    tools::qemu_io(&uri, &["discard 16M 4M", "flush"]);
    assert!(covered(&uri, 0) < 4 * MIB, "a discard gives the room back");
}

#[test]
fn a_read_of_a_new_volume_is_zeros_and_a_client_may_ask_for_all_of_it() {
    let cluster = Cluster::quickstart(QuickstartOptions::sized("64MiB"));
    let mut client = cluster.connect("demo");
    assert_eq!(client.size_bytes, 64 * MIB);
    let largest = client.read(0, 32 << 20).unwrap();
    assert!(largest.iter().all(|b| *b == 0));
    let pattern = Rng::seeded(5).bytes(32 << 20);
    client.write(32 * MIB, &pattern).unwrap();
    assert!(client.read(32 * MIB, 32 << 20).unwrap() == pattern, "32 MiB in one request come back");
    client.write_fua(3, b"unaligned and on stable storage").unwrap();
    assert_eq!(client.read(0, 40).unwrap()[3..34], *b"unaligned and on stable storage");
    drop(client);
    cluster.assert_images_equal("demo");
}

#[test]
fn nbd_over_tcp_on_request_serves_the_same_volume() {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
    let address = format!("127.0.0.1:{}", cluster.ports().own(0));
    let said = cluster.ok(&["volume", "attach", "demo", "--nbd-tcp", &address]).said();
    assert!(said.contains("no authentication"), "TCP is said to be open to everybody: {said}");
    cluster.wait_healthy("demo");
    let tcp = format!("nbd://{address}/demo");
    let _ = tools::fio_verify(&tcp, "16m").ok();
    tools::qemu_io(&tcp, &["write -P 0x61 20M 64k", "flush"]);
    // Both faces show one volume.
    tools::qemu_io(&cluster.uri("demo"), &["read -P 0x61 20M 64k"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn one_and_five_replicas_and_direct_io_verify_too() {
    for (replicas, mode) in [(1, "buffered"), (1, "direct"), (5, "buffered"), (3, "direct")] {
        let cluster = Cluster::agent(AgentOptions::default());
        let count = replicas.to_string();
        cluster.ok(&["volume", "create", "v", "--size", "64MiB", "--replicas", &count, "--io-mode", mode]);
        cluster.ok(&["volume", "attach", "v"]);
        cluster.wait_healthy("v");
        let uri = cluster.uri("v");
        let _ = tools::fio_verify(&uri, "32m").ok();
        tools::qemu_io(&uri, &["write -P 0x44 12289 70001", "read -P 0x44 12289 70001", "discard 1M 1M"]);
        cluster.assert_images_equal("v");
    }
}
