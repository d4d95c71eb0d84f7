//! What is written when, and how much.

use super::*;
use crate::core::testing::{published_instance as instance, published_node as node};

const fn ms(ms: u64) -> Moment {
    Duration::from_millis(ms)
}

fn named() -> NodeName {
    "node-a".parse().unwrap()
}

fn publisher(instances: usize) -> Publisher {
    let all = (0..instances).map(|n| instance(&format!("v{n}.r1"), 1));
    Publisher::new(&named(), &[], 1000, all.chain([node("node-a")]).collect(), ms(0))
}

/// The next write, which is due exactly at `at`.
fn write_at(publisher: &mut Publisher, at: Moment) -> Vec<Op> {
    assert_eq!(publisher.poll_timeout(), Some(at));
    let before = at.checked_sub(ms(1));
    assert!(before.is_none_or(|before| publisher.poll_write(before).is_none()), "not before it is due");
    let ops = publisher.poll_write(at).unwrap();
    assert_eq!(publisher.poll_timeout(), None, "one write at a time");
    ops
}

fn keys(ops: &[Op]) -> Vec<String> {
    let sign = |op: &Op| if matches!(op, Op::Put { .. }) { "+" } else { "-" };
    ops.iter().map(|op| format!("{}{}", sign(op), op.key())).collect()
}

fn bytes(ops: &[Op]) -> usize {
    let put = |op: &Op| if let Op::Put { bytes, .. } = op { bytes.len() } else { 0 };
    ops.iter().map(put).sum()
}

/// The full list of a new session is in the registry.
fn begun(instances: usize) -> Publisher {
    let mut publisher = publisher(instances);
    write_at(&mut publisher, ms(0));
    publisher.written(ms(0));
    publisher
}

/// After how long the next full list of [`named`] follows one.
fn full_after() -> Duration {
    FULL_EVERY - spread(&named())
}

#[test]
fn an_idle_node_writes_its_full_list_once_a_minute_and_nothing_else() {
    let mut publisher = begun(10);
    let mut last = ms(0);
    for _ in 0..60 {
        let at = publisher.poll_timeout().unwrap();
        assert!(at - last <= FULL_EVERY && at - last >= FULL_EVERY - FULL_SPREAD, "{last:?} {at:?}");
        let ops = write_at(&mut publisher, at);
        assert_eq!(keys(&ops), ["+full/0"]);
        let Op::Put { bytes, .. } = &ops[0] else { panic!("{ops:?}") };
        let document = inventory::decode(bytes).unwrap();
        assert_eq!((document.session, document.revision), (publisher.session(), 1), "the same again");
        publisher.written(at);
        last = at;
    }
}

#[test]
fn a_full_list_follows_the_last_one_within_a_minute_however_much_changes_between_them() {
    let mut publisher = begun(40);
    let (mut now, mut last, mut lists, mut deltas) = (ms(0), ms(0), 0, 0);
    while now < FULL_EVERY * 10 {
        now += ms(250);
        if now.as_millis().is_multiple_of(3000) {
            publisher.set(instance("v1.r1", u64::try_from(now.as_millis()).unwrap()), now);
        }
        let Some(ops) = publisher.poll_write(now) else { continue };
        if keys(&ops)[0].starts_with("+full") {
            assert!(now - last <= FULL_EVERY, "{last:?} {now:?}");
            (last, lists) = (now, lists + 1);
        } else {
            deltas += 1;
        }
        publisher.written(now);
    }
    assert!(now - last <= FULL_EVERY && lists >= 10 && deltas > lists, "{lists} and {deltas}");
}

#[test]
fn the_same_again_is_no_change() {
    let mut publisher = begun(3);
    let revision = publisher.revision();
    publisher.set(instance("v1.r1", 1), ms(10));
    publisher.replace(Kind::Instance, (0..3).map(|n| instance(&format!("v{n}.r1"), 1)).collect(), ms(10));
    publisher.remove(&Key { kind: Kind::Instance, name: "other.r1".to_owned() }, ms(10));
    assert_eq!((publisher.revision(), publisher.poll_timeout()), (revision, Some(full_after())));
}

#[test]
fn a_change_among_a_thousand_is_out_within_a_second_in_one_small_write() {
    let mut publisher = begun(1000);
    publisher.set(instance("v500.r1", 2), ms(10_000));
    let ops = write_at(&mut publisher, ms(10_000) + COALESCE);
    assert_eq!(keys(&ops), ["+delta/0000000000000001"]);
    assert!(bytes(&ops) < 200, "{}", bytes(&ops));
    publisher.written(ms(10_210));
    // At worst another write has just begun.
    publisher.set(instance("v501.r1", 2), ms(10_210));
    let at = publisher.poll_timeout().unwrap();
    assert!(at - ms(10_210) <= WRITE_EVERY_MIN, "{at:?}");
}

#[test]
fn a_burst_is_one_write_with_the_last_of_each() {
    let mut publisher = begun(10);
    for generation in 2..20 {
        for n in 0..10 {
            publisher.set(instance(&format!("v{n}.r1"), generation), ms(1000 + generation));
        }
    }
    publisher.remove(&Key { kind: Kind::Instance, name: "v9.r1".to_owned() }, ms(1030));
    let ops = write_at(&mut publisher, ms(1002) + COALESCE);
    let [Op::Put { bytes, .. }] = &ops[..] else { panic!("{ops:?}") };
    let Some(Body::Delta(delta)) = inventory::decode(bytes).unwrap().body else { panic!("no delta") };
    assert_eq!((delta.changed.len(), delta.removed.len()), (9, 1));
    assert!(delta.changed.contains(&instance("v0.r1", 19)));
}

#[test]
fn a_full_list_clears_the_deltas_before_it() {
    let mut publisher = begun(3);
    publisher.set(instance("v1.r1", 2), ms(5000));
    write_at(&mut publisher, ms(5000) + COALESCE);
    publisher.written(ms(5250));
    let ops = write_at(&mut publisher, full_after());
    assert_eq!(keys(&ops), ["+full/0", "-delta/0000000000000001"]);
    publisher.written(full_after());
    assert_eq!(keys(&write_at(&mut publisher, full_after() * 2)), ["+full/0"]);
}

#[test]
fn deltas_that_have_grown_make_a_full_list_due() {
    let mut publisher = begun(3);
    let mut now = ms(0);
    let mut deltas = 0;
    for generation in 2_u64.. {
        now += WRITE_EVERY_MIN;
        publisher.set(instance("v1.r1", generation), now - COALESCE);
        let ops = publisher.poll_write(now).unwrap();
        publisher.written(now);
        if keys(&ops)[0] == "+full/0" {
            assert_eq!(ops.len(), 1 + deltas, "each of them goes");
            break;
        }
        deltas += 1;
    }
    assert_eq!(deltas, DELTAS_MAX);
}

#[test]
fn a_change_of_everything_is_a_full_list_and_not_two() {
    let mut publisher = begun(4000);
    for n in 0..4000 {
        publisher.set(instance(&format!("v{n}.r1"), 7), ms(1000));
    }
    let ops = write_at(&mut publisher, ms(1000) + COALESCE);
    assert_eq!(keys(&ops), ["+full/0", "+full/1"]);
    publisher.written(ms(1300));
    assert_eq!(publisher.poll_timeout(), Some(ms(1300) + full_after()));
}

#[test]
fn a_thousand_instances_fit_what_etcd_takes_in_one_request() {
    let mut publisher = publisher(1000);
    let ops = publisher.poll_write(ms(0)).unwrap();
    for op in &ops {
        let Op::Put { bytes, .. } = op else { panic!("nothing was there") };
        assert!(bytes.len() <= PART_BYTES_MAX + 64, "{}", bytes.len());
    }
    assert!(bytes(&ops) < 128 * 1024, "{}", bytes(&ops));
}

#[test]
fn a_write_of_unknown_outcome_is_written_again_under_its_key_with_what_changed_since() {
    let mut publisher = begun(3);
    publisher.set(instance("v1.r1", 2), ms(1000));
    let first = write_at(&mut publisher, ms(1000) + COALESCE);
    publisher.set(instance("v2.r1", 2), ms(1250));
    publisher.failed(ms(1300));
    let again = write_at(&mut publisher, ms(1300) + RETRY_AFTER);
    assert_eq!(first[0].key(), again[0].key());
    let Op::Put { bytes, .. } = &again[0] else { panic!("{again:?}") };
    let document = inventory::decode(bytes).unwrap();
    assert_eq!(document.revision, 3);
    let Some(Body::Delta(delta)) = document.body else { panic!("no delta") };
    assert_eq!(delta.changed, [instance("v1.r1", 2), instance("v2.r1", 2)]);
    publisher.failed(ms(2300));
    assert_eq!(publisher.poll_timeout(), Some(ms(2300) + RETRY_AFTER * 2), "it waits longer each time");
}

#[test]
fn after_a_write_of_unknown_outcome_the_next_full_list_settles_what_may_come_late() {
    let mut publisher = publisher(3);
    write_at(&mut publisher, ms(0));
    publisher.failed(ms(0));
    write_at(&mut publisher, RETRY_AFTER);
    publisher.written(ms(1000));
    assert_eq!(keys(&write_at(&mut publisher, ms(1000) + full_after())), ["+full/0"]);
}

#[test]
fn a_new_session_is_later_than_what_it_finds_and_replaces_all_of_it() {
    let mut old = publisher(4000);
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for op in old.poll_write(ms(0)).unwrap() {
        let Op::Put { key, bytes } = op else { panic!("nothing was there") };
        found.push((key, bytes));
    }
    found.push(("delta/0000000000000001".to_owned(), vec![0xff]));
    // A clock that was set back does not take the sessions back.
    let mut new = Publisher::new(&named(), &found, 3, vec![node("node-a")], ms(0));
    assert_eq!(new.session(), old.session() + 1);
    assert_eq!(keys(&new.poll_write(ms(0)).unwrap()), ["+full/0", "-delta/0000000000000001", "-full/1"]);
    // Nor does a registry that was lost.
    let lost = Publisher::new(&named(), &[], 5000, vec![node("node-a")], ms(0));
    assert!(lost.session() > new.session());
}
