//! Peers that vanish, take nothing, or only fill seats: what they hold is theirs alone, and others are served.
#![forbid(unsafe_code)]

use std::net::TcpStream;
use std::os::unix::net::UnixStream;

use holdfast_tests::block::{Command, request};
use holdfast_tests::control::Control;
use holdfast_tests::exposition::Page;
use holdfast_tests::hostile::{Target, vanish};
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, BlockClient, Cluster, SECOND, eventually};

/// A volume of two replicas that is served over TCP too, and its address.
fn served() -> (Cluster, String) {
    let cluster = Cluster::agent(AgentOptions::default());
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
    let address = format!("127.0.0.1:{}", cluster.ports().own(0));
    cluster.ok(&["volume", "attach", "demo", "--nbd-tcp", &address]);
    cluster.wait_healthy("demo");
    (cluster, address)
}

/// A client over TCP, and its socket for what a client does not do.
fn tcp_client(address: &str) -> (BlockClient, TcpStream) {
    let socket = TcpStream::connect(address).unwrap();
    socket.set_nodelay(true).unwrap();
    let client = BlockClient::negotiate(Box::new(socket.try_clone().unwrap()), "demo").unwrap();
    (client, socket)
}

#[test]
fn vanished_tcp_clients_hold_no_unix_seat_and_no_detach() {
    let (cluster, address) = served();
    let mut clients: Vec<_> = (0..64).map(|_| tcp_client(&address)).collect();
    for (at, (client, socket)) in clients.iter_mut().enumerate() {
        client.flush().unwrap();
        match at {
            // In the middle of a request. The reply to what came with it says that all of it has arrived.
            0..4 => {
                let begun = [request(0, 3, 98, 0, 0), request(0, 1, 99, 0, 8192), vec![1; 4096]].concat();
                client.raw().write_all(&begun).unwrap();
                client.raw().read_exact(&mut [0; 16]).unwrap();
            }
            // In the middle of replies.
            4..8 => {
                for _ in 0..16 {
                    client.submit(&Command::Read { offset: 0, len: 1 << 20 }).unwrap();
                }
                client.raw().read_exact(&mut [0; 16]).unwrap();
            }
            _ => {}
        }
        vanish(socket);
    }
    let mut local = cluster.connect("demo");
    local.write_fua(4096, &[7; 4096]).unwrap();
    assert_eq!(local.read(4096, 4096).unwrap(), [7; 4096]);
    drop(local);
    cluster.ok(&["volume", "detach", "demo"]);
}

#[test]
fn tcp_client_that_lives_is_not_detached_from() {
    let (cluster, address) = served();
    let (mut client, _socket) = tcp_client(&address);
    let said = cluster.cli(&["volume", "detach", "demo"]).expect_code(7).said();
    assert!(said.contains("1 client is connected"), "{said}");
    client.write_fua(0, &[9; 512]).unwrap();
    assert_eq!(client.read(0, 512).unwrap(), [9; 512], "the check did it no harm");
}

#[test]
fn clients_that_read_no_replies_leave_room_and_are_dropped() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(3);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.start();
    cluster.ok(&["volume", "create", "demo", "--size", "64MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let uri = cluster.wait_healthy("demo").endpoint().unwrap();
    let greedy = |len: u32| {
        let mut client = BlockClient::connect(&uri).unwrap();
        client.raw().deadline(SECOND).unwrap();
        // Until the server takes no more.
        let asks = |i: &u64| client.raw().write_all(&request(0, 0, *i, 0, len)).is_ok();
        let asked = (0..100_000).take_while(asks).count();
        assert!(asked < 100_000, "all of it was taken on");
        client
    };
    let _greedy: Vec<_> = [4096, 4096, 65_536, 1 << 20, 1 << 20].map(greedy).into();
    let mut sixth = cluster.connect("demo");
    sixth.write(4096, &[5; 4096]).unwrap();
    assert_eq!(sixth.read(4096, 4096).unwrap(), [5; 4096]);
    assert_eq!(sixth.read(0, 1 << 20).unwrap()[4096], 5);
    // One that reads and wants more than its share waits for what the others hold: that ends them.
    let mut wanted = 0;
    eventually(120 * SECOND, "clients that take nothing are dropped", || {
        while wanted < 64 {
            sixth.submit(&Command::Read { offset: 0, len: 1 << 20 }).unwrap();
            wanted += 1;
        }
        for _ in 0..32 {
            sixth.complete().unwrap().result.unwrap();
            wanted -= 1;
        }
        let dropped = Page::scrape(port).value("holdfast_clients_stalled_total", &[("volume", "demo")]);
        check(dropped >= Some(1.0), || format!("dropped: {dropped:?}"))
    });
    while wanted > 0 {
        sixth.complete().unwrap().result.unwrap();
        wanted -= 1;
    }
    assert_eq!(sixth.read(4096, 4096).unwrap(), [5; 4096]);
}

#[test]
fn half_closing_client_gets_the_replies_to_what_it_sent() {
    let (cluster, address) = served();
    let tcp = tcp_client(&address).0;
    for mut client in [cluster.connect("demo"), tcp] {
        client.submit(&Command::Write { offset: 0, data: vec![3; 1 << 20], fua: true }).unwrap();
        for i in 0..100 {
            client.submit(&Command::Read { offset: i * 65_536, len: 65_536 }).unwrap();
        }
        client.submit(&Command::Flush).unwrap();
        client.raw().end_sending().unwrap();
        for _ in 0..102 {
            client.complete().unwrap().result.unwrap();
        }
        assert_eq!(client.raw().read(&mut [0]).unwrap(), 0, "then the server closes");
    }
    cluster.assert_images_equal("demo");
    // None of them is counted as a client any more.
    cluster.ok(&["volume", "detach", "demo"]);
}

#[test]
fn scrape_gets_through_silent_connections() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(3);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.start();
    let _crowd = Target::Tcp(format!("127.0.0.1:{port}")).crowd(400);
    let up = Page::scrape(port).value("holdfast_registry_up", &[]);
    assert_eq!(up, Some(1.0));
}

#[test]
fn agent_answers_despite_crowds_and_without_descriptors() {
    let cluster = Cluster::agent(AgentOptions::default());
    let crowd = Target::Unix(cluster.socket()).crowd(400);
    cluster.ok(&["volume", "ls"]);
    // No descriptor is left: those that come wait, and are served once there are some.
    let open = std::fs::read_dir(format!("/proc/{}/fd", cluster.agent_pid())).unwrap().count();
    let limit = format!("--nofile={open}:");
    let pid = format!("--pid={}", cluster.agent_pid());
    holdfast_tests::tools::ok("prlimit", &[&pid, &limit]);
    let waiting: Vec<_> = (0..20).map(|_| UnixStream::connect(cluster.socket()).unwrap()).collect();
    drop(crowd);
    cluster.ok(&["volume", "ls"]);
    drop(waiting);
}

#[test]
fn watcher_that_only_listens_is_kept() {
    let cluster = Cluster::agent(AgentOptions::default());
    let control = Control::connect(&cluster.socket()).unwrap();
    let mut watch = control.watch().unwrap();
    // Everything is told again every minute; by then it has said nothing for longer than a silent caller may.
    for _ in 0..2 {
        watch.next_event().expect("the stream goes on");
    }
}
