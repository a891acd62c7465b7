//! What operators and their tools ask: health, and metrics in Prometheus's text format.

use std::{collections::VecDeque, fmt::Write, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{Status, accept::PAUSE};

/// Connections at the same time. One more, and the oldest is closed: a request that is answered takes no time, so the old
/// ones are those that ask for nothing.
const CONNECTIONS: usize = 64;
/// The one request of a connection, with its answer, takes no longer.
const WITHIN: Duration = Duration::from_secs(5);
/// Bytes of a request, the least that hyper takes; a longer one is refused.
const REQUEST: usize = 8 << 10;

/// Serves `/healthz` and `/metrics`, for ever.
pub(crate) async fn serve(listener: TcpListener, status: Status) {
    let router = Router::new()
        .route("/healthz", get(health))
        .route("/metrics", get(exposition))
        .fallback(async || (StatusCode::NOT_FOUND, "there is /healthz and /metrics\n"))
        .with_state(status);
    let (mut connections, mut oldest_first) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                while connections.try_join_next().is_some() {}
                oldest_first.retain(|connection| !connection.is_finished());
                if oldest_first.len() >= CONNECTIONS
                    && let Some(oldest) = oldest_first.pop_front()
                {
                    oldest.abort();
                }
                oldest_first.push_back(connections.spawn(answer(stream, router.clone())));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections for metrics and health");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn answer(stream: TcpStream, router: Router) {
    let mut http = http1::Builder::new();
    http.keep_alive(false).max_buf_size(REQUEST).header_read_timeout(None);
    let serving = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let _ = timeout(WITHIN, serving).await;
}

async fn health(State(status): State<Status>) -> impl IntoResponse {
    match status.is_draining() {
        false => (StatusCode::OK, "ok\n"),
        true => (StatusCode::SERVICE_UNAVAILABLE, "draining\n"),
    }
}

async fn exposition(State(status): State<Status>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], status.metrics())
}

/// Everything that is counted.
pub(crate) fn metrics(status: &Status) -> String {
    let (counters, gauges) = (status.counters(), status.gauges());
    let mut text = String::with_capacity(8 << 10);
    let mut line = |name: &str, kind: &str, help: &str, value: u64| {
        let help = help.trim();
        let help = if help.is_empty() { String::new() } else { format!("# HELP supernode_{name} {help}\n") };
        let _ = writeln!(text, "{help}# TYPE supernode_{name} {kind}\nsupernode_{name} {value}");
    };
    for (name, value) in counters.named() {
        line(&format!("{name}_total"), "counter", "", value);
    }
    for (name, help, value) in status.shell().named() {
        line(&format!("{name}_total"), "counter", help, value);
    }
    for (name, help, value) in [
        ("connections", "Control connections.", gauges.connections as u64),
        ("registrations_active", "Registered peers.", gauges.registrations as u64),
        ("channels", "Relay channels.", gauges.channels as u64),
        ("watches", "Watches of peers on peers.", gauges.watches as u64),
        ("queries_pending", "Questions that the directory has not answered.", gauges.queries as u64),
        ("accounts", "Accounts, those of absent peers included.", gauges.accounts as u64),
        ("volume_bytes", "Bytes relayed for all peers in this quota period.", status.volume()),
        ("draining", "1 while peers are asked to move elsewhere.", u64::from(status.is_draining())),
        ("uptime_seconds", "Since the start.", status.uptime().as_secs()),
    ] {
        line(name, "gauge", help, value);
    }
    text.push_str("# HELP supernode_dropped_total Datagrams and frames that went no further.\n");
    text.push_str("# TYPE supernode_dropped_total counter\n");
    for (reason, count) in counters.drops() {
        let _ = writeln!(text, "supernode_dropped_total{{reason=\"{reason}\"}} {count}");
    }
    let (id, version) = (status.id(), env!("CARGO_PKG_VERSION"));
    let _ =
        writeln!(text, "# TYPE supernode_info gauge\nsupernode_info{{id=\"{id}\",version=\"{version}\"}} 1");
    text
}
