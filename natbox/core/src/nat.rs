//! STUB: signatures only; being written.
use crate::*;

/// The NAT.
#[derive(Debug)]
pub struct Nat { behavior: Behavior, counters: Counters }
#[allow(missing_docs, unused_variables, clippy::todo)]
impl Nat {
    /// `seed` is secret: it keys hashes and decides random ports.
    pub fn new(config: Config, seed: u64) -> Result<Nat, ConfigError> { todo!() }
    pub fn add_inside(&mut self, port: InsidePort) -> Result<InsideId, ConfigError> { todo!() }
    pub fn outbound(&mut self, from: InsideId, packet: &mut Packet<'_>, now: Time) -> Verdict { todo!() }
    pub fn inbound(&mut self, packet: &mut Packet<'_>, now: Time) -> Verdict { todo!() }
    pub fn handle_timeout(&mut self, now: Time) { todo!() }
    pub fn poll_timeout(&self) -> Option<Time> { todo!() }
    pub fn poll_transmit(&mut self) -> Option<Transmit> { todo!() }
    pub fn poll_event(&mut self) -> Option<Event> { todo!() }
    /// External ports taken into or out of use, for a guard; drain after every batch, before sending.
    pub fn poll_claim(&mut self) -> Option<Claim> { todo!() }
    pub fn add_mapping(&mut self, request: MappingRequest, now: Time) -> Result<External, MappingError> { todo!() }
    /// Removes what `selection` selects; returns how many mappings.
    pub fn flush(&mut self, selection: &Selection, now: Time) -> usize { todo!() }
    /// Ports that the host itself holds (shared address): never used for a new mapping. Replaces the former set.
    pub fn set_reserved(&mut self, protocol: Protocol, ports: &[u16]) { todo!() }
    /// External addresses from now on (rebinding): mappings on addresses that are gone are removed.
    pub fn set_external(&mut self, external: Vec<std::net::IpAddr>, now: Time) -> Result<(), ConfigError> { todo!() }
    pub fn set_behavior(&mut self, behavior: Behavior) { todo!() }
    pub fn behavior(&self) -> &Behavior { &self.behavior }
    pub fn counters(&self) -> &Counters { &self.counters }
    pub fn mapping_count(&self) -> usize { todo!() }
    pub fn session_count(&self) -> usize { todo!() }
    pub fn mappings(&self) -> impl Iterator<Item = MappingInfo> + '_ { std::iter::empty() }
    pub fn sessions(&self) -> impl Iterator<Item = SessionInfo> + '_ { std::iter::empty() }
}
/// The endpoints of an IPv4 packet (ICMP queries: identifier as port on the querying side); `None` if unreadable. For logs.
pub fn ends(packet: &[u8]) -> Option<(Protocol, Ends)> { let _ = packet; None }
