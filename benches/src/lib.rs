//! The paired macro runner: the same fio jobs on Holdfast, on the bare file and on qemu's own replication, interleaved
//! in one call, so that what disturbs the machine disturbs all of them alike. Only ratios within one call are worth
//! quoting.
//!
//! [`case`] says what is run, [`leg`] on what, [`fio`] runs one job, [`cpu`] accounts for the servers' time,
//! [`report`] turns the samples into tables and JSON, [`runner`] ties them together. [`recovery`] is another runner: what
//! happens when something dies, how long an attach takes, and what many instances need.
#![forbid(unsafe_code)]

pub mod binary;
pub mod case;
pub mod counts;
pub mod cpu;
pub mod fio;
pub mod leg;
pub mod machine;
pub mod process;
pub mod recovery;
pub mod report;
pub mod runner;
pub mod stats;
