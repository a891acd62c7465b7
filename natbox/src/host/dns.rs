//! Whether names resolve behind the NAT.
//!
//! Many hosts resolve through a daemon on a loopback address, which a namespace of its own cannot reach. Such daemons
//! leave the list of the real name servers in a file beside.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
};

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where resolvers on the host write down the name servers that they ask themselves.
const UPSTREAMS: [&str; 3] = [
    "/run/systemd/resolve/resolv.conf",
    "/run/NetworkManager/no-stub-resolv.conf",
    "/run/resolvconf/resolv.conf",
];

/// What a namespace behind the NAT needs to resolve names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dns {
    /// Nothing: the host's configuration names a server that can be reached from there.
    AsItIs,
    /// This file in the place of `/etc/resolv.conf`.
    Replace(PathBuf),
    /// It cannot be had, for this reason.
    None(String),
}

/// Looks at the files of this machine; `own` are the addresses of the host, which the NAT does not lead to.
pub(crate) fn find(own: &[Ipv4Addr]) -> Dns {
    choose(own, RESOLV_CONF.as_ref(), UPSTREAMS.map(Path::new).as_slice())
}

fn choose(own: &[Ipv4Addr], resolv_conf: &Path, upstreams: &[&Path]) -> Dns {
    let text = match fs::read_to_string(resolv_conf) {
        Ok(text) => text,
        Err(error) => return Dns::None(format!("{} cannot be read: {error}", resolv_conf.display())),
    };
    if reachable(&text, own) {
        return Dns::AsItIs;
    }
    let better =
        upstreams.iter().find(|path| fs::read_to_string(path).is_ok_and(|text| reachable(&text, own)));
    match better {
        Some(path) => Dns::Replace(path.to_path_buf()),
        None => Dns::None(format!(
            "{} names no IPv4 server outside this host ({}), and neither does {}",
            resolv_conf.display(),
            servers(&text).collect::<Vec<_>>().join(", "),
            upstreams.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" or ")
        )),
    }
}

/// Whether one of the name servers is beyond the NAT.
fn reachable(text: &str, own: &[Ipv4Addr]) -> bool {
    servers(text).any(|server| match server.parse() {
        Ok(IpAddr::V4(server)) => !server.is_loopback() && !server.is_unspecified() && !own.contains(&server),
        _ => false,
    })
}

fn servers(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("nameserver")).then(|| words.next()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 0, 2, 1)];

    #[test]
    fn only_servers_beyond_the_nat_count() {
        for (text, expected) in [
            ("nameserver 192.0.2.53\n", true),
            ("# nameserver 192.0.2.53\n", false),
            ("search example.org\nnameserver 127.0.0.53\noptions edns0", false),
            ("nameserver 127.0.0.53\nnameserver\t198.51.100.1", true),
            ("nameserver 192.0.2.1", false),
            ("nameserver 0.0.0.0", false),
            ("nameserver 2001:db8::1", false),
            ("nameserver", false),
            ("", false),
        ] {
            assert_eq!(reachable(text, &OWN), expected, "{text:?}");
        }
    }

    #[test]
    fn a_loopback_resolver_is_replaced_by_its_upstreams() {
        let folder = std::env::temp_dir().join(format!("natbox-dns-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (stub, real, none) = (folder.join("stub"), folder.join("real"), folder.join("none"));
        fs::write(&stub, "nameserver 127.0.0.53\n").unwrap();
        fs::write(&real, "nameserver 198.51.100.1\n").unwrap();
        let replaced = choose(&OWN, &stub, &[&none, &stub, &real]);
        let direct = choose(&OWN, &real, &[]);
        let (lost, absent) = (choose(&OWN, &stub, &[&stub]), choose(&OWN, &none, &[&real]));
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(replaced, Dns::Replace(real));
        assert_eq!(direct, Dns::AsItIs);
        assert!(matches!(lost, Dns::None(why) if why.contains("(127.0.0.53)")));
        assert!(matches!(absent, Dns::None(why) if why.contains("cannot be read")));
    }
}
