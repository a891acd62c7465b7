//! Building what is tested.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::{LabError, script};

/// How the names of variables begin that cargo sets for the package in hand.
const OF_PACKAGE: [&str; 4] = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_"];

/// What has been built, by name.
static BUILT: OnceLock<Result<BTreeMap<String, PathBuf>, String>> = OnceLock::new();

/// One of this workspace's programs (`natbox`, `supernode`, `traverse`), built from the source as it is now; once for each
/// process, in this test's own profile.
///
/// # Errors
/// [`LabError::Build`] with the compiler's words when it doesn't build.
pub fn program(name: &str) -> Result<PathBuf, LabError> {
    // Whoever else wants a program waits until all are built: cargo would make it wait as well.
    let built = BUILT.get_or_init(build).as_ref().map_err(|why| LabError::Build(why.clone()))?;
    built.get(name).cloned().ok_or_else(|| LabError::Build(format!("cargo built no program named {name}")))
}

/// One of the applications in `examples/`, built like [`program`].
///
/// # Errors
/// [`LabError::Build`] with the compiler's words when it doesn't build.
pub fn example(name: &str) -> Result<PathBuf, LabError> {
    program(name)
}

/// Builds the programs and takes their paths from cargo's own report: whatever target directory or profile is in force, it is
/// never a stale file that happens to lie somewhere. All are built at once, examples among them, because then their
/// dependencies have the same features as those of the workspace's tests: `cargo test` has built them already.
fn build() -> Result<BTreeMap<String, PathBuf>, String> {
    // Cargo names itself to the tests that it runs.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(&cargo);
    command.args(["build", "--quiet", "--workspace", "--bins", "--examples"]);
    command.arg("--message-format=json-render-diagnostics");
    if !cfg!(debug_assertions) {
        command.arg("--release");
    }
    for name in about_this_test() {
        command.env_remove(name);
    }
    let output = command
        .current_dir(script::folder())
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("can't run {}: {error}", cargo.to_string_lossy()))?;
    if !output.status.success() {
        return Err(script::failure(&output));
    }
    let report = String::from_utf8_lossy(&output.stdout);
    let messages = report.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = |message: serde_json::Value| {
        let path = PathBuf::from(message["executable"].as_str()?);
        Some((message["target"]["name"].as_str()?.to_owned(), path))
    };
    Ok(messages.filter_map(program).collect())
}

/// What cargo tells a test of the test's own package. Where a build inherits it, build scripts that look at it (ring's) take it
/// for a change, and half of the workspace is built anew.
fn about_this_test() -> impl Iterator<Item = OsString> {
    let names = std::env::vars_os().map(|(name, _)| name);
    names.filter(|name| {
        name.to_str().is_some_and(|name| OF_PACKAGE.iter().any(|prefix| name.starts_with(prefix)))
    })
}
