//! Running a scenario under many seeds.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// Runs a scenario once for each seed. When it panics, so does this, with the seed in front: `Net::new` or `Sim::new`
/// with that one seed plays the same run again, packet by packet.
///
/// ```should_panic
/// natbox_sim::for_each_seed(0..100, |seed| {
///     let net = natbox_sim::Net::new(seed);
///     assert!(net.seed() < 50, "too large"); // seed 50 fails: too large
/// });
/// ```
///
/// # Panics
///
/// With the scenario: that is what it is for.
pub fn for_each_seed(seeds: impl IntoIterator<Item = u64>, scenario: impl Fn(u64)) {
    for seed in seeds {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| scenario(seed))) {
            panic!("seed {seed} fails: {}", message(&*panic));
        }
    }
}

fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "it panics without a message",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_seed_is_named() {
        let run = || for_each_seed(5..10, |seed| assert_ne!(seed, 7, "bad luck"));
        let panic = catch_unwind(run).unwrap_err();
        let text = message(&*panic).to_owned();
        assert!(text.starts_with("seed 7 fails: ") && text.contains("bad luck"), "{text}");
    }
}
