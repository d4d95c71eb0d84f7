//! The small form of the simulation behind `docs/scale.md`: counts that a change of when and what nodes publish moves.
#![forbid(unsafe_code)]

use holdfast_tests::scale::{Scenario, Size, run};

const SIZE: Size = Size { nodes: 99, volumes_per_node: 25 };

#[test]
fn all_nodes_begin_with_one_full_list_each_and_repeat_it() {
    let report = run(SIZE, Scenario::Start);
    // Begun within the first of two minutes: one list, and one or two more.
    let transactions = report.total.transactions;
    assert!((2 * 99..=3 * 99).contains(&transactions), "{transactions}");
    assert_eq!(
        (report.total.puts, report.total.deletes),
        (transactions, 0),
        "a hundred instances are one part"
    );
    assert!(report.live_bytes / 99 < 32 * 1024, "{}", report.live_bytes / 99);
}

#[test]
fn idle_nodes_write_their_full_list_every_minute_and_keep_their_leases() {
    let report = run(SIZE, Scenario::Idle);
    // Ten minutes, and each node 50 to 60 s after its last.
    let (lists, bytes) = (report.total.transactions, report.total.bytes);
    assert!((10 * 99..=12 * 99).contains(&lists), "{lists}");
    assert_eq!((report.total.puts, report.total.deletes), (lists, 0));
    assert!(bytes / lists < 32 * 1024, "{bytes}");
    assert!(report.most.transactions <= 10, "they do not write together: {:?}", report.most);
    assert_eq!(report.total.keepalives, 99 * 600 / 5);
    assert_eq!(report.readers, 2, "and readers know all of them");
}

#[test]
fn a_rolling_upgrade_costs_few_writes_with_many_changes_in_each() {
    let report = run(SIZE, Scenario::RollingUpgrade { at_a_time: 3 });
    // 9 of 99 nodes restart with 100 instances each; every other node has some of their volumes.
    let each = report.total.transactions / 99;
    assert!((30..=70).contains(&each), "{each} writes of each node");
    assert!(report.most.transactions <= 2 * 99, "no node writes more than twice a second: {:?}", report.most);
}

#[test]
fn after_the_loss_and_return_of_a_zone_readers_have_what_the_nodes_have() {
    let report = run(SIZE, Scenario::ZoneLoss);
    assert!(report.most.transactions <= 2 * 99, "{:?}", report.most);
    // While a third of the nodes is away, what they listed stays: it is unknown, and nothing of it is gone.
    let before = run(SIZE, Scenario::Idle).live_bytes;
    assert!(report.live_bytes_midway > before * 9 / 10, "{} of {before}", report.live_bytes_midway);
    assert_eq!(report.readers, 2);
}
