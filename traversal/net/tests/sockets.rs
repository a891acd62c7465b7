//! The kernel's socket and the virtual one keep datagrams whole, in order and apart.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{future::poll_fn, io::IoSliceMut, net::SocketAddr, task::Poll, time::Duration};

use bytes::Bytes;
use proptest::prelude::*;
use tokio::time::timeout;
use traversal_net::{
    RecvMeta, Stop, Transmit,
    memory::MemoryNet,
    socket::{DatagramSocket, Inbound, Sink},
    udp::{BATCH_SIZE, Bind, KernelSocket, RecvBatch},
};

const SOON: Duration = Duration::from_secs(10);

fn transmit(destination: SocketAddr, contents: &[u8], segment_size: Option<usize>) -> Transmit<'_> {
    Transmit { destination, ecn: None, contents, segment_size, src_ip: None }
}

/// The next datagrams, at least `wanted` of them, each with its source.
async fn receive(socket: &dyn DatagramSocket, wanted: usize) -> Vec<(SocketAddr, Vec<u8>)> {
    let mut batch = RecvBatch::new(socket, BATCH_SIZE, 2048);
    let mut received = Vec::new();
    while received.len() < wanted {
        let count = poll_fn(|cx| batch.poll_recv(socket, cx));
        let count = timeout(SOON, count).await.expect("datagrams are missing").unwrap();
        for (meta, train) in batch.trains(count) {
            received.extend(train.chunks(meta.stride.max(1)).map(|datagram| (meta.addr, datagram.to_vec())));
        }
    }
    received
}

async fn send(socket: &dyn DatagramSocket, transmit: Transmit<'_>) {
    while let Err(error) = socket.try_send(&transmit) {
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        timeout(SOON, poll_fn(|cx| socket.poll_writable(cx))).await.expect("never writable").unwrap();
    }
}

/// A train of ten and a half datagrams goes out in one call and comes back datagram by datagram, over IPv4, IPv6, and
/// from IPv4 to a dual-stack socket that sees an IPv4 address.
#[tokio::test]
async fn trains_arrive_whole() {
    for (server, client, target) in
        [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("::1", "::1", "::1"), ("::", "127.0.0.1", "127.0.0.1")]
    {
        let bind = |ip: &str| KernelSocket::bind(Bind::new(SocketAddr::new(ip.parse().unwrap(), 0))).unwrap();
        let (server, client) = (bind(server), bind(client));
        let to = SocketAddr::new(target.parse().unwrap(), server.local_addr().unwrap().port());
        let bytes: Vec<u8> = (0..10_500u32).map(|n| (n / 1000) as u8).collect();
        send(&client, transmit(to, &bytes, Some(1000))).await;
        let received = receive(&server, 11).await;
        assert_eq!(received.len(), 11);
        for (n, (from, datagram)) in received.iter().enumerate() {
            assert_eq!(*from, client.local_addr().unwrap());
            assert_eq!(*datagram, vec![n as u8; if n < 10 { 1000 } else { 500 }]);
        }
        // And back, from the dual-stack socket to an IPv4 address.
        send(&server, transmit(received[0].0, &bytes, Some(1000))).await;
        assert_eq!(receive(&client, 11).await.len(), 11);
    }
}

/// Many at once: singles and trains, one that no way leads to, one that is too long. Each counts where it belongs, and
/// what can arrive arrives in order.
#[tokio::test]
async fn many_are_sent_at_once() {
    let bind = |ip: &str| KernelSocket::bind(Bind::new(SocketAddr::new(ip.parse().unwrap(), 0))).unwrap();
    for (server, client, target) in
        [("127.0.0.1", "127.0.0.1", "127.0.0.1"), ("127.0.0.1", "::", "127.0.0.1")]
    {
        let (server, client) = (bind(server), bind(client));
        let to = SocketAddr::new(target.parse().unwrap(), server.local_addr().unwrap().port());
        let nowhere = SocketAddr::new(target.parse().unwrap(), 0);
        let (train, long) = ([7; 250], vec![0; 65_530]);
        let mut transmits = vec![transmit(to, &train, Some(100)), transmit(nowhere, b"x", None)];
        let singles: Vec<[u8; 2]> = (0..100u8).map(|n| [n, n]).collect();
        transmits.extend(singles.iter().map(|single| transmit(to, single, None)));
        transmits.insert(50, transmit(to, &long, None));
        let sent = client.try_send_many(&transmits);
        assert_eq!((sent.packets, sent.blocked, sent.refused), (3 + 100 + 1, 0, 1));
        assert!(sent.calls < 20 || cfg!(not(target_os = "linux")), "{} calls", sent.calls);
        let received = receive(&server, 103).await;
        let lengths: Vec<usize> = received.iter().map(|(_, datagram)| datagram.len()).collect();
        assert_eq!(lengths[..4], [100, 100, 50, 2]);
        assert!(received[3..].iter().map(|(_, datagram)| datagram[0]).eq(0..100));
    }
}

/// A thread waits for datagrams, and ends when it is told to.
#[cfg(unix)]
#[tokio::test]
async fn a_thread_receives_until_it_is_stopped() {
    let socket = KernelSocket::bind(Bind::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let to = socket.local_addr().unwrap();
    let mut batch = RecvBatch::new(&socket, BATCH_SIZE, 2048);
    assert_eq!(batch.try_recv(&socket).unwrap_err().kind(), std::io::ErrorKind::WouldBlock);
    let (stop, heard) = (Stop::new().unwrap(), std::sync::mpsc::channel());
    let thread = std::thread::spawn({
        let stop = stop.clone();
        move || {
            while stop.wait_readable(&socket).unwrap() {
                let count = batch.try_recv(&socket).unwrap();
                heard.0.send(batch.trains(count).map(|(_, train)| train.len()).sum::<usize>()).unwrap();
            }
        }
    });
    let client = KernelSocket::bind(Bind::new("127.0.0.1:0".parse().unwrap())).unwrap();
    for length in 1..10 {
        client.try_send(&transmit(to, &vec![0; length], None)).unwrap();
        assert_eq!(heard.1.recv_timeout(SOON).unwrap(), length);
    }
    stop.signal();
    thread.join().unwrap();
}

#[tokio::test]
async fn an_address_in_use_is_told() {
    let first = KernelSocket::bind(Bind::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let error = KernelSocket::bind(Bind::new(first.local_addr().unwrap())).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

/// A datagram too long for any way is lost; the socket stays good.
#[tokio::test]
async fn too_long_is_lost_without_an_error() {
    let socket = KernelSocket::bind(Bind::new("127.0.0.1:0".parse().unwrap())).unwrap();
    let to = socket.local_addr().unwrap();
    socket.try_send(&transmit(to, b"first", None)).expect("a new socket sends at once");
    assert_eq!(receive(&socket, 1).await[0].1, b"first");
    send(&socket, transmit(to, &vec![0; 65_530], None)).await;
    send(&socket, transmit(to, b"short", None)).await;
    assert_eq!(receive(&socket, 1).await[0].1, b"short");
}

#[tokio::test(start_paused = true)]
async fn a_network_in_memory_takes_its_time() {
    let network = MemoryNet::new(Duration::from_millis(30));
    let (a, b) = ("192.0.2.1:1".parse().unwrap(), "192.0.2.2:2".parse().unwrap());
    let (near, far) = (network.socket(a), network.socket(b));
    let start = tokio::time::Instant::now();
    near.try_send(&transmit(b, b"onetwothr", Some(3))).unwrap();
    let received = receive(&far, 3).await;
    assert_eq!(received, [(a, b"one".to_vec()), (a, b"two".to_vec()), (a, b"thr".to_vec())]);
    assert_eq!(start.elapsed(), Duration::from_millis(30));
}

#[tokio::test]
async fn a_full_queue_drops_and_counts() {
    let inbound = Inbound::new(1000);
    let from = "192.0.2.1:1".parse().unwrap();
    let taken = (0..100).filter(|_| inbound.push_slice(from, &[])).count();
    assert_eq!(taken, 7, "empty datagrams take room as well");
    assert_eq!(inbound.dropped(), 93);
    inbound.close();
    assert!(!inbound.push_slice(from, b"late"));
}

proptest! {
    /// Whatever is pushed in comes out: the same datagrams in the same order, however the buffers are cut.
    #[test]
    fn a_queue_keeps_datagrams_apart(
        pushed in proptest::collection::vec((0u8..2, 1usize..40, 1usize..120), 1..40),
        room in 40usize..400,
        buffers in 1usize..4,
    ) {
        let inbound = Inbound::new(1 << 20);
        let mut expected = Vec::new();
        for (n, (source, stride, length)) in pushed.into_iter().enumerate() {
            let from = SocketAddr::from(([192, 0, 2, source], 9));
            let bytes = vec![n as u8; length];
            expected.extend(bytes.chunks(stride).map(|datagram| (from, datagram.to_vec())));
            let meta = RecvMeta { addr: from, len: length, stride, ecn: None, dst_ip: None };
            prop_assert!(inbound.push_train(meta, Bytes::from(bytes)));
        }
        inbound.close();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut received = Vec::new();
        runtime.block_on(poll_fn(|cx| {
            loop {
                let mut space = vec![vec![0; room]; buffers];
                let mut metas = vec![RecvMeta::default(); buffers];
                let mut slices: Vec<_> = space.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
                let Poll::Ready(result) = inbound.poll_recv(cx, &mut slices, &mut metas) else { panic!("closed") };
                let Ok(count) = result else { return Poll::Ready(()) };
                for (meta, buffer) in metas.iter().zip(&space).take(count) {
                    received.extend(buffer[..meta.len].chunks(meta.stride).map(|datagram| (meta.addr, datagram.to_vec())));
                }
            }
        }));
        prop_assert_eq!(received, expected);
    }
}

/// Several sockets share an address that nobody else can have; between them they receive everything.
#[tokio::test]
async fn shards_share_an_address_among_themselves_only() {
    let bind = Bind::new("127.0.0.1:0".parse().unwrap());
    let shards = KernelSocket::bind_shards(bind, 3).unwrap();
    let to = shards[0].local_addr().unwrap();
    assert!(shards.iter().all(|shard| shard.local_addr().unwrap() == to));
    let error = KernelSocket::bind_shards(Bind { address: to, ..bind }, 3).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    let mut clients = Vec::new();
    for _ in 0..30 {
        let client = KernelSocket::bind(bind).unwrap();
        send(&client, transmit(to, b"hello", None)).await;
        clients.push(client.local_addr().unwrap());
    }
    let mut batches: Vec<_> = shards.iter().map(|shard| RecvBatch::new(shard, 4, 2048)).collect();
    let mut heard = Vec::new();
    let all = poll_fn(|cx| {
        for (shard, batch) in shards.iter().zip(&mut batches) {
            while let Poll::Ready(count) = batch.poll_recv(shard, cx) {
                heard.extend(batch.trains(count.unwrap()).map(|(meta, _)| meta.addr));
            }
        }
        if heard.len() == clients.len() { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(SOON, all).await.expect("datagrams are missing");
    heard.sort();
    clients.sort();
    assert_eq!(heard, clients);
}
