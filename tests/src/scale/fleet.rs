//! The nodes and volumes, and what each node's agent has to say of them.

use std::time::Duration;

use holdfast::core::publish::Publisher;
use holdfast::core::published::{self, Steps};
use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::inventory as ipb;
use uuid::Uuid;

/// How many of everything. Nodes are in three zones of equal size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// A multiple of three.
    pub nodes: usize,
    /// Engines of a node; it has four times as many instances.
    pub volumes_per_node: usize,
}

impl Size {
    /// Of all nodes.
    #[must_use]
    pub fn instances(self) -> usize {
        self.nodes * self.volumes_per_node * 4
    }
    fn zone(self) -> usize {
        self.nodes / 3
    }
    /// The zone of a node, from 0.
    #[must_use]
    pub fn zone_of(self, node: usize) -> usize {
        node / self.zone()
    }
}

/// A volume; its parts say only what nodes publish of them.
#[derive(Debug, Clone)]
pub(super) struct Volume {
    /// Where r1 (beside the engine), r2 and r3 are.
    pub(super) nodes: [usize; 3],
    pub(super) epoch: u64,
    pub(super) generation: u64,
    pub(super) members: [bool; 3],
    pub(super) states: [&'static str; 4],
}

/// The engine's place in [`Volume::states`], after those of the replicas.
pub(super) const ENGINE: usize = 3;

/// See the module.
#[derive(Debug)]
pub(super) struct Fleet {
    pub(super) size: Size,
    pub(super) volumes: Vec<Volume>,
    /// The volumes that have a part on a node, and which replica.
    pub(super) placed: Vec<Vec<(usize, usize)>>,
    /// Of nodes whose agents run.
    pub(super) publishers: Vec<Option<Publisher>>,
    steps: Vec<Steps>,
}

impl Fleet {
    pub(super) fn new(size: Size) -> Self {
        let zone = size.zone();
        let mut volumes = Vec::new();
        let mut placed = vec![Vec::new(); size.nodes];
        for engine in 0..size.nodes {
            for number in 0..size.volumes_per_node {
                // Spread, so that losing a node is felt by many others a little.
                let beside = |zones: usize, stride: usize| {
                    let first = (size.zone_of(engine) + zones) % 3 * zone;
                    first + (engine % zone + 1 + number * stride) % zone
                };
                let nodes = [engine, beside(1, 37), beside(2, 61)];
                for (replica, node) in nodes.into_iter().enumerate() {
                    placed[node].push((volumes.len(), replica));
                }
                volumes.push(Volume {
                    nodes,
                    epoch: 1,
                    generation: 1,
                    members: [true; 3],
                    states: ["running"; 4],
                });
            }
        }
        let steps = std::iter::repeat_with(Steps::default).take(size.nodes).collect();
        let publishers = std::iter::repeat_with(|| None).take(size.nodes).collect();
        Self { size, volumes, placed, publishers, steps }
    }

    pub(super) fn name(node: usize) -> NodeName {
        format!("node-{node:05}").parse().unwrap()
    }

    /// The node's agent begins.
    pub(super) fn begin(&mut self, node: usize, found: &[(String, Vec<u8>)], unix_ms: u64, now: Duration) {
        let mut entries = vec![self.node_entry(node, 0.0), self.disk_entry(node, 0)];
        for (volume, replica) in self.placed[node].clone() {
            entries.extend(self.entries_of(volume, replica));
        }
        self.publishers[node] = Some(Publisher::new(&Self::name(node), found, unix_ms, entries, now));
    }

    /// A volume has changed: the nodes that it is on, and whose agents run, say so.
    pub(super) fn tell(&mut self, volume: usize, now: Duration) -> [usize; 3] {
        let nodes = self.volumes[volume].nodes;
        for (replica, node) in nodes.into_iter().enumerate() {
            let entries = self.entries_of(volume, replica);
            if let Some(publisher) = &mut self.publishers[node] {
                entries.into_iter().for_each(|entry| publisher.set(entry, now));
            }
        }
        nodes
    }

    /// The node's pressure has changed.
    pub(super) fn press(&mut self, node: usize, io_percent: f32, now: Duration) {
        let entry = self.node_entry(node, io_percent);
        if let Some(publisher) = &mut self.publishers[node] {
            publisher.set(entry, now);
        }
    }

    /// So many hundredths of the node's disk have been written.
    pub(super) fn fill(&mut self, node: usize, hundredths: u64, now: Duration) {
        let entry = self.disk_entry(node, hundredths);
        if let Some(publisher) = &mut self.publishers[node] {
            publisher.set(entry, now);
        }
    }

    /// How many nodes have an engine with a replica there: those watch what it publishes.
    pub(super) fn concerned(&self, node: usize) -> u64 {
        let engines: std::collections::BTreeSet<usize> = (self.placed[node].iter())
            .map(|(volume, _)| self.volumes[*volume].nodes[0])
            .filter(|engine| *engine != node)
            .collect();
        u64::try_from(engines.len()).unwrap()
    }

    fn node_entry(&mut self, node: usize, io_percent: f32) -> ipb::Entry {
        let pressure = pb::PressureInfo { cpu: Some(0.0), memory: Some(0.0), io: Some(io_percent) };
        self.steps[node].node(&pb::NodeInfo {
            node: Self::name(node).to_string(),
            version: "0.1.0".to_owned(),
            boot_id: Uuid::from_u128(node as u128).to_string(),
            pressure: Some(pressure),
            instance_protocol_min: 1,
            instance_protocol_max: 1,
            data_protocol_min: 2,
            data_protocol_max: 2,
            ..Default::default()
        })
    }

    fn disk_entry(&mut self, node: usize, hundredths: u64) -> ipb::Entry {
        let capacity_bytes = 4_u64 << 40;
        self.steps[node].disk(&pb::DiskInfo {
            path: "/var/lib/holdfast/replicas".to_owned(),
            capacity_bytes,
            available_bytes: capacity_bytes / 2 - capacity_bytes / 99 * hundredths,
            errors: Some(0),
            ..Default::default()
        })
    }

    /// What the node of a replica says of the volume: the replica and its directory; beside the engine, that too.
    fn entries_of(&self, number: usize, replica: usize) -> Vec<ipb::Entry> {
        let volume = &self.volumes[number];
        let name = format!("pvc-{number:08}");
        let id = Uuid::from_u128(0x5eed_0000_0000_0000_0000_0000_0000_0000 | number as u128).to_string();
        let instance = |part: String, which: usize, address: Option<String>| pb::InstanceInfo {
            name: format!("{name}.{part}"),
            uuid: Uuid::from_u128((number * 4 + which) as u128 | 0xabcd << 100).to_string(),
            volume_id: id.clone(),
            state: volume.states[which].to_owned(),
            address,
            generation: volume.generation,
            epoch: volume.epoch,
            claim: "claimed".to_owned(),
            ..Default::default()
        };
        let up = volume.states[replica] == "running";
        let address =
            up.then(|| format!("10.{}.{}.1:20{:03}", number >> 8 & 255, number & 255, number % 1000));
        let part = format!("r{}", replica + 1);
        let mut entries = vec![published::instance(&instance(part.clone(), replica, address))];
        entries.push(published::replica_dir(&pb::ReplicaDirInfo {
            volume: name.clone(),
            volume_id: id.clone(),
            id: part.clone(),
            data_dir: format!("/var/lib/holdfast/replicas/{name}.{part}.5eed0000"),
            size_bytes: 100 << 30,
            generation: volume.generation,
            epoch: volume.epoch,
            claim: "claimed".to_owned(),
            healthy: up && volume.members[replica],
            last_healthy_unix_s: (!(up && volume.members[replica])).then_some(1_795_000_000),
            ..Default::default()
        }));
        if replica == 0 {
            let mut engine = instance("engine".to_owned(), ENGINE, None);
            engine.process_uuid = Some(Uuid::from_u128(number as u128).to_string());
            entries.push(published::instance(&engine));
        }
        entries
    }
}
