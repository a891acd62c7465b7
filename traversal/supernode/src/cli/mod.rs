//! The command line: options and file to a configuration, then a supernode until somebody stops it.

mod options;
mod run;

use std::{ffi::OsString, io::Write, process::ExitCode};

use clap::Parser;
use options::{Command, Key, Options};
use supernode::Config;

/// The program, with its name as the first argument.
pub(crate) fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let options = match Options::try_parse_from(arguments) {
        Ok(options) => options,
        Err(help_or_mistake) => help_or_mistake.exit(),
    };
    let result = match options.command {
        Some(Command::Id) => id(&options),
        Some(Command::Check) => check(&options),
        None => run::run(&options),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "supernode: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn id(options: &Options) -> anyhow::Result<()> {
    let loaded = options.load(Key::Made)?;
    let id = loaded.config.identity.peer_id();
    let mut out = std::io::stdout();
    writeln!(out, "{id}")?;
    for (at, listen) in loaded.config.listen.iter().enumerate() {
        let external = loaded.config.external.get(at).copied();
        writeln!(out, "{id}@{}", supernode::external_address(*listen, external))?;
    }
    Ok(())
}

fn check(options: &Options) -> anyhow::Result<()> {
    let loaded = options.load(Key::Unmade)?;
    let Config { listen, admin, .. } = &loaded.config;
    supernode::check(&loaded.config)?;
    writeln!(std::io::stdout(), "good: would listen on {listen:?}, admin {admin:?}")?;
    Ok(())
}
