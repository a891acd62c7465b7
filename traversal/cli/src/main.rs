//! The traverse program.

use std::process::ExitCode;

fn main() -> ExitCode {
    traverse::main()
}
