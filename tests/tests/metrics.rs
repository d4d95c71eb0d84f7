//! The page that Prometheus scrapes: off unless asked for, on loopback, and true.
#![forbid(unsafe_code)]

use std::net::TcpStream;

use holdfast_tests::exposition::{Page, ask};
use holdfast_tests::process::{Signal, kill, signal};
use holdfast_tests::wait::check;
use holdfast_tests::{AgentOptions, BlockClient, Cluster, SECOND, eventually};

/// A port of the cluster's own block that nothing else takes.
const PORT: u16 = 3;

fn scraped() -> (Cluster, u16) {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(PORT);
    cluster.add_arguments(&["--metrics", &port.to_string()]);
    cluster.start();
    (cluster, port)
}

fn page(port: u16) -> Page {
    Page::scrape(port)
}

fn io(page: &Page, name: &str, kind: &str) -> Option<f64> {
    page.value(name, &[("volume", "demo"), ("kind", kind)])
}

#[test]
fn what_clients_did_is_on_the_page_and_its_histogram_has_each_request() {
    let (cluster, port) = scraped();
    cluster.ok(&["volume", "create", "demo", "--size", "16MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let volume = cluster.wait_healthy("demo");
    let mut client = BlockClient::connect(&volume.endpoint().unwrap()).unwrap();
    for block in 0..64 {
        client.write(block * 4096, &[7; 4096]).unwrap();
    }
    for block in 0..32 {
        client.read(block * 4096, 4096).unwrap();
    }
    client.flush().unwrap();
    client.trim(0, 8192).unwrap();
    // Counters come once a second.
    eventually(20 * SECOND, "the page has what was done", || {
        let page = page(port);
        let found =
            ["write", "read", "flush", "trim"].map(|kind| io(&page, "holdfast_io_requests_total", kind));
        check(found == [64.0, 32.0, 1.0, 1.0].map(Some), || format!("{found:?}"))
    });
    let now = page(port);
    for (kind, requests, bytes) in
        [("write", 64.0, 262_144.0), ("read", 32.0, 131_072.0), ("trim", 1.0, 8192.0)]
    {
        assert_eq!(io(&now, "holdfast_io_duration_seconds_count", kind), Some(requests), "{kind}");
        assert_eq!(io(&now, "holdfast_io_bytes_total", kind), Some(bytes), "{kind}");
        assert_eq!(io(&now, "holdfast_io_errors_total", kind), Some(0.0), "{kind}");
    }
    assert!(io(&now, "holdfast_io_duration_seconds_sum", "write") > Some(0.0));
    let labels = [("kind", "replica"), ("state", "running"), ("claim", "claimed")];
    assert_eq!(now.value("holdfast_instances", &labels), Some(2.0));
    assert_eq!(now.value("holdfast_volume_state", &[("volume", "demo"), ("state", "healthy")]), Some(1.0));
    for name in ["holdfast_volume_members", "holdfast_volume_replicas"] {
        assert_eq!(now.value(name, &[("volume", "demo")]), Some(2.0), "{name}");
    }
    assert!(now.value("holdfast_reconcile_duration_seconds_count", &[]) > Some(0.0));
    let listed = [("operation", "list"), ("outcome", "ok")];
    assert!(now.value("holdfast_registry_duration_seconds_count", &listed) > Some(0.0));
    let swapped = [("operation", "compare_and_swap"), ("outcome", "ok")];
    assert!(now.value("holdfast_registry_duration_seconds_count", &swapped) > Some(0.0), "an engine asked");
    assert!(now.value("process_resident_memory_bytes", &[]) > Some(1e6));

    for (kind, to, count) in
        [("replica", "pending", 2.0), ("replica", "running", 2.0), ("engine", "running", 1.0)]
    {
        let came = now.value("holdfast_instance_transitions_total", &[("kind", kind), ("to", to)]);
        assert_eq!(came, Some(count), "{kind} {to}");
    }

    kill(volume.replica("r1").pid().unwrap());
    let restarts = [("name", "demo.r1"), ("kind", "replica"), ("volume", "demo")];
    eventually(40 * SECOND, "the restart is counted", || {
        let found = page(port).value("holdfast_instance_restarts_total", &restarts);
        check(found == Some(1.0), || format!("{found:?}"))
    });
    drop(client);
    cluster.wait_healthy("demo");
    cluster.detach("demo");
    cluster.ok(&["volume", "delete", "demo"]);
    eventually(20 * SECOND, "series go with what they are about", || {
        let page = page(port);
        let left: Vec<_> = page.all().filter(|((_, labels), _)| labels.contains_key("volume")).collect();
        check(left.is_empty(), || format!("{left:?}"))
    });
}

#[test]
fn a_scrape_does_not_wait_for_an_instance_that_hangs() {
    let (cluster, port) = scraped();
    cluster.ok(&["volume", "create", "demo", "--size", "16MiB", "--replicas", "2"]);
    cluster.ok(&["volume", "attach", "demo"]);
    let volume = cluster.wait_healthy("demo");
    let pid = volume.engine_pid().unwrap();
    signal(pid, Signal::SIGSTOP);
    let found = page(port).value("holdfast_volume_size_bytes", &[("volume", "demo")]);
    signal(pid, Signal::SIGCONT);
    assert_eq!(found, Some(16_777_216.0));
}

#[test]
fn only_the_page_is_there_and_only_to_be_read() {
    let (_cluster, port) = scraped();
    assert!(ask(port, "GET /").starts_with("HTTP/1.1 404 "));
    assert!(ask(port, "POST /metrics").starts_with("HTTP/1.1 405 "));
    let head = ask(port, "HEAD /metrics");
    assert!(head.starts_with("HTTP/1.1 200 ") && head.ends_with("\r\n\r\n"), "{head}");
}

#[test]
fn a_port_in_use_ends_the_start_with_a_remedy_and_loopback_is_what_a_port_alone_means() {
    let (first, port) = scraped();
    // It can be asked a moment before it says so.
    eventually(20 * SECOND, "the agent says where the page is", || {
        let said = first.agent_said();
        check(said.contains(&format!("http://127.0.0.1:{port}/metrics")), || said)
    });
    let mut second =
        Cluster::agent_not_started(AgentOptions::with(&["--metrics", &format!("127.0.0.1:{port}")]));
    second.spawn();
    assert_eq!(second.wait_agent_end().code(), Some(4));
    let said = second.agent_said();
    assert!(said.contains(&format!("127.0.0.1:{port}")) && said.contains("remedy: "), "{said}");
    drop(first);
}

#[test]
fn nothing_is_served_unless_asked_for() {
    let mut cluster = Cluster::agent_not_started(AgentOptions::default());
    let port = cluster.ports().own(PORT);
    cluster.start();
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    assert!(!cluster.agent_said().contains("metrics"));
}
