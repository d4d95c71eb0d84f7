//! `holdfast agent`: from flags to a node that serves, and in order to its end.

use std::path::Path;
use std::time::Duration;

use holdfast_proto::status::ErrorKind;
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::complaint::Complaint;
use crate::config::{AgentConfig, AgentFlags, Surroundings};
use crate::error::Error;
use crate::metrics::{MetricsListener, MetricsServer};
use crate::node::{self, Held, NodeConfig, NodeHandle};
use crate::preflight;
use crate::rpc::{self, Listener, RpcServer};
use crate::telemetry::{Sink, Telemetry};

pub(super) const EXAMPLES: &str = "\
Examples:
  holdfast agent   records in /var/lib/holdfast, socket in /run/holdfast
  holdfast agent --config /etc/holdfast/agent.toml
  holdfast agent --data-dir ./data --listen unix:./agent.sock --node node-1
  holdfast agent --node a --bind 10.0.0.7 --registry etcd://10.0.0.1:2379,10.0.0.2:2379,10.0.0.3:2379/nodes/a

The file holds the same settings, with underscores:
  data_dir = \"/srv/holdfast\"
  node = \"node-1\"
  data_ports = \"20000-29999\"
  bind = \"127.0.0.1\"
  metrics = \"9464\"
SIGHUP reads it again. SIGTERM ends the agent; instances keep serving unless --stop-instances.";

impl From<Error> for Complaint {
    fn from(error: Error) -> Self {
        Self::new(error.kind(), format!("failed to {error}"))
    }
}

/// Two threads: the agent waits nearly always, and a blocked one must not stop the other.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, Complaint> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|error| Complaint::failed(format!("failed to start: {error}")))
}

/// Runs until it is told to end.
pub(super) fn run(flags: &AgentFlags) -> Result<(), Complaint> {
    let around = Surroundings::of_this_machine()?;
    let config = AgentConfig::load(flags, &around)?;
    let telemetry = Telemetry::start(config.log_format, &config.log_level, Sink::default())?;
    runtime()?.block_on(async {
        let mut signals = Signals::listen()?;
        check(&config)?;
        let held = tokio::select! {
            held = wait_for_directory(flags, &config) => held?,
            () = end_asked(&mut signals) => return Ok(()),
        };
        let Running { node, server, metrics } = start_in(&config, held).await?;
        let agent = Agent { flags, around, config, telemetry, node, server, _metrics: metrics };
        notify(&[NotifyState::Ready]);
        agent.serve(&mut signals).await
    })
}

/// What both `agent` and `quickstart` hold while they run.
pub(super) struct Running {
    pub(super) node: NodeHandle,
    pub(super) server: RpcServer,
    /// None where nobody asked for it.
    pub(super) metrics: Option<MetricsServer>,
}

/// Of two agents of one data directory the first decides when the second begins.
async fn wait_for_directory(flags: &AgentFlags, config: &AgentConfig) -> Result<Held, Error> {
    let config = node_config(config);
    if flags.no_wait { Held::take(&config).await } else { Held::wait(&config).await }
}

async fn end_asked(signals: &mut Signals) {
    while signals.next().await != Asked::End {}
}

fn check(config: &AgentConfig) -> Result<(), Complaint> {
    for warning in preflight::check(config, holdfast_dataplane::io::probe)? {
        tracing::warn!(%warning, "started all the same");
    }
    Ok(())
}

/// Checks, takes the data directory and the socket, starts the node, serves.
pub(super) async fn start(config: &AgentConfig) -> Result<Running, Complaint> {
    check(config)?;
    start_in(config, Held::take(&node_config(config)).await?).await
}

async fn start_in(config: &AgentConfig, held: Held) -> Result<Running, Complaint> {
    let listener = Listener::bind(&config.listen)?;
    let scraped = config.metrics.map(MetricsListener::bind).transpose()?;
    let node = node::start_in(node_config(config), held).await?;
    let server = rpc::serve(node.clone(), listener).await?;
    let metrics = scraped.map(|listener| MetricsServer::start(node.clone(), listener)).transpose()?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = %config.node,
        listen = %config.listen.display(),
        data_dir = %config.data_dir.display(),
        "the agent is ready"
    );
    Ok(Running { node, server, metrics })
}

pub(super) fn node_config(config: &AgentConfig) -> NodeConfig {
    let own = |dir: &Path| (dir != config.data_dir.join("bin")).then(|| dir.to_owned());
    NodeConfig {
        bin_dir: own(&config.bin_dir),
        registry: config.registry.clone(),
        bind: config.bind,
        advertise: config.advertise,
        data_ports: config.data_ports.clone(),
        listen_display: format!("unix:{}", config.listen.display()),
        limits: config.limits,
        trash_ttl: config.trash_ttl,
        orphans: config.orphans.clone(),
        replenish_after: config.replenish_after,
        disk_reserve: config.disk_reserve,
        ..NodeConfig::new(config.node.clone(), config.data_dir.clone(), config.runtime_dir.clone())
    }
}

/// The signals that mean something to a daemon.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    End,
    Reload,
}

impl Signals {
    pub(super) fn listen() -> Result<Self, Complaint> {
        let listen = |kind| {
            signal(kind).map_err(|error| Complaint::failed(format!("failed to listen for signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }
    /// Cancel safe.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::End,
            _ = self.interrupt.recv() => Asked::End,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

struct Agent<'a> {
    flags: &'a AgentFlags,
    around: Surroundings,
    config: AgentConfig,
    telemetry: Telemetry,
    node: NodeHandle,
    server: RpcServer,
    _metrics: Option<MetricsServer>,
}

impl Agent<'_> {
    async fn serve(mut self, signals: &mut Signals) -> Result<(), Complaint> {
        // Half the service manager's patience, as sd_watchdog_enabled(3) advises.
        let patience = sd_notify::watchdog_enabled().map(|patience| patience / 2);
        let mut pulse = tokio::time::interval(patience.unwrap_or(Duration::from_secs(3600)));
        // What runs here is another agent's to stop where that one has the name.
        let mut stop = true;
        let ended = loop {
            tokio::select! {
                asked = signals.next() => match asked {
                    Asked::End => break Ok(()),
                    Asked::Reload => self.reload(),
                },
                why = self.server.failed() => {
                    break Err(Complaint::failed(format!("the gRPC server failed: {why}")));
                }
                why = self.node.name_is_taken() => {
                    tracing::error!(why, "another agent has this node's name; this one ends, what it runs goes on");
                    stop = false;
                    break Err(Complaint::new(ErrorKind::Conflict, format!("failed to {why}")));
                }
                _ = pulse.tick() => self.pulse(),
            }
        };
        notify(&[NotifyState::Stopping]);
        stop &= self.config.stop_instances;
        tracing::info!(stop_instances = stop, "ending");
        let result = self.node.shutdown(stop).await;
        self.server.stop().await;
        ended.and(result.map_err(Complaint::from))
    }

    /// Says that the agent is alive only after it has looked at its own state: a node that holds its lock for ever
    /// stops the pulse.
    fn pulse(&self) {
        let revision = self.node.snapshot().revision;
        notify(&[NotifyState::Watchdog]);
        tracing::debug!(revision, "alive");
    }

    fn reload(&mut self) {
        match NotifyState::monotonic_usec_now() {
            Ok(now) => notify(&[NotifyState::Reloading, now]),
            Err(error) => tracing::debug!(%error, "no clock for the service manager"),
        }
        match AgentConfig::load(self.flags, &self.around) {
            Ok(wanted) => self.apply(&wanted),
            Err(complaint) => {
                tracing::warn!(%complaint, "the configuration cannot be used; the old one stays");
            }
        }
        notify(&[NotifyState::Ready]);
    }

    fn apply(&mut self, wanted: &AgentConfig) {
        let reload = self.config.reload(wanted);
        if reload.config.log_level != self.config.log_level
            && let Err(error) = self.telemetry.set_level(&reload.config.log_level)
        {
            tracing::warn!(%error, "the log level stays as it was");
        }
        self.node.set_orphan_settings(reload.config.orphans.clone());
        self.node.set_replenish_after(reload.config.replenish_after);
        self.node.set_disk_reserve(reload.config.disk_reserve);
        for change in &reload.needs_restart {
            tracing::warn!(%change, "needs a restart of the agent; instances keep running meanwhile");
        }
        for change in &reload.applied {
            tracing::info!(%change, "reloaded");
        }
        if reload.applied.is_empty() && reload.needs_restart.is_empty() {
            tracing::info!("reloaded: nothing has changed");
        }
        self.config = reload.config;
    }
}

/// Without a service manager this does nothing; with one, a lost message is its loss.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
