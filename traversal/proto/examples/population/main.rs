//! What share of the people out there get a direct connection? Runs connection attempts over a sampled population of
//! NATs, and prints what came of them.
//!
//! `cargo run --release -p traversal-proto --example population -- --help`

mod engine;

use std::{
    io::{IsTerminal, Write},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::Context;
use clap::Parser;
use engine::{Run, attempt, ideal::Expected, mix, mix::Mix, table, tally::Tally};

const MORE: &str = "\
Each attempt is a world of its own: two peers drawn from the population, each behind its NATs, on links with delay, \
jitter and loss of their own; and a supernode that reflects and relays. The agents are the ones that applications run. \
They connect over the relay and look for a direct path, until both have one or have given up for now. Time is virtual.

In the table, the row and the column are what the two peers are behind; a number is the percentage of the attempts of \
that pair that became direct. The others go over the relay, and whoever is not connected at all is a bug. So is a pair \
that stays relayed though its NATs would let it through, and the other way round: such attempts are counted and named \
by their seeds. The same --seed, --attempts and --mix give the same table, on any number of threads.

The population: --mix measured (where people are, after published measurements: docs/population.md has the sources and \
what is assumed), home (broadband, a router each), carrier (mobile, and homes behind a carrier's NAT), or a FILE of your \
own. Begin with a copy:

  population --print-mix measured > mine.toml    # shares, NATs axis by axis, delays
  population --mix mine.toml --attempts 20000

Look into one attempt, event by event:

  population --mix mine.toml --replay 1234567890

Ctrl-C ends a run early and prints the table of what was done. The exit status is 1 if an attempt went wrong.";

/// Connection attempts over a sampled population of NATs: how many become direct, how soon, and at what cost.
#[derive(Parser)]
#[command(name = "population", after_help = MORE)]
struct Options {
    /// How many attempts
    #[arg(long, default_value_t = 100_000)]
    attempts: u64,
    /// Decides everything that is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Threads; as many as there are processors unless given
    #[arg(long)]
    threads: Option<usize>,
    /// The population: measured, home, carrier or a file
    #[arg(long, default_value = "measured", value_name = "NAME|FILE")]
    mix: String,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
    /// Run the attempt of this seed alone and tell its story
    #[arg(long, value_name = "SEED")]
    replay: Option<u64>,
    /// Print a mix that is built in, to be changed, and do nothing else
    #[arg(long, value_name = "NAME")]
    print_mix: Option<String>,
}

fn main() -> ExitCode {
    match dispatch(&Options::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("population: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn dispatch(options: &Options) -> anyhow::Result<ExitCode> {
    if let Some(name) = &options.print_mix {
        let built_in = mix::BUILT_IN.iter().find(|(known, _)| known == name);
        let (_, text) = built_in.with_context(|| {
            let names: Vec<_> = mix::BUILT_IN.iter().map(|(known, _)| *known).collect();
            format!("there is no mix {name}: {}", names.join(", "))
        })?;
        print!("{text}");
        return Ok(ExitCode::SUCCESS);
    }
    let mix = Mix::load(&options.mix)?;
    let expected = Expected::new(&mix).context("a world of this mix")?;
    match options.replay {
        Some(seed) => replay(&mix, &expected, seed),
        None => run(options, &mix, &expected),
    }
}

fn replay(mix: &Mix, expected: &Expected, seed: u64) -> anyhow::Result<ExitCode> {
    let (attempt, story) = attempt::replay(mix, expected, seed).context("a world of this mix")?;
    println!("{story}\n{attempt:#?}");
    Ok(if attempt.surprise().is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

#[expect(clippy::disallowed_methods, reason = "the program tells its own speed")]
fn clock() -> Instant {
    Instant::now()
}

fn run(options: &Options, mix: &Mix, expected: &Expected) -> anyhow::Result<ExitCode> {
    let threads =
        options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    let is_over = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGINT, is_over.clone())?;
    let started = clock();
    let mut progress = Progress::new(options.attempts, started);
    let run = Run { mix, expected, seed: options.seed, attempts: options.attempts, threads };
    let tally = run.run(|tally| {
        progress.show(tally, clock());
        !is_over.load(Ordering::Relaxed)
    });
    progress.end();
    let took = started.elapsed();
    let speed = |count: u64| count as f64 / took.as_secs_f64();
    let done = tally.all.total();
    if options.json {
        let mut json = table::json(mix, expected, &tally)?;
        json["mix"] = options.mix.clone().into();
        json["seed"] = options.seed.into();
        json["threads"] = threads.into();
        json["seconds"] = took.as_secs_f64().into();
        json["attempts_per_second"] = speed(done).into();
        json["peak_memory_bytes"] = peak_memory().into();
        println!("{json:#}");
    } else {
        println!("{} attempts, seed {}, mix {}: {}\n", done, options.seed, options.mix, mix.about);
        print!("{}", table::text(mix, &tally));
        let memory =
            peak_memory().map_or("unknown".into(), |bytes| format!("{:.1} MiB", bytes as f64 / 1048576.0));
        println!(
            "\n{:.0} attempts/s, {:.0} packets/s on {threads} threads, {:.1} s; memory at most {memory}",
            speed(done),
            speed(tally.packets),
            took.as_secs_f64(),
        );
    }
    Ok(if tally.surprises.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// The most memory that this process has had, where the system tells (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// One line on standard error, rewritten; now and then one more where it is not a terminal.
struct Progress {
    attempts: u64,
    started: Instant,
    next: Duration,
    pace: Duration,
    is_terminal: bool,
}

impl Progress {
    fn new(attempts: u64, started: Instant) -> Progress {
        let is_terminal = std::io::stderr().is_terminal();
        let pace = Duration::from_millis(if is_terminal { 200 } else { 10_000 });
        Progress { attempts, started, next: pace, pace, is_terminal }
    }

    fn show(&mut self, tally: &Tally, now: Instant) {
        let elapsed = now - self.started;
        if elapsed < self.next {
            return;
        }
        self.next = elapsed + self.pace;
        let done = tally.all.total();
        let speed = done as f64 / elapsed.as_secs_f64();
        let left = (self.attempts - done.min(self.attempts)) as f64 / speed;
        let direct = 100.0 * tally.all.direct as f64 / done as f64;
        let wrong: u64 = tally.surprises.values().sum();
        let line = format!(
            "{done} of {} attempts, {speed:.0}/s, {left:.0} s left; {direct:.1} % direct, {wrong} unexpected",
            self.attempts
        );
        let (before, after) = if self.is_terminal { ("\r\x1b[K", "") } else { ("", "\n") };
        eprint!("{before}{line}{after}");
        // Nobody to tell when standard error is gone.
        let _ = std::io::stderr().flush();
    }

    fn end(&self) {
        if self.is_terminal {
            eprint!("\r\x1b[K");
        }
    }
}
