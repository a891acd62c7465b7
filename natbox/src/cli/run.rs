//! Running the NAT: plan, wiring, guard, gateway; then whatever ends it.

use std::{
    collections::HashMap,
    io::{IsTerminal, Write, stderr, stdout},
    os::fd::AsFd,
    process::ExitCode,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use anyhow::{Context, Result};
use natbox::{
    control::{self, About, Server, written},
    guard::Guard,
    host::{self, Behind, InsideDevice, Plan, Wiring},
    output::{Format, PacketLog, StatusLine, describe},
    run::Gateway,
    settings::Settings,
};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde_json::{Value, json};

use super::{
    ask::print,
    layer::Asked,
    signals::{self, Arrived},
};

/// Does what was asked for; the exit code is the command's, where there is one.
pub(crate) fn run(Asked { settings, dry_run, quiet }: Asked) -> Result<ExitCode> {
    let plan = Plan::new(&settings)?;
    if dry_run {
        return show_plan(&settings, &plan).map(|()| ExitCode::SUCCESS);
    }
    let mut wiring = plan.apply()?;
    let guard = Guard::attach(&wiring, settings.guard)?;
    let (handle, inbox) = control::channel().context("cannot make an eventfd")?;
    let stop = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
    let log = settings.log_packets.then(|| packet_log(&settings)).transpose()?;

    let about = about(&settings, &wiring, &guard);
    let mut greeting = Greeting::new(&mut wiring, &guard);
    let command_space = wiring.command.take();
    let stop_fd = stop.as_fd().try_clone_to_owned().context("cannot duplicate an eventfd")?;
    let gateway = Gateway::new(wiring, &settings, guard, inbox, log, stop_fd)?;
    greeting.fast_path = gateway.fast_path().to_owned();
    let server = Server::start(settings.control.as_deref(), handle.clone(), about)?;
    if !quiet {
        greeting.print(&settings, &server)?;
    }

    let command = match (&settings.command, &command_space) {
        (Some(words), Some(space)) => {
            let stop = stop.clone();
            let on_exit = move || {
                let _ = stop.write(1);
            };
            Some(host::spawn_behind(space, words, on_exit)?)
        }
        _ => None,
    };
    let command = Arc::new(Mutex::new(command));
    watch_signals(&stop, &command)?;
    // The line would be torn apart by the packet log, and the terminal is the command's.
    let status = match quiet || settings.log_packets || settings.json || settings.command.is_some() {
        true => None,
        false => StatusLine::start(handle).context("cannot start a thread")?,
    };
    gateway.run()?;
    drop((status, server));
    let ended = locked(&command).take();
    match ended {
        Some(command) => {
            let status = command.wait().context("cannot wait for the command")?;
            Ok(ExitCode::from(host::exit_code(status)))
        }
        None => Ok(ExitCode::SUCCESS),
    }
}

/// Ends natbox at the first signal. With a command, the signal is the command's, and natbox ends when that has ended.
fn watch_signals(stop: &Arc<EventFd>, command: &Arc<Mutex<Option<Behind>>>) -> Result<()> {
    let (stop, command) = (stop.clone(), command.clone());
    let act = move |Arrived { signal, by_terminal }| match &*locked(&command) {
        // The terminal has sent it to the command as well.
        Some(_) if by_terminal => {}
        // One that cannot be signalled has ended, and so will natbox.
        Some(command) => drop(command.signal(signal)),
        None => drop(stop.write(1)),
    };
    signals::watch(act).context("cannot watch for signals")
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn show_plan(settings: &Settings, plan: &Plan) -> Result<()> {
    if !settings.json {
        let socket = control_socket(settings);
        return print(format!("behaves as: {}\n{plan}+ {socket}\n", behavior_line(settings)).as_bytes());
    }
    let forwards: Vec<_> = settings.forwards.iter().map(ToString::to_string).collect();
    let text = plan.to_string();
    let mut steps: Vec<_> = text.lines().map(str::to_owned).collect();
    steps.push(format!("+ {}", control_socket(settings)));
    let document = json!({
        "type": "plan",
        "preset": settings.preset,
        "behavior": written(&settings.behavior),
        "outside": settings.outside,
        "inside": settings.inside.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "lan": settings.lan.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "forward": forwards,
        "steps": steps,
    });
    print(format!("{document}\n").as_bytes())
}

/// The control socket that a run would make.
fn control_socket(settings: &Settings) -> String {
    match &settings.control {
        Some(path) => format!("control socket {}", path.display()),
        None => "control socket PID.sock in /run/natbox, or where that cannot be, under $XDG_RUNTIME_DIR"
            .to_owned(),
    }
}

fn behavior_line(settings: &Settings) -> String {
    describe(&settings.behavior, settings.preset.as_deref())
}

/// With a command, standard output is the command's.
fn packet_log(settings: &Settings) -> Result<PacketLog> {
    let to_stderr = settings.command.is_some();
    let terminal = if to_stderr { stderr().is_terminal() } else { stdout().is_terminal() };
    let format = match settings.json {
        true => Format::Json,
        false => Format::Text {
            names: settings.names.iter().map(|(name, addr)| (*addr, name.clone())).collect::<HashMap<_, _>>(),
            paint: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        },
    };
    let output: Box<dyn Write + Send> = if to_stderr { Box::new(stderr()) } else { Box::new(stdout()) };
    PacketLog::start(format, output).context("cannot start a thread")
}

fn about(settings: &Settings, wiring: &Wiring, guard: &Guard) -> About {
    let inside = wiring.inside.iter().map(|device| match device {
        InsideDevice::Tun { name, netns, gateway, prefix_len, .. } => {
            let name = netns.as_ref().map_or_else(|| name.clone(), |netns| format!("{name}@{netns}"));
            (name, (*gateway, *prefix_len))
        }
        InsideDevice::Lan { interface, gateway, prefix_len, .. } => {
            (interface.name.clone(), (*gateway, *prefix_len))
        }
    });
    About {
        outside: wiring.outside.name.clone(),
        inside: inside.collect(),
        external: wiring.external.clone(),
        shared: wiring.shared,
        guard: guard.kind().to_owned(),
        preset: settings.preset.clone(),
    }
}

/// What natbox says when it runs.
struct Greeting {
    done: Vec<String>,
    usage: Vec<String>,
    warnings: Vec<String>,
    guard: &'static str,
    fast_path: String,
    shared: bool,
    external: Vec<String>,
}

impl Greeting {
    fn new(wiring: &mut Wiring, guard: &Guard) -> Greeting {
        let mut warnings = std::mem::take(&mut wiring.warnings);
        warnings.extend_from_slice(guard.warnings());
        Greeting {
            done: std::mem::take(&mut wiring.done),
            usage: std::mem::take(&mut wiring.usage),
            warnings,
            guard: guard.kind(),
            fast_path: String::new(),
            shared: wiring.shared,
            external: wiring.external.iter().map(ToString::to_string).collect(),
        }
    }

    /// For programs on standard output (a line that says that natbox is ready), for people on standard error.
    fn print(&self, settings: &Settings, server: &Server) -> Result<()> {
        if settings.json {
            let line = format!("{}\n", self.json(settings, server));
            return match settings.command {
                None => print(line.as_bytes()),
                Some(_) => stderr().write_all(line.as_bytes()).context("cannot write to standard error"),
            };
        }
        // Nobody may be there to read it: no reason not to run.
        let _ = stderr().write_all(self.text(settings, server).as_bytes());
        Ok(())
    }

    fn json(&self, settings: &Settings, server: &Server) -> Value {
        json!({
            "type": "started",
            "pid": std::process::id(),
            "control": server.path(),
            "preset": settings.preset,
            "behavior": written(&settings.behavior),
            "external": self.external,
            "shared": self.shared,
            "guard": self.guard,
            "fast-path": self.fast_path,
            "done": self.done,
            "usage": self.usage,
            "warnings": self.warnings,
        })
    }

    fn text(&self, settings: &Settings, server: &Server) -> String {
        let mut text = format!("natbox {}: {}\n", env!("CARGO_PKG_VERSION"), behavior_line(settings));
        let mut add = |head: &str, line: &str| text += &format!("  {head:<8} {line}\n");
        self.done.iter().for_each(|line| add("done:", line));
        if self.shared {
            add("guard:", self.guard);
        }
        if self.fast_path == "on" {
            add("fast:", "packets of quick flows are moved by the kernel");
        }
        self.usage.iter().for_each(|line| add("use:", line));
        add("control:", &format!("{}, for `natbox show`, `set`, `flush`", server.path().display()));
        self.warnings.iter().for_each(|line| add("note:", line));
        if settings.command.is_none() {
            add("end:", "Ctrl-C, which undoes all of this");
        }
        text
    }
}
