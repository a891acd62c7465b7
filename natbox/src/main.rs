//! The natbox program.

fn main() {}
