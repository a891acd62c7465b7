//! `traverse forward`: the one who connects. Its ports outlive the connection, which is made again whenever it is lost.

use std::{net::SocketAddr, rc::Rc, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use clap::CommandFactory;
use serde_json::json;
use tokio::{sync::watch, task::LocalSet};
use traversal::{Connection, Node};

use super::{
    address::{Listener, Target},
    allow::Allowed,
    args::ForwardArgs,
    copy::Both,
    entrance::{Entrance, Fault, Socket, answer, opening},
    exit::Exit,
    files,
    report::{Report, by_the_peer, reason},
    resolve::Resolver,
    session::{MAX_STREAMS, MAX_UNREAD, Session},
    wire::{Refusal, Request, To, Transport},
};
use crate::{
    args::Cli,
    node::{Me, policy, with_node},
    service::{Ending, why},
    status::Status,
    stop::{Ended, Stop},
};

/// After a connection that was lost, or could not be made.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// A port and what it leads to.
#[derive(Clone, Debug)]
struct Rule {
    transport: Transport,
    at: SocketAddr,
    target: Target,
}

impl Rule {
    fn of(listener: &Listener, args: &ForwardArgs) -> Result<Rule, String> {
        let transport = listener.transport.unwrap_or(if args.udp { Transport::Udp } else { Transport::Tcp });
        let target = listener.target.as_ref().or(args.target.as_ref()).cloned();
        let target = target.ok_or_else(|| {
            format!(
                "where does {} lead? Name a target after the peer, as in 8080 PEER 127.0.0.1:80",
                listener.at
            )
        })?;
        Ok(Rule { transport, at: listener.at, target })
    }
}

/// What is to be done, and with what.
struct Plan {
    remote: Vec<Rule>,
    local: Vec<Rule>,
    idle: Duration,
}

impl Plan {
    fn of(args: &ForwardArgs) -> Result<Plan, String> {
        let rules = |listeners: &[Listener]| {
            listeners.iter().map(|listener| Rule::of(listener, args)).collect::<Result<_, _>>()
        };
        let mut all = args.local.iter().chain(&args.remote);
        if let Some(target) = args.target.as_ref().filter(|_| all.all(|listener| listener.target.is_some())) {
            return Err(format!("no port leads to {target}: each has a target of its own"));
        }
        Ok(Plan { local: rules(&args.local)?, remote: rules(&args.remote)?, idle: args.udp_idle })
    }
}

pub(crate) async fn run(args: ForwardArgs, stop: &Stop) -> Result<()> {
    let plan = Plan::of(&args).unwrap_or_else(|words| {
        Cli::command().error(clap::error::ErrorKind::MissingRequiredArgument, words).exit()
    });
    let status = Status::new(args.tell);
    files::as_many_as_may_be();
    let me = Me::caller(&args.node, status)?;
    let mut sockets = Vec::new();
    for Rule { transport, at, .. } in &plan.local {
        let bound = Socket::bind(*transport, *at).await;
        sockets.push(bound.map_err(|error| {
            anyhow!("cannot listen at {transport} {at}: {}", reason(Refusal::of(&error)))
        })?);
    }
    let builder = me.node(&args.node)?.accepting(false).policy(policy(&args.path));
    let builder = builder.max_streams(MAX_STREAMS).max_unread(MAX_UNREAD);
    with_node(builder, stop, async |node| {
        let report = Report::new(status);
        let tasks = LocalSet::new();
        let result: Result<()> = tasks.run_until(forward(node, &args, plan, sockets, &report, stop)).await;
        if result.as_ref().is_err_and(|error: &anyhow::Error| error.is::<Ended>()) {
            report.done();
        }
        result
    })
    .await
}

async fn forward(
    node: &Node,
    args: &ForwardArgs,
    plan: Plan,
    sockets: Vec<Socket>,
    report: &Rc<Report>,
    stop: &Stop,
) -> Result<()> {
    let status = report.status;
    let behind = plan.remote.iter().map(|rule| (rule.transport, rule.target.clone())).collect();
    let exit =
        Rc::new(Exit { allowed: Allowed::default(), behind, resolver: Resolver::default(), idle: plan.idle });
    let (linked, link) = watch::channel(None);
    let connection = stop.or(node.connect(args.peer)).await?;
    let mut session = Session::new(connection, report);
    closing(&session.connection, stop.or(check(&session, &plan)).await)?;
    let mut asked = closing(&session.connection, stop.or(ask(&session, &plan)).await)?;
    for (rule, socket) in plan.local.iter().zip(sockets) {
        let to = To::Target(rule.target.clone());
        let entrance =
            Rc::new(Entrance { to, link: link.clone(), report: Rc::clone(report), idle: plan.idle });
        tokio::task::spawn_local(entrance.open(socket));
    }
    tell(&plan, args, status);
    let (following, now) = (Rc::clone(report), link.clone());
    tokio::task::spawn_local(async move {
        let path = || now.borrow().as_ref().map(|session: &Rc<Session>| session.connection.path());
        following.follow(|| (path(), usize::from(now.borrow().is_some()))).await;
    });
    loop {
        linked.send_replace(Some(Rc::clone(&session)));
        let connection = session.connection.clone();
        tokio::task::spawn_local(Rc::clone(&exit).serve(Rc::clone(&session)));
        let ended = status
            .while_doing(&connection, stop.or(async { Ok::<_, anyhow::Error>(connection.closed().await) }));
        let ended = closing(&connection, ended.await)?;
        linked.send_replace(None);
        drop(asked);
        let words = if session.is_given_up.get() { "the peer is silent".to_owned() } else { why(&ended) };
        let fields = json!({ "peer": args.peer.to_string(), "why": ended.to_string() });
        status.tell(format!("the connection is lost ({words}); making it again"), "lost", fields);
        (session, asked) = stop.or(again(node, args, &plan, report)).await?;
    }
}

/// Tells the peer why this side ends, if it does.
fn closing<T>(connection: &Connection, result: Result<T>) -> Result<T> {
    result.inspect_err(|error| Ending::of(error).close(connection))
}

/// Connects until it succeeds, with growing pauses.
async fn again(
    node: &Node,
    args: &ForwardArgs,
    plan: &Plan,
    report: &Rc<Report>,
) -> Result<(Rc<Session>, Vec<Both>)> {
    let mut pause = FIRST_PAUSE;
    loop {
        let attempt = async {
            let connection = node.connect(args.peer).await?;
            let session = Session::new(connection.clone(), report);
            // What is behind the local ports is told when somebody wants it.
            let asked =
                ask(&session, plan).await.inspect_err(|error| Ending::of(error).close(&connection))?;
            Ok::<_, anyhow::Error>((session, asked))
        };
        match attempt.await {
            Ok(made) => return Ok(made),
            Err(error) => {
                let next = format!("next attempt in {:.0} s", pause.as_secs_f64().ceil());
                let fields = json!({ "why": format!("{error:#}"), "pause_ms": pause.as_millis() as u64 });
                report.status.tell(format!("{error:#}; {next}"), "retrying", fields);
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Whether the peer allows what the local ports lead to.
async fn check(session: &Session, plan: &Plan) -> Result<()> {
    for Rule { transport, target, .. } in &plan.local {
        let request = Request::Check { transport: *transport, target: target.clone() };
        let to = To::Target(target.clone());
        request_of(session, &request, |why| by_the_peer(*transport, &to, why)).await?;
    }
    Ok(())
}

/// Has the peer listen where it is to; it does as long as the streams are kept.
async fn ask(session: &Session, plan: &Plan) -> Result<Vec<Both>> {
    let mut asked = Vec::new();
    for (id, Rule { transport, at, .. }) in (0..).zip(&plan.remote) {
        let request = Request::Listen { id, transport: *transport, at: *at };
        let prefix = if *transport == Transport::Udp { "udp:" } else { "" };
        let words = |why| match why {
            Refusal::NotAllowed => format!(
                "the peer does not allow listening at {prefix}{at}: there, traverse expose --listen {prefix}{at}"
            ),
            Refusal::TooMany => format!("the peer listens at as many ports as it may: not at {prefix}{at}"),
            why => format!("the peer cannot listen at {prefix}{at}: {}", reason(why)),
        };
        asked.push(request_of(session, &request, words).await?);
    }
    Ok(asked)
}

/// Asks for something on a stream of its own; `words`: what a refusal means.
async fn request_of(session: &Session, request: &Request, words: impl Fn(Refusal) -> String) -> Result<Both> {
    let mut both = Both::new(session.connection.open_bi().await?);
    both.send.write_all(&opening(request)?).await.context("the connection has ended")?;
    match answer(&mut both.receive).await {
        Ok(()) => Ok(both),
        Err(Fault::Refused(why)) => bail!(words(why)),
        Err(Fault::NotServed) => bail!("the peer exposes nothing: there, traverse expose TARGET"),
        Err(Fault::Silence) => bail!("the peer does not answer: does it run traverse expose?"),
        Err(Fault::Broken) => match session.connection.close_reason() {
            Some(reason) => bail!("the connection has ended: {}", why(&reason)),
            None => bail!("the peer broke off the stream: does it run traverse expose?"),
        },
    }
}

fn tell(plan: &Plan, args: &ForwardArgs, status: Status) {
    let peer = args.peer;
    for (side, rules) in [("local", &plan.local), ("remote", &plan.remote)] {
        for Rule { transport, at, target } in rules {
            let words = match side {
                "local" => format!("{transport} {at} leads to {target} at the peer"),
                _ => format!("{transport} {at} at the peer leads to {target} here"),
            };
            let fields = json!({
                "peer": peer.to_string(), "side": side, "transport": transport.to_string(), "at": at.to_string(),
                "target": target.to_string(),
            });
            status.tell(words, "forwarding", fields);
        }
    }
}
