//! As much of STUN (RFC 8489) and TURN (RFC 8656) as a load needs: no credentials, IPv4, one channel an allocation.

use std::{
    io::ErrorKind,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

/// RFC 8489 §5.
const COOKIE: u32 = 0x2112_A442;
const BINDING: u16 = 0x0001;
const ALLOCATE: u16 = 0x0003;
const REFRESH: u16 = 0x0004;
const CHANNEL_BIND: u16 = 0x0009;
const SUCCESS: u16 = 0x0100;
const CHANNEL_NUMBER: u16 = 0x000C;
const LIFETIME: u16 = 0x000D;
const XOR_PEER_ADDRESS: u16 = 0x0012;
const XOR_RELAYED_ADDRESS: u16 = 0x0016;
const REQUESTED_TRANSPORT: u16 = 0x0019;
const XOR_MAPPED_ADDRESS: u16 = 0x0020;
/// REQUESTED-TRANSPORT's only value (RFC 8656 §18.7).
const UDP: [u8; 4] = [17, 0, 0, 0];
/// The first channel number, and how many there are (RFC 8656 §12).
const CHANNELS: (u16, u32) = (0x4000, 0x1000);

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// After so long without one the request is sent again: UDP loses.
pub(crate) const AGAIN: Duration = Duration::from_millis(200);

/// Where `socket` is seen from: a STUN Binding. The socket is not connected.
pub(crate) fn mapped_address(socket: &UdpSocket, server: SocketAddr) -> Result<SocketAddr> {
    let answer = ask(socket, Some(server), &request(BINDING, &[]))?;
    address(&answer, XOR_MAPPED_ADDRESS).context("the STUN answer holds no XOR-MAPPED-ADDRESS")
}

/// Allocates at the server that `socket` is connected to; returns the relayed address.
pub(crate) fn allocate(socket: &UdpSocket) -> Result<SocketAddr> {
    let answer = ask(socket, None, &request(ALLOCATE, &[(REQUESTED_TRANSPORT, &UDP)]))?;
    address(&answer, XOR_RELAYED_ADDRESS).context("the TURN answer holds no XOR-RELAYED-ADDRESS")
}

/// Binds the allocation's channel to `peer`.
pub(crate) fn bind_channel(socket: &UdpSocket, peer: SocketAddr) -> Result<()> {
    let IpAddr::V4(ip) = peer.ip() else { bail!("{peer}: an IPv4 address is wanted") };
    let mut value = vec![0, 1];
    value.extend_from_slice(&(peer.port() ^ (COOKIE >> 16) as u16).to_be_bytes());
    value.extend_from_slice(&(u32::from(ip) ^ COOKIE).to_be_bytes());
    let [a, b] = channel().to_be_bytes();
    let number = [a, b, 0, 0];
    ask(socket, None, &request(CHANNEL_BIND, &[(CHANNEL_NUMBER, &number), (XOR_PEER_ADDRESS, &value)]))?;
    Ok(())
}

/// Gives the allocation back: the next client may get the same port.
pub(crate) fn release(socket: &UdpSocket) -> Result<()> {
    ask(socket, None, &request(REFRESH, &[(LIFETIME, &[0; 4])]))?;
    Ok(())
}

/// What stands before the data of a ChannelData message (RFC 8656 §12.4); over UDP nothing is padded.
pub(crate) fn channel_data_header(length: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (channel().to_be_bytes(), length.to_be_bytes());
    [a, b, c, d]
}

/// Another one in the next process: coturn remembers the channel of an allocation that was given back, and refuses it to
/// the next client with the same port.
fn channel() -> u16 {
    CHANNELS.0 + (std::process::id() % CHANNELS.1) as u16
}

fn request(method: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
    let body: Vec<u8> = attributes
        .iter()
        .flat_map(|(kind, value)| {
            [&kind.to_be_bytes()[..], &(value.len() as u16).to_be_bytes(), value].concat()
        })
        .collect();
    // Each socket has one request in flight at a time, so its transaction needs no more than the method for an id.
    let mut transaction = [0x7b; 12];
    transaction[0] = method as u8;
    [
        &method.to_be_bytes()[..],
        &(body.len() as u16).to_be_bytes(),
        &COOKIE.to_be_bytes(),
        &transaction,
        &body,
    ]
    .concat()
}

/// Sends until a success response with the same transaction id comes. What else comes is thrown away.
fn ask(socket: &UdpSocket, server: Option<SocketAddr>, request: &[u8]) -> Result<Vec<u8>> {
    socket.set_nonblocking(false)?;
    socket.set_read_timeout(Some(AGAIN))?;
    let deadline = Instant::now() + PATIENCE;
    let (mut again, mut buffer) = (Instant::now(), [0; 2048]);
    while Instant::now() < deadline {
        if Instant::now() >= again {
            again = Instant::now() + AGAIN;
            match server {
                Some(server) => socket.send_to(request, server)?,
                None => socket.send(request)?,
            };
        }
        let length = match socket.recv(&mut buffer) {
            Ok(length) => length,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(error) => return Err(error).context("no answer to a STUN request"),
        };
        let answer = &buffer[..length];
        if length < 20 || answer[4..20] != request[4..20] {
            continue;
        }
        let method = u16::from_be_bytes([request[0], request[1]]);
        if answer[..2] != (method | SUCCESS).to_be_bytes() {
            bail!("a STUN request of method {method} was refused: {}", refusal(answer));
        }
        return Ok(answer.to_vec());
    }
    bail!("no answer to a STUN request within {PATIENCE:?}")
}

/// ERROR-CODE (RFC 8489 §14.8).
fn refusal(answer: &[u8]) -> String {
    match attribute(answer, 0x0009) {
        Some([_, _, class, number, reason @ ..]) => {
            format!("{} {}", u16::from(*class) * 100 + u16::from(*number), String::from_utf8_lossy(reason))
        }
        _ => "without a code".to_owned(),
    }
}

fn address(answer: &[u8], kind: u16) -> Option<SocketAddr> {
    let [_, 1, p, q, a, b, c, d] = *attribute(answer, kind)? else { return None };
    let port = u16::from_be_bytes([p, q]) ^ (COOKIE >> 16) as u16;
    let ip = Ipv4Addr::from(u32::from_be_bytes([a, b, c, d]) ^ COOKIE);
    Some(SocketAddr::from((ip, port)))
}

/// The value of the first attribute of that kind.
fn attribute(message: &[u8], wanted: u16) -> Option<&[u8]> {
    let mut rest = message.get(20..)?;
    loop {
        let (header, after) = rest.split_first_chunk::<4>()?;
        let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
        let value = after.get(..length)?;
        if u16::from_be_bytes([header[0], header[1]]) == wanted {
            return Some(value);
        }
        rest = after.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_found_behind_other_attributes() {
        // RFC 5769 §2.2: 192.0.2.1:32853.
        let xored = [0, 1, 0xa1, 0x47, 0xe1, 0x12, 0xa6, 0x43];
        let message = request(BINDING | SUCCESS, &[(0x8022, b"test vector!"), (XOR_MAPPED_ADDRESS, &xored)]);
        assert_eq!(address(&message, XOR_MAPPED_ADDRESS), Some("192.0.2.1:32853".parse().unwrap()));
        assert_eq!(address(&message, XOR_RELAYED_ADDRESS), None);
        assert_eq!(address(&message[..30], XOR_MAPPED_ADDRESS), None);
    }
}
