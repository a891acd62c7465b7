//! Where clients come in: a port of this machine's whose connections and packets go to the peer.

use std::{cell::RefCell, collections::HashMap, io, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream, UdpSocket},
    sync::{mpsc, watch},
    time::timeout,
};
use traversal::RecvStream;

use super::{
    copy::{Both, abort, join},
    flow::{BUDGET, Flow, Queued, read_packets, write_packets},
    meter::Place,
    report::{Report, by_the_peer},
    session::Session,
    wire::{self, MAX_PACKET, Refusal, Reply, Request, To, Transport},
};
use crate::service::{Answer, Service};

/// While there is no connection to the peer a client waits so long for one.
const WAIT: Duration = Duration::from_secs(5);
/// So long may the peer take to reach the target: longer than it tries.
const ANSWER: Duration = Duration::from_secs(15);
/// After a refusal a UDP client is not heard for so long: each packet would be another request.
const HOLD: Duration = Duration::from_secs(1);
/// The system has no room for another connection: until it is asked again.
const RETRY: Duration = Duration::from_millis(100);

/// The connection to the peer, while there is one.
pub(crate) type Link = watch::Receiver<Option<Rc<Session>>>;

/// A port, and where it leads.
#[derive(Clone)]
pub(crate) struct Entrance {
    pub(crate) to: To,
    pub(crate) link: Link,
    pub(crate) report: Rc<Report>,
    /// A UDP flow through which nothing goes for so long is over.
    pub(crate) idle: Duration,
}

/// The socket of a port.
pub(crate) enum Socket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

impl Socket {
    /// Listens at this address.
    pub(crate) async fn bind(transport: Transport, at: SocketAddr) -> io::Result<Socket> {
        Ok(match transport {
            Transport::Tcp => Socket::Tcp(TcpListener::bind(at).await?),
            Transport::Udp => Socket::Udp(UdpSocket::bind(at).await?),
        })
    }
}

/// Why a stream leads nowhere.
pub(crate) enum Fault {
    /// The peer says so.
    Refused(Refusal),
    /// The peer does not forward anything.
    NotServed,
    /// The stream, or the client, has broken off.
    Broken,
    /// The peer has not said anything.
    Silence,
}

impl From<io::Error> for Fault {
    fn from(_: io::Error) -> Fault {
        Fault::Broken
    }
}

/// A request with the byte that says what the stream is for.
pub(crate) fn opening(request: &Request) -> io::Result<Vec<u8>> {
    Ok([&[Service::Forward as u8][..], &wire::encode(request)?].concat())
}

/// Reads the peer's answer to a request.
pub(crate) async fn answer(receive: &mut RecvStream) -> Result<(), Fault> {
    let answered = async {
        if receive.read_u8().await? != Answer::Yes as u8 {
            return Err(Fault::NotServed);
        }
        match wire::read(receive).await? {
            Reply::Yes => Ok(()),
            Reply::No(why) => Err(Fault::Refused(why)),
        }
    };
    timeout(ANSWER, answered).await.unwrap_or(Err(Fault::Silence))
}

impl Entrance {
    /// Lets clients in, for ever.
    pub(crate) async fn open(self: Rc<Self>, socket: Socket) {
        match socket {
            Socket::Tcp(listener) => self.tcp(listener).await,
            Socket::Udp(socket) => self.udp(Rc::new(socket)).await,
        }
    }

    fn fails(&self, session: &Session, transport: Transport, fault: &Fault, received: u64) {
        let words = match fault {
            Fault::Broken => return,
            Fault::Refused(why) => by_the_peer(transport, &self.to, *why),
            Fault::NotServed => "the peer exposes nothing: there, traverse expose TARGET".to_owned(),
            Fault::Silence => format!("the peer has not answered within {} s", ANSWER.as_secs()),
        };
        let why = match fault {
            Fault::Refused(why) => *why,
            Fault::NotServed => Refusal::NotAllowed,
            Fault::Broken | Fault::Silence => Refusal::TimedOut,
        };
        let what = match &self.to {
            To::Target(target) => target.to_string(),
            To::Listener(id) => format!("listener {id}"),
        };
        self.report.refused(session.connection.peer_id(), transport, &what, why, words);
        if matches!(fault, Fault::Silence) {
            session.is_silent_since(received);
        }
    }

    // ---- TCP ----

    async fn tcp(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((tcp, _)) => drop(tokio::task::spawn_local(Rc::clone(&self).client(tcp))),
                // The client has gone again, or there is no room for a file: others may have better luck.
                Err(_) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    async fn client(self: Rc<Self>, tcp: TcpStream) {
        // Fails only for a connection that is over.
        let _ = tcp.set_nodelay(true);
        let mut link = self.link.clone();
        let linked = timeout(WAIT, link.wait_for(Option::is_some)).await;
        let session = linked.ok().and_then(Result::ok).and_then(|session| session.clone());
        let Some(session) = session else {
            self.report.meter.count(|figures| figures.refused += 1);
            return abort(tcp);
        };
        let Some(_place) = session.connection_place() else {
            self.report.refusal(
                "as many connections as may be are open: another one was refused".to_owned(),
                serde_json::json!({ "why": Refusal::TooMany.code() }),
            );
            return abort(tcp);
        };
        let received = session.meter.figures().received;
        let carried = tokio::select! {
            biased;
            carried = self.carry(&session, &tcp) => carried,
            _ = session.connection.closed() => Err(Fault::Broken),
        };
        if let Err(fault) = carried {
            self.fails(&session, Transport::Tcp, &fault, received);
            abort(tcp);
        }
    }

    /// What the client says goes ahead: the peer keeps it until it has reached the target.
    async fn carry(&self, session: &Session, tcp: &TcpStream) -> Result<(), Fault> {
        let streams = session.connection.open_bi().await.map_err(|_| Fault::Broken)?;
        let mut both = Both::new(streams);
        let request = Request::Open { transport: Transport::Tcp, to: self.to.clone() };
        both.send.write_all(&opening(&request)?).await.map_err(|_| Fault::Broken)?;
        join(tcp, &mut both, &session.meter, answer).await
    }

    // ---- UDP ----

    async fn udp(self: Rc<Self>, socket: Rc<UdpSocket>) {
        let clients: Rc<RefCell<HashMap<SocketAddr, Rc<Flow>>>> = Rc::default();
        let mut buffer = vec![0; MAX_PACKET + 1];
        for count in 1.. {
            if count % BUDGET == 0 {
                tokio::task::yield_now().await;
            }
            let (length, client) = match socket.recv_from(&mut buffer).await {
                Ok(received) => received,
                // No end of the socket: an interface went down, or a packet that was sent before has found nobody.
                Err(_) => {
                    tokio::time::sleep(RETRY).await;
                    continue;
                }
            };
            if length > MAX_PACKET {
                self.report.meter.count(|figures| figures.dropped.too_long += 1);
                continue;
            }
            let known = clients.borrow().get(&client).cloned();
            if let Some(flow) = known {
                flow.send(&buffer[..length]);
                continue;
            }
            let Some(session) = self.link.borrow().clone() else {
                self.report.meter.count(|figures| figures.dropped.not_connected += 1);
                continue;
            };
            let Some(place) = session.flow_place() else {
                self.report.meter.count(|figures| figures.dropped.too_many_flows += 1);
                continue;
            };
            let (flow, queued) = Flow::new(&session);
            flow.send(&buffer[..length]);
            clients.borrow_mut().insert(client, Rc::clone(&flow));
            let (entrance, socket, clients) = (Rc::clone(&self), Rc::clone(&socket), Rc::clone(&clients));
            tokio::task::spawn_local(async move {
                entrance.flow(&session, flow, queued, place, socket, client).await;
                clients.borrow_mut().remove(&client);
            });
        }
    }

    async fn flow(
        &self,
        session: &Rc<Session>,
        flow: Rc<Flow>,
        queued: mpsc::Receiver<Queued>,
        _place: Place,
        socket: Rc<UdpSocket>,
        client: SocketAddr,
    ) {
        let received = session.meter.figures().received;
        let ended = tokio::select! {
            biased;
            ended = self.packets(session, &flow, queued, socket, client) => ended,
            () = flow.idles(self.idle) => Ok(()),
            _ = session.connection.closed() => Err(Fault::Broken),
        };
        if let Err(fault @ (Fault::Refused(_) | Fault::NotServed | Fault::Silence)) = ended {
            self.fails(session, Transport::Udp, &fault, received);
            tokio::time::sleep(HOLD).await;
        }
    }

    /// Opens a flow and carries its packets, until the peer ends it.
    async fn packets(
        &self,
        session: &Rc<Session>,
        flow: &Rc<Flow>,
        mut queued: mpsc::Receiver<Queued>,
        socket: Rc<UdpSocket>,
        client: SocketAddr,
    ) -> Result<(), Fault> {
        let streams = session.connection.open_bi().await.map_err(|_| Fault::Broken)?;
        let mut both = Both::new(streams);
        let stream = both.id();
        let meter = Rc::clone(&session.meter);
        // From here on an answer may come by itself.
        let entered = session.enter(stream, flow, move |packet| {
            if socket.try_send_to(packet, client).is_err() {
                meter.count(|figures| figures.dropped.socket += 1);
            }
        });
        let request = Request::Open { transport: Transport::Udp, to: self.to.clone() };
        both.send.write_all(&opening(&request)?).await.map_err(|_| Fault::Broken)?;
        let Both { send, receive, .. } = &mut both;
        let reading = async {
            answer(receive).await?;
            flow.is_known_as(stream);
            let ended = read_packets(receive, |packet| entered.inlet.take(packet)).await?;
            ended.map_or(Ok(()), |why| Err(Fault::Refused(why)))
        };
        tokio::select! {
            biased;
            ended = reading => ended,
            // When nothing can be written any more, what is read tells why.
            Ok(()) = write_packets(send, flow, &mut queued) => Ok(()),
        }
    }
}
