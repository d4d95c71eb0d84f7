//! Larger bounds, for when there is time: `HOLDFAST_MODEL=long`, or part of a row's name instead of `long`.
//! `HOLDFAST_MODEL_STATES` bounds the states of each row (about 100 bytes each, and some kilobytes for each that waits; 20
//! million by default).

use super::*;

#[test]
fn larger_bounds() {
    let Ok(wanted) = std::env::var("HOLDFAST_MODEL") else {
        println!("left out: set HOLDFAST_MODEL=long to explore larger bounds");
        return;
    };
    let states = std::env::var("HOLDFAST_MODEL_STATES").ok().and_then(|n| n.parse().ok());
    let over = |kind: Kind| Kind { overwrite: true, ..kind };
    let two = Budget { engines: 2, ..ONE };
    let three = Budget { engines: 3, ..ONE };
    let rows = [
        ("n3, 3 engines", fresh(3, DEAD, three)),
        (
            "n1, 3 engines, a fault, away, a read",
            fresh(1, DEAD, Budget { faults: 1, away: 1, reads: 1, ..three }),
        ),
        (
            "n1, 3 engines, a kill, a reboot, a flush, a read",
            fresh(1, DEAD, Budget { kills: 1, reboots: 1, flushes: 1, reads: 1, ..three }),
        ),
        (
            "n1, 3 engines, away, a restore, a clean end, a read",
            fresh(1, DEAD, Budget { away: 1, restores: 1, detaches: 1, reads: 1, ..three }),
        ),
        ("n1, 3 engines at once, away", fresh(1, ALIVE, Budget { away: 1, ..three })),
        ("n1, 3 engines at once, 2 writes, away", fresh(1, ALIVE, Budget { writes: 2, away: 1, ..three })),
        ("n2, 3 engines, a kill", fresh(2, DEAD, Budget { kills: 1, ..three })),
        ("n2, 3 engines, a restore", fresh(2, DEAD, Budget { restores: 1, ..three })),
        ("n2, 3 engines, a flush, a read", fresh(2, DEAD, Budget { flushes: 1, reads: 1, ..three })),
        ("n2, 3 engines, a flush, a failed one", fresh(2, DEAD, Budget { flushes: 1, failures: 1, ..three })),
        ("n2, 3 engines, a clean end", fresh(2, DEAD, Budget { detaches: 1, ..three })),
        ("n2, 3 engines, 2 writes", fresh(2, over(DEAD), Budget { writes: 2, ..three })),
        ("n2, 3 engines, a reboot", fresh(2, DEAD, Budget { reboots: 1, ..three })),
        ("n3, 2 engines, away", fresh(3, DEAD, Budget { away: 1, ..two })),
        ("n3, 2 engines, a kill", fresh(3, DEAD, Budget { kills: 1, ..two })),
        ("n3, 2 engines, a reboot", fresh(3, DEAD, Budget { reboots: 1, ..two })),
        (
            "n2, 1 engine, a reboot, a flush, a read",
            fresh(2, ALIVE, Budget { flushes: 1, reads: 1, reboots: 1, ..ONE }),
        ),
        ("n3, 1 engine, a fault", fresh(3, ALIVE, Budget { faults: 1, ..ONE })),
        ("n2, 1 engine, 3 faults", fresh(2, ALIVE, Budget { faults: 3, ..ONE })),
        (
            "n2, 1 engine, 2 writes, 2 faults, a read",
            fresh(2, over(ALIVE), Budget { writes: 2, reads: 1, faults: 2, ..ONE }),
        ),
        (
            "n2, 1 engine, 2 writes over each other, 2 reboots, a read",
            fresh(2, over(ALIVE), Budget { writes: 2, reads: 1, reboots: 2, ..ONE }),
        ),
        (
            "n2, 1 engine, 2 reboots, a flush, a read",
            fresh(2, ALIVE, Budget { reads: 1, flushes: 1, reboots: 2, ..ONE }),
        ),
        ("n2, 2 engines, a fault, away", fresh(2, DEAD, Budget { faults: 1, away: 1, ..two })),
        ("n2, 2 engines, a fault, a restore", fresh(2, DEAD, Budget { faults: 1, restores: 1, ..two })),
        ("n2, 2 engines, a fault, a clean end", fresh(2, DEAD, Budget { faults: 1, detaches: 1, ..two })),
        ("n2, 2 engines, a fault, a read", fresh(2, DEAD, Budget { faults: 1, reads: 1, ..two })),
        ("n2, 2 engines, a fault, 2 writes", fresh(2, over(DEAD), Budget { faults: 1, writes: 2, ..two })),
        ("n2, 2 engines, a reboot, a read", fresh(2, DEAD, Budget { reboots: 1, reads: 1, ..two })),
        ("n2, 2 engines, a fault, a kill", fresh(2, DEAD, Budget { faults: 1, kills: 1, ..two })),
        ("n2, 2 engines at once, away", fresh(2, ALIVE, Budget { away: 1, ..two })),
        ("n2, 2 engines at once, a restore", fresh(2, ALIVE, Budget { restores: 1, ..two })),
        ("n2, 2 engines at once, a fault", fresh(2, ALIVE, Budget { faults: 1, ..two })),
        ("n2, 3 engines, a fault", fresh(2, DEAD, Budget { faults: 1, ..three })),
        ("n3, 1 engine, 2 faults", fresh(3, ALIVE, Budget { faults: 2, ..ONE })),
        ("n3, 2 engines, a fault", fresh(3, DEAD, Budget { faults: 1, ..two })),
        ("n3, an uncommitted add, a fault", uncommitted_add(ALIVE, Budget { faults: 1, ..ONE })),
        (
            "n3, an uncommitted add, a fault, the registry away, an older record",
            uncommitted_add_unknown(ALIVE, Budget { faults: 1, away: 1, ..ONE }),
        ),
    ];
    for (name, world) in rows.iter().filter(|(name, _)| wanted == "long" || name.contains(&wanted)) {
        holds(name, world, Order::Richest, states.unwrap_or(20_000_000));
    }
}
