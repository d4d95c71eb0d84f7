//! What the jobs run on. Every leg is started once, prefilled, and stays up idle while the others are measured.

mod holdfast;
mod nbdkit;
mod quorum;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cpu::Accounted;
use crate::fio::Target;
use crate::own::{Own, Place};
use crate::process::Server;

/// One of the things that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Leg {
    /// Holdfast with three replicas, over NBD on a unix socket
    #[value(name = "holdfast-3")]
    #[serde(rename = "holdfast-3")]
    Holdfast3,
    /// Holdfast with one replica, likewise
    #[value(name = "holdfast-1")]
    #[serde(rename = "holdfast-1")]
    Holdfast1,
    /// Three replicas that write to the device: --io-mode direct
    #[value(name = "holdfast-3-direct")]
    #[serde(rename = "holdfast-3-direct")]
    Holdfast3Direct,
    /// One replica, likewise
    #[value(name = "holdfast-1-direct")]
    #[serde(rename = "holdfast-1-direct")]
    Holdfast1Direct,
    /// The bare file through the page cache: what one copy costs without any server
    FileBuffered,
    /// The bare file with O_DIRECT: another class of durability, the device's own speed
    FileDirect,
    /// nbdkit's file plugin over NBD on a unix socket: one copy, no replication
    Nbdkit,
    /// qemu's own replication: qemu-storage-daemon with a quorum of three NBD children
    #[value(name = "qemu-quorum-3")]
    #[serde(rename = "qemu-quorum-3")]
    QemuQuorum3,
    /// What --target names
    #[value(skip)]
    Target,
    /// What --bare names, through the page cache
    #[value(skip)]
    BareBuffered,
    /// What --bare names, with O_DIRECT
    #[value(skip)]
    BareDirect,
}

/// The legs that need nothing of a person's own, in the order of a round.
pub const LEGS: [Leg; 8] = [
    Leg::Holdfast3,
    Leg::Holdfast1,
    Leg::Holdfast3Direct,
    Leg::Holdfast1Direct,
    Leg::FileBuffered,
    Leg::FileDirect,
    Leg::Nbdkit,
    Leg::QemuQuorum3,
];

impl Leg {
    /// As on the command line and in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Holdfast3 => "holdfast-3",
            Self::Holdfast1 => "holdfast-1",
            Self::Holdfast3Direct => "holdfast-3-direct",
            Self::Holdfast1Direct => "holdfast-1-direct",
            Self::FileBuffered => "file-buffered",
            Self::FileDirect => "file-direct",
            Self::Nbdkit => "nbdkit",
            Self::QemuQuorum3 => "qemu-quorum-3",
            Self::Target => "target",
            Self::BareBuffered => "bare-buffered",
            Self::BareDirect => "bare-direct",
        }
    }

    /// Whether a `holdfast` has to be there for it.
    #[must_use]
    pub fn is_holdfast(self) -> bool {
        matches!(self, Self::Holdfast3 | Self::Holdfast1 | Self::Holdfast3Direct | Self::Holdfast1Direct)
    }

    /// The programs that it needs, with Debian's package of each.
    #[must_use]
    pub fn programs(self) -> &'static [(&'static str, &'static str)] {
        match self {
            Self::Nbdkit => &[("nbdkit", "nbdkit")],
            Self::QemuQuorum3 => &[("qemu-nbd", "qemu-utils"), ("qemu-storage-daemon", "qemu-utils")],
            Self::Holdfast3
            | Self::Holdfast1
            | Self::Holdfast3Direct
            | Self::Holdfast1Direct
            | Self::FileBuffered
            | Self::FileDirect
            | Self::Target
            | Self::BareBuffered
            | Self::BareDirect => &[],
        }
    }
}

/// How qemu's quorum answers a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QuorumRead {
    /// From the first child, as Holdfast reads from one member.
    Fifo,
    /// From all, and compared.
    Quorum,
}

/// How qemu's servers do file I/O.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum QemuAio {
    /// io_uring where this qemu-nbd has it, else threads.
    Auto,
    /// A pool of threads.
    Threads,
    /// A ring.
    #[value(name = "io_uring")]
    IoUring,
}

/// How the legs are set up.
#[derive(Debug, Clone)]
pub struct Setup {
    /// For data: a real disk, with room.
    pub data_dir: PathBuf,
    /// For sockets: a short path.
    pub socket_dir: PathBuf,
    /// Of the volume.
    pub size_mib: u64,
    /// The `holdfast` to measure.
    pub holdfast: PathBuf,
    /// Of the legs holdfast-3 and holdfast-1, where given.
    pub io_mode: Option<String>,
    /// A person's own things.
    pub own: Own,
    /// See there.
    pub quorum_read: QuorumRead,
    /// See there.
    pub qemu_aio: QemuAio,
}

impl Setup {
    /// A directory of `leg`'s own for data.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn leg_dir(&self, leg: Leg) -> Result<PathBuf> {
        let dir = self.data_dir.join(leg.name());
        std::fs::create_dir_all(&dir).with_context(|| format!("failed to create {}", dir.display()))?;
        Ok(dir)
    }
}

/// A leg that serves.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub leg: Leg,
    /// Where fio goes.
    pub target: Target,
    /// The processes between fio and the disk.
    pub accounted: Vec<Accounted>,
    /// The exact commands, for whoever wants to repeat or to doubt it.
    pub commands: Vec<String>,
    /// Ends what serves when this is dropped; the order is that of dropping.
    _servers: Vec<Server>,
}

/// Starts `leg`.
///
/// # Errors
/// When a process of it does not come up.
pub fn start(leg: Leg, setup: &Setup) -> Result<Running> {
    let io_mode = setup.io_mode.as_deref();
    match leg {
        Leg::Holdfast3 => holdfast::start(leg, 3, io_mode, setup),
        Leg::Holdfast1 => holdfast::start(leg, 1, io_mode, setup),
        Leg::Holdfast3Direct => holdfast::start(leg, 3, Some("direct"), setup),
        Leg::Holdfast1Direct => holdfast::start(leg, 1, Some("direct"), setup),
        Leg::FileBuffered => file(leg, FILE_BUFFERED, setup),
        Leg::FileDirect => file(leg, FILE_DIRECT, setup),
        Leg::Nbdkit => nbdkit::start(leg, setup),
        Leg::QemuQuorum3 => quorum::start(leg, setup),
        Leg::Target => target(leg, setup),
        Leg::BareBuffered => bare(leg, FILE_BUFFERED, setup),
        Leg::BareDirect => bare(leg, FILE_DIRECT, setup),
    }
    .with_context(|| format!("failed to start {}", leg.name()))
}

fn file(leg: Leg, text: &'static str, setup: &Setup) -> Result<Running> {
    let path = setup.leg_dir(leg)?.join("data.img");
    sparse_file(&path, setup.size_mib)?;
    Ok(unserved(leg, text, &path, false))
}

fn unserved(leg: Leg, text: &'static str, path: &Path, read_only: bool) -> Running {
    Running {
        leg,
        target: Target { text, variable: ("HF_FILE", path.display().to_string()), read_only },
        accounted: Vec::new(),
        commands: Vec::new(),
        _servers: Vec::new(),
    }
}

/// A person's volume: somebody else serves it.
fn target(leg: Leg, setup: &Setup) -> Result<Running> {
    let place = setup.own.target.as_ref().context("there is no --target")?;
    let read_only = !setup.own.overwrite;
    let running = match place {
        Place::Path(path) => unserved(leg, FILE_DIRECT, path, read_only),
        Place::Nbd(uri) => Running {
            leg,
            target: Target { text: TARGET_NBD, variable: ("HF_URI", uri.clone()), read_only },
            accounted: Vec::new(),
            commands: Vec::new(),
            _servers: Vec::new(),
        },
    };
    Ok(Running { accounted: setup.own.processes.clone(), ..running })
}

fn bare(leg: Leg, text: &'static str, setup: &Setup) -> Result<Running> {
    let path = setup.own.bare.as_ref().context("there is no --bare")?;
    let absolute = std::path::absolute(path)?;
    Ok(unserved(leg, text, &absolute, !setup.own.overwrite && !setup.own.bare_is_ours))
}

fn sparse_file(path: &Path, size_mib: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(size_mib << 20))
        .with_context(|| format!("failed to create {}", path.display()))
}

const FILE_BUFFERED: &str = include_str!("../../fio/target-file-buffered.fio");
const FILE_DIRECT: &str = include_str!("../../fio/target-file-direct.fio");
pub(crate) const TARGET_NBD: &str = include_str!("../../fio/target-nbd.fio");

/// `command` as a person would type it.
fn typed(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
}
