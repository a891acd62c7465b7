//! The program as it is typed: what it needs no network for.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

/// A home of this test's own.
struct Home(PathBuf);

impl Home {
    fn new(name: &str) -> Home {
        let path = std::env::temp_dir().join(format!("traverse-test-{}-cli-{name}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Home(path)
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let mut traverse = Command::new(env!("CARGO_BIN_EXE_traverse"));
        for name in ["TRAVERSE_SUPERNODE", "TRAVERSE_KEY", "TRAVERSE_CONFIG"] {
            traverse.env_remove(name);
        }
        traverse.env("XDG_CONFIG_HOME", &self.0).args(arguments).output().unwrap()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join("traverse").join(name)
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One line on standard error that has these words, nothing on standard output, and this exit code.
#[track_caller]
fn refused(output: &Output, code: i32, words: &[&str]) {
    let said = text(&output.stderr);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(code), String::new()), "{said}");
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    assert!(code == 2 || said.trim_end().lines().count() == 1, "{said}");
}

#[test]
fn the_id_is_made_once_and_kept_from_others() {
    let home = Home::new("id");
    let first = home.run(&["id"]);
    let id = text(&first.stdout);
    assert!(first.status.success() && id.trim_end().len() == 52, "{id}{}", text(&first.stderr));
    assert_eq!(text(&home.run(&["id"]).stdout), id);
    let other = home.path("other");
    assert_ne!(text(&home.run(&["id", "--key", &other.display().to_string()]).stdout), id);
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let set = |mode| fs::set_permissions(home.path("key"), fs::Permissions::from_mode(mode)).unwrap();
        assert_eq!(fs::metadata(home.path("key")).unwrap().permissions().mode() & 0o777, 0o600);
        set(0o644);
        refused(&home.run(&["id"]), 1, &["others may read the key", "chmod 600"]);
        set(0o600);
    }
    fs::write(home.path("key"), "not a key").unwrap();
    refused(&home.run(&["id"]), 1, &["is not a key", "64 hexadecimal digits"]);
}

#[test]
fn what_is_missing_is_named() {
    let home = Home::new("missing");
    refused(&home.run(&["listen"]), 1, &["no supernode is known", "--supernode", "TRAVERSE_SUPERNODE"]);
    refused(&home.run(&["connect"]), 2, &["PEER", "--help"]);
    refused(&home.run(&["connect", "abc"]), 2, &["abc"]);
    refused(&home.run(&["listen", "--supernode", "192.0.2.1"]), 1, &["192.0.2.1", "the port is missing"]);
    refused(&home.run(&["ping", "--interval", "0"]), 2, &["between 0.001 and 86400"]);
    refused(&home.run(&["ping", "--count", "0"]), 2, &["--count", "0 is not in 1"]);
    fs::create_dir_all(home.path("")).unwrap();
    fs::write(home.path("config.toml"), "supernodes = []").unwrap();
    refused(&home.run(&["listen"]), 1, &["config.toml, line 1", "supernodes"]);
    let nowhere = Path::new("/nonexistent/config.toml").display().to_string();
    refused(&home.run(&["listen", "--config", &nowhere]), 1, &["cannot read", &nowhere]);
}

#[test]
fn help_teaches() {
    let home = Home::new("help");
    let help = text(&home.run(&["--help"]).stdout);
    for words in [
        "traverse listen",
        "traverse connect PEER",
        "traverse expose",
        "TRAVERSE_SUPERNODE",
        "doctor",
        "Exit codes",
    ] {
        assert!(help.contains(words), "{help}");
    }
    for command in ["id", "listen", "connect", "send", "receive", "forward", "expose", "ping", "doctor"] {
        let help = text(&home.run(&[command, "--help"]).stdout);
        assert!(help.contains("Examples:\n  ") && help.contains(&format!(" traverse {command}")), "{help}");
        assert!(help.contains("TRAVERSE_KEY]"), "{help}");
    }
}
