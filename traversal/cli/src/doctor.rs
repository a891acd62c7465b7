//! `traverse doctor`.

use std::process::ExitCode;

use anyhow::Result;
use traversal::DoctorOptions;

use crate::{args::DoctorArgs, node::Me};

pub(crate) async fn run(args: DoctorArgs) -> Result<ExitCode> {
    let me = Me::caller(&args.node)?;
    let node = me.node(&args.node)?.accepting(false).start().await?;
    if !args.json {
        eprintln!("examining the NAT; this takes a few seconds …");
    }
    let options = DoctorOptions::with_lifetime(args.lifetime.unwrap_or_default());
    let report = node.doctor_with(options).await?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    node.close().await;
    Ok(ExitCode::SUCCESS)
}
