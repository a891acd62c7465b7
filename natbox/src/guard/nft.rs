//! The guard as an nf_tables table, where bpf(2) is refused: in unprivileged user namespaces and on kernels older
//! than 6.6.
//!
//! The table belongs to a netlink socket (`NFT_TABLE_F_OWNER`, Linux 5.12): it is gone when that is closed, also by
//! SIGKILL, and nobody else can change it meanwhile. Its one chain hooks in before connection tracking and before
//! that one's defragmentation, so none of natbox's packets ever becomes an entry there.

use std::{
    collections::{HashMap, HashSet},
    io,
    net::Ipv4Addr,
    process,
    sync::atomic::{AtomicU32, Ordering},
};

use natbox_core::Protocol;

use super::Rules;
use crate::host::{
    mask, network,
    nlmsg::{Builder, Socket},
};

/// Before defragmentation (-400) and connection tracking (-200): `NF_IP_PRI_RAW_BEFORE_DEFRAG`.
const PRIORITY: i32 = -450;
/// Elements in one message: an attribute holds 64 KiB, and an element takes 32 bytes.
const ELEMENTS: usize = 1024;
/// Elements in one batch: a netlink message takes at most the socket's send buffer, 208 KiB by default.
const BATCH: usize = 4 * ELEMENTS;

const SUBSYSTEM: u16 = 10 << 8;
const NEWTABLE: u16 = SUBSYSTEM;
const NEWCHAIN: u16 = SUBSYSTEM | 3;
const NEWRULE: u16 = SUBSYSTEM | 6;
const NEWSET: u16 = SUBSYSTEM | 9;
const NEWSETELEM: u16 = SUBSYSTEM | 12;
const DELSETELEM: u16 = SUBSYSTEM | 14;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const TABLE_OWNER: u32 = 2;
const CREATE: libc::c_int = libc::NLM_F_CREATE | libc::NLM_F_EXCL;

const CHAIN: &str = "prerouting";
/// Claimed ports: address . protocol . port, each padded to four bytes.
const CLAIMED: &str = "claimed";
/// The addresses of this host.
const HOST: &str = "host";
/// Addresses that natbox owns beside the prefixes of the start.
const OWNED: &str = "owned";
/// How `nft list` shows the keys: ipv4_addr (7), inet_proto (12), inet_service (13), six bits each.
const CLAIMED_TYPE: u32 = 7 << 12 | 12 << 6 | 13;
const ADDRESS_TYPE: u32 = 7;
/// Four-byte registers, one behind the other.
const REGISTERS: [u32; 3] = [8, 9, 10];

/// A key of the set of claimed ports.
type Key = [u8; 12];

/// A table that goes away with this.
#[derive(Debug)]
pub(super) struct Nft {
    socket: Socket,
    table: String,
    /// What the kernel's set holds.
    claimed: HashSet<Key>,
    /// What it shall hold after the next flush, where that may differ.
    pending: HashMap<Key, bool>,
    host: Vec<Ipv4Addr>,
    owned: Vec<Ipv4Addr>,
}

impl Nft {
    pub(super) fn attach(rules: &Rules) -> io::Result<Nft> {
        // Two guards of one process must not meet.
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut nft = Nft {
            socket: Socket::open(libc::NETLINK_NETFILTER)?,
            table: format!("natbox-{}-{number}", process::id()),
            claimed: HashSet::new(),
            pending: HashMap::new(),
            host: Vec::new(),
            owned: Vec::new(),
        };
        let table = nft.table.as_str();
        let mut batch = begin();
        batch.message(NEWTABLE, CREATE, &IPV4, |message| {
            message.name(1, table);
            message.number(2, TABLE_OWNER);
        });
        batch.message(NEWCHAIN, CREATE, &IPV4, |message| chain(message, table));
        batch.message(NEWSET, CREATE, &IPV4, |message| set(message, table, CLAIMED, (CLAIMED_TYPE, 12), 1));
        batch.message(NEWSET, CREATE, &IPV4, |message| set(message, table, HOST, (ADDRESS_TYPE, 4), 2));
        batch.message(NEWSET, CREATE, &IPV4, |message| set(message, table, OWNED, (ADDRESS_TYPE, 4), 3));
        for rule in rules_of(rules) {
            batch.message(NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, &IPV4, |message| {
                message.name(1, table);
                message.name(2, CHAIN);
                message.nest(4, rule);
            });
        }
        commit(&mut nft.socket, batch)?;
        nft.set_host_addresses(&rules.host)?;
        Ok(nft)
    }

    pub(super) fn claim(&mut self, protocol: Protocol, address: Ipv4Addr, port: u16, held: bool) {
        let protocol = match protocol {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
            Protocol::Icmp => return,
        };
        let [a, b, c, d] = address.octets();
        let [high, low] = port.to_be_bytes();
        self.pending.insert([a, b, c, d, protocol, 0, 0, 0, high, low, 0, 0], held);
    }

    /// Brings the kernel's set up to date; what could not be brought is tried again the next time.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        let claimed = &self.claimed;
        self.pending.retain(|key, held| *held != claimed.contains(key));
        let changes: Vec<_> = self.pending.iter().map(|(key, held)| (*key, *held)).collect();
        for part in changes.chunks(BATCH) {
            let keys = |wanted| part.iter().filter(move |(_, held)| *held == wanted).map(|(key, _)| *key);
            let (add, remove): (Vec<_>, Vec<_>) = (keys(true).collect(), keys(false).collect());
            self.change(CLAIMED, &add, &remove)?;
            for key in &remove {
                self.claimed.remove(key);
            }
            self.claimed.extend(add);
        }
        self.pending.clear();
        Ok(())
    }

    /// What is the host's own on a LAN from now on.
    pub(super) fn set_host_addresses(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        self.change(HOST, &beyond(addresses, &self.host), &beyond(&self.host, addresses))?;
        self.host = addresses.to_vec();
        Ok(())
    }

    /// What natbox owns from now on, beside the prefixes of the start.
    pub(super) fn set_owned_addresses(&mut self, addresses: &[Ipv4Addr]) -> io::Result<()> {
        self.change(OWNED, &beyond(addresses, &self.owned), &beyond(&self.owned, addresses))?;
        self.owned = addresses.to_vec();
        Ok(())
    }

    /// Adds and removes elements of a set in one step.
    fn change<const N: usize>(&mut self, set: &str, add: &[[u8; N]], remove: &[[u8; N]]) -> io::Result<()> {
        if add.is_empty() && remove.is_empty() {
            return Ok(());
        }
        let table = self.table.as_str();
        let mut batch = begin();
        for (kind, flags, keys) in [(NEWSETELEM, libc::NLM_F_CREATE, add), (DELSETELEM, 0, remove)] {
            for keys in keys.chunks(ELEMENTS) {
                batch.message(kind, flags, &IPV4, |message| {
                    message.name(1, table);
                    message.name(2, set);
                    message.nest(3, |list| {
                        for key in keys {
                            list.nest(1, |element| element.nest(1, |data| data.attribute(1, key)));
                        }
                    });
                });
            }
        }
        commit(&mut self.socket, batch)
    }
}

/// Those of `these` that are not among `those`.
fn beyond(these: &[Ipv4Addr], those: &[Ipv4Addr]) -> Vec<[u8; 4]> {
    these.iter().filter(|address| !those.contains(address)).map(Ipv4Addr::octets).collect()
}

/// `struct nfgenmsg`: the family, a version, and in a batch's frame the subsystem.
const IPV4: [u8; 4] = [2, 0, 0, 0];
const FRAME: [u8; 4] = [0, 0, 0, 10];

fn begin() -> Builder {
    let mut batch = Builder::default();
    batch.message(BATCH_BEGIN, 0, &FRAME, |_| ());
    batch
}

/// All of a batch takes effect, or nothing. The kernel has worked it off when the send returns.
fn commit(socket: &mut Socket, mut batch: Builder) -> io::Result<()> {
    batch.message(BATCH_END, 0, &FRAME, |_| ());
    socket.send(batch.bytes())?;
    socket.pending_error().map_or(Ok(()), Err)
}

fn chain(message: &mut Builder, table: &str) {
    message.name(1, table);
    message.name(3, CHAIN);
    message.nest(4, |hook| {
        hook.number(1, libc::NF_INET_PRE_ROUTING as u32);
        hook.number(2, PRIORITY.cast_unsigned());
    });
    message.number(5, libc::NF_ACCEPT as u32);
    message.name(7, "filter");
}

fn set(message: &mut Builder, table: &str, name: &str, (kind, len): (u32, u32), id: u32) {
    message.name(1, table);
    message.name(2, name);
    message.number(3, 0);
    message.number(4, kind);
    message.number(5, len);
    message.number(10, id);
}

type Rule = Box<dyn Fn(&mut Builder)>;

/// The same rules as the tcx program's, each for frames to an interface's own Ethernet address.
fn rules_of(rules: &Rules) -> Vec<Rule> {
    let mut list: Vec<Rule> = Vec::new();
    for interface in [rules.outside].into_iter().chain(rules.lans.iter().copied()) {
        for (address, len) in rules.owned.iter().copied() {
            list.push(Box::new(move |rule| {
                on_interface(rule, interface);
                load_destination(rule);
                bitwise(rule, &mask(len).to_be_bytes());
                compare(rule, &network(address, len).octets());
                drop_it(rule);
            }));
        }
        if !rules.owned.is_empty() {
            list.push(Box::new(move |rule| {
                on_interface(rule, interface);
                load_destination(rule);
                lookup(rule, OWNED, false);
                drop_it(rule);
            }));
        }
        if rules.lans.contains(&interface) {
            list.push(Box::new(move |rule| {
                on_interface(rule, interface);
                load_destination(rule);
                lookup(rule, HOST, true);
                drop_it(rule);
            }));
        }
        if !rules.shared.is_empty() {
            list.push(Box::new(move |rule| {
                on_interface(rule, interface);
                // The offset in fragments; a later one has no ports.
                payload(rule, REGISTERS[0], NETWORK, 6, 2);
                bitwise(rule, &[0x1f, 0xff]);
                compare(rule, &[0, 0]);
                load_destination(rule);
                meta(rule, META_L4PROTO, REGISTERS[1]);
                payload(rule, REGISTERS[2], TRANSPORT, 2, 2);
                lookup(rule, CLAIMED, false);
                drop_it(rule);
            }));
        }
    }
    list
}

const META_IIF: u32 = 4;
const META_L4PROTO: u32 = 16;
const META_PKTTYPE: u32 = 19;
const NETWORK: u32 = 1;
const TRANSPORT: u32 = 2;
const PACKET_HOST: u8 = 0;

fn on_interface(rule: &mut Builder, index: u32) {
    meta(rule, META_IIF, REGISTERS[0]);
    compare(rule, &index.to_ne_bytes());
    meta(rule, META_PKTTYPE, REGISTERS[0]);
    compare(rule, &[PACKET_HOST]);
}

fn load_destination(rule: &mut Builder) {
    payload(rule, REGISTERS[0], NETWORK, 16, 4);
}

fn expression(rule: &mut Builder, name: &str, data: impl FnOnce(&mut Builder)) {
    rule.nest(1, |element| {
        element.name(1, name);
        element.nest(2, data);
    });
}

fn meta(rule: &mut Builder, key: u32, to: u32) {
    expression(rule, "meta", |data| {
        data.number(1, to);
        data.number(2, key);
    });
}

fn payload(rule: &mut Builder, to: u32, base: u32, offset: u32, len: u32) {
    expression(rule, "payload", |data| {
        data.number(1, to);
        data.number(2, base);
        data.number(3, offset);
        data.number(4, len);
    });
}

/// The first register `&= with`.
fn bitwise(rule: &mut Builder, with: &[u8]) {
    expression(rule, "bitwise", |data| {
        data.number(1, REGISTERS[0]);
        data.number(2, REGISTERS[0]);
        data.number(3, with.len() as u32);
        data.nest(4, |value| value.attribute(1, with));
        data.nest(5, |value| value.attribute(1, &[0; 4][..with.len()]));
    });
}

/// Goes on only if the first register is `value`.
fn compare(rule: &mut Builder, value: &[u8]) {
    expression(rule, "cmp", |data| {
        data.number(1, REGISTERS[0]);
        data.number(2, 0);
        data.nest(3, |nest| nest.attribute(1, value));
    });
}

/// Goes on only if what begins in the first register is in the set, or is not.
fn lookup(rule: &mut Builder, set: &str, unless: bool) {
    expression(rule, "lookup", |data| {
        data.name(1, set);
        data.number(2, REGISTERS[0]);
        data.number(5, unless.into());
    });
}

fn drop_it(rule: &mut Builder) {
    expression(rule, "immediate", |data| {
        data.number(1, 0);
        data.nest(2, |value| value.nest(2, |verdict| verdict.number(1, libc::NF_DROP as u32)));
    });
}
