//! What CI checks: the rules hold within small bounds, and each of them is needed.

use std::collections::HashSet;

use super::Step::*;
use super::explore::explore_with;
use super::*;

/// The first engine serves all replicas.
fn serving(replicas: u8) -> Vec<Step> {
    let each = |step: fn(u8, u8) -> Step| (0..replicas).map(move |r| step(0, r));
    let first = [Start, Answer(0)].into_iter().chain(each(Fence)).chain(each(Deliver));
    // A round, before it serves.
    if replicas > 1 { first.chain(each(Deliver)).collect() } else { first.collect() }
}

/// The same with replicas that know no stamps.
fn serving_unstamped() -> Vec<Step> {
    vec![Start, Answer(0), Fence(0, 0), Fence(0, 1), Deliver(0, 0), Deliver(0, 1)]
}

/// And has written to the first of two; then it is gone, and the next one serves.
fn left_behind() -> Vec<Step> {
    let mut steps = serving(2);
    steps.extend([Write(0), Deliver(0, 0)]);
    steps.extend([Start, Answer(0), Fence(0, 0), Fence(0, 1), Deliver(0, 0), Deliver(0, 1)]);
    steps.extend([Deliver(0, 0), Deliver(0, 1)]);
    steps
}

/// The world after these steps, each of which is possible.
fn after(mut world: World, steps: &[Step]) -> World {
    for step in steps {
        let mut possible = Vec::new();
        world.wake().expect("nothing is wrong yet");
        world.steps(&mut possible);
        assert!(possible.contains(step), "{step:?} is not possible{}", world.summary());
        world = advance(&world, *step).expect("nothing is wrong yet");
    }
    world
}

/// As [`left_behind`], but the second engine begins without the first replica, which has the write.
fn late() -> Vec<Step> {
    let mut steps = serving(2);
    steps.extend([Write(0), Deliver(0, 0), Start, Answer(0), Fence(0, 1), Tick(0), Fence(0, 0)]);
    steps
}

/// Write-intent bits are swept.
const SWEEPS: Kind = Kind { sweeps: true, ..DEAD };
/// The same with replicas from before there were stamps.
const UNSTAMPED: Kind = Kind { stamps: false, ..SWEEPS };
const TWO: Budget = Budget { engines: 2, ..ONE };
const THREE: Budget = Budget { engines: 3, ..ONE };

macro_rules! hold {
    ($($name:ident: $world:expr;)*) => {$(
        #[test]
        fn $name() {
            assert!(holds(stringify!($name), &$world, Order::Richest, 3_000_000).exhaustive);
        }
    )*};
}

hold! {
    one_replica: fresh(1, ALIVE, Budget { faults: 1, away: 1, ..TWO });
    three_engines_of_one_replica: fresh(1, DEAD, Budget { away: 1, kills: 1, reboots: 1, ..THREE });
    three_engines: fresh(2, DEAD, THREE);
    three_engines_and_the_registry_away: fresh(2, DEAD, Budget { away: 1, ..THREE });
    two_engines_of_three_replicas: fresh(3, DEAD, TWO);
    one_engine_of_two_replicas_with_faults: fresh(2, ALIVE, Budget { faults: 2, ..ONE });
    two_engines_at_once: fresh(2, ALIVE, TWO);
    two_engines_with_a_fault: fresh(2, DEAD, Budget { faults: 1, ..TWO });
    two_engines_with_a_kill: fresh(2, DEAD, Budget { kills: 1, ..TWO });
    two_engines_with_a_reboot: fresh(2, DEAD, Budget { reboots: 1, ..TWO });
    intent_cleared_while_a_member_is_away: after(
        fresh(2, SWEEPS, Budget { faults: 1, flushes: 1, ..ONE }), &serving(2));
    intent_cleared_while_a_flush_fails: after(
        fresh(2, SWEEPS, Budget { failures: 1, flushes: 1, ..ONE }), &serving(2));
    intent_cleared_while_a_target_is_filled: after(fresh(2, SWEEPS, TWO), &late());
    two_engines_and_the_registry_restored: fresh(2, DEAD, Budget { restores: 1, ..TWO });
    a_clean_end_between: fresh(2, DEAD, Budget { detaches: 1, reads: 1, ..TWO });
    a_cache_lost_after_another_joined: after(
        fresh(2, DEAD, Budget { reboots: 1, ..ONE }), &joined_after_a_write());
    a_disk_that_goes_back_under_an_engine: after(
        fresh(2, SWEEPS, Budget { flushes: 1, rollbacks: 1, ..ONE }), &serving(2));
    a_disk_that_goes_back_between_engines: fresh(2, DEAD, Budget { rollbacks: 1, ..TWO });
    a_disk_that_goes_back_after_a_clean_end: after(
        fresh(2, DEAD, Budget { rollbacks: 1, detaches: 1, ..TWO }), &serving(2));
    a_disk_that_goes_back_alone: fresh(1, DEAD, Budget { rollbacks: 1, ..TWO });
    intent_cleared_without_stamps: after(
        fresh(2, UNSTAMPED, Budget { faults: 1, flushes: 1, ..ONE }), &serving_unstamped());
    an_add_that_was_not_committed: uncommitted_add(ALIVE, Budget { faults: 0, ..ONE });
}

/// A replica that joins later than a write that only the other one's cache has.
fn joined_after_a_write() -> Vec<Step> {
    vec![
        Start,
        Answer(0),
        Fence(0, 1),
        Tick(0),
        Deliver(0, 1),
        Answer(0),
        Write(0),
        Deliver(0, 1),
        Fence(0, 0),
    ]
}

/// The bounds are those in which the violation was seen first; the steps before are part of every such trace.
macro_rules! need {
    ($($name:ident: $rule:ident, $world:expr;)*) => {$(
        #[test]
        fn $name() {
            needed(Rule::$rule, &$world);
        }
    )*};
}

need! {
    r1_start_quorum: StartQuorum, fresh(3, ALIVE, Budget { faults: 1, ..ONE });
    r2_order_by_generation: GenerationOrders, after(
        fresh(3, DEAD, Budget { faults: 2, ..TWO }),
        &[serving(3), vec![Fail(0, 2), Deliver(0, 0), Fail(0, 1), Deliver(0, 0)]].concat(),
    );
    r3_own_view: OwnView, fresh(2, ALIVE, Budget { faults: 1, ..TWO });
    r4_add_stays: AddStays, fresh(2, ALIVE, Budget { faults: 2, ..ONE });
    r5_record_minority: RecordMinority, uncommitted_add(ALIVE, Budget { faults: 1, ..ONE });
    r5_flag: Flag, after(
        uncommitted_add_unknown(ALIVE, Budget { faults: 1, away: 1, ..ONE }),
        &[Away(0), Fence(0, 0), Fence(0, 1), Fence(0, 2)],
    );
    r6_record_as_a_whole: CasWhole, fresh(2, ALIVE, Budget { faults: 1, ..TWO });
    r7_all_without_the_registry: AwayNeedsAll, fresh(2, ALIVE, Budget { faults: 1, ..ONE });
    r8_all_after_a_restore: WentBackNeedsAll, fresh(2, ALIVE, Budget { faults: 1, restores: 1, ..ONE });
    r8_nothing_from_before_a_restore: SameLife, after(
        fresh(2, ALIVE, Budget { restores: 1, ..TWO }),
        &[Start, Answer(0), Start, Fence(0, 0), Tick(0), Deliver(0, 0)],
    );
    r9_repair_before_read: RepairFirst,
        after(fresh(2, DEAD, Budget { reads: 2, ..TWO }), &left_behind());
    r9_repair_with_all: RepairWaits,
        after(fresh(2, DEAD, Budget { reads: 1, faults: 1, ..TWO }), &left_behind());
    r10_reads_wait: ReadWaits, fresh(2, ALIVE, Budget { reads: 1, ..ONE });
    r12_boot_id: BootId, fresh(1, ALIVE, Budget { reads: 1, reboots: 1, ..ONE });
    a_restarted_member_leaves: RestartedLeaves, after(
        fresh(2, SWEEPS, Budget { flushes: 1, rollbacks: 1, ..ONE }), &serving(2));
    lost_caches_are_left_out: LostLeftOut, fresh(2, ALIVE, Budget { reboots: 1, ..ONE });
    lost_caches_stay_lost: LostStays, fresh(2, ALIVE, Budget { reads: 1, faults: 1, reboots: 1, ..ONE });
    answers_count_before_the_client_has_its_own: AnswersCount,
        fresh(2, ALIVE, Budget { reads: 1, reboots: 2, ..ONE });
    an_unclean_end_leaves_something_unflushed: UncleanCounts,
        fresh(1, DEAD, Budget { reads: 1, reboots: 1, ..TWO });
    a_repair_leaves_something_unflushed: RepairCounts,
        after(fresh(2, DEAD, Budget { flushes: 1, reboots: 2, ..TWO }), &left_behind());
    a_clean_mark_is_of_the_newest_view: CleanIsNewest,
        fresh(2, DEAD, Budget { reads: 2, away: 1, ..TWO });
    an_older_engine_is_refused: Refuse, fresh(2, ALIVE, TWO);
    a_promise_is_persisted: PromisePersists, fresh(2, ALIVE, Budget { kills: 1, ..TWO });
    older_writes_end_before_the_promise: Drain,
        fresh(2, Kind { overwrite: true, ..DEAD }, Budget { writes: 2, ..TWO });
    no_answer_while_a_view_is_on_its_way: AckCommitted, fresh(2, ALIVE, Budget { faults: 1, ..ONE });
    every_member_has_what_is_answered: AckByAll, fresh(2, ALIVE, ONE);
    a_minority_asks_the_registry: MinorityAsks, fresh(2, ALIVE, Budget { faults: 1, ..ONE });
    intent_before_the_write: IntentFirst, fresh(2, DEAD, Budget { kills: 1, ..TWO });
    flushed_before_intent_is_cleared: FlushedBeforeCleared,
        after(fresh(2, UNSTAMPED, Budget { flushes: 1, failures: 1, ..ONE }), &serving_unstamped());
    dirty_before_intent_is_cleared: DirtyBeforeCleared,
        after(fresh(2, SWEEPS, Budget { faults: 1, ..ONE }), &serving(2));
    a_target_is_compared: TargetCompared, after(fresh(2, DEAD, TWO), &late());
    what_a_target_had_is_compared: BeforeCompared, fresh(2, ALIVE, Budget { faults: 1, ..ONE });
    compared_before_intent_is_cleared: ComparedBeforeCleared,
        after(fresh(2, DEAD, Budget { detaches: 1, ..TWO }), &late());
    older_copies_are_left_out: OlderCopyLeftOut, fresh(2, DEAD, Budget { rollbacks: 1, ..TWO });
    all_know_of_a_start_before_it_serves: SettledBeforeServing, fresh(2, DEAD, Budget { rollbacks: 1, ..TWO });
    a_round_before_intent_is_cleared: RoundBeforeCleared, after(
        fresh(2, SWEEPS, Budget { flushes: 1, rollbacks: 1, ..ONE }), &serving(2));
    all_know_of_it_before_intent_is_cleared: SettledBeforeCleared, after(
        fresh(2, SWEEPS, Budget { flushes: 1, rollbacks: 1, ..TWO }), &serving(2));
    a_base_is_compared_with_a_basis: BasisReaches, after(
        fresh(2, SWEEPS, Budget { flushes: 1, rollbacks: 1, ..ONE }), &serving(2));
    filled_before_it_is_added: FilledFirst, fresh(2, ALIVE, Budget { faults: 1, ..ONE });
}

/// Promises are made to a process: where a second one of the same instance has the first one's UUID, it may pass for it.
#[test]
fn a_process_has_a_uuid_of_its_own() {
    let kind = Kind { same_instance: true, ..DEAD };
    let world = fresh(2, kind, Budget { faults: 1, away: 1, ..TWO });
    let report = run("one UUID for two processes", &world, Order::Shortest, 3_000_000);
    assert!(report.violation.is_some());
}

/// What replicas, record and clients may come to, whatever is left to happen.
fn outcomes(world: World) -> (HashSet<u128>, usize) {
    let mut found = HashSet::new();
    let report = explore_with(world, Order::Richest, 3_000_000, |world| {
        found.insert(world.outcome());
    });
    assert!(report.exhaustive);
    (found, report.states)
}

/// The reductions lose nothing: renaming, and passing over what has less left to it.
#[test]
fn renaming_loses_no_outcome() {
    let rows = [
        ("one replica, three engines", fresh(1, DEAD, THREE)),
        ("the registry away", fresh(1, DEAD, Budget { away: 1, ..THREE })),
        ("a reboot", fresh(1, DEAD, Budget { reboots: 1, reads: 1, ..TWO })),
        ("two replicas", fresh(2, DEAD, TWO)),
        ("two replicas, the registry away", fresh(2, DEAD, Budget { away: 1, ..TWO })),
        ("two replicas, a killed one", fresh(2, DEAD, Budget { kills: 1, ..TWO })),
    ];
    for (name, world) in rows {
        let (found, states) = outcomes(world.clone());
        let (expected, all) = outcomes(world.plain());
        println!("{name}: {states} states instead of {all}, {} outcomes", expected.len());
        assert!(states < all, "{name}: nothing is saved");
        assert_eq!(
            found.len(),
            expected.len(),
            "{name}: {} outcomes are not found",
            expected.difference(&found).count()
        );
        assert!(found == expected, "{name}");
    }
}
