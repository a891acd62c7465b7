//! Peers that do not keep to the rules of forwarding, on either side. What they say is written here byte by byte, as
//! docs/forward.md has it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv6Addr, TcpListener},
    process::Stdio,
    time::Duration,
};

use crate::common::{Program, World, wait_until};
use crate::services::{connect, echo, free_port, peak_memory, udp, udp_echo};
use traversal::{Connection, RecvStream, SendStream};

const FORWARD: u8 = 4;
const TCP: u8 = 0;
const UDP: u8 = 1;

/// Answers: of the service alone, and with what follows it.
const YES: &[u8] = &[0, 1, 0, 1, 0];
const NOT_ALLOWED: &[u8] = &[0, 1, 0, 2, 1, 0];
const NOT_UNDERSTOOD: &[u8] = &[0, 1, 0, 2, 1, 1];
const TOO_MANY: &[u8] = &[0, 1, 0, 2, 1, 2];

fn message(body: &[u8]) -> Vec<u8> {
    [&[FORWARD, 1][..], &u16::try_from(body.len()).unwrap().to_be_bytes(), body].concat()
}

/// A number as postcard has it: seven bits a byte, the lowest first.
fn number(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
    bytes
}

fn open(transport: u8, host: &[u8], port: u16) -> Vec<u8> {
    message(&[&[0, transport, 0][..], host, &number(port.into())].concat())
}

fn v4(address: [u8; 4]) -> Vec<u8> {
    [&[0, 0][..], &address].concat()
}

fn v6(address: &str) -> Vec<u8> {
    [&[0, 1][..], &address.parse::<Ipv6Addr>().unwrap().octets()].concat()
}

fn name(name: &str) -> Vec<u8> {
    [&[1][..], &number(name.len() as u32), name.as_bytes()].concat()
}

/// Opens a stream that begins with these bytes.
async fn begin(connection: &Connection, bytes: &[u8]) -> (SendStream, RecvStream) {
    let opened = tokio::time::timeout(Duration::from_secs(30), connection.open_bi()).await;
    let (mut send, receive) = opened.expect("a stream more").unwrap();
    send.write_all(bytes).await.unwrap();
    (send, receive)
}

/// What is answered to these bytes, as far as `wanted` is long.
async fn answered(connection: &Connection, bytes: &[u8], wanted: &[u8]) -> Vec<u8> {
    let (_send, mut receive) = begin(connection, bytes).await;
    let mut answer = vec![0; wanted.len()];
    receive.read_exact(&mut answer).await.unwrap();
    answer
}

/// `traverse expose --json`, when it does, and its id.
fn expose(world: &World, arguments: &[&str]) -> (Program, traversal::PeerId) {
    let program = world.start("s", &[&["expose", "--json"], arguments].concat(), Stdio::null());
    program.tells("\"exposing\"");
    let told: serde_json::Value =
        serde_json::from_str(program.said().lines().find(|line| line.contains("\"exposing\"")).unwrap())
            .unwrap();
    let id = told["id"].as_str().unwrap().parse().unwrap();
    (program, id)
}

/// A server that must not be reached.
struct Secret(TcpListener);

impl Secret {
    fn new() -> Secret {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Secret(listener)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    #[track_caller]
    fn is_kept(&self) {
        assert_eq!(self.0.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "somebody was there");
    }
}

#[test]
fn nothing_slips_past_the_list() {
    let world = World::new("list");
    let (secret, allowed) = (Secret::new(), echo());
    let (port, hidden) = (allowed.port(), secret.port());
    let (_exposing, id) = expose(&world, &[&allowed.to_string()]);
    let local = [127, 0, 0, 1];
    let listen = |at: &[u8]| message(&[&[2, 0, 0][..], at, &number(8080)].concat());
    let cases = [
        ("what is allowed", open(TCP, &v4(local), port), YES),
        ("the same in other words", open(TCP, &v6("::ffff:127.0.0.1"), port), YES),
        ("the same by its name", open(TCP, &name("localhost"), port), YES),
        ("another port", open(TCP, &v4(local), hidden), NOT_ALLOWED),
        ("another port, v4-mapped", open(TCP, &v6("::ffff:127.0.0.1"), hidden), NOT_ALLOWED),
        ("another port, v4-compatible", open(TCP, &v6("::127.0.0.1"), hidden), NOT_ALLOWED),
        ("another port by name", open(TCP, &name("LocalHost."), hidden), NOT_ALLOWED),
        ("IPv6's loopback", open(TCP, &v6("::1"), port), NOT_ALLOWED),
        ("any address, which is this machine", open(TCP, &v4([0; 4]), hidden), NOT_ALLOWED),
        ("any address, the allowed port", open(TCP, &v4([0; 4]), port), NOT_ALLOWED),
        ("any address, v4-mapped", open(TCP, &v6("::ffff:0.0.0.0"), hidden), NOT_ALLOWED),
        ("the rest of loopback", open(TCP, &v4([127, 0, 0, 2]), port), NOT_ALLOWED),
        ("the other transport", open(UDP, &v4(local), port), NOT_ALLOWED),
        ("a name that may lead anywhere", open(TCP, &name("evil.example"), port), NOT_ALLOWED),
        ("this machine's name", open(TCP, &name("ip6-loopback"), port), NOT_ALLOWED),
        ("an address as a name", open(TCP, &name("127.0.0.1"), port), NOT_UNDERSTOOD),
        ("half an address", open(TCP, &name("127.1"), port), NOT_UNDERSTOOD),
        ("an address as one number", open(TCP, &name("2130706433"), port), NOT_UNDERSTOOD),
        ("in hexadecimal", open(TCP, &name("0x7f.1"), port), NOT_UNDERSTOOD),
        ("a name with an end in it", open(TCP, &name("localhost\0.example"), port), NOT_UNDERSTOOD),
        ("no name", open(TCP, &name(""), port), NOT_UNDERSTOOD),
        ("a name too long", open(TCP, &name(&"x.".repeat(128)), port), NOT_UNDERSTOOD),
        ("port 0", open(TCP, &v4(local), 0), NOT_ALLOWED),
        ("a listener's target", message(&[0, TCP, 1, 0]), NOT_ALLOWED),
        ("listening", listen(&[0, 127, 0, 0, 1]), NOT_ALLOWED),
        ("listening everywhere", listen(&[0, 0, 0, 0, 0]), NOT_ALLOWED),
        ("checking", message(&[&[1, 0][..], &v4(local), &number(hidden.into())].concat()), NOT_ALLOWED),
        ("a request that there is not", message(&[9]), NOT_UNDERSTOOD),
        ("nothing", message(&[]), NOT_UNDERSTOOD),
        ("more than a request", [open(TCP, &v4(local), port), vec![0]].concat(), YES),
        ("another version", vec![FORWARD, 2, 0, 0], NOT_UNDERSTOOD),
        ("a message without an end", vec![FORWARD, 1, 0xff, 0xff], NOT_UNDERSTOOD),
        ("another service", vec![200], &[1]),
        ("a pipe", vec![2], &[1]),
    ];
    world.runtime.block_on(async {
        let node = world.node().await;
        let connection = node.connect(id).await.unwrap();
        for (what, bytes, wanted) in cases {
            assert_eq!(answered(&connection, &bytes, wanted).await, wanted, "{what}");
        }
    });
    secret.is_kept();
}

#[test]
fn a_flood_is_bounded_and_others_are_served() {
    const MOST: usize = 1024;
    let world = World::new("flood");
    let (target, datagrams) = (echo(), udp_echo());
    let (exposing, id) = expose(&world, &[&target.to_string(), &format!("udp:{datagrams}")]);
    let local = free_port();
    let words = ["forward", "--local", &local.to_string(), &id.to_string(), &target.to_string()];
    let honest = world.start("b", &words, Stdio::null());
    honest.tells("leads to");
    // Held until the end: what is not sent yet would be lost.
    let _flood = world.runtime.block_on(async {
        let node = world.node().await;
        let connection = node.connect(id).await.unwrap();
        let mut kept = Vec::new();
        for count in 0..MOST + 20 {
            let wanted = if count < MOST { YES } else { TOO_MANY };
            let mut streams = begin(&connection, &open(UDP, &v4([127, 0, 0, 1]), datagrams.port())).await;
            let mut answer = vec![0; wanted.len()];
            streams.1.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, wanted, "flow {count}");
            if count < MOST {
                kept.push(streams);
            }
        }
        let mut tcp = Vec::new();
        for count in 0..256 + 20 {
            let wanted = if count < 256 { YES } else { TOO_MANY };
            let mut streams = begin(&connection, &open(TCP, &v4([127, 0, 0, 1]), target.port())).await;
            let mut answer = vec![0; wanted.len()];
            streams.1.read_exact(&mut answer).await.unwrap();
            assert_eq!(answer, wanted, "connection {count}");
            if count < 256 {
                tcp.push(streams);
            }
        }
        // Headers without an end, packets that are too long, flows that nobody knows.
        for bytes in [&[FORWARD][..], &[FORWARD, 1], &[FORWARD, 1, 2, 0, 0], &[]].repeat(10) {
            kept.push(begin(&connection, bytes).await);
        }
        let (send, receive) = &mut kept[0];
        send.write_all(&[0xff, 0xfe, 0, 0]).await.unwrap();
        assert!(receive.read_to_end(1000).await.is_err(), "a packet of 65,534 bytes is taken");
        for number in 0..2000u32 {
            let datagram = [&[0xc0][..], &number.to_be_bytes(), &number.to_le_bytes()].concat();
            connection.send_datagram(datagram[..(number as usize % 9)].to_vec()).unwrap();
        }
        (node, connection, kept, tcp)
    });
    let unknown = || {
        let said = exposing.said();
        let counts = said.split("\"unknown_flow\":").skip(1).filter_map(|rest| rest.split([',', '}']).next());
        counts.filter_map(|count| count.parse::<u64>().ok()).max().unwrap_or(0)
    };
    assert!(wait_until(|| unknown() >= 100), "{} of an unknown flow", unknown());
    let mut client = connect(local);
    client.write_all(b"honest").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    let peak = peak_memory(exposing.id());
    assert!(peak < 96 << 20, "{peak} bytes of memory");
}

#[test]
fn any_bytes_at_all() {
    let world = World::new("bytes");
    let target = echo();
    let (exposing, id) = expose(&world, &[&target.to_string()]);
    world.runtime.block_on(async {
        let node = world.node().await;
        let connection = node.connect(id).await.unwrap();
        let mut seed = 1u64;
        for count in 0..500 {
            let mut bytes = vec![FORWARD, 1, 0];
            for _ in 0..count % 40 {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                bytes.push((seed >> 56) as u8 % 8);
            }
            let (mut send, mut receive) = begin(&connection, &bytes).await;
            // It may have been refused already.
            let _ = send.finish();
            // An answer, or a reset; never more than that.
            let _ = receive.read_to_end(100).await;
        }
        let open = open(TCP, &v4([127, 0, 0, 1]), target.port());
        assert_eq!(answered(&connection, &open, YES).await, YES);
    });
    assert!(!exposing.said().contains("panicked"), "{}", exposing.said());
}

/// The other side: who is forwarded to asks for more than it was offered.
#[test]
fn who_forwards_gives_nothing_but_what_it_offered() {
    let world = World::new("exposer");
    let (secret, offered) = (Secret::new(), echo());
    let local = free_port();
    world.runtime.block_on(async {
        let node = world.node().await;
        let (tcp, back) = (format!("{local}=127.0.0.1:80"), format!("9=127.0.0.1:{}", offered.port()));
        let udp_local = free_port();
        let flow = format!("udp:{udp_local}=127.0.0.1:53");
        let words = ["forward", "--local", &tcp, "--local", &flow, "--remote", &back, &node.id().to_string()];
        let forwarding = world.start("a", &words, Stdio::null());
        let connection = node.accept().await.unwrap();
        let mut asked = Vec::new();
        for length in [14, 14, 14] {
            let (mut send, mut receive) = connection.accept_bi().await.unwrap();
            receive.read_exact(&mut vec![0; length - 1]).await.unwrap();
            send.write_all(YES).await.unwrap();
            asked.push((send, receive));
        }
        tokio::task::block_in_place(|| forwarding.tells("leads to"));
        for (what, bytes, wanted) in [
            ("its offer", message(&[0, TCP, 1, 0]), YES),
            ("another one", message(&[0, TCP, 1, 1]), NOT_ALLOWED),
            ("its offer by UDP", message(&[0, UDP, 1, 0]), NOT_ALLOWED),
            ("a target of its own", open(TCP, &v4([127, 0, 0, 1]), secret.port()), NOT_ALLOWED),
            ("what is offered, by its address", open(TCP, &v4([127, 0, 0, 1]), offered.port()), NOT_ALLOWED),
            ("a port", message(&[&[2, 0, 0, 0, 127, 0, 0, 1][..], &number(8080)].concat()), NOT_ALLOWED),
            ("nonsense", message(&[7; 40]), NOT_UNDERSTOOD),
        ] {
            assert_eq!(answered(&connection, &bytes, wanted).await, wanted, "{what}");
        }
        // Answers that are none: the client is cut off, and the next one is served.
        for answer in [&[0, 1, 0, 1, 9][..], &[0, 9], &[7], &[0, 1, 0xff, 0xff], &[]] {
            let client = tokio::task::spawn_blocking(move || {
                let mut client = connect(local);
                client.write_all(b"?").unwrap();
                client.read(&mut [0]).unwrap_err().kind()
            });
            let (mut send, _receive) = connection.accept_bi().await.unwrap();
            send.write_all(answer).await.unwrap();
            send.finish().unwrap();
            assert_eq!(client.await.unwrap(), ErrorKind::ConnectionReset);
        }
        // Datagrams for nobody, and a flow whose packets are too long.
        for datagram in [&[][..], &[0], &[0xff; 8], &[0x40], &[1, 2, 3]] {
            connection.send_datagram(datagram.to_vec()).unwrap();
        }
        let client = udp();
        client.send_to(b"?", udp_local).unwrap();
        let (mut send, receive) = connection.accept_bi().await.unwrap();
        send.write_all(&[YES, &[0xff, 0xfe, 1, 2, 3]].concat()).await.unwrap();
        assert_eq!(send.stopped().await.unwrap(), Some(0x20u32.into()));
        drop(receive);

        let client = tokio::task::spawn_blocking(move || {
            let mut client = connect(local);
            client.read_exact(&mut [0; 2]).unwrap();
        });
        let (mut send, _receive) = connection.accept_bi().await.unwrap();
        send.write_all(&[YES, b"ok"].concat()).await.unwrap();
        client.await.unwrap();
        assert!(!forwarding.said().contains("panicked"), "{}", forwarding.said());
    });
    secret.is_kept();
}
