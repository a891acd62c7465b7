//! What the user asked for, and doing it.

mod args;
mod ask;
mod axis;
mod file;
mod layer;
mod memory;
mod nearest;
mod run;
mod signals;

use std::{
    error::Error as _,
    ffi::OsString,
    io::{IsTerminal, Write, stderr, stdout},
    process::ExitCode,
};

use anyhow::Result;
use clap::{
    ArgMatches,
    error::{ContextKind, ContextValue, ErrorKind},
};
use natbox::output::{preset_json, write_preset, write_presets};
use natbox_core::preset::PRESETS;

use self::{
    args::{Ask, Cli, PresetsArgs},
    layer::Layer,
    nearest::hint,
};

/// The exit code for a command line or a configuration file that makes no sense.
const USAGE: u8 = 2;

/// Reads the command line and does what it says. Errors are one line on standard error: exit code 2 for what was
/// written wrongly, 1 for what this machine refuses.
pub(crate) fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    memory::map_large_blocks();
    let (cli, matches) = match args::parse(args) {
        Ok(parsed) => parsed,
        Err(error) => return refuse_arguments(&error),
    };
    match act(cli, &matches) {
        Ok(code) => code,
        Err(Failure::Usage(message)) => complain(&message, USAGE),
        Err(Failure::Machine(error)) if ask::quiet(&error) => ExitCode::SUCCESS,
        Err(Failure::Machine(error)) => complain(&chain(&error), 1),
    }
}

enum Failure {
    /// What was asked for makes no sense.
    Usage(String),
    /// It does, but it cannot be done here.
    Machine(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::Machine(error.into())
    }
}

fn act(cli: Cli, matches: &ArgMatches) -> Result<ExitCode, Failure> {
    let Some(ask) = cli.ask else {
        let mut run = cli.run;
        let command = std::mem::take(&mut run.command);
        let file = match &run.config {
            Some(path) => file::read(path).map_err(Failure::Usage)?,
            None => Layer::default(),
        };
        let flags = Layer::of_flags(run, axis::given(matches));
        let asked = layer::settings(flags, file, command).map_err(Failure::Usage)?;
        return Ok(run::run(asked)?);
    };
    match ask {
        Ask::Show(args) => ask::show(args)?,
        Ask::Flush(args) => ask::flush(args)?,
        Ask::Set(args) => {
            let matches = matches.subcommand_matches("set").unwrap_or(matches);
            ask::set(&args.which, matches)?;
        }
        Ask::Rebind(args) => ask::rebind(args)?,
        Ask::Forward(ask) => ask::forward(ask)?,
        Ask::Events(args) => ask::events(args)?,
        Ask::Presets(args) => presets(&args)?,
        Ask::Completions { shell } => {
            let mut page = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "natbox", &mut page);
            ask::print(&page)?;
        }
        Ask::Man { command } => manual(command.as_deref())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn manual(command: Option<&str>) -> Result<(), Failure> {
    let whole = args::command();
    let page_of = match command {
        None => whole,
        Some(name) => {
            let found = whole.find_subcommand(name).cloned();
            let found = found.ok_or_else(|| Failure::Usage(no_command(name)))?;
            found.display_name(format!("natbox-{name}")).bin_name(format!("natbox {name}"))
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(page_of).render(&mut page)?;
    Ok(ask::print(&page)?)
}

fn no_command(name: &str) -> String {
    let command = args::command();
    let names = command.get_subcommands().map(clap::Command::get_name);
    let meant = hint(name, names);
    let meant =
        if meant.is_empty() { "; natbox --help lists them, and a program goes after --" } else { &meant };
    format!("there is no command {name:?}{meant}")
}

fn presets(args: &PresetsArgs) -> Result<(), Failure> {
    let one = args.name.as_deref().map(axis::preset).transpose().map_err(Failure::Usage)?;
    let mut page = Vec::new();
    match (one, args.json) {
        (Some(preset), false) => write_preset(&mut page, preset)?,
        (None, false) => write_presets(&mut page)?,
        (Some(preset), true) => writeln!(page, "{}", preset_json(preset))?,
        (None, true) => {
            let all: Vec<_> = PRESETS.iter().map(preset_json).collect();
            writeln!(page, "{}", serde_json::Value::from(all))?;
        }
    }
    Ok(ask::print(&page)?)
}

/// An error and what lies behind it, in one line. Many an error names its cause already.
fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.is_empty() {
        true => cause,
        false if line.contains(&cause) => line,
        false => format!("{line}: {cause}"),
    })
}

fn complain(message: &str, code: u8) -> ExitCode {
    // There is nobody to tell when standard error is closed.
    let _ = writeln!(stderr(), "natbox: {message}");
    ExitCode::from(code)
}

/// Help and version are answers; everything else is a mistake, told in one line.
fn refuse_arguments(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            let text = error.render();
            let text = if stdout().is_terminal() { text.ansi().to_string() } else { text.to_string() };
            // `natbox --help | head` is no failure.
            let _ = ask::print(text.as_bytes());
            ExitCode::SUCCESS
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = write!(stderr(), "{}", error.render());
            ExitCode::from(USAGE)
        }
        _ => complain(&one_line(error), USAGE),
    }
}

/// clap's explanation without its paragraphs: what is wrong, and what was probably meant.
fn one_line(error: &clap::Error) -> String {
    let argument = match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(argument)) => argument.split(' ').next().unwrap_or(argument).to_owned(),
        _ => String::new(),
    };
    if let (ErrorKind::ValueValidation, Some(source)) = (error.kind(), error.source()) {
        return format!("{argument}: {source}");
    }
    if matches!(error.kind(), ErrorKind::UnknownArgument | ErrorKind::InvalidSubcommand)
        && !argument.is_empty()
        && !argument.starts_with('-')
    {
        return no_command(&argument);
    }
    let rendered = error.render().to_string();
    let paragraph: Vec<_> = rendered.lines().take_while(|line| !line.is_empty()).map(str::trim).collect();
    let mut line = paragraph.join(" ");
    line = line.strip_prefix("error: ").unwrap_or(&line).to_owned();
    let meant = [ContextKind::SuggestedArg, ContextKind::SuggestedSubcommand, ContextKind::SuggestedValue]
        .into_iter()
        .find_map(|kind| match error.get(kind) {
            Some(ContextValue::String(meant)) => Some(meant.clone()),
            Some(ContextValue::Strings(meant)) => meant.first().cloned(),
            _ => None,
        });
    match meant {
        Some(meant) => format!("{line}: did you mean {meant}?"),
        None => format!("{line} (see natbox --help)"),
    }
}
