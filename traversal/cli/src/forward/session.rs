//! One connection to a peer, and all that goes through it.

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    future::Future,
    rc::Rc,
};

use traversal::Connection;

use super::{
    flow::{Flow, Queued},
    meter::{MAX_CONNECTIONS, MAX_FLOWS, Meter, Place, Places},
    report::Report,
    wire::{self, MAX_PACKET},
};
use crate::service::Ending;

/// Ports that one peer may listen at here, and streams for other things than carrying: checks, pings, these listeners.
pub(crate) const MAX_LISTENERS: u32 = 16;
const MAX_OTHERS: u32 = 64;
/// Streams that a peer may have open. QUIC allows others in place of those that have ended only when they are an eighth of all.
pub(crate) const MAX_STREAMS: u32 = (MAX_CONNECTIONS + MAX_FLOWS + MAX_OTHERS).div_ceil(7) * 8;
/// Bytes of a peer's that nobody has taken yet: fifty connections whose clients have all stopped reading. Then the peer waits.
pub(crate) const MAX_UNREAD: u32 = 64 << 20;
/// Bytes of large packets that wait for their streams.
const MAX_QUEUED: usize = 4 << 20;

pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) meter: Rc<Meter>,
    pub(crate) report: Rc<Report>,
    connections: Rc<Places>,
    flows: Rc<Places>,
    pub(crate) listeners: Rc<Places>,
    /// Where the packets of a flow go, by the id of its stream.
    inlets: RefCell<HashMap<u64, Rc<Inlet>>>,
    /// This side has closed the connection because the peer is silent.
    pub(crate) is_given_up: Cell<bool>,
    /// Where packets are received, one at a time.
    pub(super) scratch: RefCell<Vec<u8>>,
    /// Bytes of packets in the queues of all flows.
    pub(super) queued: Cell<usize>,
}

/// What takes a packet.
type Deliver = Box<dyn Fn(&[u8])>;

/// Where the packets of a flow go.
pub(crate) struct Inlet {
    flow: Rc<Flow>,
    deliver: Deliver,
    meter: Rc<Meter>,
}

impl Inlet {
    /// Takes a packet of the peer's.
    pub(crate) fn take(&self, packet: &[u8]) {
        self.flow.touch();
        self.meter.count(|figures| figures.received += packet.len() as u64);
        (self.deliver)(packet);
    }
}

/// A flow's entry among the inlets, for as long as this lives.
pub(crate) struct Entered {
    pub(crate) inlet: Rc<Inlet>,
    session: Rc<Session>,
    stream: u64,
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.session.inlets.borrow_mut().remove(&self.stream);
    }
}

impl Session {
    pub(crate) fn new(connection: Connection, report: &Rc<Report>) -> Rc<Session> {
        Rc::new(Session {
            connection,
            meter: Rc::clone(&report.meter),
            report: Rc::clone(report),
            connections: Rc::new(Places::new(MAX_CONNECTIONS)),
            flows: Rc::new(Places::new(MAX_FLOWS)),
            listeners: Rc::new(Places::new(MAX_LISTENERS)),
            inlets: RefCell::default(),
            is_given_up: Cell::new(false),
            scratch: RefCell::new(vec![0; MAX_PACKET + 1]),
            queued: Cell::new(0),
        })
    }

    /// Room for a TCP connection.
    pub(crate) fn connection_place(&self) -> Option<Place> {
        self.connections.take(&self.meter, |figures| &mut figures.connections)
    }

    /// Room for a UDP flow.
    pub(crate) fn flow_place(&self) -> Option<Place> {
        self.flows.take(&self.meter, |figures| &mut figures.flows)
    }

    /// Does `work` beside everything else, for as long as the connection lives.
    pub(crate) fn spawn(self: &Rc<Self>, work: impl Future<Output = ()> + 'static) {
        let connection = self.connection.clone();
        tokio::task::spawn_local(async move {
            tokio::select! {
                biased;
                () = work => {}
                _ = connection.closed() => {}
            }
        });
    }

    /// The peer has not answered, and if nothing else has come meanwhile either it is gone: QUIC itself would find out a minute
    /// after it was last heard.
    pub(crate) fn is_silent_since(&self, received: u64) {
        if self.meter.figures().received == received {
            self.is_given_up.set(true);
            Ending::Failed.close(&self.connection);
        }
    }

    /// Takes the packets of the flow with this stream from now on.
    pub(crate) fn enter(
        self: &Rc<Self>,
        stream: u64,
        flow: &Rc<Flow>,
        deliver: impl Fn(&[u8]) + 'static,
    ) -> Entered {
        let inlet = Rc::new(Inlet {
            flow: Rc::clone(flow),
            deliver: Box::new(deliver),
            meter: Rc::clone(&self.meter),
        });
        self.inlets.borrow_mut().insert(stream, Rc::clone(&inlet));
        Entered { inlet, session: Rc::clone(self), stream }
    }

    /// Hands the peer's datagrams to their flows, until the connection is over.
    pub(crate) async fn read_datagrams(self: Rc<Self>) {
        while let Ok(datagram) = self.connection.read_datagram().await {
            let found = wire::read_datagram(&datagram)
                .and_then(|(stream, packet)| Some((self.inlets.borrow().get(&stream).cloned()?, packet)));
            match found {
                Some((inlet, packet)) => inlet.take(packet),
                None => self.meter.count(|figures| figures.dropped.unknown_flow += 1),
            }
        }
    }

    /// A packet that is to wait for its stream; `None`: too many do.
    pub(super) fn queue(self: &Rc<Self>, packet: &[u8]) -> Option<Queued> {
        (self.queued.get() + packet.len() <= MAX_QUEUED).then(|| Queued::new(packet, self))
    }
}
