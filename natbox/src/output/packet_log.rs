//! `--log-packets`: one line a packet, in the notation of the lecture, from a thread of its own.

use std::{
    io::{self, BufWriter, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, SystemTime},
};

use natbox_core::DropReason;

use super::packet_line::{Direction, Entry, Fate, Flow, Format};

/// Lines that the writer may be behind; a terminal that stands still costs lines, never packets.
const QUEUE: usize = 8192;
/// How long the end of the run waits for a reader that does not read.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where the loop puts what it has done with each packet. No call ever blocks.
#[derive(Debug)]
pub struct PacketLog {
    /// `None` only while being dropped.
    entries: Option<SyncSender<Entry>>,
    lost: Arc<AtomicU64>,
    done: Receiver<()>,
}

impl PacketLog {
    /// Starts the thread that writes lines to `output`.
    pub fn start(format: Format, output: impl Write + Send + 'static) -> io::Result<PacketLog> {
        let (entries, receiver) = sync_channel(QUEUE);
        let (finished, done) = sync_channel(1);
        let lost = Arc::new(AtomicU64::new(0));
        let counter = lost.clone();
        thread::Builder::new().name("packet-log".to_owned()).spawn(move || {
            // A reader that has gone away ends the log, not the NAT.
            let _ = write_all(&receiver, &counter, &format, output);
            let _ = finished.try_send(());
        })?;
        Ok(PacketLog { entries: Some(entries), lost, done })
    }

    /// A packet was translated and sent on.
    pub fn translated(&self, direction: Direction, before: Flow, after: Flow) {
        self.push(direction, Some(before), Fate::Translated(after));
    }

    /// A packet was dropped; `before` is `None` when it could not be read.
    pub fn dropped(&self, direction: Direction, reason: DropReason, before: Option<Flow>) {
        self.push(direction, before, Fate::Dropped(reason));
    }

    /// The NAT answered a packet itself (an echo request to one of its addresses).
    pub fn answered(&self, direction: Direction, before: Option<Flow>) {
        self.push(direction, before, Fate::Answered);
    }

    /// A packet was for the NAT's own machine, and left alone.
    pub fn delivered(&self, direction: Direction, before: Option<Flow>) {
        self.push(direction, before, Fate::Delivered);
    }

    /// A fragment was kept until the first one of its datagram comes.
    pub fn held(&self, direction: Direction, packet: Option<Flow>) {
        self.push(direction, packet, Fate::Held);
    }

    /// A fragment was sent on behind another.
    pub fn followed(&self, direction: Direction, packet: Option<Flow>) {
        self.push(direction, packet, Fate::Followed);
    }

    /// The NAT sent a packet of its own making (an ICMP error, a reset).
    pub fn sent(&self, direction: Direction, packet: Option<Flow>) {
        self.push(direction, packet, Fate::Sent);
    }

    fn push(&self, direction: Direction, packet: Option<Flow>, fate: Fate) {
        let Some(entries) = &self.entries else { return };
        let entry = Entry { at: SystemTime::now(), direction, packet, fate };
        if let Err(TrySendError::Full(_)) = entries.try_send(entry) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for PacketLog {
    /// Lets the last lines out, but does not wait for a reader that has stopped reading.
    fn drop(&mut self) {
        self.entries = None;
        let _ = self.done.recv_timeout(LAST_LINES);
    }
}

fn write_all(
    entries: &Receiver<Entry>,
    lost: &AtomicU64,
    format: &Format,
    output: impl Write,
) -> io::Result<()> {
    let mut output = BufWriter::with_capacity(1 << 16, output);
    let mut line = String::with_capacity(256);
    while let Ok(first) = entries.recv() {
        for entry in std::iter::once(first).chain(entries.try_iter()) {
            line.clear();
            format.packet(&mut line, &entry);
            output.write_all(line.as_bytes())?;
        }
        let lost = lost.swap(0, Ordering::Relaxed);
        if lost > 0 {
            output.write_all(format.lost(lost).as_bytes())?;
        }
        output.flush()?;
    }
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use natbox_core::{Ends, Protocol, packet::fragment::Piece};
    use serde_json::{Value, json};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn ends(from: &str, to: &str) -> Ends {
        let endpoint = |text: &str| text.parse::<std::net::SocketAddr>().unwrap().into();
        Ends { from: endpoint(from), to: endpoint(to), piece: None }
    }

    #[test]
    fn a_fragment_says_which_part_it_is() {
        let part = |from, to, offset, more| {
            let piece = Piece { identification: 7, offset, len: 1480, more };
            (Protocol::Udp, Ends { piece: Some(piece), ..ends(from, to) })
        };
        let page = printed(text(&[]), |log| {
            let later = part("10.64.0.2:0", "203.0.113.2:0", 1480, true);
            log.held(Direction::Outbound, Some(later));
            log.translated(Direction::Outbound, part(A, S, 0, true), part(N, S, 0, true));
            log.followed(Direction::Outbound, Some(part("198.51.100.7:0", "203.0.113.2:0", 1480, false)));
        });
        assert_eq!(
            page,
            "out     udp  [to:203.0.113.2 from:10.64.0.2] part 1480+1480 of 7 … waits for the first part\n\
             out     udp  [to:203.0.113.2:53 from:10.64.0.2:4242] part 0+1480 of 7 → [to:203.0.113.2:53 from:198.51.100.7:61001] part 0+1480 of 7\n\
             out     udp  [to:203.0.113.2 from:198.51.100.7] part 1480+1480 of 7, the last ← sent behind the first part\n"
        );
        let page = printed(Format::Json, |log| log.held(Direction::Inbound, Some(part(A, S, 1480, true))));
        let line: Value = serde_json::from_str(page.trim()).unwrap();
        assert_eq!(line["held"], true);
        assert_eq!(line["fragment"], json!({ "id": 7, "offset": 1480, "length": 1480, "more": true }));
    }

    fn printed(format: Format, log: impl FnOnce(&PacketLog)) -> String {
        let page = Page::default();
        let packets = PacketLog::start(format, page.clone()).unwrap();
        log(&packets);
        drop(packets);
        let bytes = page.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn text(names: &[(&str, &str)]) -> Format {
        let names = names.iter().map(|(name, addr)| (addr.parse().unwrap(), (*name).to_owned())).collect();
        Format::Text { names, paint: false }
    }

    const A: &str = "10.64.0.2:4242";
    const N: &str = "198.51.100.7:61001";
    const S: &str = "203.0.113.2:53";

    #[test]
    fn speaks_the_notation_of_the_lecture() {
        let names = [("A", "10.64.0.2"), ("N", "198.51.100.7"), ("S", "203.0.113.2")];
        let page = printed(text(&names), |log| {
            log.translated(Direction::Outbound, (Protocol::Udp, ends(A, S)), (Protocol::Udp, ends(N, S)));
            log.translated(Direction::Inbound, (Protocol::Udp, ends(S, N)), (Protocol::Udp, ends(S, A)));
        });
        assert_eq!(
            page,
            "out     udp  [to:S:53 from:A:4242] → [to:S:53 from:N:61001]\n\
             in      udp  [to:N:61001 from:S:53] → [to:A:4242 from:S:53]\n"
        );
    }

    #[test]
    fn a_drop_names_its_reason() {
        let page = printed(text(&[]), |log| {
            let packet = (Protocol::Tcp, ends(S, N));
            log.dropped(Direction::Inbound, DropReason::NoMapping, Some(packet));
            log.dropped(Direction::Inbound, DropReason::Malformed, None);
        });
        let mut lines = page.lines();
        let first = "in      tcp  [to:198.51.100.7:61001 from:203.0.113.2:53] ✗ no-mapping: No mapping has this external endpoint.";
        assert_eq!(lines.next(), Some(first));
        assert!(lines.next().unwrap().starts_with("in      ?    [an unreadable packet] ✗ malformed: "));
    }

    #[test]
    fn an_echo_has_an_identifier_on_one_side_only() {
        let (before, after) =
            (ends("10.64.0.2:7", "203.0.113.2:0"), ends("198.51.100.7:900", "203.0.113.2:0"));
        let page = printed(text(&[]), |log| {
            log.translated(Direction::Outbound, (Protocol::Icmp, before), (Protocol::Icmp, after));
        });
        let line =
            "out     icmp [to:203.0.113.2 from:10.64.0.2:7] → [to:203.0.113.2 from:198.51.100.7:900]\n";
        assert_eq!(page, line);
    }

    #[test]
    fn json_is_one_object_a_line() {
        let page = printed(Format::Json, |log| {
            log.translated(Direction::Outbound, (Protocol::Udp, ends(A, S)), (Protocol::Udp, ends(N, S)));
            log.dropped(Direction::Inbound, DropReason::Filtered, Some((Protocol::Udp, ends(S, N))));
        });
        let lines: Vec<Value> = page.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines[0]["before"], json!({ "to": S, "from": A }));
        assert_eq!(lines[0]["after"], json!({ "to": S, "from": N }));
        assert_eq!(lines[1]["dropped"], "filtered");
    }

    #[test]
    fn a_reader_that_stands_still_costs_lines_and_nothing_else() {
        struct Stuck(Receiver<()>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let _ = self.0.recv();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let (release, stuck) = sync_channel(0);
        let log = PacketLog::start(text(&[]), Stuck(stuck)).unwrap();
        for _ in 0..3 * QUEUE {
            log.answered(Direction::Inbound, None);
        }
        assert!(log.lost.load(Ordering::Relaxed) >= QUEUE as u64);
        drop(release);
    }
}
