//! Several agents on one machine that share a registry in etcd, each with an address of its own.

use crate::cluster::{AgentOptions, SOON};
use crate::etcd::Etcd;
use crate::process::kill;
use crate::wait::{check, eventually};
use crate::{Cluster, Volume};

/// The nodes `node-a`, `node-b`, ..., at 127.0.0.1, 127.0.0.2, ...
#[derive(Debug)]
pub struct Fleet {
    /// In the order of their names.
    pub nodes: Vec<Cluster>,
    /// The registry; it ends last.
    pub etcd: Etcd,
}

impl Fleet {
    /// Starts so many, each with these further arguments. Without a `--disk-reserve` among them how full this machine's
    /// disk is matters to none.
    #[must_use]
    pub fn start(nodes: u8, extra: &[&str]) -> Self {
        let etcd = Etcd::start(1);
        let agent = |index: u8| {
            let (name, url) = (name_of(index), etcd.url("/test"));
            let address = format!("127.0.0.{}", index + 1);
            let mut own = vec!["--registry", url.as_str(), "--bind", address.as_str()];
            if !extra.contains(&"--disk-reserve") {
                own.extend(["--disk-reserve", "0"]);
            }
            Cluster::agent(AgentOptions::of_node(&name, &[&own[..], extra].concat()))
        };
        let mut this = Self { nodes: (0..nodes).map(agent).collect(), etcd };
        for node in &mut this.nodes {
            node.allow_errors("the registry cannot be read; nothing is started or stopped");
        }
        this.wait_live(usize::from(nodes));
        this
    }

    /// Waits until every running agent sees so many live nodes.
    ///
    /// # Panics
    /// When that takes too long.
    pub fn wait_live(&self, live: usize) {
        for node in self.nodes.iter().filter(|node| node.agent_runs()) {
            eventually(SOON, "all nodes know each other", || {
                let nodes = node.json(&["node", "ls"]);
                let seen =
                    nodes["nodes"].as_array().map(|all| all.iter().filter(|n| n["live"] == true).count());
                check(seen == Some(live), || nodes.to_string())
            });
        }
    }

    /// The volume `demo` with a replica on each of these nodes, attached on the first node of all.
    #[must_use]
    pub fn attached(&self, size: &str, on: &str, replicas: &str) -> Volume {
        let first = &self.nodes[0];
        first.ok(&["volume", "create", "demo", "--size", size, "--replicas", replicas, "--on", on]);
        first.ok(&["volume", "attach", "demo"]);
        first.wait_healthy("demo")
    }
}

/// As if the power of a node failed, but for its page cache: its agent and all that it runs are killed.
pub fn lose_power(node: &mut Cluster) {
    node.kill_agent();
    for process in node.instance_processes() {
        kill(process.pid);
    }
}

/// The names of a node's replica directories, sorted.
///
/// # Panics
/// When they cannot be listed.
#[must_use]
pub fn directories(node: &Cluster) -> Vec<String> {
    let listed = std::fs::read_dir(node.data_dir().join("replicas")).expect("replicas can be listed");
    let mut names: Vec<_> = listed
        .map(|entry| entry.expect("an entry can be read").file_name().to_string_lossy().into_owned())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort();
    names
}

fn name_of(index: u8) -> String {
    format!("node-{}", char::from(b'a' + index))
}
