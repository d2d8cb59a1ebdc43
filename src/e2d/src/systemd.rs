//! The service manager: what it is told, and how long it is patient. Nothing here does anything where the process was
//! not started by one.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

/// The line to the service manager. Cheap to share by reference; sending takes microseconds and never waits, so that
/// a manager that is stuck does not stop the loop that feeds its watchdog.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notifier {
    /// Connects to the socket in `$NOTIFY_SOCKET`, if there is one.
    ///
    /// # Errors
    /// When there is one that cannot be connected to: systemd would wait for the start to end and then kill the node.
    pub fn from_env() -> io::Result<Self> {
        let socket = match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) if !path.is_empty() => Some(connect(Path::new(&path))?),
            _ => None,
        };
        Ok(Notifier {
            socket,
            watchdog: sd_notify::watchdog_enabled(),
        })
    }

    /// A line to nobody.
    pub fn silent() -> Self {
        Notifier {
            socket: None,
            watchdog: None,
        }
    }

    /// The time between two [`watchdog`](Self::watchdog) calls after which the manager restarts the service; half of
    /// it is a good period. `None` when nobody watches.
    pub fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The node serves.
    ///
    /// # Errors
    /// When the manager could not be told.
    pub fn ready(&self, status: &str) -> io::Result<()> {
        self.send(&[NotifyState::Ready, NotifyState::Status(&one_line(status))])
    }

    /// One line for `systemctl status`.
    ///
    /// # Errors
    /// When the manager could not be told, which is no reason to stop.
    pub fn status(&self, status: &str) -> io::Result<()> {
        self.send(&[NotifyState::Status(&one_line(status))])
    }

    /// The node was asked to stop, and does.
    ///
    /// # Errors
    /// When the manager could not be told, which is no reason to stay.
    pub fn stopping(&self) -> io::Result<()> {
        self.send(&[NotifyState::Stopping])
    }

    /// The node is alive. Called by the consensus loop alone, so that a wedged loop is a dead service.
    ///
    /// # Errors
    /// When the manager could not be told; the next call may succeed.
    pub fn watchdog(&self) -> io::Result<()> {
        self.send(&[NotifyState::Watchdog])
    }

    /// Starting or stopping takes `by` longer than the unit says, counted from here; for recovery that goes on.
    ///
    /// # Errors
    /// When the manager could not be told.
    pub fn extend_timeout(&self, by: Duration) -> io::Result<()> {
        let micros = u32::try_from(by.as_micros()).unwrap_or(u32::MAX);
        self.send(&[NotifyState::ExtendTimeoutUsec(micros)])
    }

    fn send(&self, states: &[NotifyState<'_>]) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        let lines: Vec<String> = states.iter().map(NotifyState::to_string).collect();
        socket.send(lines.join("\n").as_bytes()).map(|_| ())
    }
}

/// A socket whose path begins with `@` has no file: the kernel knows it by the rest of the name.
fn connect(path: &Path) -> io::Result<UnixDatagram> {
    let address = match path.as_os_str().as_encoded_bytes().split_first() {
        Some((b'@', name)) => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A line break would begin another assignment.
fn one_line(status: &str) -> String {
    status.replace(char::is_control, " ")
}
