//! The wall clock of a cluster's processes, which jumps when it is told to.
//!
//! The system has one wall clock, and moving it would move everybody's. So the agent and its instances get a library
//! that adds to it (`clock.c`), preloaded by an `/etc` of their own: an instance inherits no environment that could name
//! it. All of them see a jump at once.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use crate::cluster::Cluster;
use crate::process::run;
use crate::wait::SECOND;

const DAY_S: i64 = 24 * 60 * 60;

/// See the module.
#[derive(Debug)]
pub struct WallClock {
    offset_s: File,
}

impl WallClock {
    /// That of the agent and the instances of a cluster, from the agent's next start on.
    ///
    /// # Panics
    /// When the library cannot be built.
    #[must_use]
    pub fn of(cluster: &mut Cluster) -> Self {
        let (offset, library) = (cluster.root().join("clock-offset"), cluster.root().join("clock.so"));
        let offset_s = File::create(&offset).expect("the clock's offset can be written");
        let this = Self { offset_s };
        this.set_days(0);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/faults/clock.c");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-fPIC", "-Wall", "-Werror", "-O2"]);
        compiler.arg(format!("-DOFFSET=\"{}\"", offset.display())).arg("-o").arg(&library).arg(source);
        let _ = run(compiler, 60 * SECOND).ok();
        // Nothing else in `/etc` is needed by a program that looks up no name.
        let etc = cluster.root().join("etc");
        std::fs::create_dir(&etc).expect("an /etc can be made");
        std::fs::write(etc.join("ld.so.preload"), format!("{}\n", library.display()))
            .expect("an /etc can be written");
        cluster.show(etc, "/etc");
        this
    }

    /// From now on it is so many days ahead.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn set_days(&self, days: i64) {
        self.offset_s
            .write_all_at(&(days * DAY_S).to_ne_bytes(), 0)
            .expect("the clock's offset can be written");
    }
}

/// The date, so many days ahead, as log lines begin with it.
///
/// # Panics
/// When the system's `date` does not answer.
#[must_use]
pub fn date(days_ahead: i64) -> String {
    let mut date = Command::new("date");
    date.args(["--utc", "+%FT", "--date"]).arg(format!("{days_ahead} day"));
    run(date, 10 * SECOND).ok().stdout.trim().to_owned()
}
