//! cargo run --example echo -- SUPERNODE         listens, and prints its id
//! cargo run --example echo -- SUPERNODE ID      connects to it, sends a line, prints the echo and the path
use anyhow::{Context, Result};
use traversal::Node;

#[tokio::main]
async fn main() -> Result<()> {
    let mut args = std::env::args().skip(1);
    let supernode = args.next().context("usage: echo SUPERNODE [ID]")?;
    let node = Node::builder().supernode(supernode).start().await?;
    if let Some(peer) = args.next() {
        let connection = node.connect(peer.parse()?).await?;
        let (mut send, mut receive) = connection.open_bi().await?;
        send.write_all(b"hello").await?;
        send.finish()?;
        let echo = receive.read_to_end(1024).await?;
        println!("{} by {}", String::from_utf8_lossy(&echo), connection.path());
        node.close().await;
        return Ok(());
    }
    println!("{}", node.id());
    while let Some(connection) = node.accept().await {
        tokio::spawn(async move {
            while let Ok((mut send, mut receive)) = connection.accept_bi().await {
                tokio::io::copy(&mut receive, &mut send).await?;
                send.finish()?;
            }
            anyhow::Ok(())
        });
    }
    Ok(())
}
