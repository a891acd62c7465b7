//! Your application of the traversal crate, on an internet in memory: real nodes and real supernodes with their real QUIC,
//! behind NATs of any behaviour, on links with any delay and loss. Hours pass in seconds, and nothing needs root.
//!
//! A test pauses tokio's clock, makes a [`World`], and gives each node its [`builder`](World::builder); all else is what
//! the application does anyhow:
//!
//! ```
//! use std::time::Duration;
//! use traversal_sim::{World, natbox_core::preset::Preset};
//!
//! #[tokio::main(flavor = "current_thread", start_paused = true)]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let near = Duration::from_millis(10);
//!     let world = World::new(1);
//!     let supernode = world.supernode(world.server(near), 1).await;
//!     let home = Preset::by_name("port-restricted").ok_or("a preset")?.behavior();
//!     let office = Preset::by_name("symmetric").ok_or("a preset")?.behavior();
//!     let (_, a) = world.nat_host(home.clone(), near);
//!     let (office, b) = world.nat_host(office, near);
//!
//!     let a = world.builder(a, 2).supernode(&supernode).start().await?;
//!     let b = world.builder(b, 3).supernode(&supernode).start().await?;
//!     let connection = a.connect(b.id()).await?;
//!     connection.open_uni().await?.write_all(b"hello").await?;
//!     let there = b.accept().await.ok_or("nobody called")?;
//!     assert_eq!(there.accept_uni().await?.read_chunk(5, true).await?.unwrap().bytes, "hello"[..]);
//!
//!     // These two NATs leave nothing but the relay. Another one does, which knows nothing of the mappings of before.
//!     assert!(connection.wait_direct(Duration::from_secs(3)).await.is_err());
//!     world.with(|net, now| net.set_behavior(office, home, now))?;
//!     world.with(|net, now| net.flush(office, &Default::default(), now))?;
//!     connection.wait_direct(Duration::from_secs(60)).await?;
//!     Ok(())
//! }
//! ```
//!
//! The runtime must be of one thread and its clock paused: then time jumps to the next thing that is due, and **one seed
//! decides everything** but the keys of the handshakes.
//!
//! # Panics
//! What builds a world panics where the world has no more room or where a handle is of another world: a test's mistake.

#![forbid(unsafe_code)]

mod network;
mod world;

pub use natbox_sim::{self, natbox_core};

pub use crate::{network::SimNetwork, world::World};

#[cfg(doctest)]
#[doc = include_str!("../../../docs/embedding.md")]
struct Embedding;
