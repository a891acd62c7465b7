//! What two peers say to each other about forwarding: the messages, and the header of a datagram (docs/forward.md).
//!
//! ```text
//!   message   version: 1 byte │ length: 2 bytes │ postcard            at the beginning of a stream, from either side
//!   packet    length: 2 bytes │ at most 65,507 bytes                  on the stream of a UDP flow
//!   datagram  the flow's stream: 1, 2, 4 or 8 bytes │ a packet        a QUIC datagram
//! ```
//!
//! Everything here is pure but the function that reads a message. Any bytes give a message or an error.

use std::{
    fmt,
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use super::address::{Name, Target};

/// Of all that is said here. A change that an older program would misunderstand has the next one.
pub(crate) const VERSION: u8 = 1;
/// Bytes in a message, without version and length: a name of 253 bytes and a little.
const MAX_MESSAGE: usize = 512;
/// Bytes in a UDP packet over IPv4: 65,535 less two headers. IPv6 would take 20 more.
pub(crate) const MAX_PACKET: usize = 65_507;
/// In place of a packet's length: a [`Reply`] follows, which tells why the flow ends.
pub(crate) const NO_PACKET: u16 = u16::MAX;

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Transport {
    Tcp,
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        })
    }
}

/// A host, as the one who asks calls it: where it is looked up is where it is connected to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Host {
    Address(IpAddr),
    Name(Name),
}

/// Where a stream is to lead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum To {
    /// To an address that the other side must allow.
    Target(Target),
    /// To the one who asked for this listener, who knows what is behind it.
    Listener(u32),
}

/// What the opener of a stream wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Connect this stream.
    Open { transport: Transport, to: To },
    /// Would it be allowed? Nothing is connected.
    Check { transport: Transport, target: Target },
    /// Listen here for as long as this stream is open, and open a stream to `id` for everybody who comes.
    Listen { id: u32, transport: Transport, at: SocketAddr },
}

/// The answer to a [`Request`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Reply {
    Yes,
    No(Refusal),
}

/// Why not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// It is not on the list.
    NotAllowed,
    /// The request cannot be understood: another version, or broken.
    NotUnderstood,
    /// As many as may be are open.
    TooMany,
    /// The target's name is not known, or leads where it must not.
    NoSuchName,
    /// Nobody listens at the target.
    Refused,
    /// There is no way to the target.
    Unreachable,
    /// The target does not answer.
    TimedOut,
    /// Somebody else listens at the address.
    InUse,
    /// The system lets only root listen at that port.
    NoPermission,
    /// The address to listen at is not this machine's.
    NotOurs,
    /// Anything else.
    Failed,
}

impl Refusal {
    /// What an error of a socket is.
    pub(crate) fn of(error: &io::Error) -> Refusal {
        match error.kind() {
            ErrorKind::ConnectionRefused => Refusal::Refused,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
                Refusal::Unreachable
            }
            ErrorKind::TimedOut => Refusal::TimedOut,
            ErrorKind::AddrInUse => Refusal::InUse,
            ErrorKind::PermissionDenied => Refusal::NoPermission,
            ErrorKind::AddrNotAvailable => Refusal::NotOurs,
            _ => Refusal::Failed,
        }
    }

    /// A name that never changes, for programs.
    pub(crate) const fn code(self) -> &'static str {
        match self {
            Refusal::NotAllowed => "not-allowed",
            Refusal::NotUnderstood => "not-understood",
            Refusal::TooMany => "too-many",
            Refusal::NoSuchName => "no-such-name",
            Refusal::Refused => "refused",
            Refusal::Unreachable => "unreachable",
            Refusal::TimedOut => "timed-out",
            Refusal::InUse => "in-use",
            Refusal::NoPermission => "no-permission",
            Refusal::NotOurs => "not-its-address",
            Refusal::Failed => "failed",
        }
    }
}

/// Bytes that are no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Version(u8),
    Length(usize),
    Body,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Malformed::Version(version) => write!(f, "it speaks version {version}, and this side {VERSION}"),
            Malformed::Length(length) => {
                write!(f, "a message of {length} bytes, and {MAX_MESSAGE} are the most")
            }
            Malformed::Body => f.write_str("a message that makes no sense"),
        }
    }
}

impl std::error::Error for Malformed {}

/// A message as it travels.
pub(crate) fn encode(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let body = postcard::to_allocvec(message).map_err(io::Error::other)?;
    let length = u16::try_from(body.len()).ok().filter(|length| usize::from(*length) <= MAX_MESSAGE);
    let length = length.ok_or_else(|| io::Error::other(Malformed::Length(body.len())))?;
    Ok([&[VERSION][..], &length.to_be_bytes(), &body].concat())
}

/// How many bytes follow this header.
pub(crate) fn body_length(header: [u8; 3]) -> Result<usize, Malformed> {
    let [version, high, low] = header;
    let length = usize::from(u16::from_be_bytes([high, low]));
    match version {
        VERSION if length <= MAX_MESSAGE => Ok(length),
        VERSION => Err(Malformed::Length(length)),
        other => Err(Malformed::Version(other)),
    }
}

/// A message from all of its body.
pub(crate) fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed::Body),
    }
}

/// Reads one message: at most [`MAX_MESSAGE`] bytes, whatever the other side sends.
///
/// # Errors
/// The stream's, or [`ErrorKind::InvalidData`] with a [`Malformed`] inside.
pub(crate) async fn read<T: DeserializeOwned>(from: &mut (impl AsyncRead + Unpin)) -> io::Result<T> {
    let invalid = |malformed| io::Error::new(ErrorKind::InvalidData, malformed);
    let mut header = [0; 3];
    from.read_exact(&mut header).await?;
    let mut body = [0; MAX_MESSAGE];
    let body = &mut body[..body_length(header).map_err(invalid)?];
    from.read_exact(body).await?;
    decode(body).map_err(invalid)
}

/// The header of a datagram of the flow whose stream has this id, and the packet: RFC 9000 §16 for the number.
pub(crate) fn datagram(stream: u64, packet: &[u8]) -> Vec<u8> {
    let mut datagram = Vec::with_capacity(header_length(stream) + packet.len());
    let bytes = stream.to_be_bytes();
    match header_length(stream) {
        1 => datagram.push(bytes[7]),
        2 => datagram.extend([bytes[6] | 0x40, bytes[7]]),
        4 => datagram.extend([bytes[4] | 0x80, bytes[5], bytes[6], bytes[7]]),
        _ => datagram.extend([&[bytes[0] | 0xc0], &bytes[1..]].concat()),
    }
    datagram.extend(packet);
    datagram
}

/// Bytes before the packet. QUIC has no stream id of 2⁶² or more.
pub(crate) const fn header_length(stream: u64) -> usize {
    match stream {
        0..0x40 => 1,
        0x40..0x4000 => 2,
        0x4000..0x4000_0000 => 4,
        _ => 8,
    }
}

/// Flow and packet of a datagram; `None`: it is none of ours.
pub(crate) fn read_datagram(datagram: &[u8]) -> Option<(u64, &[u8])> {
    let (first, rest) = datagram.split_first()?;
    let (rest, packet) = rest.split_at_checked((1 << (first >> 6)) - 1)?;
    let stream = rest.iter().fold(u64::from(first & 0x3f), |number, byte| number << 8 | u64::from(*byte));
    Some((stream, packet))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn target() -> impl Strategy<Value = Target> {
        let host = prop_oneof![
            any::<IpAddr>().prop_map(Host::Address),
            "[a-z][a-z0-9-]{0,20}[a-z](\\.[a-z]{1,20}){0,5}"
                .prop_map(|name| Host::Name(name.parse().unwrap())),
        ];
        (host, 1..=u16::MAX).prop_map(|(host, port)| Target { host, port })
    }

    fn request() -> impl Strategy<Value = Request> {
        let transport = || prop_oneof![Just(Transport::Tcp), Just(Transport::Udp)];
        let to = prop_oneof![target().prop_map(To::Target), any::<u32>().prop_map(To::Listener)];
        prop_oneof![
            (transport(), to).prop_map(|(transport, to)| Request::Open { transport, to }),
            (transport(), target()).prop_map(|(transport, target)| Request::Check { transport, target }),
            (any::<u32>(), transport(), any::<SocketAddr>()).prop_map(|(id, transport, mut at)| {
                if let SocketAddr::V6(at) = &mut at {
                    // These are this machine's own business, and do not travel.
                    at.set_flowinfo(0);
                    at.set_scope_id(0);
                }
                Request::Listen { id, transport, at }
            }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(request in request()) {
            let bytes = encode(&request).unwrap();
            let (header, body) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(body_length(*header), Ok(body.len()));
            prop_assert_eq!(decode(body), Ok(request));
        }

        #[test]
        fn any_bytes_are_a_message_or_an_error(header: [u8; 3], body in vec(any::<u8>(), 0..600)) {
            let _ = (body_length(header), decode::<Reply>(&body), read_datagram(&body));
            if let Ok(request) = decode::<Request>(&body) {
                // Whatever was accepted is something that this side could have said.
                let again = encode(&request).unwrap();
                prop_assert_eq!(decode(&again[3..]), Ok(request));
            }
        }

        #[test]
        fn more_than_a_message_is_none(request in request(), more in 1..20usize) {
            let mut bytes = encode(&request).unwrap();
            bytes.extend(vec![0; more]);
            prop_assert_eq!(decode::<Request>(&bytes[3..]), Err(Malformed::Body));
            prop_assert_eq!(decode::<Request>(&encode(&request).unwrap()[3..bytes.len() - more - 1]), Err(Malformed::Body));
        }

        #[test]
        fn datagrams(stream in prop_oneof![0..300u64, 0..1u64 << 62], packet in vec(any::<u8>(), 0..50)) {
            let bytes = datagram(stream, &packet);
            prop_assert_eq!(bytes.len(), header_length(stream) + packet.len());
            prop_assert_eq!(read_datagram(&bytes), Some((stream, &packet[..])));
        }
    }

    #[test]
    fn lengths_and_versions_are_bounded() {
        assert_eq!(body_length([VERSION, 2, 0]), Ok(512));
        assert_eq!(body_length([VERSION, 2, 1]), Err(Malformed::Length(513)));
        assert_eq!(body_length([2, 0, 0]), Err(Malformed::Version(2)));
        assert_eq!(read_datagram(&[]), None);
        assert_eq!(read_datagram(&[0xc0; 7]), None);
    }

    /// The example of docs/forward.md.
    #[test]
    fn as_documented() {
        let target = Target { host: Host::Address(Ipv4Addr::LOCALHOST.into()), port: 80 };
        let open = Request::Open { transport: Transport::Tcp, to: To::Target(target) };
        assert_eq!(encode(&open).unwrap(), [1, 0, 10, 0, 0, 0, 0, 0, 127, 0, 0, 1, 80]);
    }
}
