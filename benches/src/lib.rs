//! The paired macro runner: the same fio jobs on Holdfast, on the bare file and on qemu's own replication, interleaved
//! in one call, so that what disturbs the machine disturbs all of them alike. Only ratios within one call are worth
//! quoting.
//!
//! [`case`] says what is run, [`leg`] on what, [`own`] what a person brings, [`fio`] runs one job, [`cpu`] and
//! [`syscalls`] account for the servers, [`report`] turns the samples into tables and JSON, [`plot`] into a picture,
//! [`targets`] holds the goals beside them, [`runner`] ties them together. [`recovery`] is another runner: what
//! happens when something dies, how long an attach takes, and what many instances need. [`counts`] guards instruction
//! counts in CI.
#![forbid(unsafe_code)]

pub mod binary;
pub mod case;
pub mod counts;
pub mod cpu;
pub mod fio;
pub mod leg;
pub mod machine;
pub mod own;
pub mod plot;
pub mod process;
pub mod recovery;
pub mod report;
pub mod runner;
pub mod stats;
pub mod syscalls;
pub mod targets;
