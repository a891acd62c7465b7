//! A node as the command line wants it.

use anyhow::{Result, bail};
use traversal::{Builder, Identity, Node, Policy, generate_identity};

use crate::{
    args::{NodeArgs, PathArgs},
    home::{Config, Key},
};

/// Who this process is.
pub(crate) struct Me {
    pub(crate) identity: Identity,
    supernodes: Vec<String>,
    /// Keeps the key's lock.
    _key: Key,
}

impl Me {
    /// For somebody who waits to be found: the key must be free.
    pub(crate) fn listener(args: &NodeArgs) -> Result<Me> {
        let config = Config::load(&args.key)?;
        let key = Key::load(&args.key, &config)?;
        if key.in_use {
            bail!(
                "another traverse listens with this key: stop it, or give this one its own with --key FILE"
            );
        }
        Ok(Me { identity: key.identity.clone(), supernodes: supernodes(args, config)?, _key: key })
    }

    /// For somebody who goes out: while another process uses the key, one for this time only. A peer is registered once.
    pub(crate) fn caller(args: &NodeArgs) -> Result<Me> {
        let config = Config::load(&args.key)?;
        let key = Key::load(&args.key, &config)?;
        let identity = if key.in_use {
            eprintln!("another traverse uses this machine's key: going by a key for this time only");
            generate_identity()?
        } else {
            key.identity.clone()
        };
        Ok(Me { identity, supernodes: supernodes(args, config)?, _key: key })
    }

    /// A node to be started.
    pub(crate) fn node(&self, args: &NodeArgs) -> Result<Builder> {
        let mut builder = Node::builder().identity(self.identity.clone());
        for supernode in &self.supernodes {
            builder = builder.supernode(supernode.as_str());
        }
        if let Some(bind) = args.bind {
            builder = builder.bind(bind);
        }
        Ok(builder)
    }
}

fn supernodes(args: &NodeArgs, config: Config) -> Result<Vec<String>> {
    let supernodes = if args.supernode.is_empty() { config.supernode } else { args.supernode.clone() };
    if supernodes.is_empty() {
        bail!(
            "no supernode is known: give one with --supernode ADDRESS:PORT, in TRAVERSE_SUPERNODE, or as \
             supernode = [\"ADDRESS:PORT\"] in ~/.config/traverse/config.toml"
        );
    }
    Ok(supernodes)
}

/// The paths that the command line allows.
pub(crate) fn policy(args: &PathArgs) -> Policy {
    match args.direct_only {
        _ if args.relay_only => Policy::RelayOnly,
        Some(deadline) => Policy::DirectOnly(deadline),
        None => Policy::PreferDirect,
    }
}
