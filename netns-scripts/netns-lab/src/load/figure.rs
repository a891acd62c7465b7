//! The figures that a report holds.

use super::{Load, Report};

/// One number of a [`Report`], with what it needs to be read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Figure {
    pub(super) name: String,
    pub(super) unit: &'static str,
    pub(super) more_is_better: bool,
    pub(super) value: f64,
}

/// The figures of one report, in the order of a table. Processor time is told where one TCP flow fills the path: there
/// it compares the cost of the same work, while a flood costs whatever is left.
pub(super) fn figures(report: &Report) -> Vec<Figure> {
    let mut figures = Vec::new();
    let mut add = |name: String, unit, more_is_better, value: Option<f64>| {
        figures.extend(value.map(|value| Figure { name, unit, more_is_better, value }));
    };
    let per_second = |count: u64| Some(count as f64 / report.seconds);
    let thousands = |count: u64| Some(count as f64 / report.seconds / 1e3);
    match report.load {
        Load::Tcp { direction, flows } => {
            let flows_word = if flows == 1 { "1 flow".to_owned() } else { format!("{flows} flows") };
            let gbits = report.bytes as f64 * 8.0 / report.seconds / 1e9;
            add(format!("TCP {direction}, {flows_word}"), "Gbit/s", true, Some(gbits));
            if flows == 1 {
                let gigabytes = report.bytes as f64 / 1e9;
                let machine = Some(report.machine_cpu / gigabytes);
                add(format!("· CPU of the machine, TCP {direction}"), "s/GB", false, machine);
                let own = report.nat_cpu.map(|cpu| cpu / gigabytes);
                add(format!("· of that the NAT's process, TCP {direction}"), "s/GB", false, own);
            }
        }
        Load::Udp { direction, size } => {
            add(format!("UDP {size} B {direction}"), "k/s", true, thousands(report.count));
        }
        Load::Gso { direction } => {
            add(format!("UDP 1400 B in GSO {direction}"), "k/s", true, thousands(report.count));
        }
        Load::Latency => {
            add("round trip p50".to_owned(), "µs", false, report.p50_us);
            add("round trip p99".to_owned(), "µs", false, report.p99_us);
        }
        Load::NewFlows => add("new UDP flows".to_owned(), "/s", true, per_second(report.count)),
        Load::Connections => {
            add("TCP connect and close".to_owned(), "/s", true, per_second(report.count));
        }
        Load::Idle => {
            let busy = Some(report.machine_cpu / report.seconds);
            add("processors busy with other things".to_owned(), "", false, busy);
        }
    }
    figures
}

/// The ratio to the kernel's masquerade that natbox means to reach, where there is such an aim: the least one, or the greatest
/// where less is better.
pub(super) fn aim(name: &str) -> Option<f64> {
    match name {
        "TCP up, 1 flow" => Some(0.85),
        "TCP down, 1 flow" => Some(0.75),
        "UDP 64 B up" | "UDP 64 B down" => Some(0.7),
        "UDP 1400 B in GSO up" | "UDP 1400 B in GSO down" => Some(0.6),
        "round trip p50" => Some(2.5),
        "new UDP flows" => Some(0.9),
        "TCP connect and close" => Some(1.0),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(load: &str) -> Report {
        Report {
            load: load.parse().unwrap(),
            seconds: 2.0,
            bytes: 4_000_000_000,
            count: 10_000,
            lost: 0,
            p50_us: Some(20.0),
            p99_us: Some(50.0),
            machine_cpu: 3.0,
            nat_cpu: Some(1.0),
        }
    }

    #[test]
    fn figures_are_in_their_units() {
        let values = |load| figures(&report(load)).iter().map(|it| it.value).collect::<Vec<_>>();
        assert_eq!(values("tcp-up-1"), [16.0, 0.75, 0.25]);
        assert_eq!(values("tcp-down-4"), [16.0]);
        assert_eq!(values("udp-64-up"), [5.0]);
        assert_eq!(values("udp-gso-down"), [5.0]);
        assert_eq!(values("latency"), [20.0, 50.0]);
        assert_eq!(values("new-flows"), [5000.0]);
        assert_eq!(values("idle"), [1.5]);
    }

    #[test]
    fn every_aim_is_of_a_figure_that_exists() {
        let names = Load::STANDARD.iter().flat_map(|load| figures(&report(&load.to_string())));
        assert_eq!(names.filter(|figure| aim(&figure.name).is_some()).count(), 9);
    }
}
