//! What there is to be sent: the files and folders below the paths that were named.

use std::{
    collections::HashMap,
    fs::{self, Metadata},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use walkdir::WalkDir;

use super::{
    manifest::{MAX_ENTRIES, MAX_NAMES},
    name,
    wire::{About, Entry, Kind},
};

/// The entries of a list, and where they come from.
#[derive(Debug, Default)]
pub(crate) struct List {
    /// Each folder before what is in it.
    pub(crate) entries: Vec<Entry>,
    /// Bytes of all the files.
    pub(crate) bytes: u64,
    pub(crate) files: u32,
    /// Where the first components of the entries' paths are.
    pub(crate) roots: HashMap<String, PathBuf>,
    /// Bytes of all the paths.
    pub(crate) names: usize,
}

impl List {
    /// Lists what is at `paths`. `skip` hears of everything that is left out, and why.
    pub(crate) fn of(paths: &[PathBuf], mut skip: impl FnMut(&Path, &str)) -> Result<List> {
        let mut list = List::default();
        for path in paths {
            list.add(path, &mut skip)?;
        }
        Ok(list)
    }

    /// The file of an entry.
    pub(crate) fn source(&self, entry: &Entry) -> PathBuf {
        let (first, rest) = entry.path.split_once('/').unwrap_or((&entry.path, ""));
        let root = self.roots.get(first).cloned().unwrap_or_default();
        if rest.is_empty() { root } else { root.join(rest) }
    }

    /// Adds what was named: a link, too, stands for what it leads to.
    fn add(&mut self, path: &Path, skip: &mut impl FnMut(&Path, &str)) -> Result<()> {
        let shown = path.display();
        let root = fs::canonicalize(path).with_context(|| format!("cannot read {shown}"))?;
        let last = path.file_name().or(root.file_name());
        let Some(last) = last else { bail!("{shown} has no name to be sent by: name what is in it") };
        let first = last.to_str().with_context(|| format!("the name of {shown} is not UTF-8"))?;
        if let Err(bad) = name::component(first) {
            bail!("the name of {shown} cannot be sent: {bad}");
        }
        let about = fs::metadata(&root).with_context(|| format!("cannot read {shown}"))?;
        if let Some(special) = special(&about) {
            bail!("{shown} is {special}: only files and folders can be sent");
        }
        if let Some(other) = self.roots.insert(first.to_owned(), root.clone()) {
            bail!(
                "{} and {} have the same name, {first}: send one after the other",
                other.display(),
                root.display()
            );
        }
        self.push(first.to_owned(), &about)?;
        if about.is_dir() {
            fs::read_dir(&root).with_context(|| format!("cannot read {shown}"))?;
            self.walk(first, &root, skip)?;
        } else {
            // Better said before the peer is asked for anything.
            fs::File::open(&root).with_context(|| format!("cannot read {shown}"))?;
        }
        Ok(())
    }

    fn walk(&mut self, first: &str, root: &Path, skip: &mut impl FnMut(&Path, &str)) -> Result<()> {
        let mut walk = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter();
        while let Some(entry) = walk.next() {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => {
                    let why = error.io_error().map_or_else(|| error.to_string(), ToString::to_string);
                    skip(error.path().unwrap_or(root), &why);
                    continue;
                }
            };
            let mut leave_out = |why: &str| {
                skip(entry.path(), why);
                if entry.file_type().is_dir() {
                    walk.skip_current_dir();
                }
            };
            let below = entry.path().strip_prefix(root).unwrap_or(entry.path());
            let parts: Option<Vec<&str>> = below.iter().map(|part| part.to_str()).collect();
            let Some(parts) = parts else {
                leave_out("its name is not UTF-8");
                continue;
            };
            let path = format!("{first}/{}", parts.join("/"));
            if let Err(bad) = name::check(&path) {
                leave_out(&bad.to_string());
                continue;
            }
            match entry.metadata() {
                Ok(about) => match special(&about) {
                    Some(special) => leave_out(&format!("it is {special}")),
                    None => self.push(path, &about)?,
                },
                Err(error) => {
                    leave_out(&error.io_error().map_or_else(|| error.to_string(), ToString::to_string))
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, path: String, about: &Metadata) -> Result<()> {
        self.names += path.len();
        if self.entries.len() >= MAX_ENTRIES || self.names > MAX_NAMES {
            bail!(
                "that is more than {MAX_ENTRIES} files and folders, or their names are too long: send them in parts"
            );
        }
        let kind = if about.is_dir() { Kind::Folder } else { Kind::File(describe(about)) };
        if let Kind::File(file) = kind {
            self.bytes = self.bytes.checked_add(file.size).context("that is more than can be counted")?;
            self.files += 1;
        }
        self.entries.push(Entry { path, kind });
        Ok(())
    }
}

/// What travels of a file's metadata.
pub(crate) fn describe(about: &Metadata) -> About {
    let modified = about.modified().map_or((0, 0), since_1970);
    About { size: about.len(), modified, executable: executable(about) }
}

/// Seconds, rounded down, and nanoseconds.
fn since_1970(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => (i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos()),
        Err(before) => {
            let before = before.duration();
            let seconds = i64::try_from(before.as_secs()).map_or(i64::MIN, |seconds| -seconds);
            match before.subsec_nanos() {
                0 => (seconds, 0),
                nanos => (seconds.saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    }
}

#[cfg(unix)]
fn executable(about: &Metadata) -> bool {
    use std::os::unix::fs::PermissionsExt;
    about.permissions().mode() & 0o100 != 0
}

#[cfg(not(unix))]
fn executable(_: &Metadata) -> bool {
    false
}

/// What this is, if it is neither a file nor a folder.
fn special(about: &Metadata) -> Option<&'static str> {
    let kind = about.file_type();
    if kind.is_file() || kind.is_dir() {
        return None;
    }
    if kind.is_symlink() {
        return Some("a symbolic link");
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return Some("a named pipe");
        }
        if kind.is_socket() {
            return Some("a socket");
        }
    }
    Some("a device")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        assert_eq!(since_1970(UNIX_EPOCH + Duration::new(5, 7)), (5, 7));
        assert_eq!(since_1970(UNIX_EPOCH - Duration::new(5, 0)), (-5, 0));
        assert_eq!(since_1970(UNIX_EPOCH - Duration::new(5, 1)), (-6, 999_999_999));
    }

    #[cfg(unix)]
    #[test]
    fn links_and_odd_names_are_left_out_and_told() {
        use std::{
            ffi::OsStr,
            os::unix::{ffi::OsStrExt, fs::symlink},
        };
        let folder = std::env::temp_dir().join(format!("traverse-list-{}", std::process::id()));
        let inner = folder.join("inner");
        fs::create_dir_all(inner.join("empty")).unwrap();
        fs::write(inner.join("file"), "12345").unwrap();
        fs::write(inner.join(OsStr::from_bytes(b"\xff")), "").unwrap();
        fs::write(inner.join(name::partial("x")), "").unwrap();
        symlink("/etc", inner.join("link")).unwrap();
        symlink(&inner, folder.join("named")).unwrap();

        let mut skipped = Vec::new();
        let list = List::of(&[folder.join("named")], |path, why| {
            skipped.push(format!("{}: {why}", path.file_name().unwrap().display()));
        });
        let same_name = List::of(&[inner.clone(), inner.join("../inner")], |_, _| {}).unwrap_err();
        let missing = List::of(&[folder.join("missing")], |_, _| {}).unwrap_err();
        fs::remove_dir_all(&folder).unwrap();

        let list = list.unwrap();
        let paths: Vec<_> = list.entries.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(paths, ["named", "named/empty", "named/file"]);
        assert_eq!((list.files, list.bytes), (1, 5));
        assert!(list.source(&list.entries[2]).ends_with("inner/file"));
        assert_eq!(skipped.len(), 3, "{skipped:?}");
        assert!(skipped.iter().any(|line| line == "link: it is a symbolic link"), "{skipped:?}");
        assert!(skipped.iter().any(|line| line.ends_with("its name is not UTF-8")), "{skipped:?}");
        assert!(same_name.to_string().contains("have the same name, inner"), "{same_name}");
        assert!(missing.to_string().starts_with("cannot read "), "{missing}");
    }
}
