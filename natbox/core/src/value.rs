//! How the values of a behaviour are written: the same words in flags, in TOML, in `natbox set` and in output.

use std::{fmt, time::Duration};

/// A value that its axis does not know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a value of {axis}: expected {expected}")]
pub struct ValueError {
    /// The axis, or whatever else was being set.
    pub axis: String,
    /// What was given.
    pub value: String,
    /// The grammar of its values.
    pub expected: String,
}

/// A type whose values have one written form.
pub(crate) trait Value: Sized {
    /// Reads a value; `None` when it is not one.
    fn read(text: &str) -> Option<Self>;
    /// Writes it as `read` takes it.
    fn write(&self) -> String;
}

/// Declares an enum without data together with its words; the first word is the one that is printed.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal $(| $alias:literal)*),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every value, in the order of the documentation.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word for this value.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl $crate::value::Value for $name {
            fn read(text: &str) -> Option<Self> {
                match text { $($word $(| $alias)* => Some($name::$variant),)+ _ => None }
            }
            fn write(&self) -> String { self.word().to_owned() }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(self.word()) }
        }
    };
}
pub(crate) use words;

impl Value for bool {
    fn read(text: &str) -> Option<Self> {
        match text {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        }
    }
    fn write(&self) -> String {
        if *self { "on" } else { "off" }.to_owned()
    }
}

macro_rules! numbers {
    ($($number:ty)+) => {
        $(impl Value for $number {
            fn read(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn write(&self) -> String {
                self.to_string()
            }
        })+
    };
}

numbers!(u8 u16 u32);

const UNITS: [(&str, u64); 5] = [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// A duration is written in units from days to milliseconds: `5d`, `2h4m`, `350s`, `200ms`; a bare number is seconds.
impl Value for Duration {
    fn read(text: &str) -> Option<Self> {
        if let Ok(seconds) = text.parse::<u32>() {
            return Some(Duration::from_secs(seconds.into()));
        }
        let (mut rest, mut millis) = (text, 0u64);
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, tail) = rest.split_at(digits);
            let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
            let (unit, tail) = tail.split_at(letters);
            let (_, scale) = UNITS.iter().find(|(name, _)| *name == unit)?;
            millis = millis.checked_add(number.parse::<u64>().ok()?.checked_mul(*scale)?)?;
            rest = tail;
        }
        (!text.is_empty()).then(|| Duration::from_millis(millis))
    }

    fn write(&self) -> String {
        let mut millis = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        let mut text = String::new();
        for (unit, scale) in UNITS {
            if millis >= scale {
                text += &format!("{}{unit}", millis / scale);
                millis %= scale;
            }
        }
        if text.is_empty() { "0s".to_owned() } else { text }
    }
}

impl<T: Value> Value for Option<T> {
    fn read(text: &str) -> Option<Self> {
        if text == "none" { Some(None) } else { T::read(text).map(Some) }
    }
    fn write(&self) -> String {
        self.as_ref().map_or_else(|| "none".to_owned(), Value::write)
    }
}

/// An inclusive range of ports, written `FIRST-LAST`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port but 0.
    pub const ALL: PortRange = PortRange { first: 1, last: u16::MAX };

    /// The ports from `first` to `last`; `None` when there is none, or when port 0 is among them.
    pub const fn new(first: u16, last: u16) -> Option<PortRange> {
        if first == 0 || first > last { None } else { Some(PortRange { first, last }) }
    }

    /// The lowest port.
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is in the range.
    pub const fn contains(self, port: u16) -> bool {
        self.first <= port && port <= self.last
    }

    /// The ports that both ranges hold.
    pub const fn intersect(self, other: PortRange) -> Option<PortRange> {
        let first = if self.first > other.first { self.first } else { other.first };
        let last = if self.last < other.last { self.last } else { other.last };
        PortRange::new(first, last)
    }
}

impl Value for PortRange {
    fn read(text: &str) -> Option<Self> {
        let (first, last) = text.split_once('-')?;
        PortRange::new(first.parse().ok()?, last.parse().ok()?)
    }
    fn write(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

/// Which destination ports of a protocol may be reached: `all`, `none`, or up to eight ports, `53,443`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Allowed {
    /// Every port.
    All,
    /// These ports only; unused places are 0.
    Only([u16; 8]),
}

impl Allowed {
    /// Whether a packet to `port` may leave.
    pub fn permits(self, port: u16) -> bool {
        match self {
            Allowed::All => true,
            Allowed::Only(ports) => port != 0 && ports.contains(&port),
        }
    }
}

impl Value for Allowed {
    fn read(text: &str) -> Option<Self> {
        match text {
            "all" => return Some(Allowed::All),
            "none" => return Some(Allowed::Only([0; 8])),
            _ => {}
        }
        let mut ports = [0; 8];
        for (i, port) in text.split(',').enumerate() {
            *ports.get_mut(i)? = port.trim().parse().ok().filter(|port| *port != 0)?;
        }
        Some(Allowed::Only(ports))
    }

    fn write(&self) -> String {
        match self {
            Allowed::All => "all".to_owned(),
            Allowed::Only(ports) if ports[0] == 0 => "none".to_owned(),
            Allowed::Only(ports) => {
                let named: Vec<_> = ports.iter().filter(|port| **port != 0).map(u16::to_string).collect();
                named.join(",")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_and_write() {
        for (text, millis) in
            [("2h4m", 7_440_000), ("350s", 350_000), ("5d", 432_000_000), ("1s500ms", 1_500), ("30", 30_000)]
        {
            assert_eq!(Duration::read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(Duration::from_secs(7440).write(), "2h4m");
        assert_eq!(Duration::from_millis(1500).write(), "1s500ms");
        assert_eq!(Duration::ZERO.write(), "0s");
        for bad in ["", "s", "5 m", "5x", "-1s", "99999999999999999999d"] {
            assert_eq!(Duration::read(bad), None, "{bad}");
        }
    }

    #[test]
    fn ranges_and_lists_refuse_nonsense() {
        assert_eq!(PortRange::read("0-5"), None);
        assert_eq!(PortRange::read("9-5"), None);
        assert_eq!(PortRange::read("5-9").map(|r| r.write()), Some("5-9".to_owned()));
        assert_eq!(Allowed::read("53,,"), None);
        assert_eq!(Allowed::read("53, 443").map(|a| a.write()), Some("53,443".to_owned()));
        assert!(!Allowed::read("none").unwrap().permits(0));
    }
}
