//! What a program may leave behind in a namespace.

use std::fs;
use std::io;
use std::path::Path;

use netns_lab::{Host, LabError};

use super::tools::text;

/// Everything of a namespace that natbox could have changed, as text. Two of them are equal when nothing was.
pub(crate) fn state(host: &Host) -> Result<String, LabError> {
    let mut state = String::new();
    for arguments in [
        &["addr", "show"][..],
        &["route", "show", "table", "all"],
        &["rule", "show"],
        &["tuntap", "show"],
        &["netns", "list-id"],
    ] {
        state += &text(host, "ip", arguments)?;
    }
    state += &text(host, "nft", &["list", "ruleset"])?;
    state += &host.run(|| {
        let mut settings = String::new();
        read_below(Path::new("/proc/sys/net"), &mut settings);
        settings
    })?;
    let programs = tcx_programs(host)?.map_or_else(|| "unknown".to_owned(), |count| count.to_string());
    Ok(format!("{state}tcx programs: {programs}\n"))
}

/// The lines by which two states differ, for a failure's message.
pub(crate) fn difference(before: &str, after: &str) -> String {
    let only = |sign: char, one: &str, other: &str| {
        let missing: Vec<_> = one.lines().filter(|line| !other.lines().any(|it| it == *line)).collect();
        missing.iter().map(|line| format!("\n{sign} {line}")).collect::<String>()
    };
    only('-', before, after) + &only('+', after, before)
}

fn read_below(path: &Path, into: &mut String) {
    let Ok(entries) = fs::read_dir(path) else {
        // A write-only setting is of no interest.
        if let Ok(value) = fs::read_to_string(path) {
            *into += &format!("{} = {}\n", path.display(), value.trim());
        }
        return;
    };
    let mut entries: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    entries.sort();
    for entry in entries {
        read_below(&entry, into);
    }
}

/// tcx programs at the ingress of the host's eth0; `None` where the kernel doesn't tell us.
pub(crate) fn tcx_programs(host: &Host) -> Result<Option<u32>, LabError> {
    host.run(|| {
        let name = c"eth0";
        // SAFETY: the name is a C string that lives until the call returns.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        query(index).ok()
    })
}

/// The start of the kernel's `union bpf_attr` for `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct Query {
    target_ifindex: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    _padding: u32,
    _rest: [u64; 4],
}

const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_TCX_INGRESS: u32 = 46;

fn query(index: u32) -> io::Result<u32> {
    let mut query = Query { target_ifindex: index, attach_type: BPF_TCX_INGRESS, ..Query::default() };
    // SAFETY: the kernel reads and writes `size_of::<Query>()` bytes at `query`, which is that large; without an array
    // for ids (`prog_ids` 0) it only counts.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(query.count) }
}
