//! Which world a seed makes.

use super::queue::{MS, SEC, Time};
use super::random::Random;

/// Something that goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A connection breaks, within a frame perhaps.
    Reset,
    /// `kill -9`, and a start later.
    KillReplica,
    /// The same.
    KillEngine,
    /// The engine is asked to end, and the volume is attached again.
    Drain,
    /// The volume is wanted elsewhere; the old engine may live on.
    Move,
    /// Nothing gets from one node to another.
    CutOneWay,
    /// Nothing gets from a node, or to it.
    Isolate,
    /// The registry answers nobody.
    RegistryDown,
    /// Somebody keeps a copy of the record.
    Backup,
    /// And puts it back.
    Restore,
    /// A node's agent is away: nobody asks the registry, nothing is started.
    AgentDown,
    /// A node's agent ends at one of its next steps, and is soon back.
    AgentCrash,
    /// The record cannot be read, by anybody.
    RecordDamaged,
    /// The registry has no such record for a while, and says so.
    RecordGone,
    /// A node restarts: its processes are gone, and what was not synced.
    Reboot,
    /// All nodes restart.
    PowerLoss,
    /// A disk refuses reads, writes and fsyncs now and then.
    BadDisk,
    /// A disk takes its time.
    DiskStalls,
    /// A bit turns in a replica's meta or its spare.
    FlipMeta,
    /// The disks of a node are copied.
    Snapshot,
    /// That node begins anew with them: a virtual machine that is restored.
    RollBack,
}

/// A kind of world.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Latency, and nothing else.
    Calm,
    /// Resets, killed processes, drains.
    Processes,
    /// Ways that are cut, engines that live on elsewhere, damaged frames.
    Network,
    /// Refusing, stalling disks, damaged metas.
    Disks,
    /// Nodes that restart.
    Reboots,
    /// The registry and agents come and go; old copies of the record.
    Registry,
    /// All of it.
    All,
}

impl Kind {
    /// Each.
    pub const ALL: [Self; 7] =
        [Self::Calm, Self::Processes, Self::Network, Self::Disks, Self::Reboots, Self::Registry, Self::All];
}

/// What worlds were like when a seed found something: it finds that in such a world only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Era {
    /// Before replicas were added and removed, and before an engine that was replaced was read.
    First,
    /// Before there were agents: a stand-in started what had died.
    Second,
    /// With agents.
    Now,
}

/// A rule of agents that is left out, to see that this is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Ends what has no record, or one that cannot be read.
    StopsOnAbsence,
    /// Starts an engine without waiting for the replicas beside it.
    StartsAtOnce,
    /// Ends replicas as soon as the volume is detached.
    DetachesAtOnce,
    /// Mints another creation with each start.
    ForgetsCreations,
    /// Takes nothing over from the agent before.
    AdoptsNothing,
    /// Does not tell an engine to end that the agent before has drained.
    LeavesTheDrained,
    /// Gives an orphan no time.
    CleansAtOnce,
}

impl Broken {
    /// Each, and a part of what is then found.
    pub const ALL: [(Self, &str); 7] = [
        (Self::StopsOnAbsence, "without a record that says so"),
        (Self::StartsAtOnce, "too early"),
        (Self::DetachesAtOnce, "which its record does not say"),
        (Self::ForgetsCreations, "too early"),
        (Self::AdoptsNothing, "beside a process of it"),
        (Self::LeavesTheDrained, "in time"),
        (Self::CleansAtOnce, "cleans"),
    ];
}

/// A world as its seed makes it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Its kind.
    pub kind: Kind,
    /// How many replicas.
    pub replicas: usize,
    /// How many nodes.
    pub nodes: usize,
    /// Everything but engines elsewhere is on one of them.
    pub one_node: bool,
    /// The volume's regions, the last of which lacks `short_blocks`.
    pub regions: u64,
    /// See `regions`.
    pub short_blocks: u64,
    /// Clients' operations in flight.
    pub depth: usize,
    /// Operations at once.
    pub burst: u64,
    /// Between two bursts, in the mean.
    pub client_every: Time,
    /// See the engine's configuration.
    pub replica_timeout_ms: u64,
    /// See the engine's configuration.
    pub suspend_timeout_s: u64,
    /// The longest usual way.
    pub latency_us: Time,
    /// One in so many messages is slow.
    pub slow_one_in: u64,
    /// One in so many messages is damaged.
    pub damage_one_in: u64,
    /// One in so many of the registry's answers is lost.
    pub lose_answers_one_in: u64,
    /// Until the faults stop.
    pub busy_for: Time,
    /// From then on, until the volume must be healthy.
    pub healthy_within: Time,
    /// Between two faults, in the mean.
    pub fault_every: Time,
    /// Which, and how often.
    pub faults: Vec<(Fault, u64)>,
    /// Whether nodes restart.
    pub reboots: bool,
    /// Between two changes of the wanted replicas, in the mean; 0: there are none.
    pub change_every: Time,
    /// Whether an engine that was replaced goes on being read, however many of its clients' writes hang.
    pub readers: bool,
    /// Whether nobody claims an instance for so long before it is ended; none: it is not.
    pub grace: Option<Time>,
    /// What the world is like.
    pub era: Era,
    /// What its agents do wrong.
    pub broken: Option<Broken>,
}

fn mix(kind: Kind) -> Vec<(Fault, u64)> {
    use Fault::{
        AgentDown, Backup, BadDisk, CutOneWay, DiskStalls, Drain, FlipMeta, Isolate, KillEngine, KillReplica,
        Move, PowerLoss, Reboot, RegistryDown, Reset, Restore,
    };
    match kind {
        Kind::Calm => vec![(Drain, 1), (Reset, 1)],
        Kind::Processes => vec![(Reset, 6), (KillReplica, 6), (KillEngine, 4), (Drain, 1), (DiskStalls, 1)],
        Kind::Network => {
            vec![(Reset, 4), (CutOneWay, 5), (Isolate, 4), (Move, 4), (KillReplica, 1), (RegistryDown, 1)]
        }
        Kind::Disks => {
            vec![(BadDisk, 5), (DiskStalls, 4), (FlipMeta, 1), (KillReplica, 2), (KillEngine, 2), (Reset, 1)]
        }
        Kind::Reboots => {
            vec![(Reboot, 6), (PowerLoss, 1), (Reset, 2), (KillReplica, 2), (KillEngine, 2), (Drain, 1)]
        }
        Kind::Registry => vec![
            (RegistryDown, 5),
            (AgentDown, 3),
            (KillReplica, 4),
            (KillEngine, 3),
            (Move, 2),
            (Backup, 2),
            (Restore, 1),
            (Isolate, 1),
        ],
        Kind::All => vec![
            (Reset, 3),
            (KillReplica, 3),
            (KillEngine, 2),
            (Drain, 1),
            (Move, 2),
            (CutOneWay, 2),
            (Isolate, 2),
            (RegistryDown, 2),
            (Backup, 1),
            (Restore, 1),
            (AgentDown, 1),
            (Reboot, 2),
            (PowerLoss, 1),
            (BadDisk, 2),
            (DiskStalls, 2),
            (FlipMeta, 1),
        ],
    }
}

/// What goes wrong with agents, besides.
fn of_agents(kind: Kind) -> Vec<(Fault, u64)> {
    use Fault::{AgentCrash, AgentDown, RecordDamaged, RecordGone};
    match kind {
        Kind::Calm => vec![(AgentCrash, 1)],
        Kind::Processes | Kind::Network | Kind::Disks => vec![(AgentCrash, 3), (AgentDown, 1)],
        Kind::Reboots => vec![(AgentCrash, 2)],
        Kind::Registry => vec![(AgentCrash, 4), (RecordDamaged, 2), (RecordGone, 2)],
        Kind::All => vec![(AgentCrash, 4), (RecordDamaged, 1), (RecordGone, 1)],
    }
}

impl Plan {
    /// The world of a seed.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x3c6e_f372);
        let mut plan = Self { era: Era::Now, ..Self::second(seed) };
        plan.faults.extend(of_agents(plan.kind));
        plan.grace = (!random.one_in(3)).then(|| random.between(2, 45) * SEC);
        if plan.kind == Kind::Reboots && plan.replicas > 1 && !plan.one_node {
            plan.faults.extend([(Fault::Snapshot, 3), (Fault::RollBack, 2)]);
        }
        plan
    }

    /// The world of a seed in an earlier era.
    #[must_use]
    pub fn of_era(seed: u64, era: Era) -> Self {
        match era {
            Era::First => Self::first(seed),
            Era::Second => Self::second(seed),
            Era::Now => Self::of(seed),
        }
    }

    /// Whether there are agents.
    #[must_use]
    pub fn has_agents(&self) -> bool {
        self.era == Era::Now
    }

    fn second(seed: u64) -> Self {
        let mut random = Random::new(seed ^ 0x7f4a_7c15);
        let change_every = if random.one_in(3) { random.between(500, 6000) * MS } else { 0 };
        Self { change_every, readers: true, era: Era::Second, ..Self::first(seed) }
    }

    fn first(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let kind = match random.below(16) {
            0 => Kind::Calm,
            1..=3 => Kind::Processes,
            4..=6 => Kind::Network,
            7..=8 => Kind::Disks,
            9..=11 => Kind::Reboots,
            12..=13 => Kind::Registry,
            _ => Kind::All,
        };
        let replicas = [1, 2, 2, 2, 3, 3, 3, 3, 4, 5][random.index(10)];
        let nodes = replicas + random.index(2);
        let networked = matches!(kind, Kind::Network | Kind::All);
        Self {
            seed,
            kind,
            replicas,
            nodes,
            one_node: random.one_in(4),
            // A few seeds have more than one group of regions in the write-intent map.
            regions: if random.one_in(5) { random.between(17, 36) } else { random.between(1, 4) },
            short_blocks: [0, 1, 50][random.index(3)],
            depth: [1, 4, 16][random.index(3)],
            burst: random.between(1, 8),
            client_every: random.between(20, 120) * MS,
            replica_timeout_ms: [1500, 3000, 8000][random.index(3)],
            suspend_timeout_s: [5, 20, 300][random.index(3)],
            latency_us: [100, 2000, 20_000][random.index(3)],
            slow_one_in: [0, 50, 500][random.index(3)],
            damage_one_in: if networked { [0, 100, 1000][random.index(3)] } else { 0 },
            lose_answers_one_in: [0, 3, 10][random.index(3)],
            busy_for: random.between(5, 30) * SEC,
            healthy_within: 150 * SEC,
            fault_every: random.between(100, 1500) * MS,
            reboots: matches!(kind, Kind::Reboots | Kind::All),
            faults: mix(kind),
            change_every: 0,
            readers: false,
            grace: None,
            era: Era::First,
            broken: None,
        }
    }
}
