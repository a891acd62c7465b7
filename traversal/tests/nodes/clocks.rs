//! Clocks that are wrong, that jump, and that stand still while a machine sleeps.
//!
//! One node has a runtime, and so a clock, of its own: the two are run a millisecond at a time in turn, as the world goes on
//! around both.

use std::{future::Future, time::Duration};

use crate::common::{
    call::{Call, for_each_seed},
    echo_server, round_trip,
    scene::*,
    within,
};
use natbox_sim::HostId;
use tokio::runtime::Runtime;
use traversal::{Connection, Node};
use traversal_sim::World;

const HOUR: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_secs(20);

/// Nodes whose clocks are hours off, or that have none, register, are found and are called; so do they when they start again
/// with a clock that was set back, and at a supernode whose own clock is wrong.
#[test]
fn wall_clocks_are_wrong() {
    const NONE: i64 = i64::MIN;
    let hours = |hours: i64| hours * 3_600_000;
    for [a, b, supernode] in
        [[hours(5), hours(-5), 0], [NONE, hours(-20_000), 0], [0, 0, hours(7)], [hours(3), 0, hours(-9)]]
    {
        for_each_seed(0..1, async |seed| {
            let scene = Scene::new(seed).await;
            let host = scene.world.public_host(10 * MS);
            let wall = |off: i64| match off {
                NONE => 0,
                off => scene.world.wall().saturating_add_signed(off),
            };
            let restart = async || {
                let at = traversal_proto::UnixTime(wall(supernode) / 1000);
                scene.world.supernode_with(host, 9, |config| config.wall_clock = Some(at)).await
            };
            let address = restart().await;
            let nat = |delay| scene.nat(natbox_sim::NetworkId::INTERNET, home(port_restricted(), delay));
            let hosts = [scene.host(nat(15 * MS)), scene.host(nat(20 * MS))];
            let start = async |host: HostId, secret, off| {
                let builder = scene.world.builder(host, secret).wall_clock(wall(off)).supernode(&address);
                builder.start().await.unwrap()
            };
            let (first_a, first_b) = (start(hosts[0], 2, a).await, start(hosts[1], 3, b).await);
            let call = Call::new(&first_a, &first_b).await;
            call.is_direct(SOON).await;
            // Longer than a registration lasts.
            tokio::time::sleep(700 * SECOND).await;
            call.goes_on().await;
            drop(call);
            first_b.close().await;
            // The same key, on a machine whose clock was set back by a day meanwhile: its numbers are old ones.
            let second_b = start(hosts[1], 3, if b == NONE { NONE } else { b - hours(24) }).await;
            let call = Call::new(&first_a, &second_b).await;
            // The supernode starts again, with a clock that is hours off in the other direction.
            scene.world.kill_supernode(host);
            let at = traversal_proto::UnixTime(wall(-supernode) / 1000);
            scene.world.supernode_with(host, 9, |config| config.wall_clock = Some(at)).await;
            tokio::time::sleep(30 * SECOND).await;
            call.goes_on().await;
            drop(call);
            tokio::time::sleep(10 * SECOND).await;
            Call::new(&second_b, &first_a).await.goes_on().await;
        });
    }
}

/// Everybody's clock leaps an hour ahead at once, as on a host whose virtual machine was stopped.
#[test]
fn all_clocks_leap() {
    for (name, nat) in [("direct", port_restricted()), ("relayed", symmetric())] {
        for_each_seed(0..3, async |seed| {
            let scene = Scene::new(seed).await;
            let [(.., a), (.., b)] = scene.pair([nat.clone(), nat.clone()]).await;
            let call = Call::new(&a, &b).await;
            tokio::time::sleep(5 * SECOND + seed as u32 * 333 * MS).await;
            tokio::time::advance(HOUR).await;
            let start = tokio::time::Instant::now();
            // What was on its way has come an hour late: the connection goes on, or both are told that it is over.
            let sound = call.is_sound(90 * SECOND).await;
            let closed: Vec<_> = call.ends.iter().filter_map(Connection::close_reason).collect();
            assert!(sound.is_ok() || closed.len() == 2, "{name}: {sound:?}, {closed:?}");
            println!("{name}: {sound:?} after {:?}", start.elapsed());
            drop(call);
            tokio::time::sleep(5 * SECOND).await;
            Call::new(&b, &a).await.goes_on().await;
        });
    }
}

/// A world, and a node that has a clock of its own.
struct Laptop {
    world: World,
    outside: Runtime,
    inside: Runtime,
}

impl Laptop {
    fn new(seed: u64) -> Laptop {
        let runtime = || {
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap()
        };
        let (outside, inside) = (runtime(), runtime());
        let world = outside.block_on(async { World::new(seed) });
        Laptop { world, outside, inside }
    }

    /// One millisecond for each.
    fn step(&self) {
        let now = self.outside.block_on(async {
            tokio::time::sleep(MS).await;
            self.world.now()
        });
        self.world.frozen(now, || self.inside.block_on(async { tokio::time::sleep(MS).await }));
    }

    /// Runs both until the laptop's task is over.
    fn run<T: Send + 'static>(
        &self,
        what: &str,
        within: Duration,
        task: impl Future<Output = T> + Send + 'static,
    ) -> (T, Duration) {
        let task = self.inside.spawn(task);
        for millis in 0..within.as_millis() as u64 {
            if task.is_finished() {
                let now = self.outside.block_on(async { self.world.now() });
                let result = self.world.frozen(now, || self.inside.block_on(task)).unwrap();
                return (result, Duration::from_millis(millis));
            }
            self.step();
        }
        panic!("{what}: not within {within:?}");
    }

    fn outside<T>(&self, task: impl Future<Output = T>) -> T {
        self.outside.block_on(task)
    }

    /// The lid is closed: the world goes on without it.
    fn sleep(&self, host: HostId, time: Duration) {
        self.world.set_offline(host, true);
        self.outside(async { tokio::time::sleep(time).await });
        self.world.set_offline(host, false);
    }

    /// The laptop's clock counts the time that it has slept, as some systems' do.
    fn leap(&self, time: Duration) {
        let now = self.outside.block_on(async { self.world.now() });
        self.world.frozen(now, || self.inside.block_on(async { tokio::time::advance(time).await }));
    }
}

/// A laptop sleeps under a call, for a moment or for an hour, with a clock that counts the time or one that does not. It is
/// registered again by itself, and the call goes on or both ends are told that it is over.
#[test]
fn a_laptop_sleeps() {
    for time in [5 * SECOND, 40 * SECOND, 10 * 60 * SECOND, 5 * HOUR] {
        for counts in [false, true] {
            natbox_sim::for_each_seed(0..2, |seed| sleep(seed, time, counts));
        }
    }
}

/// Sends something and gets it back, unless the connection ends.
async fn exchange(connection: &Connection) -> Option<()> {
    let (mut send, mut receive) = connection.open_bi().await.ok()?;
    send.write_all(b"after").await.ok()?;
    send.finish().ok()?;
    (receive.read_to_end(10).await.ok()? == b"after").then_some(())
}

fn sleep(seed: u64, time: Duration, counts: bool) {
    let laptop = Laptop::new(seed);
    let world = &laptop.world;
    let (host, b, builder) = laptop.outside(async {
        let supernode = world.public_host(10 * MS);
        let address = world.supernode(supernode, 1).await;
        let (_, far) = world.nat_host(port_restricted(), 20 * MS);
        let b = world.builder(far, 3).supernode(&address).start().await.unwrap();
        echo_server(&b);
        let (_, host) = world.nat_host(port_restricted(), 15 * MS);
        (host, b, world.builder(host, 2).supernode(&address))
    });
    let id = b.id();
    let connect = async move {
        let a = builder.start().await.unwrap();
        let connection = a.connect(id).await.unwrap();
        connection.wait_direct(SOON).await.unwrap();
        round_trip(&connection, b"before").await;
        (a, connection)
    };
    let ((a, connection), _) = laptop.run("connect", SOON, connect);
    for _ in 0..5000 {
        laptop.step();
    }

    laptop.sleep(host, time);
    if counts {
        laptop.leap(time);
    }
    let settle = {
        let connection = connection.clone();
        async move {
            match exchange(&connection).await {
                Some(()) => None,
                None => Some(connection.closed().await),
            }
        }
    };
    let (closed, settled) = laptop.run("the connection", 90 * SECOND, settle);
    // Shorter than the time after which QUIC gives up: it has to go on, and a clock that stood still is no excuse.
    assert!(time >= 50 * SECOND || closed.is_none(), "{closed:?} after {time:?}");
    assert!(time >= 50 * SECOND || settled < 12 * SECOND, "{settled:?} after {time:?}, counted: {counts}");
    let again = async move {
        // The first attempt may still find what was there before.
        for _ in 0..20 {
            if let Ok(connection) = a.connect(id).await
                && exchange(&connection).await.is_some()
            {
                return Ok(a);
            }
        }
        Err("no connection")
    };
    let (a, again) = laptop.run("a connection", 90 * SECOND, again);
    let a: Node = a.unwrap();
    // Registered means registered: others find it.
    let (id, start) = (a.id(), laptop.outside(async { world.now() }));
    let back = laptop.outside.spawn(async move {
        for _ in 0..20 {
            if b.connect(id).await.is_ok() {
                return true;
            }
            tokio::time::sleep(SECOND).await;
        }
        false
    });
    while !back.is_finished() {
        laptop.step();
    }
    assert!(laptop.outside(back).unwrap(), "nobody finds it");
    let found = laptop.outside(async { world.now() }).since(start);
    println!(
        "slept {time:?}, counted: {counts}: {} after {settled:?}, connected {again:?} later, found after {found:?}",
        if closed.is_none() { "goes on" } else { "is over" }
    );
    // Ended in their own worlds.
    let end = laptop.inside.enter();
    drop((a, connection));
    drop(end);
}

#[tokio::test(start_paused = true)]
async fn a_cable_is_pulled() {
    for seed in 0..4 {
        let scene = Scene::new(seed).await;
        let [(_, host, a), (.., b)] = scene.pair([port_restricted(), port_restricted()]).await;
        let call = Call::new(&a, &b).await;
        call.is_direct(SOON).await;
        tokio::time::sleep(10 * SECOND).await;
        for away in [3 * SECOND, 20 * SECOND, 45 * SECOND] {
            scene.world.set_offline(host, true);
            tokio::time::sleep(away).await;
            scene.world.set_offline(host, false);
            let start = tokio::time::Instant::now();
            within(SOON, "it goes on", call.goes_on()).await;
            println!("cable out for {away:?}: heard again after {:?}", start.elapsed());
            assert!(start.elapsed() < 5 * SECOND, "heard again after {:?}", start.elapsed());
            call.is_direct(30 * SECOND).await;
            tokio::time::sleep(10 * SECOND).await;
        }
    }
}
