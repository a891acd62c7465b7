//! `traverse id`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    args::KeyArgs,
    home::{Config, Key},
};

pub(crate) fn run(args: &KeyArgs) -> Result<ExitCode> {
    let key = Key::load(args, &Config::load(args)?)?;
    println!("{}", key.identity.peer_id());
    Ok(ExitCode::SUCCESS)
}
