//! `traverse doctor`.

use anyhow::Result;
use serde_json::json;
use traversal::DoctorOptions;

use crate::{
    args::{DoctorArgs, TellArgs},
    node::{Me, with_node},
    out,
    status::Status,
    stop::Stop,
};

pub(crate) async fn run(args: DoctorArgs, stop: &Stop) -> Result<()> {
    let status = Status::new(TellArgs { json: args.json, quiet: false });
    let me = Me::caller(&args.node, status)?;
    let builder = me.node(&args.node)?.accepting(false);
    let report = with_node(builder, stop, async |node| {
        status.tell("examining the NAT; this takes a few seconds …", "examining", json!({}));
        let options = DoctorOptions::with_lifetime(args.lifetime.unwrap_or_default());
        stop.or(node.doctor_with(options)).await
    })
    .await?;
    if args.json { out::line(serde_json::to_string_pretty(&report)?) } else { out::line(report) }
}
