//! What the node knows, in the words of its published inventory: as short as it can be, and steady where a figure that
//! moves a little is no news.

use std::collections::BTreeMap;

use holdfast_proto::inventory::REASON_BYTES_MAX;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::pb::inventory as ipb;
use ipb::entry::Entry as Of;
use uuid::Uuid;

fn entry(of: Of) -> ipb::Entry {
    ipb::Entry { entry: Some(of) }
}

/// The 16 bytes of a UUID; of none, or of what is not one: nothing.
fn uuid(text: &str) -> Vec<u8> {
    Uuid::parse_str(text).map(|uuid| uuid.as_bytes().to_vec()).unwrap_or_default()
}

/// As much as readers take.
fn cut(text: &str) -> String {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}

fn claim(text: &str) -> i32 {
    let claim = match text {
        "claimed" => ipb::Claim::Claimed,
        "unclaimed" => ipb::Claim::Unclaimed,
        _ => ipb::Claim::Unknown,
    };
    claim.into()
}

/// An instance.
#[must_use]
pub fn instance(info: &pb::InstanceInfo) -> ipb::Entry {
    let state = match info.state.as_str() {
        "pending" => ipb::State::Pending,
        "starting" => ipb::State::Starting,
        "running" => ipb::State::Running,
        "stopping" => ipb::State::Stopping,
        "stopped" => ipb::State::Stopped,
        "error" => ipb::State::Error,
        _ => ipb::State::Unspecified,
    };
    entry(Of::Instance(ipb::Instance {
        name: info.name.clone(),
        uuid: uuid(&info.uuid),
        volume_id: uuid(&info.volume_id),
        state: state.into(),
        process_uuid: uuid(info.process_uuid.as_deref().unwrap_or_default()),
        address: cut(info.address.as_deref().unwrap_or_default()),
        generation: info.generation,
        epoch: info.epoch,
        restarts: info.restarts,
        claim: claim(&info.claim),
        reason: cut(info.reason.as_deref().unwrap_or_default()),
        blocked_by: cut(info.blocked_by.as_deref().unwrap_or_default()),
        ended: info.ended,
        volume_state: cut(&info.volume_state),
        clients: info.clients,
        members: info.members.clone(),
    }))
}

/// A replica directory.
#[must_use]
pub fn replica_dir(info: &pb::ReplicaDirInfo) -> ipb::Entry {
    let dir = info.data_dir.rsplit('/').next().unwrap_or_default();
    entry(Of::ReplicaDir(ipb::ReplicaDir {
        dir: dir.to_owned(),
        volume: info.volume.clone(),
        volume_id: uuid(&info.volume_id),
        replica: info.id.strip_prefix('r').and_then(|id| id.parse().ok()).unwrap_or_default(),
        size_bytes: info.size_bytes,
        generation: info.generation,
        epoch: info.epoch,
        claim: claim(&info.claim),
        healthy: info.healthy,
        last_healthy_unix_s: info.last_healthy_unix_s.unwrap_or_default(),
        reason: cut(info.reason.as_deref().unwrap_or_default()),
    }))
}

/// Figures that always move, followed in steps.
#[derive(Debug, Default)]
pub struct Steps {
    pressure: [i32; 3],
    available: BTreeMap<String, u64>,
}

impl Steps {
    /// The node itself. `info` needs its names, versions and pressure.
    pub fn node(&mut self, info: &pb::NodeInfo) -> ipb::Entry {
        let told = info.pressure.unwrap_or_default();
        for (level, percent) in self.pressure.iter_mut().zip([told.cpu, told.memory, told.io]) {
            *level = next_level(*level, percent);
        }
        let [cpu, memory, io] = self.pressure;
        entry(Of::Node(ipb::Node {
            name: info.node.clone(),
            boot_id: uuid(&info.boot_id),
            version: cut(&info.version),
            instance_protocol_min: info.instance_protocol_min,
            instance_protocol_max: info.instance_protocol_max,
            data_protocol_min: info.data_protocol_min,
            data_protocol_max: info.data_protocol_max,
            pressure: info.pressure.map(|_| ipb::Pressure { cpu, memory, io }),
        }))
    }

    /// A disk.
    pub fn disk(&mut self, info: &pb::DiskInfo) -> ipb::Entry {
        let held = self.available.entry(info.path.clone()).or_insert(info.available_bytes);
        if held.abs_diff(info.available_bytes) > info.capacity_bytes / 100 {
            *held = info.available_bytes;
        }
        entry(Of::Disk(ipb::Disk {
            path: info.path.clone(),
            capacity_bytes: info.capacity_bytes,
            available_bytes: *held,
            errors: info.errors.unwrap_or_default(),
            faulted_replicas: info.faulted_replicas,
            last_error: cut(info.last_error.as_deref().unwrap_or_default()),
            reserved_bytes: Some(info.reserved_bytes),
        }))
    }
}

/// The step that a figure is on. One is left downwards only well below where it begins, so that a figure beside its
/// border does not move it to and fro.
fn next_level(before: i32, percent: Option<f32>) -> i32 {
    let Some(percent) = percent else { return ipb::Level::Unspecified.into() };
    let level = |percent: f32| -> i32 {
        match percent {
            p if p >= 80.0 => ipb::Level::Severe.into(),
            p if p >= 40.0 => ipb::Level::High.into(),
            p if p >= 10.0 => ipb::Level::Some.into(),
            _ => ipb::Level::None.into(),
        }
    };
    let (rising, falling) = (level(percent), level(percent * 2.0));
    before.clamp(rising, falling.max(rising))
}

#[cfg(test)]
mod tests {
    use holdfast_proto::inventory::{FORMAT, decode, encode};

    use super::*;

    /// What is made here is what readers accept, whatever the node says of itself.
    #[test]
    fn what_is_published_is_what_readers_take() {
        let long = "é".repeat(400);
        let info = pb::InstanceInfo {
            name: "demo.r1".into(),
            uuid: Uuid::from_u128(7).to_string(),
            volume_id: Uuid::nil().to_string(),
            state: "running".into(),
            reason: Some(long.clone()),
            blocked_by: Some(long.clone()),
            address: Some("10.0.0.1:20000".into()),
            ..Default::default()
        };
        let unreadable = pb::ReplicaDirInfo {
            data_dir: "/var/lib/holdfast/replicas/x.r1.00000000".into(),
            reason: Some(long),
            ..Default::default()
        };
        let node = pb::NodeInfo { boot_id: Uuid::from_u128(9).to_string(), ..Default::default() };
        let disk = pb::DiskInfo { path: "/var/lib/holdfast".into(), ..Default::default() };
        let mut steps = Steps::default();
        let entries = vec![instance(&info), replica_dir(&unreadable), steps.node(&node), steps.disk(&disk)];
        let full = ipb::Full { part: 0, parts: 1, entries };
        let body = Some(ipb::document::Body::Full(full));
        let document = ipb::Document { format: FORMAT, session: 1, revision: 1, body };
        assert_eq!(decode(&encode(&document)), Ok(document));
    }

    #[test]
    fn a_figure_beside_a_border_does_not_move_to_and_fro() {
        let mut steps = Steps::default();
        let mut io = |percent: f32| {
            let pressure = pb::PressureInfo { io: Some(percent), ..Default::default() };
            let node = pb::NodeInfo { pressure: Some(pressure), ..Default::default() };
            let entry = steps.node(&node);
            let Some(Of::Node(node)) = entry.entry else { panic!("not a node") };
            node.pressure.unwrap().io()
        };
        let told: Vec<_> = [0.0, 9.9, 10.0, 9.0, 5.0, 4.9, 90.0, 45.0, 39.0, 0.0].map(&mut io).into();
        use ipb::Level as L;
        let expected =
            [L::None, L::None, L::Some, L::Some, L::Some, L::None, L::Severe, L::Severe, L::High, L::None];
        assert_eq!(told, expected);
    }

    #[test]
    fn a_disk_is_news_when_a_hundredth_of_it_is() {
        let mut steps = Steps::default();
        let mut available = |available_bytes| {
            let disk = pb::DiskInfo {
                path: "/d".into(),
                capacity_bytes: 1000,
                available_bytes,
                ..Default::default()
            };
            let Some(Of::Disk(disk)) = steps.disk(&disk).entry else { panic!("not a disk") };
            disk.available_bytes
        };
        assert_eq!([500, 505, 490, 489, 495].map(&mut available), [500, 500, 500, 489, 489]);
    }
}
