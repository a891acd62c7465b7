//! Names of files, as they travel and as they may be used.

use std::fmt;

use super::wire::Hash;

/// Bytes of a path: as many as Linux takes in one call, less the zero at its end.
pub(crate) const MAX_PATH: usize = 4095;

/// Bytes of one component: what nearly every file system takes.
const MAX_COMPONENT: usize = 255;

/// Folders in one another: deeper than anybody nests them by hand.
const MAX_DEPTH: usize = 128;

/// What is wrong with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BadName {
    Empty,
    Absolute,
    Dots,
    Character,
    Long,
    Deep,
    Reserved,
}

impl fmt::Display for BadName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            BadName::Empty => "a component is empty",
            BadName::Absolute => "it is absolute",
            BadName::Dots => "it has . or .. in it",
            BadName::Character => "it has a character that names here may not have",
            BadName::Long => "it is longer than 4095 bytes, or a component of it than 255",
            BadName::Deep => "it is deeper than 128 folders",
            BadName::Reserved => "it is the name of an unfinished transfer",
        })
    }
}

/// Whether `path` is one that stays below the folder that it is relative to, and may be made there.
pub(crate) fn check(path: &str) -> Result<(), BadName> {
    if path.starts_with('/') {
        return Err(BadName::Absolute);
    }
    if path.len() > MAX_PATH {
        return Err(BadName::Long);
    }
    if path.split('/').count() > MAX_DEPTH {
        return Err(BadName::Deep);
    }
    path.split('/').try_for_each(component)
}

/// The same for one component.
pub(crate) fn component(name: &str) -> Result<(), BadName> {
    match name {
        "" => Err(BadName::Empty),
        "." | ".." => Err(BadName::Dots),
        _ if name.contains(['\0', '/']) || !is_local(name) => Err(BadName::Character),
        _ if name.len() > MAX_COMPONENT => Err(BadName::Long),
        _ if is_partial(name) => Err(BadName::Reserved),
        _ => Ok(()),
    }
}

/// Here any other character is a name's own.
#[cfg(unix)]
fn is_local(_: &str) -> bool {
    true
}

/// Here some characters and some names lead elsewhere: to drives, streams and devices.
#[cfg(not(unix))]
fn is_local(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or("").trim_end().to_ascii_uppercase();
    let device = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"].contains(&stem.as_str())
        || ((stem.starts_with("COM") || stem.starts_with("LPT")) && stem.chars().count() == 4);
    !device && !name.ends_with([' ', '.']) && !name.contains(|c: char| c < ' ' || "\\:*?\"<>|".contains(c))
}

/// Folder and name of a path that has been checked; the folder of what stands alone is empty.
pub(crate) fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

const BEFORE: &str = ".traverse-";
const AFTER: &str = ".part";

/// What a file is called, in its own folder, until it is whole: the same in every run, and short enough for every name.
pub(crate) fn partial(path: &str) -> String {
    let hash: Hash = blake3::hash(path.as_bytes()).into();
    let digits: String = hash[..16].iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{BEFORE}{digits}{AFTER}")
}

/// Whether this is what [`partial`] makes: nobody may send it, it could be another file's.
pub(crate) fn is_partial(name: &str) -> bool {
    name.starts_with(BEFORE) && name.ends_with(AFTER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_leads_out_is_refused() {
        for (path, bad) in [
            ("", BadName::Empty),
            ("/etc/passwd", BadName::Absolute),
            ("//x", BadName::Absolute),
            ("..", BadName::Dots),
            ("a/../../b", BadName::Dots),
            ("./a", BadName::Dots),
            ("a//b", BadName::Empty),
            ("a/", BadName::Empty),
            ("a\0b", BadName::Character),
            (&partial("x"), BadName::Reserved),
            (&"a".repeat(256), BadName::Long),
            (&"a/".repeat(2500), BadName::Long),
            (&"a/".repeat(200), BadName::Deep),
        ] {
            assert_eq!(check(path), Err(bad), "{path:?}");
        }
    }

    #[test]
    fn what_looks_odd_is_a_name() {
        for path in ["a", "a/b/c", "...", "..a", "ä/ü", "~", "-rf", " ", "a\nb", &"a".repeat(255)] {
            assert_eq!(check(path), Ok(()), "{path:?}");
        }
        #[cfg(unix)]
        for path in ["C:\\Windows", "..\\x", "con", "a:b", "\\\\server\\share"] {
            assert_eq!(check(path), Ok(()), "{path:?}");
        }
    }

    proptest! {
        /// By the standard library's own idea of components.
        #[test]
        fn what_passes_stays_below(path in "(\\.|\\.\\.|/|a|\\\\|[a-z]:){0,12}") {
            use std::path::{Component, Path};
            if check(&path).is_ok() {
                let normal = |component| matches!(component, Component::Normal(_));
                prop_assert!(Path::new(&path).components().all(normal));
                prop_assert_eq!(Path::new(&path).components().count(), path.split('/').count());
            }
        }
    }
}
