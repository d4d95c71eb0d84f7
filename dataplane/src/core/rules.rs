//! The rules that a test can take away, one at a time, to see that the model checker then finds a violation.

/// One rule of `docs/replication.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(test),
    expect(
        dead_code,
        reason = "some are rules of the agent or of the replica's shell, which the model checker stands for"
    )
)]
pub(crate) enum Rule {
    /// R1: a start fences enough replicas to meet every majority.
    StartQuorum,
    /// R2: the generation comes first in the order of views.
    GenerationOrders,
    /// R3: a start commits a view of its own before it serves.
    OwnView,
    /// R4: an add is never taken back.
    AddStays,
    /// R5: while the record's view is a minority, the next one goes through the registry.
    RecordMinority,
    /// R5: the flag `q` tells the same to an engine without a registry.
    Flag,
    /// R7: without the registry a start fences all replicas.
    AwayNeedsAll,
    /// R8: so does one with a registry that went back.
    WentBackNeedsAll,
    /// R8: what an engine learnt before the registry went back does not count after it.
    SameLife,
    /// R9: what was not compared is repaired before it is read.
    RepairFirst,
    /// R9: with all who may be members when it is read again.
    RepairWaits,
    /// R10: a read waits for writes in flight.
    ReadWaits,
    /// R12: a member whose node restarted with something unflushed leaves.
    BootId,
    /// (a) of "Found by the seeded model": a member that lost its cache is left out of the first view.
    LostLeftOut,
    /// (b): it stays failed until a view without it is committed.
    LostStays,
    /// (c): what it answered counts before the client has its answer.
    AnswersCount,
    /// (h): what a repair wrote counts as unflushed.
    RepairCounts,
    /// What an unclean end left in caches counts as unflushed.
    UncleanCounts,
    /// A clean mark counts only with the newest view.
    CleanIsNewest,
    /// A replica refuses an engine of a lower generation.
    Refuse,
    /// A promise is on stable storage before the answer.
    PromisePersists,
    /// Nothing is acknowledged while a view is on its way.
    AckCommitted,
    /// A member that lacks a write leaves before the write is acknowledged.
    AckByAll,
    /// A minority needs the registry.
    MinorityAsks,
    /// R6: the record is compared as a whole.
    CasWhole,
    /// What an older connection submitted has ended before another is answered.
    Drain,
    /// A replica gets what it lacks before it is added.
    FilledFirst,
    /// A group's write-intent bit is on stable storage before the first write to it.
    IntentFirst,
    /// What a write-intent bit stands for is in the dirty maps before it is cleared.
    DirtyBeforeCleared,
    /// A write-intent bit is cleared only after a flush of all members that began after the last write to its group.
    FlushedBeforeCleared,
    /// Where the target may have written what no member knows of is compared.
    TargetCompared,
    /// What the members' maps name from before the target left is compared, where it is not copied.
    BeforeCompared,
    /// The target's write-intent bits stay until then.
    ComparedBeforeCleared,
    /// A dirty map says what a replica lacks only if it begins no later than that replica was a member.
    BasisReaches,
    /// A member whose node restarted leaves, also where all was flushed: its disk may have gone back.
    RestartedLeaves,
    /// A member whose directory is an older copy of itself is left out of a start.
    OlderCopyLeftOut,
    /// Write-intent bits are cleared only once every member has persisted a stamp that is newer than the flush.
    RoundBeforeCleared,
    /// And only once every member has persisted that all of them have.
    SettledBeforeCleared,
    /// Nothing is acknowledged under the first view before the record or every member knows that all have persisted it.
    SettledBeforeServing,
    /// A replica that is being filled gets a stamp before the members forget what it has got.
    ProgressStamped,
}

/// Whether the rule is kept: always, but where a test took it away.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn kept(_: Rule) -> bool {
    true
}

#[cfg(test)]
pub(crate) use testing::{kept, without};

#[cfg(test)]
mod testing {
    use super::Rule;
    use std::cell::Cell;

    thread_local! {
        static OMITTED: Cell<Option<Rule>> = const { Cell::new(None) };
    }

    /// See the other one.
    pub(crate) fn kept(rule: Rule) -> bool {
        OMITTED.get() != Some(rule)
    }

    /// Runs `work` on this thread without the rule.
    pub(crate) fn without<T>(rule: Option<Rule>, work: impl FnOnce() -> T) -> T {
        OMITTED.set(rule);
        let result = work();
        OMITTED.set(None);
        result
    }
}
