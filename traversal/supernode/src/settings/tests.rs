//! Configurations, good and bad.

use traversal_proto::wire::Identity;

use super::*;

fn configured(text: &str, assignments: &[&str]) -> Result<Config, String> {
    let assignments: Vec<String> = assignments.iter().map(|text| text.to_string()).collect();
    let settings =
        Settings::parse_with(text, "file.toml", &assignments).map_err(|error| error.to_string())?;
    let mut config = Config::new(Identity::from_secret(&[1; 32]));
    settings.apply(&mut config);
    Ok(config)
}

#[test]
fn everything_has_its_place() {
    let peer = Identity::from_secret(&[2; 32]).peer_id();
    let text = format!(
        r#"
        listen = ["198.51.100.7:3478", "[::]:3479"]
        external = ["203.0.113.1", "[2001:db8::1]:9"]
        tcp = false
        admin = "127.0.0.1:9090"
        relay = "signalling-only"
        only = ["{peer}"]
        alternatives = ["{peer}@203.0.113.9:3478,203.0.113.10:3478"]
        [limits]
        connections = 7
        [rates]
        requests = {{ per_second = 5, burst = 6 }}
        [timing]
        lifetime = 300
        [quotas]
        signalling = {{ per_second = 1, burst = 4096 }}
        [quotas.per_peer]
        bytes = "unlimited"
        volume = 1_000
        [quotas.exceptions.{peer}]
        volume = "unlimited"
        "#
    );
    let config = configured(&text, &["limits.channels=9", "admin=127.0.0.1:1"]).unwrap();
    assert_eq!(config.listen.len(), 2);
    assert_eq!(config.external[0], "203.0.113.1:0".parse().unwrap());
    assert!(!config.tcp);
    assert_eq!(config.admin, Some("127.0.0.1:1".parse().unwrap()));
    assert_eq!(config.relay, RelayPolicy::SignallingOnly);
    assert_eq!(config.admission, Admission::Only([peer].into()));
    assert_eq!(config.alternatives[0].addresses.len(), 2);
    assert_eq!((config.limits.connections, config.limits.channels), (7, 9));
    assert_eq!(config.limits.accounts, Limits::default().accounts);
    assert_eq!(config.rates.requests, Rate { per_second: 5, burst: 6 });
    assert_eq!(config.timing.lifetime, Duration::from_secs(300));
    assert_eq!(config.quotas.per_peer.bytes, None);
    assert_eq!(config.quotas.per_peer.packets, Quotas::default().per_peer.packets);
    assert_eq!(config.quotas.per_peer.volume, Some(1_000));
    assert_eq!(config.quotas.exceptions[&peer].volume, None);
}

/// The example in the operators' guide is one that works.
#[test]
fn the_guide_is_right() {
    let guide = include_str!("../../../../docs/supernode.md");
    let example = guide.split("```toml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let config = configured(example, &[]).unwrap();
    assert_eq!((config.listen.len(), config.limits.connections), (2, 20_000));
    assert_eq!(config.quotas.exceptions.len(), 1);
    crate::check(&config).unwrap();
}

#[test]
fn mistakes_are_told_in_one_line() {
    for (text, set, place, says) in [
        ("\nlisten = []\nlisten_on = 3", None, "file.toml line 3", "listen_on"),
        ("[limits]\nconections = 3", None, "file.toml line 2", "conections"),
        ("listen = [\"example\"]", None, "file.toml line 1", "socket address"),
        ("external = [\"example\"]", None, "file.toml line 1", "203.0.113.10"),
        ("alternatives = [\"x@1.2.3.4:5\"]", None, "file.toml line 1", "52 characters"),
        ("[quotas.total]\nbytes = 5", None, "file.toml line 2", "per_second"),
        ("a = [", None, "file.toml line 1", ""),
        ("", Some("limits.conections=3"), "--set limits.conections=3", "conections"),
        ("", Some("tcp"), "--set tcp", "NAME=VALUE"),
        ("", Some("shards=many"), "--set shards=many", "invalid type"),
    ] {
        let error = configured(text, set.as_slice()).unwrap_err();
        assert!(error.starts_with(place) && error.contains(says) && !error.contains('\n'), "{error}");
    }
}
