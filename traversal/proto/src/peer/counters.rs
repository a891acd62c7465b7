//! What an agent counts.

macro_rules! counters {
    ($($(#[$doc:meta])+ $field:ident),+ $(,)?) => {
        /// What has happened since the agent was made.
        #[derive(Clone, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[$doc])+ pub $field: u64,)+
        }

        impl Counters {
            /// Every counter with its name.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($field), self.$field)),+].into_iter()
            }
        }
    };
}

counters! {
    /// Checks sent to addresses that had proved nothing.
    probes,
    /// Packets sent to open our own gateway, which no other sees.
    openers,
    /// The same, not sent because the budget was used up, or too many were wanted at a time.
    openers_withheld,
    /// Checks put off because the budget for probes was used up.
    probes_deferred,
    /// Checks of paths that have worked.
    liveness_checks,
    /// Answers to checks.
    responses,
    /// Valid requests.
    requests,
    /// Valid responses.
    answers,
    /// Requests to reflectors.
    reflections,
    /// Datagrams that are no STUN message, or none that is expected.
    malformed,
    /// Requests whose tag is no peer's.
    unknown_tag,
    /// Responses to nothing that is waited for.
    unknown_transaction,
    /// Checks that were not made with the peer's key, or changed on the way.
    bad_integrity,
    /// Requests from addresses that no honest host sends from.
    bad_source,
    /// Requests that another address has sent before.
    replayed,
    /// Requests beyond what one peer may send.
    requests_too_fast,
    /// Requests of peers that are to be relayed only.
    not_wanted,
    /// Messages of peers that are not known, or older than what is known.
    messages_ignored,
    /// Candidates that may not be probed.
    candidates_refused,
    /// Pairs for which there was no room.
    pairs_dropped,
    /// Claims of one peer to an address that another has proved.
    claims_refused,
    /// Packets from unknown sources that were looked into.
    unknown_sources,
    /// Rounds of checks.
    rounds,
    /// Paths that worked for the first time, or again.
    paths_up,
    /// Paths that stopped to work.
    paths_lost,
    /// Changes of route.
    switches,
    /// Outputs of our own that found their queue full.
    outputs_lost,
}
