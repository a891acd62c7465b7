//! What is kept between two runs: the key, and which supernodes are used.

use std::{
    fs::{File, TryLockError},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail};
use serde::Deserialize;
use traversal::{Identity, key::load_or_create};

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
            Ok(text) => toml::from_str(&text).map_err(|error| {
                let before = error.span().map_or("", |span| text.get(..span.start).unwrap_or(""));
                anyhow!("{}, line {}: {}", path.display(), before.matches('\n').count() + 1, error.message())
            }),
            Err(error) if error.kind() == ErrorKind::NotFound && !is_named => Ok(Config::default()),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

/// This machine's key.
#[derive(Debug)]
pub(crate) struct KeyFile {
    pub(crate) identity: Identity,
    pub(crate) path: PathBuf,
    file: File,
}

impl KeyFile {
    /// Reads the key, or makes it at the first use, in a file that only its owner may read.
    pub(crate) fn load(args: &KeyArgs, config: &Config) -> Result<KeyFile> {
        let path = match args.key.as_ref().or(config.key.as_ref()) {
            Some(path) => path.clone(),
            None => folder().context("there is no home directory: name a key file with --key")?.join("key"),
        };
        let (identity, _) = load_or_create(&path)?;
        let file = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        only_the_owners(&path, &file)?;
        Ok(KeyFile { identity, path, file })
    }

    /// Takes the key for as long as this lives. False: another process has it.
    pub(crate) fn lock(&self) -> Result<bool> {
        match self.file.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => {
                Err(error).with_context(|| format!("cannot lock {}", self.path.display()))
            }
        }
    }
}

#[cfg(unix)]
fn only_the_owners(path: &Path, file: &File) -> Result<()> {
    use std::os::unix::fs::MetadataExt;
    let mode = file.metadata()?.mode() & 0o777;
    if mode & 0o077 != 0 {
        bail!("others may read the key in {0} (mode {mode:03o}): chmod 600 {0}", path.display());
    }
    Ok(())
}

#[cfg(not(unix))]
fn only_the_owners(_: &Path, _: &File) -> Result<()> {
    Ok(())
}

/// `$XDG_CONFIG_HOME/traverse`, or `~/.config/traverse`.
fn folder() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| std::env::home_dir().map(|home| home.join(".config")))?;
    Some(base.join("traverse"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_in_the_configuration_is_told() {
        let error = toml::from_str::<Config>("supernodes = []").unwrap_err().to_string();
        assert!(error.contains("supernodes") && error.contains("expected"), "{error}");
    }
}
