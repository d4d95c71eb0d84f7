use clap::Parser;

use super::*;

#[derive(Debug, clap::Parser)]
struct Line {
    #[command(flatten)]
    args: Args,
}

fn args(flags: &[&str]) -> Args {
    Line::try_parse_from([&["quickstart"], flags].concat()).unwrap().args
}

fn around(dir: &Path, host_name: &str) -> Surroundings {
    Surroundings {
        host_name: host_name.to_owned(),
        current_dir: dir.to_owned(),
        runtime_dir_for: runtime_dir::path_for,
    }
}

fn volume(size_bytes: u64, replicas: usize) -> pb::VolumeInfo {
    let replica =
        |n: usize| pb::VolumeReplicaInfo { id: format!("r{n}"), pid: Some(40), ..Default::default() };
    pb::VolumeInfo {
        name: VOLUME.into(),
        size_bytes,
        endpoint: Some("nbd+unix:///demo?socket=/run/x/demo.sock".into()),
        replicas: (1..=replicas).map(replica).collect(),
        ..Default::default()
    }
}

#[test]
fn the_same_directory_means_the_same_sockets() {
    let dir = tempfile::tempdir().unwrap();
    let first = configure(&args(&[]), around(dir.path(), "node-1")).unwrap();
    assert_eq!(first.data_dir, dir.path().join(DATA_DIR));
    assert_eq!(first.listen, first.runtime_dir.join("agent.sock"));
    assert_eq!(first.data_ports, 20000..=29999);
    assert_eq!(first.node.as_str(), "node-1");
    let again = configure(&args(&[]), around(dir.path(), "node-1")).unwrap();
    assert_eq!(again.runtime_dir, first.runtime_dir);
    let other = configure(&args(&["--data-dir", "other"]), around(dir.path(), "node-1")).unwrap();
    assert_ne!(other.runtime_dir, first.runtime_dir);
}

#[test]
fn a_host_name_that_is_no_node_name_does_not_stop_a_first_try() {
    let config = configure(&args(&[]), around(Path::new("/tmp"), "My_Laptop")).unwrap();
    assert_eq!(config.node.as_str(), "localhost");
}

#[test]
fn a_volume_of_another_shape_is_a_conflict_with_its_remedy() {
    same_shape(&args(&[]), &volume(5 << 30, 2)).unwrap();
    same_shape(&args(&["--size", "5GiB", "--replicas", "2"]), &volume(5 << 30, 2)).unwrap();
    for (flags, words) in [
        (["--size", "1GiB"], "its size is 5GiB, not 1GiB"),
        (["--replicas", "3"], "it has 2 replicas, not 3"),
    ] {
        let complaint = same_shape(&args(&flags), &volume(5 << 30, 2)).unwrap_err();
        assert_eq!(complaint.kind.exit_code(), 4);
        let text = complaint.to_string();
        assert!(text.contains(words) && text.contains("--data-dir"), "{text}");
    }
}

#[test]
fn the_banner_has_uri_socket_and_three_lines_worth_trying() {
    let text = banner(&volume(1 << 30, 3), "unix:/run/x/agent.sock", Path::new("/d"), "./holdfast");
    for words in [
        "1GiB, 3 replicas",
        "nbdinfo 'nbd+unix:///demo?socket=/run/x/demo.sock'",
        "HOLDFAST_AGENT=unix:/run/x/agent.sock ./holdfast volume show demo",
        "kill -9 40;",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    let tries = text.lines().skip_while(|line| !line.starts_with("Worth trying")).skip(1);
    assert_eq!(tries.take_while(|line| !line.is_empty()).count(), 3);
}
