//! `holdfast quickstart`: an agent with one volume in the foreground, for anybody, in any directory.

use std::io::{self, IsTerminal, Write};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use holdfast_dataplane::io::SpinMode;
use holdfast_proto::ids::NodeName;
use holdfast_proto::pb::agent as pb;
use holdfast_proto::status::ErrorKind;
use tokio::sync::broadcast;

use super::agent::{self, Asked, Running, Signals};
use super::json::Ready;
use super::output::Out;
use super::ready::ReadyFile;
use super::shutdown::shutdown;
use super::status_line::{StatusLine, summary};
use super::volume::{IoMode, replicas};
use crate::complaint::Complaint;
use crate::config::{AgentConfig, AgentFlags, Surroundings, absolute};
use crate::node::{Change, NodeHandle, Snapshot};
use crate::runtime_dir;
use crate::telemetry::{LogFormat, LogLevel, Sink, Telemetry};
use crate::units::{format_size, parse_ports, parse_size};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast quickstart   a 1GiB volume with 3 replicas in ./holdfast-data
  holdfast quickstart --size 10GiB --replicas 2 --data-dir /srv/try
  holdfast quickstart --ready-file ready.json &   scripts wait for the file

Ctrl-C stops everything in order; the next start finds the data again.";

/// Relative to where it is started.
pub(super) const DATA_DIR: &str = "holdfast-data";
/// In the runtime directory.
pub(super) const SOCKET: &str = "agent.sock";
const VOLUME: &str = "demo";
const SIZE_BYTES: u64 = 1 << 30;
const REPLICAS: u32 = 3;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Size of the volume at its first start [default: 1GiB]
    #[arg(long, value_parser = parse_size)]
    size: Option<u64>,
    /// Copies of the data at its first start, 1 to 5 [default: 3]
    #[arg(long, value_parser = replicas)]
    replicas: Option<u32>,
    /// Where records and replicas are kept
    #[arg(long, value_name = "DIR", default_value = "./holdfast-data")]
    data_dir: PathBuf,
    /// How replicas do file I/O, at its first start [default: the agent's choice, today buffered]
    #[arg(long, value_name = "MODE")]
    io_mode: Option<IoMode>,
    /// How data threads wait, as in `holdfast agent` [default: auto]
    #[arg(long, value_name = "auto|off|MICROSECONDS")]
    spin: Option<SpinMode>,
    /// A short directory for sockets [default: below $XDG_RUNTIME_DIR or /tmp, by the data directory]
    #[arg(long, value_name = "DIR")]
    runtime_dir: Option<PathBuf>,
    /// TCP ports that replicas may listen on [default: 20000-29999]
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_ports)]
    data_ports: Option<RangeInclusive<u16>>,
    /// Written once I/O can start, at every start: {"agent","volume","nbd_uri","pid"}
    #[arg(long, value_name = "PATH")]
    ready_file: Option<PathBuf>,
    /// How log lines look [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
    /// What is logged [default: warn on a terminal, else info]
    #[arg(long, value_name = "LEVEL")]
    log_level: Option<LogLevel>,
}

/// Runs until Ctrl-C or SIGTERM.
pub(super) fn run(args: &Args, out: &Out) -> Result<(), Complaint> {
    let config = configure(args, Surroundings::of_this_machine()?)?;
    let live = io::stderr().is_terminal();
    let line = StatusLine::new(live);
    let sink = if live { Sink::above(line.bar()) } else { Sink::default() };
    let _telemetry = Telemetry::start(config.log_format, &config.log_level, sink)?;
    let ready_file =
        args.ready_file.as_deref().map(|path| ReadyFile::prepare(path, &config.data_dir)).transpose()?;
    let result = agent::runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        line.say("starting");
        let running = agent::start(&config).await?;
        let stage = Stage { args, config: &config, out, line: &line, ready_file };
        stage.serve(running, &mut signals).await
    });
    line.end();
    result
}

/// The same configuration as an agent's, from fewer flags.
fn configure(args: &Args, mut around: Surroundings) -> Result<AgentConfig, Complaint> {
    let data_dir = absolute(&around.current_dir, &args.data_dir);
    let given = args.runtime_dir.as_deref().map(|dir| absolute(&around.current_dir, dir));
    let runtime_dir = given.unwrap_or_else(|| runtime_dir::path_for(&data_dir));
    // Whoever tries it for the first time should not have to rename the machine.
    if around.host_name.to_ascii_lowercase().parse::<NodeName>().is_err() {
        "localhost".clone_into(&mut around.host_name);
    }
    let quiet = io::stderr().is_terminal().then(LogLevel::warn);
    let flags = AgentFlags {
        listen: Some(runtime_dir.join(SOCKET)),
        runtime_dir: Some(runtime_dir),
        data_dir: Some(data_dir),
        data_ports: args.data_ports.clone(),
        spin: args.spin,
        log_format: args.log_format,
        log_level: args.log_level.clone().or(quiet),
        ..AgentFlags::default()
    };
    AgentConfig::resolve(&flags, None, &around)
}

/// One start, from a running agent to its end.
struct Stage<'a> {
    args: &'a Args,
    config: &'a AgentConfig,
    out: &'a Out,
    line: &'a StatusLine,
    ready_file: Option<ReadyFile>,
}

impl Stage<'_> {
    async fn serve(&self, mut running: Running, signals: &mut Signals) -> Result<(), Complaint> {
        let served = self.until_ended(&mut running, signals).await;
        let stopped = shutdown(&running.node, signals, self.line, |text| self.tell(text)).await;
        running.server.stop().await;
        served?;
        stopped?;
        self.tell("stopped; the data stays, and the next start finds it again");
        Ok(())
    }

    async fn until_ended(&self, running: &mut Running, signals: &mut Signals) -> Result<(), Complaint> {
        let node = running.node.clone();
        let prepared = async {
            self.volume(&node).await?;
            self.ready(&node).await
        };
        // Ctrl-C must work while a replica is still being waited for.
        let ready = tokio::select! {
            ready = prepared => ready?,
            () = end_asked(signals) => return Ok(()),
            why = running.server.failed() => return Err(server_failed(&why)),
        };
        self.announce(&ready)?;
        tokio::select! {
            () = self.follow(&node) => Ok(()),
            () = end_asked(signals) => Ok(()),
            why = running.server.failed() => Err(server_failed(&why)),
        }
    }

    /// Finds the volume of an earlier start, or creates it; either way it is attached.
    async fn volume(&self, node: &NodeHandle) -> Result<(), Complaint> {
        let found = node.snapshot().volumes.into_iter().find(|volume| volume.name == VOLUME);
        match found {
            Some(volume) => same_shape(self.args, &volume)?,
            None => {
                self.line.say(format!("creating volume {VOLUME}"));
                let request = pb::CreateVolumeRequest {
                    name: VOLUME.to_owned(),
                    size_bytes: self.args.size.unwrap_or(SIZE_BYTES),
                    replicas: self.args.replicas.unwrap_or(REPLICAS),
                    io_mode: self.args.io_mode.map(IoMode::as_str).unwrap_or_default().to_owned(),
                    on: Vec::new(),
                };
                node.create_volume(request).await?;
            }
        }
        self.line.say(format!("attaching volume {VOLUME}"));
        let request = pb::AttachVolumeRequest { name: VOLUME.to_owned(), ..Default::default() };
        node.attach_volume(request).await?;
        Ok(())
    }

    /// Waits until I/O can start.
    async fn ready(&self, node: &NodeHandle) -> Result<pb::VolumeInfo, Complaint> {
        let mut view = View::of(node);
        let mut said = String::new();
        loop {
            match &view.volume {
                Some(volume) if volume.endpoint.is_some() => return Ok(volume.clone()),
                Some(volume) => {
                    self.line.say(summary(volume));
                    if volume.reason.as_ref().is_some_and(|reason| *reason != said) {
                        said = volume.reason.clone().unwrap_or_default();
                        self.tell(&format!("waiting: {said}"));
                    }
                }
                None => {}
            }
            view.next(node).await?;
        }
    }

    fn announce(&self, volume: &pb::VolumeInfo) -> Result<(), Complaint> {
        let agent = format!("unix:{}", self.config.listen.display());
        let uri = volume.endpoint.as_deref().unwrap_or_default();
        let ready = Ready { agent: &agent, volume: VOLUME, nbd_uri: uri, pid: std::process::id() };
        let text = if self.out.is_json() {
            serde_json::to_string(&ready).unwrap_or_default()
        } else {
            banner(volume, &agent, &self.config.data_dir, &program())
        };
        // Standard output may be closed; the volume is served all the same.
        self.line.above(|| drop(writeln!(io::stdout(), "{text}")));
        match &self.ready_file {
            Some(file) => file.write(&ready),
            None => Ok(()),
        }
    }

    /// Keeps the line true until the node ends.
    async fn follow(&self, node: &NodeHandle) {
        let mut view = View::of(node);
        loop {
            if let Some(volume) = &view.volume {
                self.line.say(summary(volume));
            }
            if view.next(node).await.is_err() {
                // The node has ended; the signal or failure that ended it is on its way to the caller.
                std::future::pending::<()>().await;
            }
        }
    }

    /// One line for people, above the status line.
    fn tell(&self, text: &str) {
        if !self.out.is_json() {
            self.line.above(|| drop(writeln!(io::stdout(), "{text}")));
        }
    }
}

async fn end_asked(signals: &mut Signals) {
    while signals.next().await != Asked::End {}
}

fn server_failed(why: &str) -> Complaint {
    Complaint::failed(format!("the gRPC server failed: {why}"))
}

/// The volume as the node last told it.
struct View {
    volume: Option<pb::VolumeInfo>,
    changes: broadcast::Receiver<(u64, Change)>,
}

impl View {
    fn of(node: &NodeHandle) -> Self {
        let (snapshot, changes) = node.subscribe();
        Self { volume: find(snapshot), changes }
    }
    /// Waits for a change of the volume; looks at everything again where some were missed.
    async fn next(&mut self, node: &NodeHandle) -> Result<(), Complaint> {
        loop {
            match self.changes.recv().await {
                Ok((_, Change::VolumeChanged(volume))) if volume.name == VOLUME => {
                    self.volume = Some(volume);
                    return Ok(());
                }
                Ok((_, Change::VolumeRemoved(name))) if name == VOLUME => {
                    self.volume = None;
                    return Ok(());
                }
                Ok(_) => {}
                Err(broadcast::error::RecvError::Lagged(_)) => {
                    *self = Self::of(node);
                    return Ok(());
                }
                Err(broadcast::error::RecvError::Closed) => {
                    return Err(Complaint::failed("the node has ended"));
                }
            }
        }
    }
}

fn find(snapshot: Snapshot) -> Option<pb::VolumeInfo> {
    snapshot.volumes.into_iter().find(|volume| volume.name == VOLUME)
}

/// Flags that would have made another volume are not silently ignored.
fn same_shape(args: &Args, volume: &pb::VolumeInfo) -> Result<(), Complaint> {
    let size = args
        .size
        .filter(|size| *size != volume.size_bytes)
        .map(|size| format!("its size is {}, not {}", format_size(volume.size_bytes), format_size(size)));
    let have = volume.replicas.len();
    let replicas = args
        .replicas
        .filter(|wanted| usize::try_from(*wanted) != Ok(have))
        .map(|wanted| format!("it has {have} replicas, not {wanted}"));
    match size.or(replicas) {
        None => Ok(()),
        Some(difference) => {
            let message = format!("volume {VOLUME} is here already, and {difference}");
            Err(Complaint::new(ErrorKind::Conflict, message)
                .remedy("leave out --size and --replicas to use it, or start in another --data-dir"))
        }
    }
}

/// How this program can be called from another terminal in the same directory.
fn program() -> String {
    let Ok(path) = std::env::current_exe() else { return "holdfast".to_owned() };
    let on_path = std::env::var_os("PATH")
        .is_some_and(|path_list| std::env::split_paths(&path_list).any(|dir| dir.join("holdfast") == path));
    if on_path {
        return "holdfast".to_owned();
    }
    let below = std::env::current_dir().ok().and_then(|dir| path.strip_prefix(dir).ok().map(Path::to_owned));
    below.map_or(path.clone(), |below| Path::new(".").join(below)).display().to_string()
}

fn banner(volume: &pb::VolumeInfo, agent: &str, data_dir: &Path, program: &str) -> String {
    let uri = volume.endpoint.as_deref().unwrap_or_default();
    let victim = volume.replicas.last().and_then(|replica| replica.pid);
    let third = match victim {
        Some(pid) => {
            format!("kill -9 {pid}; HOLDFAST_AGENT={agent} {program} watch   # a replica dies and comes back")
        }
        None => format!("HOLDFAST_AGENT={agent} {program} watch"),
    };
    format!(
        "Volume {} is ready: {}, {} replicas.\n\
         \n  NBD URI       {uri}\n  agent socket  {agent}\n  data          {}\n\
         \nWorth trying, in another terminal:\n  nbdinfo '{uri}'\n  \
         HOLDFAST_AGENT={agent} {program} volume show {}\n  {third}\n\
         \nCtrl-C stops everything in order.",
        volume.name,
        format_size(volume.size_bytes),
        volume.replicas.len(),
        data_dir.display(),
        volume.name,
    )
}

#[cfg(test)]
#[path = "quickstart_tests.rs"]
mod tests;
