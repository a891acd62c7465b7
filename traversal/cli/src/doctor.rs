//! `traverse doctor`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{args::DoctorArgs, node::Me};

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let me = Me::caller(&args.node)?;
    let node = me.node(&args.node)?.accepting(false).start().await?;
    if !args.json {
        eprintln!("examining the NAT; this takes a few seconds …");
    }
    let report = node.doctor().await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    node.close().await;
    Ok(ExitCode::SUCCESS)
}
