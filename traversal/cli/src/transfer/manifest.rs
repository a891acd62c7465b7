//! A list as it arrives: nothing of it is believed before it has been checked here.

use std::collections::HashMap;

use super::{
    name,
    wire::{Entry, Kind, cut},
};

/// Files and folders of one transfer: a receiver holds some two hundred bytes of each.
pub(crate) const MAX_ENTRIES: usize = 1_000_000;

/// Bytes of all their paths.
pub(crate) const MAX_NAMES: usize = 64 << 20;

/// A list in which every path stays below the receiver's folder, none comes twice, and everything that is in a folder comes
/// after that folder.
#[derive(Debug, Default)]
pub(crate) struct Manifest {
    pub(crate) entries: Vec<Entry>,
    pub(crate) bytes: u64,
    pub(crate) files: u32,
    pub(crate) folders: u32,
}

impl Manifest {
    /// What somebody is asked about: the entries that are in no other.
    pub(crate) fn top(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| !entry.path.contains('/'))
    }
}

/// A manifest in the making.
#[derive(Debug)]
pub(crate) struct Arriving {
    expected: usize,
    bytes: u64,
    names: usize,
    is_folder: HashMap<String, bool>,
    manifest: Manifest,
}

impl Arriving {
    /// After the offer of so many entries with so many bytes.
    pub(crate) fn new(entries: u32, bytes: u64) -> Result<Arriving, String> {
        let expected = entries as usize;
        if expected > MAX_ENTRIES {
            return Err(format!("{entries} files and folders are too many: {MAX_ENTRIES} are taken at once"));
        }
        Ok(Arriving { expected, bytes, names: 0, is_folder: HashMap::new(), manifest: Manifest::default() })
    }

    /// All entries have come.
    pub(crate) fn is_complete(&self) -> bool {
        self.manifest.entries.len() == self.expected
    }

    pub(crate) fn add(&mut self, entry: Entry) -> Result<(), String> {
        if self.is_complete() {
            return Err("there are more entries than were announced".to_owned());
        }
        let path = &entry.path;
        self.names += path.len();
        if self.names > MAX_NAMES {
            return Err("the names are too long together".to_owned());
        }
        name::check(path).map_err(|bad| format!("{} is no name to be received by: {bad}", shown(path)))?;
        let (folder, _) = name::split(path);
        if !folder.is_empty() && self.is_folder.get(folder) != Some(&true) {
            return Err(format!("{} is in something that is no folder", shown(path)));
        }
        match entry.kind {
            Kind::Folder => self.manifest.folders += 1,
            Kind::File(about) => {
                let sum = self.manifest.bytes.checked_add(about.size).filter(|sum| *sum <= self.bytes);
                self.manifest.bytes = sum.ok_or("the files have more bytes than were announced")?;
                self.manifest.files += 1;
            }
        }
        if self.is_folder.insert(path.clone(), entry.kind == Kind::Folder).is_some() {
            return Err(format!("{} comes twice", shown(path)));
        }
        self.manifest.entries.push(entry);
        Ok(())
    }

    pub(crate) fn finish(self) -> Result<Manifest, String> {
        if self.manifest.bytes != self.bytes {
            return Err("the files have fewer bytes than were announced".to_owned());
        }
        Ok(self.manifest)
    }
}

/// As much of a path as fits a line.
fn shown(path: &str) -> String {
    let mut shown = path.to_owned();
    cut(&mut shown, 60);
    let more = if shown.len() < path.len() { "…" } else { "" };
    format!("{shown:?}{more}")
}

#[cfg(test)]
mod tests {
    use super::{super::wire::About, *};

    fn file(path: &str, size: u64) -> Entry {
        Entry { path: path.into(), kind: Kind::File(About { size, modified: (0, 0), executable: false }) }
    }

    fn folder(path: &str) -> Entry {
        Entry { path: path.into(), kind: Kind::Folder }
    }

    fn all(bytes: u64, entries: Vec<Entry>) -> Result<Manifest, String> {
        let mut arriving = Arriving::new(entries.len() as u32, bytes)?;
        entries.into_iter().try_for_each(|entry| arriving.add(entry))?;
        assert!(arriving.is_complete());
        arriving.finish()
    }

    #[test]
    fn a_tree() {
        let manifest = all(3, vec![folder("a"), folder("a/b"), file("a/b/c", 3), file("d", 0)]).unwrap();
        assert_eq!((manifest.files, manifest.folders, manifest.bytes), (2, 2, 3));
        assert_eq!(manifest.top().map(|entry| entry.path.as_str()).collect::<Vec<_>>(), ["a", "d"]);
    }

    #[test]
    fn lies_are_refused() {
        for (bytes, entries, words) in [
            (0, vec![file("..", 0)], "no name to be received by"),
            (0, vec![folder("a"), file("a/../../x", 0)], "no name to be received by"),
            (0, vec![file("a", 0), file("a", 0)], "comes twice"),
            (0, vec![folder("a"), file("a", 0)], "comes twice"),
            (0, vec![file("a", 0), file("a/b", 0)], "no folder"),
            (0, vec![file("a/b", 0), folder("a")], "no folder"),
            (1, vec![file("a", 2)], "more bytes"),
            (3, vec![file("a", 2)], "fewer bytes"),
            (u64::MAX, vec![file("a", u64::MAX), file("b", 1)], "more bytes"),
        ] {
            let error = all(bytes, entries).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert!(Arriving::new(u32::MAX, 0).unwrap_err().contains("too many"));
        let mut full = Arriving::new(0, 0).unwrap();
        assert!(full.add(folder("a")).unwrap_err().contains("more entries"));
        let long = format!("{}/", "a".repeat(250)).repeat(16);
        let mut arriving = Arriving::new(MAX_ENTRIES as u32, 0).unwrap();
        let longs = (0..).map(|number| folder(&format!("{}{number}", &long[..4000])));
        // Each is refused for want of its folder: only what all of them need counts here.
        let error =
            longs.map(|entry| arriving.add(entry).unwrap_err()).find(|error| error.contains("together"));
        assert!(error.is_some());
    }
}
