//! Where to listen and where to connect to, as it is typed.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use serde::{Deserialize, Serialize};

use super::wire::{Host, Transport};

/// The longest name of a host, in bytes (RFC 1035 §2.3.4).
const MAX_NAME: usize = 253;
/// The longest part of one.
const MAX_LABEL: usize = 63;

/// A host's name: in lower case, without the root's dot, and nothing that a resolver would take for an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Name(String);

impl Name {
    /// This machine, in any case (RFC 6761 §6.3).
    pub(crate) fn is_localhost(&self) -> bool {
        self.0 == "localhost" || self.0.ends_with(".localhost")
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        let is_label = |label: &str| {
            (1..=MAX_LABEL).contains(&label.len())
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
        };
        // 127.1, 0x7f.1 and 2130706433 are addresses to the C library.
        let ends_in_number = name
            .rsplit('.')
            .next()
            .is_some_and(|last| last.bytes().all(|byte| byte.is_ascii_digit()) || last.starts_with("0x"));
        if name.len() > MAX_NAME || !name.split('.').all(is_label) || ends_in_number {
            return Err(format!("{text:?} is neither an address nor a name"));
        }
        Ok(Name(name))
    }
}

impl TryFrom<String> for Name {
    type Error = String;

    fn try_from(text: String) -> Result<Name, String> {
        text.parse()
    }
}

impl From<Name> for String {
    fn from(name: Name) -> String {
        name.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Host {
    type Err = String;

    /// `192.0.2.1`, `[2001:db8::1]`, or a name.
    fn from_str(text: &str) -> Result<Host, String> {
        let bracketed = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match bracketed {
            Some(inner) => inner.parse().map(IpAddr::V6).ok(),
            None => text.parse().map(IpAddr::V4).ok(),
        };
        match address {
            Some(address) => Ok(Host::Address(address)),
            None if text.matches(':').count() > 1 && bracketed.is_none() => {
                Err(format!("{text:?}: write an IPv6 address in brackets, as [2001:db8::1]:80"))
            }
            None => text.parse().map(Host::Name),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(IpAddr::V4(address)) => address.fmt(f),
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Name(name) => name.fmt(f),
        }
    }
}

/// A host's port: what is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Target {
    pub(crate) host: Host,
    pub(crate) port: u16,
}

impl FromStr for Target {
    type Err = String;

    /// `HOST:PORT`, or a port of the machine's own.
    fn from_str(text: &str) -> Result<Target, String> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, number)) => (host.parse()?, port(number)?),
            None => (Host::Address(Ipv4Addr::LOCALHOST.into()), port(text)?),
        };
        Ok(Target { host, port })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// A port as it is typed.
pub(super) fn port(text: &str) -> Result<u16, String> {
    let number = text.parse().ok().filter(|port| *port != 0 && !text.starts_with('+'));
    number.ok_or_else(|| format!("{text:?} is no port: write a number from 1 to 65535"))
}

/// Takes `udp:` or `tcp:` off the beginning.
pub(super) fn transport(text: &str) -> (Option<Transport>, &str) {
    let prefixes = [("udp:", Transport::Udp), ("tcp:", Transport::Tcp)];
    let found = prefixes
        .into_iter()
        .find_map(|(prefix, transport)| Some((Some(transport), text.strip_prefix(prefix)?)));
    found.unwrap_or((None, text))
}

/// One port that leads somewhere: `[udp:][ADDRESS:]PORT[=TARGET]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listener {
    /// `None`: what `--udp` says.
    pub(crate) transport: Option<Transport>,
    pub(crate) at: SocketAddr,
    /// `None`: the target that stands by itself.
    pub(crate) target: Option<Target>,
}

impl FromStr for Listener {
    type Err = String;

    fn from_str(text: &str) -> Result<Listener, String> {
        let (transport, rest) = transport(text);
        let (at, target) = match rest.split_once('=') {
            Some((at, target)) => (at, Some(target.parse()?)),
            None => (rest, None),
        };
        let Target { host, port } = at.parse()?;
        let address = match host {
            Host::Address(address) => address,
            Host::Name(name) if name.is_localhost() => Ipv4Addr::LOCALHOST.into(),
            Host::Name(name) => {
                return Err(format!("{name} is a name: listen at an address, or at 0.0.0.0 for all of them"));
            }
        };
        Ok(Listener { transport, at: SocketAddr::new(address, port), target })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        for (text, canonical) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("80", "127.0.0.1:80"),
            ("[::1]:443", "[::1]:443"),
            ("NAS.local.:22", "nas.local:22"),
            ("localhost:1", "localhost:1"),
        ] {
            assert_eq!(text.parse::<Target>().map(|target| target.to_string()), Ok(canonical.into()));
        }
        for text in
            ["", ":80", "host", "host:0", "host:65536", "host:+1", "::1:80", "[::1]", "a b:80", "[x]:1"]
        {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        // What the C library would take for 127.0.0.1.
        for text in ["127.1:80", "2130706433:80", "0x7f000001:80", "0177.0.0.0x1:80", "127.0.0.1.:80"] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
        assert!("x".repeat(64).parse::<Name>().is_err());
        assert!(vec!["x"; 127].join(".").parse::<Name>().is_ok());
        assert!(vec!["x"; 128].join(".").parse::<Name>().is_err());
    }

    #[test]
    fn listeners() {
        let listener = |text: &str| text.parse::<Listener>();
        let plain = listener("8080").unwrap();
        assert_eq!(
            (plain.transport, plain.at.to_string(), plain.target),
            (None, "127.0.0.1:8080".into(), None)
        );
        let full = listener("udp:0.0.0.0:53=dns.lan:5353").unwrap();
        assert_eq!((full.transport, full.at.to_string()), (Some(Transport::Udp), "0.0.0.0:53".into()));
        assert_eq!(full.target.unwrap().to_string(), "dns.lan:5353");
        assert_eq!(listener("tcp:[::1]:80").unwrap().at.to_string(), "[::1]:80");
        assert_eq!(listener("localhost:80").unwrap().at.to_string(), "127.0.0.1:80");
        for text in ["", "0", "udp:", "host:80", "80=", "80=x", "sctp:80"] {
            assert!(listener(text).is_err(), "{text}");
        }
    }
}
