//! `traverse send` and `traverse receive`: files and folders (docs/transfer.md).
//!
//! The sender offers a list; the receiver checks it, looks at what it has, and asks for the rest, file by file. Requests and
//! data are under way at the same time, so that many small files need no more round trips than one large one.
//!
//! ```text
//!  sender                                                    receiver
//!  list ──▶ Offer, List … ───────────────────────────────▶ manifest: nothing of it is believed
//!                         ◀─────────────────────── Accept   receive: somebody is asked, or not
//!  source ◀── requests ── ◀────── Send, Check, Resume …      plan: what is here already?
//!    │ reads, hashes                                          │ hashes            ├─ ledger
//!    └────▶ blocks ─────── File, data, End … ─────────────▶ store: partial, verified, renamed
//!                         ◀─────────────────────── Report
//! ```
//!
//! `source`, `plan` and `store` are threads: files and hashes never hold the event loop up. Whatever the receiver does on
//! its disk goes through `folder`, which nothing leads out of.

pub(crate) mod args;
mod consent;
mod folder;
mod following;
#[cfg(all(unix, any(test, fuzzing)))]
pub(crate) mod hostile;
mod ledger;
mod list;
mod manifest;
mod name;
mod plan;
mod progress;
pub(crate) mod receive;
pub(crate) mod send;
mod source;
mod store;
mod stream;
mod taking;
mod wire;
