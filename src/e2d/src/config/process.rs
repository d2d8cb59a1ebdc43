//! The one reader of the command line, the environment, and what else the machine says about itself.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

/// What the process was started with.
#[derive(Debug, Clone, Default)]
pub struct Process {
    /// The command line, the program's name included.
    pub argv: Vec<OsString>,
    /// The environment.
    pub env: Vec<(OsString, OsString)>,
}

impl Process {
    /// Reads the running process.
    pub fn capture() -> Self {
        Process {
            argv: std::env::args_os().collect(),
            env: std::env::vars_os().collect(),
        }
    }

    /// The variable's value. Empty counts as not set, as everywhere in the configuration.
    pub(super) fn var(&self, name: &str) -> Option<&OsString> {
        let (_, value) = self.env.iter().find(|(key, _)| key == name)?;
        (!value.is_empty()).then_some(value)
    }
}

/// What the machine says about itself, for defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The host name, possibly empty.
    pub hostname: String,
    /// The directory that systemd made for the service.
    pub state_directory: Option<PathBuf>,
    /// The address that packets to other machines leave from.
    pub address: Option<IpAddr>,
    /// What standard error is.
    pub stderr: Standard,
    /// What standard output is.
    pub stdout: Standard,
    /// Whether the user lets terminals be coloured.
    pub color: bool,
}

/// What a standard stream is connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standard {
    /// systemd's journal.
    Journal,
    /// A terminal.
    Terminal,
    /// A file, a pipe, or nothing.
    Other,
}

impl Machine {
    /// Asks the machine. No packet is sent.
    pub fn inspect(process: &Process) -> Self {
        let text = |name| process.var(name).and_then(|value| value.to_str());
        // More than one directory is joined by colons; the first is the main one.
        let state_directory = text("STATE_DIRECTORY")
            .and_then(|dirs| dirs.split(':').next())
            .map(PathBuf::from);
        let stderr = match (
            is_journal(text("JOURNAL_STREAM")),
            std::io::stderr().is_terminal(),
        ) {
            (true, _) => Standard::Journal,
            (false, true) => Standard::Terminal,
            (false, false) => Standard::Other,
        };
        let stdout = match std::io::stdout().is_terminal() {
            true => Standard::Terminal,
            false => Standard::Other,
        };
        Machine {
            hostname: rustix::system::uname()
                .nodename()
                .to_string_lossy()
                .into_owned(),
            state_directory,
            address: outgoing_address(),
            stderr,
            stdout,
            color: text("NO_COLOR").is_none() && text("TERM") != Some("dumb"),
        }
    }
}

/// Whether standard error is the stream that systemd names in `$JOURNAL_STREAM` as `device:inode`. The variable alone
/// proves nothing: a child whose output is redirected inherits it.
fn is_journal(stream: Option<&str>) -> bool {
    let Some((device, inode)) = stream.and_then(|stream| stream.split_once(':')) else {
        return false;
    };
    let Ok(stderr) = std::fs::metadata("/proc/self/fd/2") else {
        return false;
    };
    device.parse() == Ok(stderr.dev()) && inode.parse() == Ok(stderr.ino())
}

/// The source address of the default route: connecting a datagram socket asks the routing table and sends nothing.
/// The targets are reserved for documentation.
fn outgoing_address() -> Option<IpAddr> {
    let ask = |from: IpAddr, to: IpAddr| -> Option<IpAddr> {
        let socket = UdpSocket::bind((from, 0)).ok()?;
        socket.connect((to, 9)).ok()?;
        let ip = socket.local_addr().ok()?.ip();
        (!ip.is_loopback() && !ip.is_unspecified()).then_some(ip)
    };
    ask(
        Ipv4Addr::UNSPECIFIED.into(),
        Ipv4Addr::new(192, 0, 2, 1).into(),
    )
    .or_else(|| {
        let v6 = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
        ask(Ipv6Addr::UNSPECIFIED.into(), v6.into())
    })
}
