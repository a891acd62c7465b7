//! A shorter way for packets of known flows: programs in the kernel rewrite them where they come in, and send them on.
//!
//! A rule of the engine's ([`FlowRule`]) becomes a record in memory that the programs share with natbox, and a key for each
//! of its directions under which they find it. What the programs do not know, or what its rule does not cover, comes
//! to natbox as before. natbox's packet sockets do not see what the programs move.
//!
//! ```text
//!   inside ──▶ program ──▶ outside          rule ──▶ record ◀──▶ programs
//!   inside ◀── program ◀── outside                     │
//!                │ everything else                     ▼ how long it lives by now, and what it has moved
//!                ▼
//!              natbox
//! ```
//!
//! Programs and memory are held by descriptors: they end with the process, however that ends, and packets come to whoever
//! listens then.
//!
//! Two things are looked at twice, once for the packet sockets and once for the packet itself. A rule that comes into force in
//! between, some tens of nanoseconds, lets one packet be moved and come to natbox as well; one that goes out of force loses
//! one.

mod program;
mod record;
mod wire;
mod words;

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::atomic::Ordering::{Relaxed, SeqCst},
    time::Duration,
};

use natbox_core::{Endpoint, FlowRule, FlowWay, Moved, Protocol, Time};
use nix::{
    net::if_::if_indextoname,
    time::{ClockId, clock_gettime},
};

use crate::{
    bpf::{Hook, Kind, Lookup, SharedArray, attach, load},
    datapath::Mac,
    host::Wire,
};
use program::{KEY_LEN, Link, Side, key};
use record::{INTO_TUN, INTO_WIRE, NEEDS_DF, NewWay, REFRESHES, Record};

/// Flows at the most: 10 MB of records.
const FLOWS: u32 = 65_536;

/// A record that was in use rests for so long before it is used again: a program may have found it just before.
const REST: Duration = Duration::from_secs(1);

/// As good as never, some 292 years: later than that programs put no deadline, whose clock would begin again.
const FAREST: u64 = u64::MAX / 2;

/// An interface whose packets may be moved, by the kernel's number for it.
#[derive(Debug)]
pub(crate) enum Device {
    /// With its own Ethernet address.
    Ethernet(u32, Mac),
    /// A TUN in this namespace.
    Tun(u32),
    /// A TUN in another namespace.
    Wired(Box<Wire>),
}

impl Device {
    /// The interface in this namespace.
    fn index(&self) -> u32 {
        match self {
            Device::Ethernet(index, _) | Device::Tun(index) => *index,
            Device::Wired(wire) => wire.here,
        }
    }

    fn link(&self) -> Link {
        match self {
            Device::Ethernet(..) => Link::Ethernet,
            Device::Tun(_) => Link::Tun,
            Device::Wired(_) => Link::Wire,
        }
    }
}

/// Where packets go in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hop {
    /// The side, 0 for outside.
    pub(crate) side: usize,
    /// The next hop's Ethernet address; without meaning on a TUN.
    pub(crate) mac: Mac,
}

/// What a rule has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The deadline of its flow.
    pub(crate) expires: Time,
    /// Packets moved outwards and inwards, since the rule was made.
    pub(crate) moved: [Moved; 2],
}

/// The number of a rule in force.
pub(crate) type Index = u32;

/// Whoever moves the packets of rules in force: programs in the kernel, or for tests that need none, something in memory.
pub(crate) trait Mover {
    /// Whether packets can be moved from and to a side.
    fn serves(&self, side: usize) -> bool;

    /// Whether a side's device is where it was.
    fn is_there(&self, side: usize) -> bool;

    /// Packets are moved neither from nor to a side any longer; rules that do are to be removed.
    fn forget(&mut self, side: usize);

    /// Puts a rule in force, whose packets go to these hops outside and inside. `None` when there is no room.
    fn install(&mut self, rule: &FlowRule, hops: (Hop, Hop), now: Time) -> Option<Index>;

    /// Takes a rule out of force.
    fn remove(&mut self, index: Index, now: Time) -> Seen;

    /// What a rule has done so far.
    fn seen(&self, index: Index) -> Seen;
}

/// The programs at work; dropping it ends them.
#[derive(Debug)]
pub(crate) struct FastPath {
    /// By side; `None` where packets cannot be moved.
    devices: Vec<Option<Device>>,
    flows: Lookup<KEY_LEN, 4>,
    records: SharedArray<Record>,
    /// The keys of each record that was ever in use.
    keys: Vec<[Option<[u8; KEY_LEN]>; 2]>,
    /// Records at rest, and since when.
    resting: VecDeque<(Time, Index)>,
    filters: Vec<Option<OwnedFd>>,
    _links: Vec<OwnedFd>,
    /// The monotonic clock's reading at [`Time::ZERO`].
    epoch: u64,
}

impl FastPath {
    /// Attaches programs to these devices, outside first, then in the order of the inside ports. `now` is the time of this
    /// moment.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn attach(devices: Vec<Option<Device>>, now: Time) -> io::Result<FastPath> {
        // At once: what follows takes long, and two clocks are compared here.
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?).as_nanos() as u64;
        // SAFETY: a record is made of atomic integers, and has no gaps: its size is checked where it is defined.
        let records = unsafe { SharedArray::new(FLOWS as usize) }?;
        let flows = Lookup::sparse(2 * FLOWS)?;
        let (mut filters, mut links) = (Vec::new(), Vec::new());
        for (number, device) in devices.iter().enumerate() {
            let Some(device) = device else {
                filters.push(None);
                continue;
            };
            let side = Side {
                number: number as u16,
                link: device.link(),
                flows: flows.as_fd(),
                records: records.as_fd(),
            };
            let hook = if side.link == Link::Tun { Hook::Egress } else { Hook::Ingress };
            links.push(put(&side.mover(), device.index(), hook)?);
            if let Device::Wired(wire) = device {
                links.extend(wire::attach(wire, side).map_err(io::Error::other)?);
            }
            filters.push(match side.link {
                Link::Ethernet => Some(load(Kind::SocketFilter, &side.filter())?),
                Link::Tun | Link::Wire => None,
            });
        }
        Ok(FastPath {
            devices,
            flows,
            records,
            keys: Vec::new(),
            resting: VecDeque::new(),
            filters,
            _links: links,
            epoch: monotonic.wrapping_sub(now.as_nanos()),
        })
    }

    /// The program that a side's packet sockets need as their filter.
    pub(crate) fn filter(&self, side: usize) -> Option<BorrowedFd<'_>> {
        self.filters.get(side)?.as_ref().map(AsFd::as_fd)
    }

    fn new_way(
        &self,
        FlowWay { refresh, mtu, needs_df }: FlowWay,
        hop: Hop,
        key: [u8; KEY_LEN],
        (old, new): ((Ipv4Addr, u16), (Ipv4Addr, u16)),
    ) -> Option<NewWay> {
        let device = self.devices.get(hop.side)?.as_ref()?;
        let flag = |is: bool, flag| if is { flag } else { 0 };
        Some(NewWay {
            key,
            old,
            new,
            refresh: refresh.map_or(0, far),
            mtu,
            flags: flag(refresh.is_some(), REFRESHES)
                | flag(needs_df, NEEDS_DF)
                | flag(device.link() == Link::Tun, INTO_TUN)
                | flag(device.link() == Link::Wire, INTO_WIRE),
            interface: device.index(),
            to: hop.mac,
            from: if let Device::Ethernet(_, mac) = device { *mac } else { [0; 6] },
        })
    }

    /// A record that nobody uses.
    fn free_record(&mut self, now: Time) -> Option<Index> {
        if let Some((_, index)) = self.resting.front().copied().filter(|(since, _)| now.since(*since) >= REST)
        {
            self.resting.pop_front();
            return Some(index);
        }
        let index = self.keys.len() as u32;
        (index < FLOWS).then(|| {
            self.keys.push([None; 2]);
            index
        })
    }

    /// A time as programs know it.
    fn monotonic(&self, time: Time) -> u64 {
        time.as_nanos().saturating_add(self.epoch)
    }
}

impl Mover for FastPath {
    fn serves(&self, side: usize) -> bool {
        self.devices.get(side).is_some_and(Option::is_some)
    }

    fn is_there(&self, side: usize) -> bool {
        self.devices.get(side).and_then(Option::as_ref).is_some_and(|device| {
            if_indextoname(device.index()).is_ok()
                && if let Device::Wired(wire) = device { wire.is_whole() } else { true }
        })
    }

    fn forget(&mut self, side: usize) {
        self.devices[side] = None;
    }

    fn install(&mut self, rule: &FlowRule, (out, inn): (Hop, Hop), now: Time) -> Option<Index> {
        let inside = v4(rule.inside.endpoint)?;
        let (external, remote) = (v4(rule.external.0)?, v4(rule.remote.0)?);
        let index = self.free_record(now)?;
        let record = self.records.get(index)?;
        let protocol = if rule.protocol == Protocol::Tcp { libc::IPPROTO_TCP } else { libc::IPPROTO_UDP };
        let spot = |(addr, port): (Ipv4Addr, u16)| (addr.octets(), port);
        let key = |side: usize, from, to| key(side as u16, protocol as u32, (spot(from), spot(to)));
        let ways = [
            (rule.outbound, out, key(inn.side, inside, remote), (inside, external)),
            (rule.inbound, inn, key(out.side, remote, external), (external, inside)),
        ];
        for (way, (allowed, hop, key, ends)) in record.ways.iter().zip(ways) {
            way.packets.store(0, Relaxed);
            way.bytes.store(0, Relaxed);
            match allowed.and_then(|allowed| self.new_way(allowed, hop, key, ends)) {
                Some(new) => way.set(&new),
                None => way.close(),
            }
        }
        record.limit.store(self.monotonic(rule.limit), Relaxed);
        record.expires.store(self.monotonic(rule.expires), SeqCst);

        let keys = ways.map(|(allowed, _, key, _)| allowed.map(|_| key));
        self.keys[index as usize] = keys;
        let inserted = keys.iter().flatten().try_for_each(|key| self.flows.insert(*key, index.to_ne_bytes()));
        if inserted.is_err() {
            self.remove(index, now);
            return None;
        }
        Some(index)
    }

    fn remove(&mut self, index: Index, now: Time) -> Seen {
        let seen = self.seen(index);
        if let Some(record) = self.records.get(index) {
            record.expires.store(0, SeqCst);
            record.ways.iter().for_each(record::Way::close);
        }
        for key in std::mem::take(&mut self.keys[index as usize]).into_iter().flatten() {
            // It can only fail when the key is not there.
            let _ = self.flows.remove(key);
        }
        self.resting.push_back((now, index));
        Seen { expires: seen.expires, moved: self.seen(index).moved }
    }

    fn seen(&self, index: Index) -> Seen {
        let Some(record) = self.records.get(index) else { return Seen::default() };
        let expires = record.expires.load(SeqCst).saturating_sub(self.epoch);
        let [out, inn] = &record.ways;
        Seen { expires: Time::from_nanos(expires), moved: [out.moved(), inn.moved()] }
    }
}

/// Loads a program and attaches it to an interface of the calling thread's namespace.
fn put(program: &[[u8; 8]], interface: u32, hook: Hook) -> io::Result<OwnedFd> {
    attach(load(Kind::Classifier, program)?.as_fd(), interface, hook)
}

/// A duration that a program can add to the time.
fn far(refresh: Duration) -> u64 {
    u64::try_from(refresh.as_nanos()).map_or(FAREST, |nanos| nanos.min(FAREST))
}

fn v4(endpoint: Endpoint) -> Option<(Ipv4Addr, u16)> {
    match endpoint.addr {
        IpAddr::V4(addr) => Some((addr, endpoint.port)),
        IpAddr::V6(_) => None,
    }
}

/// Makes `filter` the filter of a packet socket, in place of the one that it has.
pub(crate) fn set_filter(socket: BorrowedFd<'_>, filter: BorrowedFd<'_>) -> io::Result<()> {
    let program = filter.as_raw_fd();
    // SAFETY: the kernel reads an int that outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_BPF,
            (&raw const program).cast(),
            size_of_val(&program) as libc::socklen_t,
        )
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_timer_is_so_long_that_the_clock_begins_again() {
        assert_eq!(far(Duration::from_millis(5)), 5_000_000);
        let a_century = Duration::from_secs(100 * 366 * 86_400).as_nanos() as u64;
        assert!(far(Duration::MAX).checked_add(a_century).is_some());
    }
}
