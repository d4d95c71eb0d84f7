//! What the jobs run on. Every leg is started once, prefilled, and stays up idle while the others are measured.

mod holdfast;
mod quorum;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::cpu::Accounted;
use crate::fio::Target;
use crate::process::Server;

/// One of the things that are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize)]
pub enum Leg {
    /// Holdfast with three replicas, over NBD on a unix socket.
    #[value(name = "holdfast-3")]
    #[serde(rename = "holdfast-3")]
    Holdfast3,
    /// Holdfast with one replica, over NBD on a unix socket.
    #[value(name = "holdfast-1")]
    #[serde(rename = "holdfast-1")]
    Holdfast1,
    /// The bare file through the page cache: what one copy costs without any server.
    #[value(name = "file-buffered")]
    #[serde(rename = "file-buffered")]
    FileBuffered,
    /// The bare file with O_DIRECT: another class of durability, the device's own speed.
    #[value(name = "file-direct")]
    #[serde(rename = "file-direct")]
    FileDirect,
    /// qemu's own replication: qemu-storage-daemon with a quorum of three NBD children, over NBD on a unix socket.
    #[value(name = "qemu-quorum-3")]
    #[serde(rename = "qemu-quorum-3")]
    QemuQuorum3,
}

/// All legs, in the order of a round.
pub const LEGS: [Leg; 5] =
    [Leg::Holdfast3, Leg::Holdfast1, Leg::FileBuffered, Leg::FileDirect, Leg::QemuQuorum3];

impl Leg {
    /// As on the command line and in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Holdfast3 => "holdfast-3",
            Self::Holdfast1 => "holdfast-1",
            Self::FileBuffered => "file-buffered",
            Self::FileDirect => "file-direct",
            Self::QemuQuorum3 => "qemu-quorum-3",
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
    /// Passed on where given.
    pub io_mode: Option<String>,
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
    match leg {
        Leg::Holdfast3 => holdfast::start(leg, 3, setup),
        Leg::Holdfast1 => holdfast::start(leg, 1, setup),
        Leg::FileBuffered => file(leg, include_str!("../../fio/target-file-buffered.fio"), setup),
        Leg::FileDirect => file(leg, include_str!("../../fio/target-file-direct.fio"), setup),
        Leg::QemuQuorum3 => quorum::start(leg, setup),
    }
    .with_context(|| format!("failed to start {}", leg.name()))
}

fn file(leg: Leg, text: &'static str, setup: &Setup) -> Result<Running> {
    let path = setup.leg_dir(leg)?.join("data.img");
    sparse_file(&path, setup.size_mib)?;
    Ok(Running {
        leg,
        target: Target { text, variable: ("HF_FILE", path.display().to_string()) },
        accounted: Vec::new(),
        commands: Vec::new(),
        _servers: Vec::new(),
    })
}

fn sparse_file(path: &Path, size_mib: u64) -> Result<()> {
    std::fs::File::create(path)
        .and_then(|file| file.set_len(size_mib << 20))
        .with_context(|| format!("failed to create {}", path.display()))
}

pub(crate) const TARGET_NBD: &str = include_str!("../../fio/target-nbd.fio");

/// `command` as a person would type it.
fn typed(command: &std::process::Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.display().to_string()).collect::<Vec<_>>().join(" ")
}
