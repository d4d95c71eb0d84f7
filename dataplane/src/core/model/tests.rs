//! What CI checks: the rules hold within small bounds, and each rule is needed.

use super::*;

#[test]
fn scratch() {
    let env = |name: &str, or: u8| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(or);
    let budget = Budget {
        engines: env("E", 1),
        writes: env("W", 1),
        reads: env("R", 0),
        flushes: env("FL", 0),
        faults: env("F", 0),
        kills: env("K", 0),
        reboots: env("B", 0),
        away: env("A", 0),
        restores: env("RS", 0),
        detaches: env("D", 0),
    };
    let kind =
        Kind { zombies: env("Z", 0) == 1, same_instance: env("SAME", 0) == 1, overwrite: env("OV", 0) == 1 };
    let order = if env("DFS", 0) == 1 { Order::Depth } else { Order::Breadth };
    let limit = std::env::var("LIMIT").ok().and_then(|v| v.parse().ok()).unwrap_or(2_000_000);
    use Rule::*;
    let omit = std::env::var("OMIT").unwrap_or_default();
    let all = [
        StartQuorum,
        GenerationOrders,
        OwnView,
        AddStays,
        RecordMinority,
        Flag,
        AwayNeedsAll,
        WentBackNeedsAll,
        SameLife,
        RepairFirst,
        RepairWaits,
        ReadWaits,
        BootId,
        LostLeftOut,
        LostStays,
        AnswersCount,
        RepairCounts,
        UncleanCounts,
        CleanIsNewest,
        Refuse,
        PromisePersists,
        AckCommitted,
        AckByAll,
        MinorityAsks,
        CasWhole,
        Drain,
        FilledFirst,
    ];
    let omit = all.into_iter().find(|rule| format!("{rule:?}") == omit);
    let world = match env("INIT", 0) {
        0 => fresh(u32::from(env("N", 2)), kind, budget),
        1 => uncommitted_add(kind, budget),
        _ => uncommitted_add_unknown(kind, budget),
    };
    without(omit, || {
        let report = run(&format!("{omit:?}"), &world, order, limit);
        println!("{}", trace(&world, &report));
    });
}
