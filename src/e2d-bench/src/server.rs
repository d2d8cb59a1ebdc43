//! Servers as processes: started with etcd's command line, ready when they say so, stopped by SIGTERM.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use e2d_api::etcdserverpb::{RangeRequest, StatusRequest};

use crate::connection::Connection;
use crate::process::Process;

const READY_WITHIN: Duration = Duration::from_secs(120);
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// Between two questions whether a process is ready, or gone.
const POLL: Duration = Duration::from_millis(2);
/// A store of a million keys and the history of long runs must fit.
const QUOTA_BYTES: u64 = 8 << 30;

/// How to start a server: a name for the tables, and the program with the arguments before etcd's flags.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<String>,
    /// Whether this is the floor: it answers, but keeps nothing.
    pub(crate) floor: bool,
}

impl FromStr for Spec {
    type Err = anyhow::Error;

    /// `NAME=PROGRAM ARGUMENTS…`, split at white space.
    fn from_str(text: &str) -> Result<Self> {
        let (name, command) = text
            .split_once('=')
            .ok_or_else(|| anyhow!("expected NAME=COMMAND, found {text:?}"))?;
        let mut words = command.split_ascii_whitespace();
        let program = words
            .next()
            .ok_or_else(|| anyhow!("expected a command after {name:?}=, found nothing"))?;
        ensure!(!name.is_empty(), "expected a name before the = of {text:?}");
        Ok(Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: words.map(str::to_owned).collect(),
            floor: false,
        })
    }
}

impl Spec {
    /// The floor server: this program itself, as a process of its own.
    pub(crate) fn floor() -> Result<Self> {
        let program = std::env::current_exe().context("finding this program's own path")?;
        Ok(Self {
            name: "floor".into(),
            program,
            arguments: vec![crate::floor::SUBCOMMAND.into()],
            floor: true,
        })
    }

    /// The first line that the program prints for `--version`, or why there is none.
    pub(crate) fn version(&self) -> String {
        match Command::new(&self.program)
            .arg("--version")
            .stdin(Stdio::null())
            .output()
        {
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stdout);
                text.lines()
                    .next()
                    .unwrap_or("prints no version")
                    .trim()
                    .to_owned()
            }
            Err(error) => format!("does not start: {error}"),
        }
    }
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Server {
    name: String,
    child: Child,
    process: Process,
    address: SocketAddr,
    log: PathBuf,
    started: Instant,
}

impl Server {
    /// Starts the process. It need not answer yet.
    pub(crate) fn spawn(spec: &Spec, data_dir: &Path) -> Result<Self> {
        let (client, peer) = (free_port()?, free_port()?);
        let client_url = format!("http://127.0.0.1:{client}");
        let peer_url = format!("http://127.0.0.1:{peer}");
        let log = data_dir.with_extension("log");
        let log_file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log);
        let log_file = log_file.with_context(|| format!("opening {}", log.display()))?;
        let mut command = Command::new(&spec.program);
        command
            .args(&spec.arguments)
            .args(["--name", "bench", "--log-level", "error"])
            .arg("--data-dir")
            .arg(data_dir)
            .args([
                "--listen-client-urls",
                &client_url,
                "--advertise-client-urls",
                &client_url,
            ])
            .args([
                "--listen-peer-urls",
                &peer_url,
                "--initial-advertise-peer-urls",
                &peer_url,
            ])
            .args(["--initial-cluster", &format!("bench={peer_url}")])
            .args(["--quota-backend-bytes", &QUOTA_BYTES.to_string()])
            .stdin(Stdio::null())
            .stdout(
                log_file
                    .try_clone()
                    .context("duplicating the log's descriptor")?,
            )
            .stderr(log_file);
        let started = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("starting {}", spec.program.display()))?;
        Ok(Self {
            name: spec.name.clone(),
            process: Process::of(child.id()),
            child,
            address: (Ipv4Addr::LOCALHOST, client).into(),
            log,
            started,
        })
    }

    /// Starts the process and waits until its Status names a leader.
    pub(crate) async fn start(spec: &Spec, data_dir: &Path) -> Result<Self> {
        let mut server = Self::spawn(spec, data_dir)?;
        server.until("Status with a leader", status).await?;
        Ok(server)
    }

    /// Waits for the first answer to a linearizable Range of one key. Returns the time since the process was
    /// started.
    pub(crate) async fn first_range(&mut self, key: &bytes::Bytes) -> Result<Duration> {
        self.until("Range", async |connection| {
            let request = RangeRequest {
                key: key.clone(),
                limit: 1,
                ..Default::default()
            };
            Ok(connection.kv().range(request).await.map(drop)?)
        })
        .await?;
        Ok(self.started.elapsed())
    }

    async fn until(
        &mut self,
        what: &str,
        ask: impl AsyncFn(Connection) -> Result<()>,
    ) -> Result<()> {
        loop {
            let refused = match Connection::open(self.address).await {
                Ok(connection) => match ask(connection).await {
                    Ok(()) => return Ok(()),
                    Err(error) => error,
                },
                Err(error) => error,
            };
            if let Some(status) = self
                .child
                .try_wait()
                .context("asking for the server's exit status")?
            {
                bail!(
                    "{} ended with {status} before it answered; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            if self.started.elapsed() > READY_WITHIN {
                bail!(
                    "{} answered no {what} within {READY_WITHIN:?}: {refused:#}; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    pub(crate) fn process(&self) -> &Process {
        &self.process
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The last lines that the server wrote.
    pub(crate) fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(8)..].join("\n")
    }

    /// Explains a failure with what the server has to say.
    pub(crate) fn blame(&mut self, error: anyhow::Error) -> anyhow::Error {
        let state = match self.child.try_wait() {
            Ok(Some(status)) => format!("has ended with {status}"),
            Ok(None) => "still runs".to_owned(),
            Err(error) => format!("cannot be asked for its state: {error}"),
        };
        error.context(format!(
            "server {} {state}; its log ends:\n{}",
            self.name,
            self.log_tail()
        ))
    }

    /// Ends the process as an init system would.
    ///
    /// # Errors
    /// If it does not end in time, or not by that signal.
    pub(crate) async fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id())
            .ok()
            .and_then(rustix::process::Pid::from_raw);
        let pid = pid.ok_or_else(|| anyhow!("{} has no process id to signal", self.name))?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)
            .with_context(|| format!("sending SIGTERM to {}", self.name))?;
        let asked = Instant::now();
        loop {
            if let Some(status) = self
                .child
                .try_wait()
                .context("asking for the server's exit status")?
            {
                let by_the_signal = status.signal() == Some(rustix::process::Signal::TERM.as_raw());
                ensure!(
                    status.success() || by_the_signal,
                    "{} ended with {status} after SIGTERM; its log ends:\n{}",
                    self.name,
                    self.log_tail()
                );
                return Ok(());
            }
            ensure!(
                asked.elapsed() < STOP_WITHIN,
                "{} still runs {STOP_WITHIN:?} after SIGTERM",
                self.name
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Already gone after `stop`; then both calls do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn status(connection: Connection) -> Result<()> {
    let status = connection
        .maintenance()
        .status(StatusRequest {})
        .await?
        .into_inner();
    ensure!(status.leader != 0, "Status names no leader");
    Ok(())
}

fn free_port() -> Result<u16> {
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("looking for a free port")?;
    Ok(listener
        .local_addr()
        .context("asking for the port of a socket")?
        .port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_name_and_a_command() {
        let spec: Spec = "new=/opt/e2d etcd --flag=1".parse().unwrap();
        assert_eq!(spec.name, "new");
        assert_eq!(spec.program, Path::new("/opt/e2d"));
        assert_eq!(spec.arguments, ["etcd", "--flag=1"]);
        for wrong in ["etcd", "=etcd", "a=", "a=  "] {
            assert!(wrong.parse::<Spec>().is_err(), "{wrong:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_ends_at_once_is_reported_with_its_log() {
        let directory = tempfile::tempdir().unwrap();
        let script = directory.path().join("refuses");
        std::fs::write(&script, "echo no such member; exit 3").unwrap();
        let spec: Spec = format!("bad=sh {}", script.display()).parse().unwrap();
        let error = Server::start(&spec, &directory.path().join("data"))
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("bad ended with exit status: 3"), "{error}");
        assert!(error.contains("no such member"), "{error}");
    }
}
