//! Members that go, one at a time, in a world without chance.

use std::time::Duration;

use holdfast_proto::ids::ReplicaId;

use super::*;

/// Without further faults: the registry answers, connections are made, frames are carried, and time passes.
fn until(world: &mut World, within: Duration, wanted: impl Fn(&World) -> bool) -> bool {
    let end = world.now + within;
    while world.now < end {
        for slot in 0..world.disks.len() {
            while let Some(frame) = world.to[slot].pop_front() {
                world.carry_out(slot, frame);
            }
            world.disk_turn(slot);
            while !world.disks[slot].is_idle() {
                world.disk_turn(slot);
            }
            while !world.from[slot].is_empty() {
                world.receive(slot);
            }
        }
        while !world.connects.is_empty() {
            world.connect();
        }
        world.registry();
        if wanted(world) {
            return true;
        }
        world.now += Duration::from_millis(50);
        world.engine.tick(world.now);
        world.actions();
    }
    false
}

/// A volume with two members and nothing in flight.
fn healthy_pair() -> World {
    let mut world = World::new(1, 2, false);
    world.faults = false;
    let healthy = |world: &World| world.engine.report(world.now).state == EngineState::Healthy;
    assert!(until(&mut world, Duration::from_secs(10), healthy));
    world
}

fn write(world: &mut World) {
    let op = world.engine.submit(Request::Write { fua: false }, 0, BLOCK_BYTES, world.now).unwrap();
    let client = ClientOp { request: Request::Write { fua: false }, offset: 0, blocks: 1, stamp: 77 };
    world.clients.insert((op.slot, op.serial), client);
    world.buffers.insert(op.slot, vec![77]);
    world.actions();
}

#[test]
fn a_member_whose_process_has_ended_leaves_at_once_also_when_the_agent_knew_first() {
    let mut world = healthy_pair();
    world.engine.locate(ReplicaId(2), false, true, None, world.now);
    world.disks[1].up = false;
    world.reset(1);
    write(&mut world);
    let answered = |world: &World| world.clients.is_empty();
    assert!(until(&mut world, Duration::from_secs(1), answered), "{:?}", world.engine.report(world.now));
    assert_eq!(world.record.1.view.members, set(&[1]));
}

#[test]
fn a_member_whose_directory_is_missing_leaves_at_once() {
    for reset_first in [true, false] {
        let mut world = healthy_pair();
        world.disks[1].up = false;
        let missing = Some("is the disk mounted?".to_owned());
        if reset_first {
            world.reset(1);
        }
        world.engine.locate(ReplicaId(2), false, true, missing, world.now);
        if !reset_first {
            world.reset(1);
        }
        write(&mut world);
        assert!(until(&mut world, Duration::from_secs(1), |world| world.clients.is_empty()));
        assert_eq!(world.record.1.view.members, set(&[1]));
    }
}

#[test]
fn a_drain_does_not_wait_for_a_member_that_is_gone() {
    let mut world = healthy_pair();
    world.disks[1].up = false;
    world.reset(1);
    world.engine.drain(world.now);
    world.actions();
    assert!(until(&mut world, Duration::from_secs(1), |world| world.ended.is_some()));
    assert_eq!(world.ended, Some(Ending::Clean));
    assert!(world.record.1.clean);
}
