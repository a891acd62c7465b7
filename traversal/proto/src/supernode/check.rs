//! Whether a configuration can work.

use std::{fmt::Display, net::SocketAddr, time::Duration};

use super::{Admission, Config, Quota, RelayPolicy, slots};
use crate::{address::canonical, rate::Rate, wire::message::MAX_NAMED};

/// Below this a burst of bytes would not hold one packet, and nothing would ever pass.
const SMALLEST_BURST: u64 = 4096;
/// What a Hello can tell.
const MOST_TOLD: usize = u32::MAX as usize;

/// A configuration that cannot work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A setting with which nobody would be served, or the supernode would do nothing but turn round and round.
    #[error("{key} is {value}: it must be {allowed}")]
    Setting {
        /// Which, by its name in a configuration file.
        key: String,
        /// What was given.
        value: String,
        /// What is possible.
        allowed: String,
    },
    /// Two sockets with one number or one address.
    #[error("{0} and {1} are the same socket or the same address")]
    Twice(SocketAddr, SocketAddr),
}

/// An error unless `good`.
fn demand(good: bool, key: &str, value: impl Display, allowed: impl Display) -> Result<(), ConfigError> {
    match good {
        true => Ok(()),
        false => Err(ConfigError::Setting {
            key: key.into(),
            value: value.to_string(),
            allowed: allowed.to_string(),
        }),
    }
}

impl Config {
    pub(super) fn check(&self) -> Result<(), ConfigError> {
        self.check_addresses()?;
        self.check_limits()?;
        self.check_rates()?;
        self.check_timing()?;
        self.check_quotas()
    }

    fn check_addresses(&self) -> Result<(), ConfigError> {
        let (listen, others) = (self.listen.len(), self.alternatives.len());
        let named = |count| format!("a list of {count}");
        demand(
            (1..=MAX_NAMED).contains(&listen),
            "listen",
            named(listen),
            format_args!("of 1 to {MAX_NAMED}"),
        )?;
        demand(others <= MAX_NAMED, "alternatives", named(others), format_args!("of at most {MAX_NAMED}"))?;
        if let Admission::Only(peers) = &self.admission {
            let allowed = "at least one peer id, or left out to serve everybody";
            demand(!peers.is_empty(), "only", "an empty list", allowed)?;
        }
        for (at, listen) in self.listen.iter().enumerate() {
            let same = |other: &&super::Listen| {
                other.socket == listen.socket || canonical(other.address) == canonical(listen.address)
            };
            if let Some(other) = self.listen[..at].iter().find(same) {
                return Err(ConfigError::Twice(listen.address, other.address));
            }
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), ConfigError> {
        let limits = &self.limits;
        for (key, value, least, most) in [
            ("limits.connections", limits.connections, 1, slots::MOST),
            ("limits.registrations", limits.registrations, 1, slots::MOST),
            ("limits.channels", limits.channels, 1, slots::MOST / 2),
            ("limits.channels_per_registration", limits.channels_per_registration, 1, MOST_TOLD),
            ("limits.watches_per_registration", limits.watches_per_registration, 0, MOST_TOLD),
            ("limits.queries", limits.queries, 1, slots::MOST),
            ("limits.accounts", limits.accounts, limits.registrations, slots::MOST),
            ("limits.connections_per_network", limits.connections_per_network, 1, usize::MAX),
        ] {
            let why = if key == "limits.accounts" { " (every registration has one)" } else { "" };
            match most {
                usize::MAX => demand(value >= least, key, value, format_args!("at least {least}"))?,
                _ => {
                    let allowed = format_args!("{least} to {most}{why}");
                    demand((least..=most).contains(&value), key, value, allowed)?;
                }
            }
        }
        Ok(())
    }

    fn check_rates(&self) -> Result<(), ConfigError> {
        let rates = &self.rates;
        for (key, rate) in [
            ("rates.requests", rates.requests),
            ("rates.registrations", rates.registrations),
            ("rates.incoming", rates.incoming),
            ("rates.unproven_per_network", rates.unproven_per_network),
            ("rates.unproven", rates.unproven),
        ] {
            some_pass(key, rate, 1)?;
        }
        Ok(())
    }

    fn check_timing(&self) -> Result<(), ConfigError> {
        let timing = &self.timing;
        for (key, time, least) in [
            // Shorter than any round trip to whoever is asked.
            ("timing.register_within", timing.register_within, Duration::from_millis(100)),
            ("timing.query", timing.query, Duration::from_millis(10)),
            // Told in whole seconds.
            ("timing.lifetime", timing.lifetime, Duration::from_secs(1)),
            ("timing.binding", timing.binding, Duration::from_secs(1)),
            // A word for each packet that is dropped would be more than a peer reads.
            ("timing.warn_every", timing.warn_every, Duration::from_millis(100)),
            ("quotas.period", self.quotas.period, Duration::from_secs(1)),
        ] {
            let seconds = |time: Duration| format!("{} s", time.as_secs_f64());
            demand(time >= least, key, seconds(time), format_args!("at least {}", seconds(least)))?;
        }
        Ok(())
    }

    fn check_quotas(&self) -> Result<(), ConfigError> {
        let quotas = &self.quotas;
        check_quota("quotas.per_peer", &quotas.per_peer, true)?;
        check_quota("quotas.total", &quotas.total, true)?;
        for (peer, quota) in &quotas.exceptions {
            check_quota(&format!("quotas.exceptions.{peer}"), quota, false)?;
        }
        // Somebody may mean that nothing at all passes once a volume is used up.
        if self.relay == RelayPolicy::SignallingOnly || quotas.signalling.per_second > 0 {
            some_pass("quotas.signalling", quotas.signalling, SMALLEST_BURST)?;
        }
        Ok(())
    }
}

/// Whether a packet passes. Nothing may, where that is about one peer and so is meant.
fn check_quota(key: &str, quota: &Quota, must_pass: bool) -> Result<(), ConfigError> {
    for (name, rate, burst) in [("bytes", quota.bytes, SMALLEST_BURST), ("packets", quota.packets, 1)] {
        if let Some(rate) = rate
            && (must_pass || rate.per_second > 0)
        {
            some_pass(&format!("{key}.{name}"), rate, burst)?;
        }
    }
    Ok(())
}

fn some_pass(key: &str, rate: Rate, burst: u64) -> Result<(), ConfigError> {
    demand(rate.per_second > 0, &format!("{key}.per_second"), rate.per_second, "at least 1")?;
    demand(rate.burst >= burst, &format!("{key}.burst"), rate.burst, format_args!("at least {burst}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{SocketId, supernode::Listen, wire::PeerId};

    /// What is said of the default configuration after `change`.
    fn refused(change: impl FnOnce(&mut Config)) -> String {
        let listen = Listen { socket: SocketId(0), address: "192.0.2.1:3478".parse().unwrap() };
        let mut config = Config::new(PeerId::from_bytes([1; 32]), listen);
        assert_eq!(config.check(), Ok(()));
        change(&mut config);
        config.check().unwrap_err().to_string()
    }

    #[test]
    fn names_the_key_the_value_and_what_is_allowed() {
        let none = Rate { per_second: 9, burst: 0 };
        for (says, change) in [
            ("limits.accounts is 9: it must be 65536 to 4194304 (every registration has one)", {
                (|config| config.limits.accounts = 9) as fn(&mut Config)
            }),
            ("limits.channels is 0: it must be 1 to 2097152", |config| config.limits.channels = 0),
            ("limits.connections_per_network is 0: it must be at least 1", |config| {
                config.limits.connections_per_network = 0;
            }),
            ("timing.lifetime is 0 s: it must be at least 1 s", |config| {
                config.timing.lifetime = Duration::ZERO
            }),
            ("timing.warn_every is 0 s: it must be at least 0.1 s", |config| {
                config.timing.warn_every = Duration::ZERO;
            }),
            (
                "only is an empty list: it must be at least one peer id, or left out to serve everybody",
                |config| {
                    config.admission = Admission::Only([].into());
                },
            ),
            ("listen is a list of 0: it must be of 1 to 8", |config| config.listen.clear()),
        ] {
            assert_eq!(refused(change), says);
        }
        assert_eq!(
            refused(|config| config.rates.requests = none),
            "rates.requests.burst is 0: it must be at least 1"
        );
        assert_eq!(
            refused(|config| config.quotas.per_peer.packets = Some(none)),
            "quotas.per_peer.packets.burst is 0: it must be at least 1"
        );
    }

    #[test]
    fn no_rate_is_nothing() {
        let stopped = Rate { per_second: 0, burst: 9_999 };
        for (key, change) in [
            ("rates.incoming", (|config, rate| config.rates.incoming = rate) as fn(&mut Config, Rate)),
            ("rates.registrations", |config, rate| config.rates.registrations = rate),
            ("rates.unproven", |config, rate| config.rates.unproven = rate),
            ("rates.unproven_per_network", |config, rate| config.rates.unproven_per_network = rate),
            ("quotas.total.bytes", |config, rate| config.quotas.total.bytes = Some(rate)),
            ("quotas.signalling", |config, rate| {
                (config.relay, config.quotas.signalling) = (RelayPolicy::SignallingOnly, rate);
            }),
        ] {
            assert_eq!(
                refused(|config| change(config, stopped)),
                format!("{key}.per_second is 0: it must be at least 1")
            );
        }
    }

    /// One peer may be shut out of the relay, and a used-up volume may end all.
    #[test]
    fn nothing_may_be_meant() {
        let stopped = Rate { per_second: 0, burst: 0 };
        let allowed = refused(|config| {
            config.quotas.signalling = stopped;
            let quota = Quota { bytes: Some(stopped), ..Quota::default() };
            config.quotas.exceptions.insert(PeerId::from_bytes([2; 32]), quota);
            config.limits.watches_per_registration = 0;
            config.timing.clock_skew = Duration::ZERO;
            assert_eq!(config.check(), Ok(()));
            config.quotas.period = Duration::ZERO;
        });
        assert_eq!(allowed, "quotas.period is 0 s: it must be at least 1 s");
    }
}
