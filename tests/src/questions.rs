//! What a test asks of a cluster and orders it to do, always by the command line, and what must hold.

use serde_json::Value;

use crate::block::BlockClient;
use crate::cli::{self, CliOutput};
use crate::cluster::{Cluster, HEALTHY_WITHIN, SOON};
use crate::image;
use crate::process::{Process, Running, holdfast, processes_of};
use crate::view::{Instance, Volume};
use crate::wait::{check, eventually};

/// Questions and orders, by the command line.
impl Cluster {
    /// `holdfast ARGS` against this agent, started.
    #[must_use]
    pub fn cli_start(&self, args: &[&str]) -> Running {
        let mut command = cli::command(&holdfast());
        command.env("HOLDFAST_AGENT", self.address()).current_dir(self.root()).args(args);
        Running::start(command)
    }
    /// `holdfast ARGS` against this agent.
    #[must_use]
    pub fn cli(&self, args: &[&str]) -> CliOutput {
        CliOutput(self.cli_start(args).finish(cli::DEADLINE))
    }
    /// `holdfast ARGS`, which must exit with 0.
    ///
    /// # Panics
    /// When it does not.
    #[track_caller]
    pub fn ok(&self, args: &[&str]) -> CliOutput {
        self.cli(args).expect_code(0)
    }
    /// `holdfast ARGS -o json`.
    ///
    /// # Panics
    /// When it does not exit with 0, or says no JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.extend(["-o", "json"]);
        self.cli(&all).json()
    }
    /// `volume show NAME`.
    #[track_caller]
    #[must_use]
    pub fn volume(&self, name: &str) -> Volume {
        Volume(self.json(&["volume", "show", name]))
    }
    /// `instance ls`.
    ///
    /// # Panics
    /// When the list is missing.
    #[track_caller]
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        let listed = self.json(&["instance", "ls"]);
        listed["instances"].as_array().expect("a list of instances").iter().cloned().map(Instance).collect()
    }
    /// The instance with this name.
    ///
    /// # Panics
    /// When it is not listed.
    #[track_caller]
    #[must_use]
    pub fn instance(&self, name: &str) -> Instance {
        let all = self.instances();
        all.iter()
            .find(|i| i.name() == name)
            .cloned()
            .unwrap_or_else(|| panic!("no instance {name}: {all:?}"))
    }

    /// Creates a volume, attaches it, and waits until it is healthy.
    #[track_caller]
    pub fn create_attached(&self, name: &str, size: &str, replicas: u32) -> Volume {
        self.ok(&["volume", "create", name, "--size", size, "--replicas", &replicas.to_string()]);
        self.ok(&["volume", "attach", name]);
        self.wait_healthy(name)
    }
    /// Detaches a volume, and waits until it is.
    #[track_caller]
    pub fn detach(&self, name: &str) {
        self.ok(&["volume", "detach", name]);
        self.wait_state(name, "detached");
    }
    /// Waits until a probe of `volume show` succeeds.
    #[track_caller]
    pub fn wait_volume(
        &self,
        name: &str,
        what: &str,
        mut probe: impl FnMut(&Volume) -> Result<(), String>,
    ) -> Volume {
        eventually(HEALTHY_WITHIN, what, || {
            let said = self.cli(&["volume", "show", name, "-o", "json"]);
            check(said.0.code == Some(0), || said.said())?;
            let volume = Volume(said.json());
            probe(&volume).map_err(|why| format!("{why}: {}", volume.0))?;
            Ok(volume)
        })
    }
    /// Waits for a state.
    #[track_caller]
    pub fn wait_state(&self, name: &str, state: &str) -> Volume {
        self.wait_volume(name, &format!("{name} is {state}"), |v| {
            check(v.state() == state, || format!("it is {}", v.state()))
        })
    }
    /// Waits until all replicas are members and I/O can start.
    #[track_caller]
    pub fn wait_healthy(&self, name: &str) -> Volume {
        self.wait_volume(name, &format!("{name} is healthy"), |v| {
            let whole = v.members() == v.replicas().len() && v.endpoint().is_some();
            check(v.state() == "healthy" && whole, || format!("it is {}", v.state()))
        })
    }
    /// Waits until another engine process than that of `before` serves, with a newer generation. A state alone may still be
    /// that of the engine that was killed.
    #[track_caller]
    pub fn wait_new_engine(&self, name: &str, before: &Volume) -> Volume {
        self.wait_volume(name, &format!("a newer engine serves {name}"), |v| {
            check(v.generation() > before.generation(), || format!("generation {}", v.generation()))?;
            check(v.engine_pid().is_some() && v.engine_pid() != before.engine_pid(), || {
                "no new process".to_owned()
            })?;
            check(v.state() == "healthy" && v.endpoint().is_some(), || format!("it is {}", v.state()))
        })
    }
    /// Waits until one replica has this mode.
    #[track_caller]
    pub fn wait_mode(&self, name: &str, replica: &str, mode: &str) -> Volume {
        self.wait_volume(name, &format!("{replica} of {name} is {mode}"), |v| {
            check(v.replica(replica).mode() == mode, || format!("it is {}", v.replica(replica).mode()))
        })
    }
    /// The NBD URI of an attached volume.
    #[track_caller]
    #[must_use]
    pub fn uri(&self, name: &str) -> String {
        self.volume(name).endpoint().expect("an attached volume has an endpoint")
    }
    /// A client of an attached volume.
    #[track_caller]
    #[must_use]
    pub fn connect(&self, name: &str) -> BlockClient {
        let uri = self.uri(name);
        BlockClient::connect(&uri).unwrap_or_else(|e| panic!("cannot connect to {uri}: {e}"))
    }
}

/// What must hold.
impl Cluster {
    /// Flushes the volume and requires that all replicas hold the same bytes at once: nothing else is writing.
    #[track_caller]
    pub fn assert_images_equal(&self, name: &str) {
        self.connect(name).flush().unwrap_or_else(|e| panic!("cannot flush {name}: {e}"));
        if let Err(difference) = image::equal(&self.volume(name).images()) {
            panic!("after a flush, idle: {difference}");
        }
    }
    /// The same, for a volume whose members are still being made equal in the background.
    #[track_caller]
    pub fn wait_images_equal(&self, name: &str) {
        self.connect(name).flush().unwrap_or_else(|e| panic!("cannot flush {name}: {e}"));
        let images = self.volume(name).images();
        eventually(HEALTHY_WITHIN, "the images are equal", || image::equal(&images));
    }
    /// The processes of this cluster's instances, found by what runs, not by what the agent says.
    #[must_use]
    pub fn instance_processes(&self) -> Vec<Process> {
        // The agent names an instance's creation on its command line; nothing else has that argument.
        let is_instance = |p: &Process| p.has_argument("--instance-dir");
        processes_of(self.root()).into_iter().filter(is_instance).collect()
    }
    /// Requires that exactly the processes that the agent lists run, and no second copy of any.
    #[track_caller]
    pub fn assert_no_second_copy(&self) {
        let mut listed: Vec<i32> = self.instances().iter().filter_map(Instance::pid).collect();
        listed.sort_unstable();
        let running = self.instance_processes();
        let mut found: Vec<i32> = running.iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(listed, found, "listed and running instances differ; running: {running:#?}");
    }
    /// Waits until nothing of this cluster's instances runs.
    #[track_caller]
    pub fn wait_no_instances(&self) {
        eventually(SOON, "no instance runs", || {
            let left = self.instance_processes();
            check(left.is_empty(), || format!("{left:?}"))
        });
    }
}
