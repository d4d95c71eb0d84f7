//! I/O that cannot be done is held, fails after its time, and goes on by itself: with real processes, and no agent.
#![forbid(unsafe_code)]

use holdfast_tests::process::{Signal, signal};
use holdfast_tests::{AgentOptions, Cluster, SECOND, eventually};

const EIO: i32 = nix::libc::EIO;

fn error<T: std::fmt::Debug>(result: std::io::Result<T>) -> Option<i32> {
    result.expect_err("nobody could have done it").raw_os_error()
}

#[test]
fn with_every_member_stopped_and_no_agent_io_fails_after_its_time_and_then_goes_on() {
    let options =
        ["--replica-timeout", "1s", "--suspend-timeout", "4s", "--heartbeat", "250ms", "--read-lease", "1s"];
    let mut cluster = Cluster::agent(AgentOptions::with(&options));
    cluster.create_attached("demo", "64MiB", 2);
    let volume = cluster.volume("demo");
    let pids: Vec<i32> = volume.replicas().iter().map(|replica| replica.pid().unwrap()).collect();
    let mut client = cluster.connect("demo");
    client.write_fua(0, &[1; 4096]).unwrap();
    cluster.kill_agent();
    pids.iter().for_each(|pid| signal(*pid, Signal::SIGSTOP));
    assert_eq!(error(client.write(4096, &[2; 4096])), Some(EIO));
    assert_eq!(error(client.read(0, 4096)), Some(EIO), "without a lease nothing is read either");
    pids.iter().for_each(|pid| signal(*pid, Signal::SIGCONT));
    // By itself: no agent runs that could have helped.
    eventually(60 * SECOND, "I/O goes on", || {
        client.write(8192, &[9; 4096]).map_err(|error| error.to_string())
    });
    assert_eq!(client.read(0, 4096).unwrap(), [1; 4096]);
    client.write(4096, &[3; 4096]).unwrap();
    client.flush().unwrap();
    drop(client);
    cluster.start();
    let after = cluster.wait_healthy("demo");
    assert_eq!((after.engine_pid(), after.generation()), (volume.engine_pid(), volume.generation()));
    cluster.wait_images_equal("demo");
}
