//! A running lab.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::script::{self, Description, HostDescription, NatDescription, lab};
use crate::{Host, LabError, Nat, NatKind, program};

/// A topology that is up. Dropping it takes everything down.
#[derive(Debug)]
pub struct Lab {
    id: String,
    hosts: Vec<Host>,
    nats: Vec<Nat>,
}

impl Lab {
    /// Prepares a topology of `netns-scripts/topologies`: `one-nat`, `two-nats`, `hairpin`, `double-nat`, `lan-gateway`
    /// or `shared-address`.
    pub fn up(topology: &str) -> Builder {
        Builder {
            topology: topology.to_owned(),
            specs: BTreeMap::new(),
            flags: BTreeMap::new(),
            natbox: None,
        }
    }

    /// The lab's name, which all its namespaces begin with.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// A host, by its name in the drawing. The NATs' own machines are hosts too, and so is `internet`.
    ///
    /// # Errors
    /// [`LabError::NoHost`].
    pub fn host(&self, name: &str) -> Result<&Host, LabError> {
        self.hosts.iter().find(|host| host.name == name).ok_or_else(|| LabError::NoHost {
            name: name.to_owned(),
            known: self.hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(" "),
        })
    }

    /// A NAT, by its name in the drawing.
    ///
    /// # Errors
    /// [`LabError::NoNat`].
    pub fn nat(&self, name: &str) -> Result<&Nat, LabError> {
        self.nats.iter().find(|nat| nat.name == name).ok_or_else(|| LabError::NoNat {
            name: name.to_owned(),
            known: self.nats.iter().map(|nat| nat.name.as_str()).collect::<Vec<_>>().join(" "),
        })
    }

    /// Takes the lab down now, and tells whether that worked. Dropping it does the same and can only complain.
    ///
    /// # Errors
    /// [`LabError::Script`].
    pub fn down(self) -> Result<(), LabError> {
        let id = self.id.clone();
        std::mem::forget(self);
        lab(&["down", &id]).map(drop)
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = lab(&["down", &self.id]) {
            eprintln!("lab {} can't be taken down: {error}", self.id);
        }
    }
}

/// A lab to be; see [`Lab::up`].
#[derive(Debug, Clone)]
pub struct Builder {
    topology: String,
    specs: BTreeMap<String, String>,
    flags: BTreeMap<String, String>,
    natbox: Option<PathBuf>,
}

impl Builder {
    /// Chooses one NAT: a natbox preset, perhaps with natbox's flags behind it (`symmetric,--ports=sequential`), or
    /// `kernel` or `kernel-open`. A NAT that nobody chooses is the preset `home`.
    #[must_use]
    pub fn nat(mut self, name: &str, spec: &str) -> Self {
        self.specs.insert(name.to_owned(), spec.to_owned());
        self
    }

    /// Adds flags for one natbox, as for its command line, each a word of its own: `["--mapping=adm", "--seed=7"]`.
    #[must_use]
    pub fn nat_args<S: AsRef<str>>(mut self, name: &str, arguments: &[S]) -> Self {
        let flags = self.flags.entry(name.to_owned()).or_default();
        for argument in arguments {
            flags.push(',');
            flags.push_str(argument.as_ref());
        }
        self
    }

    /// Runs this program instead of one built from the source.
    #[must_use]
    pub fn natbox(mut self, program: impl Into<PathBuf>) -> Self {
        self.natbox = Some(program.into());
        self
    }

    /// Brings it up; returns when every NAT is at work.
    ///
    /// # Errors
    /// [`LabError::NoTopology`], [`LabError::NoNat`], [`LabError::Build`], or what `lab up` said. Nothing is left behind.
    pub fn start(mut self) -> Result<Lab, LabError> {
        remove_stale_labs();
        let nats = script::nats_of(&self.topology)?;
        if let Some(unknown) = self.specs.keys().chain(self.flags.keys()).find(|name| !nats.contains(name)) {
            return Err(LabError::NoNat { name: unknown.clone(), known: nats.join(" ") });
        }

        let mut arguments: Vec<OsString> = vec!["up".into(), self.topology.clone().into(), "--json".into()];
        arguments.extend(["--id".into(), next_id().into()]);
        arguments.extend(["--owner".into(), std::process::id().to_string().into()]);
        let mut natboxes = 0;
        for name in &nats {
            let mut spec = self.specs.remove(name).unwrap_or_else(|| "home".to_owned());
            spec.push_str(self.flags.get(name).map_or("", String::as_str));
            natboxes += usize::from(!spec.starts_with("kernel"));
            arguments.extend([format!("--{}", name.to_lowercase()).into(), spec.into()]);
        }
        if natboxes > 0 {
            let program = self.natbox.map_or_else(|| program("natbox"), Ok)?;
            arguments.extend(["--natbox".into(), program.into()]);
        }
        let answer = lab(&arguments)?;
        let described: Description = serde_json::from_str(&answer)
            .map_err(|source| LabError::Answer { program: "lab up --json".to_owned(), source })?;
        Ok(described.into())
    }
}

/// Once for each process: what earlier ones that were killed left behind.
fn remove_stale_labs() {
    static REMOVED: OnceLock<()> = OnceLock::new();
    REMOVED.get_or_init(|| {
        if let Err(error) = lab(&["down", "--stale"]) {
            eprintln!("can't remove stale labs: {error}");
        }
    });
}

/// A name that no other lab on this machine has: our pid, and a number of our own.
fn next_id() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("nb{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

impl From<Description> for Lab {
    fn from(described: Description) -> Self {
        let host = |HostDescription { name, netns, addresses }| Host { name, netns, addresses };
        let nat = |NatDescription { name, kind, address, control, log, natbox }| {
            let kind = match kind.as_str() {
                "natbox" => NatKind::Natbox,
                "pasta" | "slirp4netns" => NatKind::Sockets,
                _ => NatKind::Kernel,
            };
            Nat { lab: described.id.clone(), name, kind, address, control, log, natbox }
        };
        Self {
            hosts: described.hosts.into_iter().map(host).collect(),
            nats: described.nats.into_iter().map(nat).collect(),
            id: described.id,
        }
    }
}
