//! What people and programs get to read: tables, the packet log, the live line of counters.

mod packet_line;
mod packet_log;
mod presets;
mod show;
mod status;
mod subscribers;
mod table;

pub use packet_line::{Direction, Flow, Format};
pub use packet_log::PacketLog;
pub use presets::{describe, preset_json, write_behavior, write_preset, write_presets};
pub use show::State;
pub use status::StatusLine;
