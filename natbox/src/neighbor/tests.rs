use super::*;

const US: Mac = [2, 0, 0, 0, 0, 1];
const GATEWAY_MAC: Mac = [2, 0, 0, 0, 0, 0xfe];
const HOST_MAC: Mac = [2, 0, 0, 0, 0, 5];
const OWN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const POOL: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 254);
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 5);
const FAR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
const PACKET: &[u8] = &[0x45, 1, 2, 3];

fn route(net: [u8; 4], len: u8, gateway: Option<Ipv4Addr>, metric: u32) -> Route {
    Route { destination: (net.into(), len), gateway, metric }
}

fn link() -> Neighbors {
    Neighbors::new(NeighborConfig {
        mac: US,
        speak_as: vec![(OWN, 24)],
        owned: Vec::new(),
        routes: vec![route([0; 4], 0, Some(GATEWAY), 0), route([192, 0, 2, 0], 24, None, 0)],
    })
}

fn at(millis: u64) -> Time {
    Time::ZERO + Duration::from_millis(millis)
}

fn deliver(link: &mut Neighbors, to: Ipv4Addr, now: Time) -> Delivery {
    link.deliver(to, PACKET, Offload::default(), now)
}

fn arps(link: &mut Neighbors) -> Vec<(Mac, Arp)> {
    let mut all = Vec::new();
    while let Some(frame) = link.poll_transmit() {
        assert_eq!(frame.protocol, ETHERTYPE_ARP);
        all.push((frame.to, Arp::parse(&frame.packet).unwrap()));
    }
    all
}

fn says(operation: Operation, sender: Ipv4Addr, sender_mac: Mac, target: Ipv4Addr) -> [u8; 28] {
    Arp { operation, sender_mac, sender, target_mac: [0; 6], target }.to_bytes()
}

/// A link on which the gateway has answered at time 0.
fn resolved() -> Neighbors {
    let mut link = link();
    assert_eq!(deliver(&mut link, FAR, at(0)), Delivery::Held);
    link.handle_arp(&says(Operation::Reply, GATEWAY, GATEWAY_MAC, OWN), at(0));
    while link.poll_transmit().is_some() {}
    link
}

#[test]
fn packets_wait_for_the_gateway_and_go_out_in_order() {
    let mut link = link();
    let offload = Offload { checksum: natbox_core::packet::Checksum::Verified, gso: None };
    assert_eq!(link.deliver(FAR, PACKET, offload, at(0)), Delivery::Held);
    assert_eq!(link.deliver(FAR, &[0x45], Offload::default(), at(1)), Delivery::Held);
    let asked = arps(&mut link);
    assert_eq!(asked.len(), 1, "one request for both");
    assert_eq!((asked[0].0, asked[0].1.sender, asked[0].1.target), (BROADCAST, OWN, GATEWAY));
    link.handle_arp(&says(Operation::Reply, GATEWAY, GATEWAY_MAC, OWN), at(2));
    let first = link.poll_transmit().unwrap();
    assert_eq!((first.to, first.offload, &*first.packet), (GATEWAY_MAC, offload, PACKET));
    assert_eq!(&*link.poll_transmit().unwrap().packet, [0x45]);
    assert_eq!(link.poll_transmit(), None);
    assert_eq!(deliver(&mut link, FAR, at(3)), Delivery::To(GATEWAY_MAC));
    assert_eq!((link.poll_timeout(), link.take_dropped()), (None, 0));
}

#[test]
fn the_longest_prefix_and_then_the_smallest_metric_choose() {
    let other = Ipv4Addr::new(192, 0, 2, 253);
    let mut link = link();
    link.set_routes(vec![
        route([0; 4], 0, Some(GATEWAY), 100),
        route([0; 4], 0, Some(other), 50),
        route([203, 0, 113, 0], 24, Some(HOST), 500),
        route([192, 0, 2, 0], 24, None, 0),
    ]);
    assert_eq!(link.next_hop(FAR), Some(HOST));
    assert_eq!(link.next_hop(Ipv4Addr::new(8, 8, 8, 8)), Some(other));
    assert_eq!(link.next_hop(HOST), Some(HOST));
    link.set_routes(Vec::new());
    assert_eq!(deliver(&mut link, FAR, at(0)), Delivery::NoRoute);
    assert_eq!(link.take_dropped(), 1);
}

#[test]
fn new_routes_take_effect_at_once() {
    let mut link = resolved();
    assert_eq!(deliver(&mut link, FAR, at(1)), Delivery::To(GATEWAY_MAC));
    link.set_routes(vec![route([0; 4], 0, Some(HOST), 0)]);
    assert_eq!(deliver(&mut link, FAR, at(2)), Delivery::Held);
}

#[test]
fn a_silent_neighbour_is_asked_three_times_and_given_up() {
    let mut link = link();
    deliver(&mut link, FAR, at(0));
    let mut requests = arps(&mut link).len();
    for second in 1..=3 {
        assert_eq!(link.poll_timeout(), Some(at(second * 1000)));
        link.handle_timeout(at(second * 1000 - 1));
        assert_eq!(arps(&mut link).len(), 0, "too early");
        link.handle_timeout(at(second * 1000));
        requests += arps(&mut link).len();
    }
    assert_eq!((requests, link.poll_timeout(), link.take_dropped()), (3, None, 1));
    assert_eq!(deliver(&mut link, FAR, at(4000)), Delivery::Held);
    assert_eq!(arps(&mut link).len(), 1, "asked anew");
}

#[test]
fn a_stale_neighbour_is_used_while_it_is_asked_again() {
    let mut link = resolved();
    assert_eq!(deliver(&mut link, FAR, at(29_999)), Delivery::To(GATEWAY_MAC));
    assert!(arps(&mut link).is_empty());
    assert_eq!(deliver(&mut link, FAR, at(30_000)), Delivery::To(GATEWAY_MAC));
    let asked = arps(&mut link);
    assert_eq!((asked.len(), asked[0].0), (1, GATEWAY_MAC), "itself, not everybody");
    assert_eq!(deliver(&mut link, FAR, at(30_001)), Delivery::To(GATEWAY_MAC));
    assert!(arps(&mut link).is_empty(), "once a second");
    link.handle_timeout(at(31_000));
    assert_eq!(arps(&mut link)[0].0, BROADCAST);
    let moved = [2, 0, 0, 0, 0, 0xfd];
    link.handle_arp(&says(Operation::Reply, GATEWAY, moved, OWN), at(31_001));
    assert_eq!(deliver(&mut link, FAR, at(31_002)), Delivery::To(moved));
}

#[test]
fn what_nobody_asked_for_is_not_believed_but_checked() {
    let mut link = resolved();
    let liar = [2, 0, 0, 0, 0, 0x66];
    for claim in
        [says(Operation::Reply, GATEWAY, liar, OWN), says(Operation::Request, GATEWAY, liar, GATEWAY)]
    {
        link.handle_arp(&claim, at(10));
        assert_eq!(deliver(&mut link, FAR, at(11)), Delivery::To(GATEWAY_MAC));
    }
    assert_eq!(
        arps(&mut link),
        [(
            BROADCAST,
            Arp {
                operation: Operation::Request,
                sender_mac: US,
                sender: OWN,
                target_mac: [0; 6],
                target: GATEWAY
            }
        )]
    );
    link.handle_arp(&says(Operation::Reply, HOST, HOST_MAC, OWN), at(12));
    assert_eq!(deliver(&mut link, HOST, at(13)), Delivery::Held, "a stranger's answer");
}

#[test]
fn owned_addresses_are_announced_and_answered_for_and_shared_ones_are_not() {
    let mut link = link();
    link.set_owned(vec![(POOL, 32), (Ipv4Addr::new(198, 51, 100, 128), 25)]);
    let announced = arps(&mut link);
    assert_eq!((announced.len(), announced[0].1.sender, announced[0].1.target), (1, POOL, POOL));
    for owned in [POOL, Ipv4Addr::new(198, 51, 100, 200)] {
        link.handle_arp(&says(Operation::Request, HOST, HOST_MAC, owned), at(0));
        let answer = arps(&mut link);
        assert_eq!((answer.len(), answer[0].0), (1, HOST_MAC));
        let Arp { operation, sender_mac, sender, target_mac, target } = answer[0].1;
        assert_eq!((operation, sender_mac, sender), (Operation::Reply, US, owned));
        assert_eq!((target_mac, target), (HOST_MAC, HOST));
    }
    for foreign in [OWN, GATEWAY, Ipv4Addr::new(198, 51, 100, 8)] {
        link.handle_arp(&says(Operation::Request, HOST, HOST_MAC, foreign), at(0));
        assert!(arps(&mut link).is_empty());
    }
    // A probe (RFC 5227) has no sender: it is answered to defend the address, and nobody is remembered.
    link.handle_arp(&says(Operation::Request, Ipv4Addr::UNSPECIFIED, HOST_MAC, POOL), at(0));
    assert_eq!(arps(&mut link).len(), 1);
    assert!(!link.table.contains_key(&Ipv4Addr::UNSPECIFIED));
}

#[test]
fn whoever_asks_for_us_is_remembered_and_asked_back() {
    let mut link = link();
    link.handle_arp(&says(Operation::Request, HOST, HOST_MAC, OWN), at(0));
    assert_eq!(deliver(&mut link, HOST, at(1)), Delivery::To(HOST_MAC));
    assert_eq!(
        arps(&mut link),
        [(
            HOST_MAC,
            Arp {
                operation: Operation::Request,
                sender_mac: US,
                sender: OWN,
                target_mac: [0; 6],
                target: HOST
            }
        )]
    );
    link.handle_arp(&says(Operation::Request, FAR, HOST_MAC, OWN), at(2));
    assert!(!link.table.contains_key(&FAR), "not on this link");
    link.handle_arp(&says(Operation::Request, OWN, HOST_MAC, OWN), at(2));
    assert!(!link.table.contains_key(&OWN), "that is us");
}

#[test]
fn tables_and_queues_are_bounded() {
    let mut link = link();
    link.set_routes(vec![route([0; 4], 0, None, 0)]);
    for n in 0..5000 {
        deliver(&mut link, host(n), at(u64::from(n)));
    }
    assert_eq!((link.table.len(), link.deadlines.len()), (MOST_NEIGHBORS, MOST_NEIGHBORS));
    assert!(!link.table.contains_key(&host(0)) && link.table.contains_key(&host(4999)));
    assert_eq!(link.ranks.len(), MOST_NEIGHBORS);
    let waiting: usize = link.table.values().map(|neighbor| neighbor.waiting.len()).sum();
    assert_eq!(waiting, link.waiting);
    assert!(waiting <= MOST_WAITING);
}

/// A link with nothing but neighbours, of which these have asked for us, one each millisecond.
fn known(count: u32) -> Neighbors {
    let mut link = link();
    link.set_routes(vec![route([0; 4], 0, None, 0)]);
    for n in 0..count {
        link.handle_arp(&says(Operation::Request, host(n), HOST_MAC, OWN), at(n.into()));
    }
    assert_eq!(link.table.len(), count as usize);
    link
}

fn host(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(0x0a00_0000 + number)
}

fn remembers(link: &Neighbors, mut hosts: std::ops::Range<u32>) -> bool {
    hosts.all(|n| link.table.contains_key(&host(n)))
}

/// Where nobody is, nobody is pushed out for: what is tried out goes before who is known, however long he is idle.
#[test]
fn a_scan_pushes_out_nobody_who_is_there() {
    let mut link = known(100);
    let before = link.generation();
    for n in 10_000..20_000 {
        deliver(&mut link, host(n), at(n.into()));
        assert!(link.table.len() <= MOST_NEIGHBORS);
    }
    assert!(remembers(&link, 0..100));
    assert!(remembers(&link, 20_000 - (MOST_NEIGHBORS as u32 - 100)..20_000), "the oldest have made room");
    assert_eq!(link.generation(), before);
    // One that answers in the midst of it is known from then on.
    link.handle_arp(&says(Operation::Reply, host(19_000), HOST_MAC, OWN), at(20_000));
    for n in 20_000..30_000 {
        deliver(&mut link, host(n), at(n.into()));
    }
    assert!(remembers(&link, 0..100) && remembers(&link, 19_000..19_001));
    assert_eq!((link.table.len(), link.ranks.len()), (MOST_NEIGHBORS, MOST_NEIGHBORS));
    assert!(link.table.iter().all(|(addr, neighbor)| link.ranks.contains(&neighbor.rank(*addr))));
    assert!(link.deadlines.len() < MOST_NEIGHBORS);
}

/// Among those who are known, who has been idle longest.
#[test]
fn the_known_one_used_least_recently_makes_room() {
    let most = MOST_NEIGHBORS as u32;
    let mut link = known(most);
    deliver(&mut link, host(0), at(9000));
    link.next(host(1), at(9000));
    link.handle_arp(&says(Operation::Request, host(most), HOST_MAC, OWN), at(9001));
    assert!(remembers(&link, 0..2) && remembers(&link, 3..most + 1));
    for n in most + 1..most + 1000 {
        deliver(&mut link, host(n), at(9002));
    }
    assert!(remembers(&link, 0..2) && remembers(&link, 4..most + 1), "a scan takes one place");
}

/// One whose packets follow each other is in use, though each finds its way at a glance.
#[test]
fn a_busy_neighbour_stays() {
    let most = MOST_NEIGHBORS as u32;
    let mut link = known(most);
    deliver(&mut link, host(0), at(9000));
    link.handle_arp(&says(Operation::Reply, host(0), HOST_MAC, OWN), at(9001));
    for millis in 9002..29_000 {
        assert_eq!(deliver(&mut link, host(0), at(millis)), Delivery::To(HOST_MAC));
        if millis == 20_000 {
            assert!((1..most).all(|n| link.next(host(n), at(millis)).is_some()));
        }
    }
    link.handle_arp(&says(Operation::Request, host(most), HOST_MAC, OWN), at(29_000));
    assert!(remembers(&link, 0..1) && !remembers(&link, 1..2));
}

#[test]
fn one_neighbour_s_queue_keeps_the_newest() {
    let mut link = link();
    for n in 0..100u8 {
        link.deliver(HOST, &[0x45, n], Offload::default(), at(0));
    }
    assert_eq!(link.take_dropped(), 100 - MOST_WAITING_FOR_ONE as u64);
    assert_eq!(arps(&mut link).len(), 1);
    link.handle_arp(&says(Operation::Reply, HOST, HOST_MAC, OWN), at(1));
    let sent: Vec<u8> = std::iter::from_fn(|| link.poll_transmit()).map(|frame| frame.packet[1]).collect();
    assert_eq!(sent, (36..100).collect::<Vec<u8>>());
    assert_eq!(link.waiting, 0);
}

/// Whoever looks after what it has been told has nothing to do when strangers come and go.
#[test]
fn the_generation_changes_when_what_was_known_does() {
    let mut link = resolved();
    let before = link.generation();
    for host in 10..20 {
        deliver(&mut link, Ipv4Addr::new(192, 0, 2, host), at(1));
    }
    link.handle_arp(&says(Operation::Reply, Ipv4Addr::new(192, 0, 2, 10), HOST_MAC, OWN), at(2));
    (1..10).for_each(|second| link.handle_timeout(at(1000 * second)));
    assert_eq!((link.table.len(), link.generation()), (2, before), "nine have not answered");
    link.handle_arp(&says(Operation::Request, GATEWAY, HOST_MAC, GATEWAY), at(9000));
    link.handle_arp(&says(Operation::Reply, GATEWAY, HOST_MAC, OWN), at(9000));
    assert_eq!(link.generation(), before + 1, "another address");
    deliver(&mut link, HOST, at(9000));
    assert_eq!(deliver(&mut link, FAR, at(40_000)), Delivery::To(HOST_MAC));
    (40..50).for_each(|second| link.handle_timeout(at(1000 * second)));
    assert_eq!(link.generation(), before + 2, "it is gone");
}
