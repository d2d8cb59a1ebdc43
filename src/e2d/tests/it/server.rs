//! Servers under test as real processes: started on free ports with a data directory of their own, killed, restarted.
//!
//! The conformance tests ask for [`Server::target`]: the `e2d` binary, or with `E2D_TEST_TARGET=reference` the etcd that
//! `E2D_REFERENCE_ETCD` names, so that every expectation can be checked against what it was taken from.
//! `tests/reference/build.sh` builds that etcd.

use std::env;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Write;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::Client;

/// How long a server may take until it answers, or until it has stopped.
const PATIENCE: Duration = Duration::from_secs(60);

/// What is run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// The daemon of this workspace.
    E2d,
    /// An etcd binary.
    Etcd(PathBuf),
}

impl Program {
    /// The program that the conformance tests are about, or why there is none.
    pub fn target() -> Result<Program, String> {
        match env::var("E2D_TEST_TARGET").as_deref() {
            Err(_) | Ok("" | "e2d") => Ok(Program::E2d),
            Ok("reference") => Program::reference(),
            Ok(other) => panic!("E2D_TEST_TARGET is `{other}`, expected `e2d` or `reference`"),
        }
    }

    /// The etcd that expectations are taken from.
    pub fn reference() -> Result<Program, String> {
        Program::named_by("E2D_REFERENCE_ETCD")
    }

    /// The etcd binary that an environment variable names.
    pub fn named_by(variable: &str) -> Result<Program, String> {
        binary_named_by(variable).map(Program::Etcd)
    }

    fn command(&self) -> Command {
        match self {
            Program::E2d => {
                let mut command = Command::new(env!("CARGO_BIN_EXE_e2d"));
                command.arg("etcd");
                command
            }
            Program::Etcd(path) => Command::new(path),
        }
    }
}

/// The path that an environment variable names, or why there is none.
pub fn binary_named_by(variable: &str) -> Result<PathBuf, String> {
    let path: OsString = env::var_os(variable)
        .filter(|v| !v.is_empty())
        .ok_or(format!("{variable} is not set"))?;
    let path = PathBuf::from(path);
    if path.is_file() {
        Ok(path)
    } else {
        Err(format!(
            "{variable} names {}, which is no file",
            path.display()
        ))
    }
}

/// Reports that a test cannot run here. A run that must be complete says `E2D_REQUIRE_ALL=1`, and then this fails.
#[track_caller]
pub fn skip(why: &str) {
    note(&format!("SKIPPED: {why}"));
    assert!(
        env::var("E2D_REQUIRE_ALL").as_deref() != Ok("1"),
        "E2D_REQUIRE_ALL=1, but: {why}"
    );
}

/// Prints a line around the capture of the test harness, which hides what a test that passes has printed.
fn note(line: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Whoever closed standard error does not want to know.
    let _ = writeln!(std::io::stderr(), "{test}: {line}");
}

/// One running server. Dropping it kills the process and removes its data; a failing test prints the end of its log.
pub struct Server {
    program: Program,
    flags: Vec<String>,
    client_port: u16,
    peer_port: u16,
    child: Option<Child>,
    dir: TempDir,
}

impl Server {
    /// The server that the conformance tests are about. `None` after a [`skip`].
    pub async fn target(flags: &[&str]) -> Option<Server> {
        Server::start_or_skip(Program::target(), flags).await
    }

    /// An etcd to compare with. `None` after a [`skip`].
    pub async fn reference(flags: &[&str]) -> Option<Server> {
        Server::start_or_skip(Program::reference(), flags).await
    }

    async fn start_or_skip(program: Result<Program, String>, flags: &[&str]) -> Option<Server> {
        match program {
            Ok(program) => Some(Server::start(program, flags).await),
            Err(why) => {
                skip(&why);
                None
            }
        }
    }

    /// Starts `program` as a cluster of one and waits until it serves. `flags` replace or extend the usual ones.
    pub async fn start(program: Program, flags: &[&str]) -> Server {
        // A port that was free may be taken before the server binds it, so a lost race is repeated on other ports.
        for attempt in 1.. {
            let mut server = Server::spawn(program.clone(), flags);
            match server.wait_until_serving().await {
                Ok(()) => return server,
                Err(_) if attempt < 3 && server.log().contains("address already in use") => {}
                Err(why) => panic!("{program:?} with {flags:?}: {why}"),
            }
        }
        unreachable!("the last attempt returns or panics")
    }

    fn spawn(program: Program, flags: &[&str]) -> Server {
        let dir = tempfile::Builder::new()
            .prefix("e2d-it-")
            .tempdir()
            .expect("a temporary directory");
        let (client_port, peer_port) = (free_port(), free_port());
        let client_url = format!("http://127.0.0.1:{client_port}");
        let peer_url = format!("http://127.0.0.1:{peer_port}");
        let usual = [
            "--name=it".to_owned(),
            format!("--data-dir={}", dir.path().join("data").display()),
            format!("--listen-client-urls={client_url}"),
            format!("--advertise-client-urls={client_url}"),
            format!("--listen-peer-urls={peer_url}"),
            format!("--initial-advertise-peer-urls={peer_url}"),
            format!("--initial-cluster=it={peer_url}"),
        ];
        let name = |flag: &str| flag.split('=').next().map(str::to_owned);
        let mut all: Vec<String> = usual
            .into_iter()
            .filter(|usual| !flags.iter().any(|flag| name(flag) == name(usual)))
            .collect();
        all.extend(flags.iter().map(|&flag| flag.to_owned()));

        let mut server = Server {
            program,
            flags: all,
            client_port,
            peer_port,
            child: None,
            dir,
        };
        server.launch();
        server
    }

    fn launch(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .expect("the log file opens");
        let child = self
            .program
            .command()
            .args(&self.flags)
            .env_clear()
            .envs(self.environment())
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .unwrap_or_else(|error| panic!("starting {:?}: {error}", self.program));
        self.child = Some(child);
    }

    /// Most tests are about answers, and those about crashes say `--unsafe-no-fsync=false`. A variable and not a flag,
    /// because etcd 3.4 ignores variables that it does not know and refuses flags.
    fn environment(&self) -> Option<(&'static str, &'static str)> {
        let given = self
            .flags
            .iter()
            .any(|flag| flag.starts_with("--unsafe-no-fsync"));
        (!given).then_some(("ETCD_UNSAFE_NO_FSYNC", "true"))
    }

    /// Serving means that a linearizable read is answered: there is a leader and it has applied its log.
    async fn wait_until_serving(&mut self) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exited() {
                return Err(format!("it ended with {status} instead of serving"));
            }
            if let Ok(client) = Client::connect(&self.url()).await
                && client.range(crate::client::key("health")).await.is_ok()
            {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(format!("it did not serve within {PATIENCE:?}"));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Whether this is an etcd and not e2d.
    pub fn is_reference(&self) -> bool {
        self.program != Program::E2d
    }

    /// True, with a line of output, where e2d promises something that etcd does not do.
    pub fn differs_on_reference(&self, how: &str) -> bool {
        if self.is_reference() {
            note(&format!("SKIPPED on etcd, which differs: {how}"));
        }
        self.is_reference()
    }

    /// The URL that clients use.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Host and port that clients use.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.client_port)
    }

    /// Host and port that peers would use.
    pub fn peer_address(&self) -> String {
        format!("127.0.0.1:{}", self.peer_port)
    }

    /// A new connection.
    pub async fn client(&self) -> Client {
        Client::connect(&self.url())
            .await
            .unwrap_or_else(|error| panic!("connecting to {}: {error}", self.url()))
    }

    /// Everything the server has printed, across restarts.
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|log| String::from_utf8_lossy(&log).into_owned())
            .unwrap_or_default()
    }

    /// Ends the process as a power button would: nothing of it runs any more.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("the process is ours");
            child.wait().expect("the process is ours");
        }
    }

    /// Asks the process to stop and waits until it has.
    pub async fn terminate(&mut self) -> ExitStatus {
        let child = self.child.as_ref().expect("the server runs");
        kill_process(Pid::from_child(child), Signal::TERM).expect("the process is ours");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.exited() {
                return status;
            }
            assert!(
                Instant::now() < deadline,
                "the server did not stop within {PATIENCE:?} of SIGTERM"
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Starts a stopped server again with the same data, ports and flags, and waits until it serves.
    pub async fn restart(&mut self) {
        assert!(self.child.is_none(), "a restart follows kill or terminate");
        self.launch();
        if let Err(why) = self.wait_until_serving().await {
            panic!("restarting {:?}: {why}", self.program);
        }
    }

    /// The exit status, once the process has ended. It can be restarted from then on.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self
            .child
            .as_mut()?
            .try_wait()
            .expect("the process is ours")?;
        self.child = None;
        Some(status)
    }

    fn log_path(&self) -> PathBuf {
        Path::new(self.dir.path()).join("log")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            // Nobody is left to tell if this fails, and the process may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let tail = &lines[lines.len().saturating_sub(20)..];
            eprintln!(
                "--- the last {} lines of {:?} ---\n{}\n---",
                tail.len(),
                self.program,
                tail.join("\n")
            );
        }
    }
}

/// A port below the range that the kernel hands out to outgoing connections, so that those cannot take it.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Test processes that run at the same time start their search at different ports.
    let start = (std::process::id() % 220) as u16 * 100;
    for _ in 0..22_000 {
        let port = 10_000 + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % 22_000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no free port between 10000 and 32000");
}
