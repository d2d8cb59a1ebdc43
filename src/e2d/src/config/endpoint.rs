//! Addresses as people write them: `10.0.0.1`, `10.0.0.1:2379`, `[::1]:2379`, `http://node-a:2379`.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// A machine and a port, as clients and peers are told it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// An address or a DNS name, never empty.
    pub host: Host,
    /// Zero stands for the port that the listener was given by the kernel.
    pub port: u16,
}

/// The machine part of an [`Endpoint`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    /// A literal address.
    Ip(IpAddr),
    /// A DNS name.
    Name(String),
}

impl Endpoint {
    /// `http://host:port`, the form in etcd's member list.
    pub fn url(&self) -> String {
        format!("http://{self}")
    }

    /// The socket address to listen on. `localhost` is 127.0.0.1, without asking the resolver; any other name is
    /// `None`, since what it resolves to may be another machine.
    pub(super) fn bind_address(&self) -> Option<SocketAddr> {
        match &self.host {
            Host::Ip(ip) => Some(SocketAddr::new(*ip, self.port)),
            Host::Name(name) if name == "localhost" => {
                Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), self.port))
            }
            Host::Name(_) => None,
        }
    }
}

impl From<SocketAddr> for Endpoint {
    fn from(address: SocketAddr) -> Self {
        Endpoint {
            host: Host::Ip(address.ip()),
            port: address.port(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(ip) => write!(f, "{}", SocketAddr::new(*ip, self.port)),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// Reads one address. The error is the reason alone, without the text that was read.
pub(super) fn parse(text: &str, default_port: u16) -> Result<Endpoint, String> {
    let rest = match text.split_once("://") {
        None => text,
        Some(("http", rest)) => rest.strip_suffix('/').unwrap_or(rest),
        Some(("https" | "unixs", _)) => {
            return Err("TLS is not in this version: only http:// addresses are served".into());
        }
        Some(("unix", _)) => return Err("unix sockets are not in this version".into()),
        Some((scheme, _)) => return Err(format!("the scheme {scheme:?} is unknown")),
    };
    if let Some(path) = rest.find(['/', '?', '#']) {
        return Err(format!("{:?} after the port is not allowed", &rest[path..]));
    }
    if rest.is_empty() {
        return Err("the host is missing".into());
    }
    // An IPv6 address without brackets is unambiguous only when no port follows it.
    if let Ok(ip) = rest.parse::<Ipv6Addr>() {
        return Ok(Endpoint {
            host: Host::Ip(ip.into()),
            port: default_port,
        });
    }
    let (host, port) = match rest.strip_prefix('[') {
        Some(bracketed) => {
            let (inside, after) = bracketed
                .split_once(']')
                .ok_or("the bracket [ is never closed")?;
            let ip: Ipv6Addr = inside
                .parse()
                .map_err(|_| format!("{inside:?} is not an IPv6 address"))?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or("a port is written :2379")?),
            };
            (Host::Ip(ip.into()), port)
        }
        None => match rest.split_once(':') {
            Some((_, port)) if port.contains(':') => {
                return Err("an IPv6 address with a port is written [::1]:2379".into());
            }
            Some(("", _)) => {
                return Err("the host is missing; every IPv4 address is 0.0.0.0".into());
            }
            Some((host, port)) => (parse_host(host)?, Some(port)),
            None => (parse_host(rest)?, None),
        },
    };
    let port = match port {
        None => default_port,
        // u16::from_str takes a leading plus.
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
            .parse()
            .map_err(|_| format!("the port {digits:?} is not in 0-65535"))?,
        Some(port) => return Err(format!("the port {port:?} is not in 0-65535")),
    };
    Ok(Endpoint { host, port })
}

fn parse_host(host: &str) -> Result<Host, String> {
    if let Ok(ip) = host.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    let name = host.strip_suffix('.').unwrap_or(host);
    if host.len() > 253 || !name.split('.').all(label) {
        return Err(format!("{host:?} is neither an address nor a host name"));
    }
    // No top-level domain is a number: 10.0.0.300 is a mistyped address, not a name.
    if name
        .rsplit('.')
        .next()
        .is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()))
    {
        return Err(format!("{host:?} is not an IPv4 address"));
    }
    Ok(Host::Name(host.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_read_with_and_without_port_scheme_and_brackets() {
        for (text, want) in [
            ("10.0.0.1", "10.0.0.1:2379"),
            ("10.0.0.1:1", "10.0.0.1:1"),
            ("http://10.0.0.1:1", "10.0.0.1:1"),
            ("http://10.0.0.1:1/", "10.0.0.1:1"),
            ("::1", "[::1]:2379"),
            ("[::1]", "[::1]:2379"),
            ("[::1]:7", "[::1]:7"),
            ("http://[fd00::1]:7", "[fd00::1]:7"),
            ("localhost", "localhost:2379"),
            ("Node-A.example.com.:0", "node-a.example.com.:0"),
        ] {
            assert_eq!(
                parse(text, 2379).map(|e| e.to_string()).as_deref(),
                Ok(want),
                "{text}"
            );
        }
    }

    #[test]
    fn a_bad_address_says_why() {
        for (text, why) in [
            ("", "the host is missing"),
            (
                ":2379",
                "the host is missing; every IPv4 address is 0.0.0.0",
            ),
            (
                "https://a:1",
                "TLS is not in this version: only http:// addresses are served",
            ),
            ("unix://a", "unix sockets are not in this version"),
            ("ftp://a", "the scheme \"ftp\" is unknown"),
            ("http://a:1/x", "\"/x\" after the port is not allowed"),
            ("a:65536", "the port \"65536\" is not in 0-65535"),
            ("a:+1", "the port \"+1\" is not in 0-65535"),
            ("a:", "the port \"\" is not in 0-65535"),
            ("10.0.0.300", "\"10.0.0.300\" is not an IPv4 address"),
            ("a b", "\"a b\" is neither an address nor a host name"),
            ("user@a", "\"user@a\" is neither an address nor a host name"),
            ("[::1", "the bracket [ is never closed"),
            ("[::g]:1", "\"::g\" is not an IPv6 address"),
            ("[::1]1", "a port is written :2379"),
            (
                "fe80::1%eth0",
                "an IPv6 address with a port is written [::1]:2379",
            ),
        ] {
            assert_eq!(parse(text, 2379), Err(why.to_string()), "{text}");
        }
    }
}
