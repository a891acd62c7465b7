//! What a client writes to the control socket.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr},
};

use natbox_core::{Protocol, Selection};
use serde::{Deserialize, Serialize};

/// The version of the protocol: what a client must write as `"natbox"`.
pub const VERSION: u32 = 1;

/// What a client asks: one JSON object on one line, `{"natbox":1,"request":"show",…}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Answered with a [`Line::Status`](super::Line::Status), a [`Line::Counters`](super::Line::Counters), and what is asked for besides.
    Show {
        /// A [`Line::Mapping`](super::Line::Mapping) for each mapping.
        #[serde(default)]
        mappings: bool,
        /// A [`Line::Session`](super::Line::Session) for each session.
        #[serde(default)]
        sessions: bool,
        /// A [`Line::Port`](super::Line::Port) for each port of the datapath.
        #[serde(default)]
        ports: bool,
        /// A [`Line::Subscriber`](super::Line::Subscriber) for each subscriber; with a host in `only`, for that host's.
        #[serde(default)]
        subscribers: bool,
        /// Only these mappings and sessions.
        #[serde(default)]
        only: Only,
    },
    /// Remove mappings.
    Flush {
        /// Which; every one when nothing is given.
        #[serde(default)]
        only: Only,
        /// Static forwards too.
        #[serde(default)]
        forwards: bool,
    },
    /// Change the behaviour.
    Set {
        /// Start from this preset instead of the present behaviour.
        #[serde(default)]
        nat: Option<String>,
        /// Axes and their values.
        #[serde(default)]
        axes: BTreeMap<String, String>,
    },
    /// Begin anew, as a NAT does that got a new lease: every mapping but the forwards goes.
    Rebind {
        /// External addresses from now on; the present ones when there is none.
        #[serde(default)]
        external: Vec<Ipv4Addr>,
    },
    /// Make a static forward.
    ForwardAdd {
        /// `PROTOCOL:PORT=ADDR:PORT[#N]`.
        forward: String,
    },
    /// Remove a static forward.
    ForwardRemove {
        /// `udp` or `tcp`.
        protocol: String,
        /// Its external port.
        port: u16,
    },
    /// Answered with [`Line::Done`](super::Line::Done) at once and then with a [`Line::Event`](super::Line::Event) for each event, until the client hangs up.
    Events {
        /// Only what happens to port blocks: the log that says whose a port was (RFC 6888 REQ-14).
        #[serde(default)]
        blocks: bool,
    },
}

/// Which mappings: every criterion given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Only {
    /// `udp`, `tcp` or `icmp`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The inside host's address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<IpAddr>,
    /// The external port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

impl Only {
    /// The selection that this stands for; without static forwards.
    pub fn selection(&self) -> Result<Selection, String> {
        let protocol = self.protocol.as_deref().map(protocol).transpose()?;
        Ok(Selection { protocol, host: self.host, external_port: self.port, statics: false })
    }
}

/// The protocol of this name.
pub(super) fn protocol(name: &str) -> Result<Protocol, String> {
    let named = Protocol::ALL.into_iter().find(|protocol| protocol.to_string() == name);
    named.ok_or_else(|| format!("{name:?} is not a protocol: it is udp, tcp or icmp"))
}
