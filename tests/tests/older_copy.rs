//! A replica's directory goes back to an earlier state: a virtual machine that was restored, a cloned disk, a backup that
//! was put back, a block that was lost (F-W1, F-W3). It never passes for the newest copy.
#![forbid(unsafe_code)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use holdfast_dataplane::layout::bitmap::{PAGE_BYTES, decode_page, page_offset};
use holdfast_tests::process::{Signal, kill, signal};
use holdfast_tests::tools::qemu_io;
use holdfast_tests::wait::{SECOND, check, eventually};
use holdfast_tests::{Cluster, MIB};

/// Copies the files of a directory as they are now.
fn copy(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Puts `copy` in the place of `dir`. Returns where the newest one is kept.
fn put_back(cluster: &Cluster, copy: &Path, dir: &Path) -> PathBuf {
    let aside = cluster.root().join("aside");
    std::fs::rename(dir, &aside).unwrap();
    std::fs::rename(copy, dir).unwrap();
    aside
}

fn dir_of(cluster: &Cluster, id: &str) -> PathBuf {
    cluster.volume("demo").replica(id).data_dir()
}

/// The bits that the first page of a replica's map has on the disk.
fn bits(map: &Path) -> u32 {
    let mut bytes = vec![0; PAGE_BYTES];
    File::open(map).unwrap().read_exact_at(&mut bytes, page_offset(0)).unwrap();
    let mut count = 0;
    assert!(decode_page(&bytes, 0, |_, word| count += word.count_ones()), "a page can be read");
    count
}

#[test]
fn older_copy_put_back_under_an_engine_is_rebuilt() {
    let cluster = Cluster::with_volume("64MiB", 3);
    let uri = cluster.uri("demo");
    qemu_io(&uri, &["write -P 0x31 0 16M", "flush"]);
    let (dir, kept) = (dir_of(&cluster, "r2"), cluster.root().join("copy"));
    copy(&dir, &kept);
    qemu_io(&uri, &["write -P 0x32 4M 5M", "flush"]);
    // Nothing but stamps tells any more that the copy lacks it.
    let intent = dir_of(&cluster, "r1").join("intent.bm");
    eventually(120 * SECOND, "the write-intent bits are cleared", || {
        let set = bits(&intent);
        check(set == 0, || format!("{set} bits"))
    });
    let replica = cluster.instance("demo.r2").pid().expect("a member runs");
    // The agent must not start the replica again in between.
    signal(cluster.agent_pid(), Signal::SIGSTOP);
    kill(replica);
    put_back(&cluster, &kept, &dir);
    signal(cluster.agent_pid(), Signal::SIGCONT);
    cluster.wait_volume("demo", "the copy is rebuilt", |volume| {
        let r2 = volume.replica("r2");
        let copied = r2.copied_bytes();
        check(r2.mode() == "member" && copied >= 16 * MIB, || format!("{} {copied}", r2.mode()))
    });
    cluster.assert_images_equal("demo");
    qemu_io(&uri, &["read -P 0x31 0 4M", "read -P 0x32 4M 5M", "read -P 0x31 9M 7M"]);
}

#[test]
fn older_copy_put_back_while_detached_is_rebuilt() {
    let cluster = Cluster::with_volume("64MiB", 2);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 8M", "flush"]);
    let (dir, kept) = (dir_of(&cluster, "r1"), cluster.root().join("copy"));
    cluster.detach("demo");
    copy(&dir, &kept);
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    qemu_io(&cluster.uri("demo"), &["write -P 0x32 2M 3M", "flush"]);
    cluster.detach("demo");
    put_back(&cluster, &kept, &dir);
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    qemu_io(&cluster.uri("demo"), &["read -P 0x31 0 2M", "read -P 0x32 2M 3M", "read -P 0x31 5M 3M"]);
    cluster.assert_images_equal("demo");
}

#[test]
fn older_copy_of_the_only_replica_is_not_served() {
    let cluster = Cluster::with_volume("64MiB", 1);
    let (dir, kept) = (dir_of(&cluster, "r1"), cluster.root().join("copy"));
    cluster.detach("demo");
    copy(&dir, &kept);
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    qemu_io(&cluster.uri("demo"), &["write -P 0x32 0 1M", "flush"]);
    cluster.detach("demo");
    let aside = put_back(&cluster, &kept, &dir);
    let _waits = cluster.cli(&["volume", "attach", "demo"]);
    cluster.wait_volume("demo", "it says what it waits for", |volume| {
        let shown = volume.0.to_string();
        check(volume.state() == "attaching" && shown.contains("older copy of itself"), || shown.clone())
    });
    // The newest data comes back: it is served as if nothing had been.
    cluster.detach("demo");
    std::fs::rename(&dir, &kept).unwrap();
    std::fs::rename(&aside, &dir).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    qemu_io(&cluster.uri("demo"), &["read -P 0x32 0 1M"]);
}

#[test]
fn page_of_a_dirty_map_that_was_lost_costs_a_copy() {
    let cluster = Cluster::with_volume("64MiB", 2);
    qemu_io(&cluster.uri("demo"), &["write -P 0x31 0 8M", "flush"]);
    let (r1, r2) = (dir_of(&cluster, "r1"), dir_of(&cluster, "r2"));
    let away = cluster.root().join("away");
    cluster.detach("demo");
    std::fs::rename(&r2, &away).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_state("demo", "degraded");
    qemu_io(&cluster.uri("demo"), &["write -P 0x32 2M 1M", "flush"]);
    cluster.detach("demo");
    let map = r1.join("dirty-r2.bm");
    assert!(bits(&map) > 0, "what was written is in the map");
    let file = File::options().write(true).open(&map).unwrap();
    file.write_all_at(&vec![0; PAGE_BYTES], page_offset(0)).unwrap();
    std::fs::rename(&away, &r2).unwrap();
    cluster.ok(&["volume", "attach", "demo"]);
    cluster.wait_healthy("demo");
    cluster.assert_images_equal("demo");
    qemu_io(&cluster.uri("demo"), &["read -P 0x31 0 2M", "read -P 0x32 2M 1M"]);
}
