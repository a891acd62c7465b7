//! What is kept between two runs: the key, and which supernodes are used.

use std::{
    fs::{File, OpenOptions, TryLockError},
    io::{ErrorKind, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use traversal::{Identity, generate_identity};

use crate::args::KeyArgs;

/// The configuration file.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Config {
    /// Supernodes, as on the command line.
    #[serde(default)]
    pub(crate) supernode: Vec<String>,
    /// The key's file.
    key: Option<PathBuf>,
}

impl Config {
    /// Reads the file that was named, or the usual one if there is one.
    pub(crate) fn load(args: &KeyArgs) -> Result<Config> {
        let (path, is_named) = match &args.config {
            Some(path) => (path.clone(), true),
            None => match folder() {
                Some(folder) => (folder.join("config.toml"), false),
                None => return Ok(Config::default()),
            },
        };
        match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| format!("{} makes no sense", path.display())),
            Err(error) if error.kind() == ErrorKind::NotFound && !is_named => Ok(Config::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// This machine's key, held by its lock for as long as this lives.
#[derive(Debug)]
pub(crate) struct Key {
    pub(crate) identity: Identity,
    /// Another process uses the key at the moment.
    pub(crate) in_use: bool,
    _file: File,
}

impl Key {
    /// Reads the key, or makes it at the first use: 32 bytes in hexadecimal digits, in a file that only its owner may read.
    pub(crate) fn load(args: &KeyArgs, config: &Config) -> Result<Key> {
        let path = match args.key.as_ref().or(config.key.as_ref()) {
            Some(path) => path.clone(),
            None => folder().context("there is no home directory: name a key file with --key")?.join("key"),
        };
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        }
        let mut file = open(&path).with_context(|| format!("cannot open the key in {}", path.display()))?;
        let in_use = match file.try_lock() {
            Ok(()) => false,
            Err(TryLockError::WouldBlock) => true,
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        };
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(|| format!("cannot read {}", path.display()))?;
        let identity = if text.is_empty() && !in_use {
            let identity = generate_identity()?;
            file.seek(SeekFrom::Start(0))?;
            writeln!(file, "{}", hex(&identity.secret()))
                .and_then(|()| file.sync_all())
                .with_context(|| format!("cannot write {}", path.display()))?;
            identity
        } else {
            let secret = secret(text.trim()).ok_or_else(|| {
                anyhow!("{} is no key: 64 hexadecimal digits are wanted; move it away for a new one", path.display())
            })?;
            Identity::from_secret(&secret)
        };
        Ok(Key { identity, in_use, _file: file })
    }
}

fn open(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
        options.mode(0o600);
        let file = options.open(path)?;
        let mode = file.metadata()?.mode();
        if mode & 0o077 != 0 {
            bail!("others may read it (mode {:03o}): chmod 600 {}", mode & 0o777, path.display());
        }
        Ok(file)
    }
    #[cfg(not(unix))]
    Ok(options.open(path)?)
}

/// `$XDG_CONFIG_HOME/traverse`, or `~/.config/traverse`.
fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(base.join("traverse"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn secret(text: &str) -> Option<[u8; 32]> {
    let mut secret = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, pair) in secret.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        let digit = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? << 4 | digit(pair[1])?).ok()?;
    }
    Some(secret)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_come_back() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37) as u8);
        assert_eq!(secret(&hex(&bytes)), Some(bytes));
        for bad in ["", "00", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"+1".repeat(32), &"é".repeat(32)] {
            assert_eq!(secret(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_typo_in_the_configuration_is_told() {
        let error = toml::from_str::<Config>("supernodes = []").unwrap_err().to_string();
        assert!(error.contains("supernodes") && error.contains("expected"), "{error}");
    }
}
