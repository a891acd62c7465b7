//! Sharing what an interface receives between several sockets (`PACKET_FANOUT`).
//!
//! The kernel chooses the socket by a hash of addresses, protocol and ports that is the same for both directions of a
//! flow. A fragment has no ports, so all fragments between two hosts go to one socket, and that may be another one than
//! their flow's.

use nix::errno::Errno;

use super::socket::Socket;

/// By hash, and what leaves by the interface is not received: a group has its own word on that (Linux 6.1; before, the
/// filter of each socket keeps it out).
const HASH: u32 = libc::PACKET_FANOUT_HASH | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;

/// Where the kernel's numbers for mode and flags begin, above the group's number.
const MODE_SHIFT: u32 = 16;

/// Asks for a number that nobody else in this namespace has (Linux 4.12).
const OWN_NUMBER: u32 = libc::PACKET_FANOUT_FLAG_UNIQUEID << MODE_SHIFT;

/// A group, as the kernel writes it: its number, mode and flags.
#[derive(Clone, Copy, Debug)]
pub(super) struct Group(u32);

/// Makes `socket`, which is bound, a member of `group`, or of a new one of its own.
pub(super) fn join(socket: &Socket, group: Option<Group>) -> nix::Result<Group> {
    let wanted = match group {
        Some(Group(standing)) => standing,
        None => HASH << MODE_SHIFT | OWN_NUMBER,
    };
    socket.set(libc::SOL_PACKET, libc::PACKET_FANOUT, &wanted)?;
    let mut joined = 0_u32;
    socket.get(libc::SOL_PACKET, libc::PACKET_FANOUT, &mut joined)?;
    // An older kernel takes the wish for a mode that it does not know, and number 0 for anybody's.
    if joined & OWN_NUMBER != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    Ok(Group(joined))
}
