//! `traverse id`.

use anyhow::Result;

use crate::{
    args::KeyArgs,
    home::{Config, KeyFile},
    out,
};

pub(crate) fn run(args: &KeyArgs) -> Result<()> {
    let key = KeyFile::load(args, &Config::load(args)?)?;
    out::line(key.identity.peer_id())
}
