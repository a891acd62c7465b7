//! What a peer's streams may take up.

use std::time::Duration;

use crate::common::{SOON, identity, node, supernode, within};
use tokio::time::timeout;
use traversal::Node;

/// Long enough for a stream to be opened or a window to move, on one machine.
const A_WHILE: Duration = Duration::from_millis(300);

#[tokio::test]
async fn streams_and_what_nobody_reads_are_bounded() {
    const UNREAD: usize = 100_000;
    let supernode = supernode().await;
    let builder = Node::builder().identity(identity(3)).bind("127.0.0.1:0".parse().unwrap());
    let builder = builder.max_streams(2).max_unread(UNREAD as u32);
    let b = builder.supernode(supernode.connect_string()).start().await.unwrap();
    let a = node(2, &supernode).await;
    let (to_b, from_a) = tokio::join!(a.connect(b.id()), b.accept());
    let (to_b, from_a) = (to_b.unwrap(), from_a.unwrap());

    let mut first = within(SOON, "first stream", to_b.open_bi()).await.unwrap();
    let mut second = within(SOON, "second stream", to_b.open_bi()).await.unwrap();
    assert!(timeout(A_WHILE, to_b.open_bi()).await.is_err(), "a third stream");

    // Both together: what one has taken the other does not get.
    within(SOON, "half of it", first.0.write_all(&vec![7; UNREAD / 2])).await.unwrap();
    let too_much = timeout(A_WHILE, second.0.write_all(&vec![7; UNREAD])).await;
    assert!(too_much.is_err(), "more than may be unread was taken");
    first.0.finish().unwrap();
    let (send, mut receive) = within(SOON, "accept", from_a.accept_bi()).await.unwrap();
    let read = within(SOON, "read", receive.read_to_end(UNREAD)).await.unwrap();
    assert_eq!(read.len(), UNREAD / 2);
    drop(send);
    // Room for the rest of the other, and for another stream.
    within(SOON, "the rest", second.0.write_all(&vec![7; UNREAD / 4])).await.unwrap();
    drop(first);
    within(SOON, "another stream", to_b.open_bi()).await.unwrap();
    a.close().await;
    b.close().await;
}
