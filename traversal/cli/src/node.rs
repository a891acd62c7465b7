//! A node as the command line wants it.

use anyhow::{Result, bail};
use serde_json::json;
use traversal::{Builder, Identity, Node, Policy, generate_identity};

use crate::{
    args::{NodeArgs, PathArgs},
    home::{Config, KeyFile},
    status::Status,
    stop::Stop,
};

/// Who this process is.
pub(crate) struct Me {
    identity: Identity,
    supernodes: Vec<String>,
    /// Keeps the key's lock.
    _key: KeyFile,
}

impl Me {
    /// For somebody who waits to be found: the key must be free.
    pub(crate) fn listener(args: &NodeArgs) -> Result<Me> {
        let config = Config::load(&args.key)?;
        let key = KeyFile::load(&args.key, &config)?;
        if !key.lock()? {
            bail!(
                "another process uses the key {}, most likely another traverse: stop it, or give this one a key of its \
                 own with --key FILE",
                key.path.display()
            );
        }
        Ok(Me { identity: key.identity.clone(), supernodes: supernodes(args, config)?, _key: key })
    }

    /// For somebody who goes out: while another process uses the key, one for this time only. A peer is registered once.
    pub(crate) fn caller(args: &NodeArgs, status: Status) -> Result<Me> {
        let config = Config::load(&args.key)?;
        let key = KeyFile::load(&args.key, &config)?;
        let supernodes = supernodes(args, config)?;
        if key.lock()? {
            return Ok(Me { identity: key.identity.clone(), supernodes, _key: key });
        }
        let identity = generate_identity()?;
        let (id, file) = (identity.peer_id().to_string(), key.path.display().to_string());
        status.tell(
            format!("another process uses the key {file}: going as {id}, this time only"),
            "key-in-use",
            json!({ "key": file, "id": id }),
        );
        Ok(Me { identity, supernodes, _key: key })
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

/// Starts a node, does `work` with it, and closes it, whatever has come of the work: peers are told, not left waiting.
pub(crate) async fn with_node<T>(
    builder: Builder,
    stop: &Stop,
    work: impl AsyncFnOnce(&Node) -> Result<T>,
) -> Result<T> {
    let node = stop.or(builder.start()).await?;
    let result = work(&node).await;
    node.close().await;
    result
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
