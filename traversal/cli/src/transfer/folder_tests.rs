#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test may")]

use std::{
    fs,
    io::{Read, Write},
    os::unix::fs::symlink,
    path::PathBuf,
};

use super::*;

/// A folder with another one beside it, where nothing may ever appear.
struct Yard(PathBuf);

impl Yard {
    fn new(name: &str) -> (Yard, Folder) {
        let yard = Yard(std::env::temp_dir().join(format!("traverse-folder-{}-{name}", std::process::id())));
        fs::create_dir_all(yard.0.join("outside")).unwrap();
        let folder = Folder::open(&yard.0.join("in/side")).unwrap();
        (yard, folder)
    }

    fn inside(&self, path: &str) -> PathBuf {
        self.0.join("in/side").join(path)
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let outside = fs::read_dir(self.0.join("outside")).map_or(0, Iterator::count);
        let _ = fs::remove_dir_all(&self.0);
        assert_eq!(outside, 0, "something was made outside");
    }
}

#[test]
fn a_link_in_the_way_is_not_followed() {
    let (yard, mut folder) = Yard::new("way");
    symlink(yard.0.join("outside"), yard.inside("a")).unwrap();
    assert_eq!(why(&folder.parent_of("a/x").unwrap_err()), Why::Blocked);
    assert_eq!(why(&folder.make("a").unwrap_err()), Why::Blocked);
    assert_eq!(why(&folder.make("a/b").unwrap_err()), Why::Blocked);
    // One that leads nowhere outside is none either.
    fs::create_dir(yard.inside("real")).unwrap();
    symlink("real", yard.inside("alias")).unwrap();
    assert_eq!(why(&folder.parent_of("alias/x").unwrap_err()), Why::Blocked);
    fs::write(yard.inside("file"), "").unwrap();
    assert_eq!(why(&folder.make("file").unwrap_err()), Why::Blocked);
}

/// A folder is replaced by a link after it was opened, and before: a race is lost by whoever plants links.
#[test]
fn a_folder_that_becomes_a_link() {
    let (yard, mut folder) = Yard::new("becomes");
    folder.make("a").unwrap();
    let opened = folder.parent_of("a/x").unwrap();
    fs::rename(yard.inside("a"), yard.inside("moved")).unwrap();
    symlink(yard.0.join("outside"), yard.inside("a")).unwrap();
    open_partial(&opened, "x").unwrap().write_all(b"x").unwrap();
    assert_eq!(fs::read(yard.inside("moved/x")).unwrap(), b"x");
    folder.last = (String::new(), folder.root.clone());
    assert_eq!(why(&folder.parent_of("a/x").unwrap_err()), Why::Blocked);
}

#[test]
fn a_partial_that_is_something_else_is_not_written_to() {
    let (yard, mut folder) = Yard::new("partial");
    let root = folder.parent_of("x").unwrap();
    let secret = yard.0.join("secret");
    fs::write(&secret, "kept").unwrap();
    symlink(&secret, yard.inside("link")).unwrap();
    fs::hard_link(&secret, yard.inside("second-name")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, yard.inside("pipe"), rustix::fs::Mode::RWXU).unwrap();
    fs::create_dir(yard.inside("folder")).unwrap();
    for name in ["link", "second-name", "pipe", "folder"] {
        let error = open_partial(&root, name).unwrap_err();
        assert!(matches!(why(&error), Why::Exists | Why::Blocked), "{name}: {error}");
    }
    for name in ["../x", "/tmp/x", ".."] {
        assert!(open_partial(&root, name).is_err(), "{name}");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"kept");
}

#[test]
fn a_partial_is_one_process_s() {
    let (_yard, mut folder) = Yard::new("lock");
    let root = folder.parent_of("x").unwrap();
    let _held = open_partial(&root, "p").unwrap();
    assert_eq!(why(&open_partial(&root, "p").unwrap_err()), Why::InUse);
}

#[test]
fn a_name_that_is_taken_is_kept() {
    let (yard, mut folder) = Yard::new("place");
    let root = folder.parent_of("x").unwrap();
    for (content, way) in
        [("first", rename_to_nothing as fn(&Dir, &str, &str) -> _), ("second", link_to_nothing)]
    {
        let name = format!("{content}.name");
        open_partial(&root, "p").unwrap().write_all(content.as_bytes()).unwrap();
        way(&root, "p", &name).unwrap();
        open_partial(&root, "p").unwrap().write_all(b"other").unwrap();
        assert_eq!(why(&way(&root, "p", &name).unwrap_err()), Why::Exists);
        let mut text = String::new();
        open(&root, &name).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, content);
        place(&root, "p", &name, true).unwrap();
        assert_eq!(fs::read(yard.inside(&name)).unwrap(), b"other");
    }
    // A link is replaced, not what it leads to.
    fs::write(yard.0.join("secret"), "kept").unwrap();
    symlink(yard.0.join("secret"), yard.inside("link")).unwrap();
    open_partial(&root, "p").unwrap();
    assert_eq!(why(&place(&root, "p", "link", false).unwrap_err()), Why::Exists);
    assert_eq!(look(&root, "link").unwrap(), Present::Other);
    place(&root, "p", "link", true).unwrap();
    assert_eq!(look(&root, "link").unwrap(), Present::File(0));
    assert_eq!(fs::read(yard.0.join("secret")).unwrap(), b"kept");
}
