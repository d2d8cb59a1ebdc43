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
        let mut notifier = match std::env::var_os("NOTIFY_SOCKET") {
            Some(path) if !path.is_empty() => Notifier::to(Path::new(&path))?,
            _ => Notifier::silent(),
        };
        notifier.watchdog = sd_notify::watchdog_enabled();
        Ok(notifier)
    }

    /// Connects to a socket, whose path begins with `@` when it is abstract.
    ///
    /// # Errors
    /// When nobody listens there.
    pub fn to(path: &Path) -> io::Result<Self> {
        Ok(Notifier {
            socket: Some(connect(path)?),
            watchdog: None,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A service manager's end.
    fn manager() -> (tempfile::TempDir, UnixDatagram, Notifier) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        let notifier = Notifier::to(&path).unwrap();
        (dir, socket, notifier)
    }

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 512];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn the_manager_reads_what_it_is_told() {
        let (_dir, socket, notifier) = manager();
        notifier.extend_timeout(Duration::from_secs(90)).unwrap();
        assert_eq!(received(&socket), "EXTEND_TIMEOUT_USEC=90000000");
        notifier.ready("serving\nSTOPPING=1").unwrap();
        assert_eq!(received(&socket), "READY=1\nSTATUS=serving STOPPING=1");
        notifier.status("waiting for a quorum").unwrap();
        assert_eq!(received(&socket), "STATUS=waiting for a quorum");
        notifier.watchdog().unwrap();
        assert_eq!(received(&socket), "WATCHDOG=1");
        notifier.stopping().unwrap();
        assert_eq!(received(&socket), "STOPPING=1");
    }

    #[test]
    fn a_manager_that_is_stuck_does_not_stop_the_node() {
        let (_dir, _socket, notifier) = manager();
        // Nobody reads: sooner or later the socket is full, and the call returns instead of waiting.
        let refused = std::iter::repeat_with(|| notifier.watchdog())
            .find_map(Result::err)
            .unwrap();
        assert_eq!(refused.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn abstract_sockets_are_found() {
        let name = format!("e2d-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        let notifier = Notifier::to(Path::new(&format!("@{name}"))).unwrap();
        notifier.watchdog().unwrap();
        assert_eq!(received(&socket), "WATCHDOG=1");
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        let notifier = Notifier::silent();
        notifier.ready("serving").unwrap();
        assert_eq!(notifier.watchdog_interval(), None);
        assert!(Notifier::to(Path::new("/nonexistent/notify")).is_err());
    }
}
