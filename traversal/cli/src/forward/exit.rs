//! Where the peer's connections and packets come out: what serves its streams.

use std::{io::ErrorKind, net::SocketAddr, rc::Rc, time::Duration};

use tokio::{
    io::{AsyncReadExt, copy},
    net::{TcpStream, UdpSocket},
    sync::watch,
    time::timeout,
};

use super::{
    address::Target,
    allow::Allowed,
    copy::{Both, abort, join},
    entrance::{Entrance, Socket},
    flow::{BUDGET, Flow, read_packets, write_packets},
    report::reason,
    resolve::{Resolver, reach},
    session::Session,
    wire::{self, MAX_PACKET, NO_PACKET, Refusal, Reply, Request, To, Transport},
};
use crate::service::{self, Answer, Service};

/// A stream that has not said what it wants by now is ended.
const REQUEST: Duration = Duration::from_secs(10);
/// A flow is ended by the side that its client is on. One that is not, because its peer counts otherwise, ends after this time.
const FORGOTTEN: Duration = Duration::from_secs(600);
/// A listener of a connection that is just ending still has its port: so often is it tried, and so long in between.
const BIND_ATTEMPTS: u32 = 8;
const BIND_PAUSE: Duration = Duration::from_millis(250);

/// What a peer may have from here.
pub(crate) struct Exit {
    /// What it may ask for by address, and where it may listen.
    pub(crate) allowed: Allowed,
    /// What is behind the listeners that it was asked for, by their number.
    pub(crate) behind: Vec<(Transport, Target)>,
    pub(crate) resolver: Resolver,
    /// For the flows of its listeners.
    pub(crate) idle: Duration,
}

impl Exit {
    /// Serves a connection's streams and datagrams until it is over.
    pub(crate) async fn serve(self: Rc<Self>, session: Rc<Session>) {
        session.spawn(Rc::clone(&session).read_datagrams());
        while let Ok(streams) = session.connection.accept_bi().await {
            let (exit, of) = (Rc::clone(&self), Rc::clone(&session));
            session.spawn(async move { exit.stream(of, Both::new(streams)).await });
        }
    }

    async fn stream(self: Rc<Self>, session: Rc<Session>, mut both: Both) {
        let wanted = timeout(REQUEST, service::wanted(&mut both.send, &mut both.receive)).await;
        match wanted {
            Ok(Ok(Some(Service::Forward))) => self.forward(session, both).await,
            Ok(Ok(Some(Service::Ping))) => {
                ping(&mut both).await;
                both.finish();
            }
            Ok(Ok(Some(_))) => {
                // Fails only for a stream that is over.
                let _ = service::answer(&mut both.send, Answer::Unknown).await;
                both.finish();
            }
            Ok(Ok(None)) => both.finish(),
            // It says nothing, or it breaks off.
            Ok(Err(_)) | Err(_) => {}
        }
    }

    async fn forward(self: Rc<Self>, session: Rc<Session>, mut both: Both) {
        let Ok(request) = timeout(REQUEST, wire::read::<Request>(&mut both.receive)).await else { return };
        match request {
            Ok(Request::Open { transport: Transport::Tcp, to }) => self.tcp(&session, both, to).await,
            Ok(Request::Open { transport: Transport::Udp, to }) => self.udp(&session, both, to).await,
            Ok(Request::Check { transport, target }) => {
                let reply = match self.allowed.leads(transport, &target) {
                    Some(_) => Reply::Yes,
                    None => self.refuses(&session, transport, &To::Target(target), Refusal::NotAllowed),
                };
                end(both, reply).await;
            }
            Ok(Request::Listen { id, transport, at }) => self.listen(session, both, id, transport, at).await,
            Err(error) if error.kind() == ErrorKind::InvalidData => {
                end(both, Reply::No(Refusal::NotUnderstood)).await;
            }
            Err(_) => {}
        }
    }

    /// Tells this side's user, and gives the answer for the peer's.
    fn refuses(&self, session: &Session, transport: Transport, to: &To, why: Refusal) -> Reply {
        let peer = session.connection.peer_id();
        let what = match to {
            To::Target(target) => target.to_string(),
            To::Listener(id) => match self.behind.get(*id as usize) {
                Some((_, target)) => target.to_string(),
                None => format!("listener {id}"),
            },
        };
        let words = match why {
            Refusal::NotAllowed => {
                format!("refused to {peer}: {transport} {what}, which is not allowed here")
            }
            _ => format!("{transport} {what}, wanted by {peer}: {}", reason(why)),
        };
        session.report.refused(peer, transport, &what, why, words);
        Reply::No(why)
    }

    /// The addresses that a stream may lead to.
    async fn addresses(&self, transport: Transport, to: &To) -> Result<Vec<SocketAddr>, Refusal> {
        match to {
            To::Target(target) => {
                let leads = self.allowed.leads(transport, target).ok_or(Refusal::NotAllowed)?;
                let is_allowed = |address| self.allowed.resolved(transport, address, target.port);
                self.resolver.addresses(leads, target.port, is_allowed).await
            }
            To::Listener(id) => match self.behind.get(*id as usize) {
                // Its own user named it.
                Some((known, target)) if *known == transport => self.resolver.any(target).await,
                _ => Err(Refusal::NotAllowed),
            },
        }
    }

    // ---- TCP ----

    async fn tcp(&self, session: &Rc<Session>, mut both: Both, to: To) {
        let reached = match session.connection_place() {
            Some(place) => self.connect(&to).await.map(|tcp| (place, tcp)),
            None => Err(Refusal::TooMany),
        };
        let (_place, tcp) = match reached {
            Ok(reached) => reached,
            Err(why) => return end(both, self.refuses(session, Transport::Tcp, &to, why)).await,
        };
        // Fails only for a connection that is over.
        let _ = tcp.set_nodelay(true);
        let joined = async {
            say(&mut both, &Reply::Yes).await?;
            join(&tcp, &mut both, &session.meter, async |_| Ok::<_, std::io::Error>(())).await
        };
        let closed = session.connection.closed();
        let is_whole = tokio::select! {
            biased;
            joined = joined => joined.is_ok(),
            _ = closed => false,
        };
        if !is_whole {
            abort(tcp);
        }
    }

    async fn connect(&self, to: &To) -> Result<TcpStream, Refusal> {
        reach(async { self.addresses(Transport::Tcp, to).await }, TcpStream::connect).await
    }

    // ---- UDP ----

    async fn udp(&self, session: &Rc<Session>, mut both: Both, to: To) {
        let reached = match session.flow_place() {
            Some(place) => {
                let addresses = async { self.addresses(Transport::Udp, &to).await };
                reach(addresses, connected).await.map(|socket| (place, Rc::new(socket)))
            }
            None => Err(Refusal::TooMany),
        };
        let (_place, socket) = match reached {
            Ok(reached) => reached,
            Err(why) => return end(both, self.refuses(session, Transport::Udp, &to, why)).await,
        };
        let (flow, queued) = Flow::new(session);
        let failure = tokio::select! {
            biased;
            () = carry(session, &mut both, &flow, queued, socket) => None,
            why = flow.fails() => Some(why),
            () = flow.idles(FORGOTTEN) => None,
        };
        if let Some(why) = failure {
            let reply = self.refuses(session, Transport::Udp, &to, why);
            // A packet may be half written: then the reset says that it is over.
            if let Ok(reply) = wire::encode(&reply)
                && !flow.is_writing.get()
                && both.send.write_all(&[&NO_PACKET.to_be_bytes()[..], &reply].concat()).await.is_ok()
            {
                both.finish();
            }
        }
    }

    // ---- Listening for the peer ----

    async fn listen(
        &self,
        session: Rc<Session>,
        mut both: Both,
        id: u32,
        transport: Transport,
        at: SocketAddr,
    ) {
        let place = session.listeners.take(&session.meter, |figures| &mut figures.listeners);
        let bound = match &place {
            _ if !self.allowed.may_listen(transport, at) => Err(Refusal::NotAllowed),
            None => Err(Refusal::TooMany),
            Some(_) => bind(transport, SocketAddr::new(at.ip().to_canonical(), at.port())).await,
        };
        let peer = session.connection.peer_id();
        let socket = match bound {
            Ok(socket) => socket,
            Err(why) => {
                let words = format!("{peer} may not listen at {transport} {at}: {}", reason(why));
                session.report.refused(peer, transport, &at.to_string(), why, words);
                return end(both, Reply::No(why)).await;
            }
        };
        if say(&mut both, &Reply::Yes).await.is_err() {
            return;
        }
        let fields = serde_json::json!({
            "peer": peer.to_string(), "transport": transport.to_string(), "at": at.to_string(),
        });
        session.report.status.tell(format!("listening at {transport} {at} for {peer}"), "listening", fields);
        let (_keep, link) = watch::channel(Some(Rc::clone(&session)));
        let report = Rc::clone(&session.report);
        let entrance = Rc::new(Entrance { to: To::Listener(id), link, report, idle: self.idle });
        tokio::select! {
            biased;
            // Nothing is to come: it ends with the stream.
            _ = both.receive.read_u8() => {}
            () = entrance.open(socket) => {}
        }
    }
}

/// Sends back what comes, as `traverse listen` does.
async fn ping(both: &mut Both) {
    let Both { send, receive, .. } = both;
    if service::answer(send, Answer::Yes).await.is_ok() {
        // A stream that breaks is its peer's business.
        let _ = copy(receive, send).await;
    }
}

/// Answers a request.
async fn say(both: &mut Both, reply: &Reply) -> std::io::Result<()> {
    both.send.write_all(&[&[Answer::Yes as u8][..], &wire::encode(reply)?].concat()).await?;
    Ok(())
}

/// Answers a request with the last word on its stream.
async fn end(mut both: Both, reply: Reply) {
    if say(&mut both, &reply).await.is_ok() {
        both.finish();
    }
}

async fn bind(transport: Transport, at: SocketAddr) -> Result<Socket, Refusal> {
    let mut attempts = 1;
    loop {
        match Socket::bind(transport, at).await {
            Ok(socket) => return Ok(socket),
            Err(error) if error.kind() == ErrorKind::AddrInUse && attempts < BIND_ATTEMPTS => {
                attempts += 1;
                tokio::time::sleep(BIND_PAUSE).await;
            }
            Err(error) => return Err(Refusal::of(&error)),
        }
    }
}

/// A socket that takes packets from this address only, and learns when nobody is there.
async fn connected(target: SocketAddr) -> std::io::Result<UdpSocket> {
    let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    // Tokio tries to send only when it has been told once that it may.
    socket.writable().await?;
    Ok(socket)
}

/// Carries a flow's packets both ways until the peer ends it.
async fn carry(
    session: &Rc<Session>,
    both: &mut Both,
    flow: &Rc<Flow>,
    mut queued: tokio::sync::mpsc::Receiver<super::flow::Queued>,
    socket: Rc<UdpSocket>,
) {
    let stream = both.id();
    let entered = {
        let (socket, flow_of, meter) = (Rc::clone(&socket), Rc::clone(flow), Rc::clone(&session.meter));
        session.enter(stream, flow, move |packet| match socket.try_send(packet) {
            Ok(_) => {}
            // What an earlier packet has met with.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => flow_of.fail(Refusal::Refused),
            Err(_) => meter.count(|figures| figures.dropped.socket += 1),
        })
    };
    if say(both, &Reply::Yes).await.is_err() {
        return;
    }
    flow.is_known_as(stream);
    let Both { send, receive, .. } = both;
    tokio::select! {
        biased;
        _ = read_packets(receive, |packet| entered.inlet.take(packet)) => {}
        _ = write_packets(send, flow, &mut queued) => {}
        () = take_packets(session, &socket, flow) => {}
    }
}

/// Sends what the target says to the peer, until the flow [fails](Flow::fail).
async fn take_packets(session: &Session, socket: &UdpSocket, flow: &Flow) {
    for count in 1.. {
        if count % BUDGET == 0 {
            tokio::task::yield_now().await;
        }
        if socket.readable().await.is_err() {
            break;
        }
        let mut buffer = session.scratch.borrow_mut();
        match socket.try_recv(&mut buffer) {
            Ok(length @ 0..=MAX_PACKET) => flow.send(&buffer[..length]),
            Ok(_) => session.meter.count(|figures| figures.dropped.too_long += 1),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                flow.fail(Refusal::of(&error));
                break;
            }
        }
    }
    // Whoever waits for that ends this.
    std::future::pending().await
}
