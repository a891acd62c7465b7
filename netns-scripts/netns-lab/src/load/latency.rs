//! Round trips, one at a time.

use std::io;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::meter::Meter;
use super::{Ends, Load, LoadError, Plan, Report, SMALL, failed, is_timeout};

pub(super) fn run(ends: &Ends, plan: &Plan) -> Result<Report, LoadError> {
    let (client, server) = ends.udp_flow()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| answer(&server, &stop));
        let measured = measure(&client, plan);
        stop.store(true, Ordering::Relaxed);
        measured
    })
}

fn measure(client: &UdpSocket, plan: &Plan) -> Result<Report, LoadError> {
    let what = || failed(format!("{}: a round trip failed", Load::Latency));
    ask(client, plan.warm_up).map_err(what())?;
    let meter = Meter::start(plan.nat)?;
    let (mut trips, lost) = ask(client, plan.window).map_err(what())?;
    let window = meter.stop()?;
    trips.sort_unstable();
    let count = trips.len() as u64;
    let report = Report {
        bytes: count * SMALL as u64,
        count,
        lost,
        p50_us: percentile(&trips, 50),
        p99_us: percentile(&trips, 99),
        ..Report::new(Load::Latency, &window)
    };
    report.unless_empty()
}

/// Asks until the time is over. The round trips in nanoseconds, and how many requests stayed without an answer.
fn ask(socket: &UdpSocket, time: Duration) -> io::Result<(Vec<u32>, u64)> {
    let (mut trips, mut lost) = (Vec::new(), 0);
    let mut packet = [0; SMALL];
    let mut number = 0_u64;
    let started = Instant::now();
    while started.elapsed() < time {
        number += 1;
        packet[..8].copy_from_slice(&number.to_be_bytes());
        let asked = Instant::now();
        socket.send(&packet)?;
        match socket.recv(&mut packet) {
            Ok(_) if packet[..8] == number.to_be_bytes() => {
                trips.push(u32::try_from(asked.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            // A late answer to a request that was given up.
            Ok(_) => {}
            Err(error) if is_timeout(&error) => lost += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((trips, lost))
}

fn answer(socket: &UdpSocket, stop: &AtomicBool) {
    let mut packet = [0; SMALL];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(length) = socket.recv(&mut packet) {
            // What can't be sent is a lost answer, which the client counts.
            let _ = socket.send(&packet[..length]);
        }
    }
}

/// The value that `percent` of 100 don't exceed, from nanoseconds in ascending order to microseconds.
fn percentile(ascending: &[u32], percent: usize) -> Option<f64> {
    let index = (ascending.len() * percent).div_ceil(100).saturating_sub(1);
    ascending.get(index).map(|&nanos| f64::from(nanos) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_by_nearest_rank() {
        let trips: Vec<u32> = (1..=200).map(|micros| micros * 1000).collect();
        assert_eq!(percentile(&trips, 50), Some(100.0));
        assert_eq!(percentile(&trips, 99), Some(198.0));
        assert_eq!(percentile(&trips[..1], 99), Some(1.0));
        assert_eq!(percentile(&[], 50), None);
    }
}
