//! The file that an identity is kept in: its 32 secret bytes as 64 hexadecimal digits. Lines that begin with `#` are
//! for people.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustls::crypto::SecureRandom;
use traversal_proto::wire::Identity;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("cannot read the key {}: {}", path.display(), told(source))]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file cannot be made.
    #[error("cannot keep a new key in {}: {}", path.display(), told(source))]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is not a key: it has to hold 64 hexadecimal digits", path.display())]
    NotAKey {
        /// Which file.
        path: PathBuf,
    },
    /// The operating system gives no randomness.
    #[error("the operating system gives no randomness for a new key")]
    NoRandomness,
}

/// Reads the identity kept in `path`.
///
/// # Errors
/// [`KeyError::Read`], also if there is no such file, and [`KeyError::NotAKey`].
pub fn load(path: &Path) -> Result<Identity, KeyError> {
    let text = fs::read_to_string(path).map_err(|source| match source.kind() {
        io::ErrorKind::InvalidData => KeyError::NotAKey { path: path.to_owned() },
        _ => KeyError::Read { path: path.to_owned(), source },
    })?;
    parse(&text).ok_or_else(|| KeyError::NotAKey { path: path.to_owned() })
}

/// The identity kept in `path`; a new one, kept there from now on, if there is no such file. The file is readable by its
/// owner only; its folder is made if need be. True: the key is new.
pub fn load_or_create(path: &Path) -> Result<(Identity, bool), KeyError> {
    match load(path) {
        Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
        loaded => return loaded.map(|identity| (identity, false)),
    }
    let identity = Identity::from_secret(&random()?);
    match keep(&identity, path) {
        Ok(()) => Ok((identity, true)),
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => load(path).map(|found| (found, false)),
        Err(source) => Err(KeyError::Write { path: path.to_owned(), source }),
    }
}

/// 32 bytes of the operating system's randomness.
pub fn random() -> Result<[u8; 32], KeyError> {
    let mut bytes = [0; 32];
    let source: &dyn SecureRandom = rustls::crypto::ring::default_provider().secure_random;
    source.fill(&mut bytes).map_err(|_| KeyError::NoRandomness)?;
    Ok(bytes)
}

fn parse(text: &str) -> Option<Identity> {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    let digits = lines.next().filter(|digits| digits.len() == 64 && digits.is_ascii())?;
    if lines.next().is_some() {
        return None;
    }
    let mut secret = [0; 32];
    for (at, byte) in secret.iter_mut().enumerate() {
        let pair = &digits[2 * at..2 * at + 2];
        *byte = u8::from_str_radix(pair, 16).ok().filter(|_| !pair.starts_with('+'))?;
    }
    Some(Identity::from_secret(&secret))
}

/// Written beside and then linked into place, so that a crash never leaves half a key.
fn keep(identity: &Identity, path: &Path) -> io::Result<()> {
    if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        fs::create_dir_all(folder)?;
    }
    let mut beside = path.as_os_str().to_owned();
    beside.push(format!(".new-{}", std::process::id()));
    let beside = PathBuf::from(beside);
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let written = options.open(&beside).and_then(|mut file| {
        writeln!(file, "# The secret key of {}", identity.peer_id())?;
        identity.secret().iter().try_for_each(|byte| write!(file, "{byte:02x}"))?;
        writeln!(file)?;
        file.sync_all()
    });
    let linked = written.and_then(|()| fs::hard_link(&beside, path));
    let _ = fs::remove_file(&beside);
    linked
}

fn told(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => "there is no such file".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        _ => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_found() {
        let folder = std::env::temp_dir().join(format!("traversal-key-{}", std::process::id()));
        let path = folder.join("deeper").join("key");
        let (made, new) = load_or_create(&path).unwrap();
        let (found, again) = load_or_create(&path).unwrap();
        assert_eq!((made.peer_id(), new, again), (found.peer_id(), true, false));
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn other_text_is_no_key() {
        let good = "ab".repeat(32);
        assert!(parse(&format!("# note\n\n {good} \n")).is_some());
        let bad =
            [String::new(), good[1..].into(), format!("{good}\n{good}"), "+a".repeat(32), "é".repeat(32)];
        for text in bad {
            assert!(parse(&text).is_none(), "{text}");
        }
    }
}
