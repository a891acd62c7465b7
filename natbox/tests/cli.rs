//! The program as its users meet it: what it says, on which stream, and how it ends. Nothing here needs privileges or
//! changes anything.

#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use natbox_core::{behavior::AXES, preset::PRESETS};
use serde_json::Value;

fn natbox(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_natbox")).args(args).output().unwrap()
}

fn stdout(args: &[&str]) -> String {
    let output = natbox(args);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stderr.is_empty(), "{args:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The one line that a failing call prints, without the program's name.
#[track_caller]
fn refusal(args: &[&str], code: i32) -> String {
    let output = natbox(args);
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {message}");
    assert!(output.stdout.is_empty(), "{args:?}");
    assert_eq!(message.lines().count(), 1, "{args:?}: {message}");
    message.trim_end().strip_prefix("natbox: ").unwrap().to_owned()
}

fn file(name: &str, text: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
    fs::write(&path, text).unwrap();
    path
}

#[test]
fn help_teaches_by_examples_and_names_every_axis() {
    let help = stdout(&["--help"]);
    let (examples, options) = (help.find("Examples:").unwrap(), help.find("Options:").unwrap());
    assert!(examples < options);
    for line in ["sudo natbox --inside tun0 --outside eth0", "-- curl", "--lan eth1", "--inside tun0@alice"] {
        assert!(help.contains(line), "{line}");
    }
    for axis in AXES {
        assert!(help.contains(&format!("--{} <VALUE>", axis.name)), "{}", axis.name);
        assert!(stdout(&["set", "--help"]).contains(&format!("--{} <VALUE>", axis.name)), "{}", axis.name);
    }
    for heading in ["Wiring:", "Behaviour of the NAT:", "Output and control:", "Limits:"] {
        assert!(help.contains(heading), "{heading}");
    }
}

#[test]
fn presets_are_listed_explained_and_exported() {
    let table = stdout(&["presets"]);
    assert!(PRESETS.iter().all(|preset| table.contains(preset.name) && table.contains(preset.about)));
    let page = stdout(&["presets", "symmetric"]);
    assert!(page.contains("observed on: RFC 3489") && page.contains("address-and-port-dependent"));
    let all: Value = serde_json::from_str(&stdout(&["presets", "--json"])).unwrap();
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), PRESETS.len());
    assert!(all.iter().all(|preset| preset["behavior"].as_object().unwrap().len() == AXES.len()));
    let one: Value = serde_json::from_str(&stdout(&["presets", "linux", "--json"])).unwrap();
    assert_eq!(one["behavior"]["tcp-established-timeout"], "5d");
}

#[test]
fn completions_and_manual_come_from_the_same_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = stdout(&["completions", shell]);
        assert!(script.contains("filter-scope"), "{shell}");
        // Not every shell can be told values.
        assert!(["elvish", "powershell"].contains(&shell) || script.contains("symmetric"), "{shell}");
    }
    let page = stdout(&["man"]);
    assert!(page.contains(".TH natbox 1") && page.contains(r"\-\-filter\-scope"));
    assert!(stdout(&["man", "set"]).contains("natbox\\-set"));
}

#[test]
fn what_makes_no_sense_is_told_in_one_line_with_code_2() {
    for (args, message) in [
        (
            &["--outside", "eth0", "--inside", "tun0", "--nat", "symetric"][..],
            "--nat: there is no preset \"symetric\": did you mean \"symmetric\"? (`natbox presets` lists them all)",
        ),
        (
            &["presets", "lunix"],
            "there is no preset \"lunix\": did you mean \"linux\"? (`natbox presets` lists them all)",
        ),
        (&["--maping", "eim"], "unexpected argument '--maping' found: did you mean --mapping?"),
        (&["shwo"], "there is no command \"shwo\": did you mean \"show\"?"),
        (
            &["--outside", "eth0", "curl"],
            "there is no command \"curl\"; natbox --help lists them, and a program goes after --",
        ),
        (
            &["--outside", "eth0"],
            "nothing is behind the NAT: give --inside tun0, --lan eth1, or a command after --",
        ),
        (
            &["--inside", "tun0"],
            "which interface leads to the public network? name it with --outside, such as eth0",
        ),
        (
            &["--outside", "e", "--inside", "tun0=10.0.0.1"],
            "--inside: \"tun0=10.0.0.1\" is not an inside device: \"10.0.0.1\" has no /LEN; write NAME[@NETNS][=ADDR/LEN], such as tun0@lab=10.64.0.2/24",
        ),
        (
            &["--outside", "e", "--inside", "t", "--forward", "sctp:1=10.0.0.1:1"],
            "--forward: \"sctp:1=10.0.0.1:1\" is not a forward: the protocol \"sctp\" is neither udp nor tcp; write PROTOCOL:PORT=ADDR:PORT, such as tcp:8080=10.64.0.2:80",
        ),
        (&["set"], ""),
    ] {
        if message.is_empty() {
            assert_eq!(natbox(args).status.code(), Some(2), "{args:?}");
            continue;
        }
        assert_eq!(refusal(args, 2), message, "{args:?}");
    }
    let line = refusal(&["--outside", "eth0", "--inside", "tun0", "--filtering", "adress-dependent"], 2);
    assert!(
        line.starts_with("--filtering: \"adress-dependent\" is not a value of filtering: expected endpoint-")
    );
    assert!(line.ends_with("did you mean \"address-dependent\"?"), "{line}");
}

#[test]
fn a_typo_in_the_configuration_is_named_with_its_line() {
    let path = file("typo.toml", "outside = 'eth0'\ninside = 'tun0'\n\n[nat]\nmaping = 'eim'\n");
    let path = path.to_str().unwrap();
    assert_eq!(
        refusal(&["--config", path], 2),
        format!("{path}:5: unknown key \"maping\": did you mean \"mapping\"?")
    );
    let line = refusal(&["--config", "/nonexistent/natbox.toml"], 2);
    assert_eq!(line, "/nonexistent/natbox.toml: No such file or directory (os error 2)");
}

#[test]
fn a_missing_interface_is_the_machine_s_refusal() {
    let line = refusal(&["--outside", "no-such-if", "--inside", "tun0", "--dry-run"], 1);
    assert!(line.starts_with("there is no interface \"no-such-if\" here; there are: "), "{line}");
}

#[test]
fn asking_a_natbox_that_does_not_run_is_one_line() {
    for args in [&["show"][..], &["flush"], &["set", "--hairpin", "off"], &["rebind"], &["events"]] {
        let args = [args, &["--control", "/nonexistent/natbox.sock"]].concat();
        let line = refusal(&args, 1);
        assert_eq!(
            line,
            "no natbox answers at /nonexistent/natbox.sock: No such file or directory (os error 2)"
        );
    }
}
