//! Fifty thousand UDP flows at once: each is answered again after all are open, and `natbox show` lists them all.

mod common;

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::process::ExitCode;

use common::{EXTERNAL, Tested, mappings, reflector};
use netns_lab::Lab;
use netns_lab::harness::{self, Test};
use netns_lab::probe::{FlowReport, Flows};

const COUNT: usize = 50_000;

fn main() -> ExitCode {
    harness::main(vec![
        Test::new("fifty_thousand_flows_have_a_port_each", || fifty_thousand_flows("full-cone", &[EXTERNAL])),
        // 31,744 ports are left beside the host's ephemeral range: they are shared by destination.
        Test::new("fifty_thousand_flows_share_ports", || fifty_thousand_flows("home", &[])),
    ])
}

fn fifty_thousand_flows(preset: &str, flags: &[&str]) -> Tested {
    let lab = Lab::up("one-nat").nat("N1", preset).nat_args("N1", flags).start()?;
    let (reflector, a, nat) = (reflector(&lab)?, lab.host("A")?, lab.nat("N1")?);
    let mut flows = a.run(|| Flows::open(reflector.endpoints(), a.addr().into(), COUNT))??;
    let report = flows.check()?;
    assert_eq!((report.opened, report.answered_again, report.moved), (COUNT, COUNT, 0), "{report}");

    let shown = mappings(nat)?;
    assert_eq!(shown.len(), COUNT);
    assert_eq!(nat.show()?["status"]["mappings"], COUNT);
    let endpoint =
        |value: &serde_json::Value| value.as_str().and_then(|text| text.parse::<SocketAddr>().ok());
    let listed: HashMap<_, _> =
        shown.iter().map(|it| (endpoint(&it["inside"]), endpoint(&it["external"]))).collect();
    let FlowReport { flows: seen, .. } = &report;
    let differing = seen.iter().find(|flow| listed.get(&Some(flow.local)) != Some(&flow.opened_as));
    assert_eq!(differing, None, "natbox shows another external endpoint than the reflector saw");
    let ports: HashSet<_> = seen.iter().filter_map(|flow| flow.opened_as).collect();
    assert_eq!(ports.len() == COUNT, preset == "full-cone", "{} external endpoints", ports.len());

    // For people, too: a line for each.
    let table = nat.control(&["show"])?;
    assert!(table.lines().filter(|line| line.contains("udp")).count() >= COUNT, "{}", table.lines().count());
    nat.flush()?;
    assert_eq!(mappings(nat)?.len(), 0);
    Ok(())
}
