# shellcheck shell=bash
# A machine H with a life of its own (services, connections, ping) that also runs the NAT for A, on the one address it
# has. H's own traffic must not notice the NAT, and the NAT's must not be answered by H.
#
#        private            .              public internet
#                           .
#       A ────────────── H ──────────────── internet ───┬─── P   198.51.100.10, 198.51.100.11
#   10.64.1.2    10.64.1.1 . 203.0.113.11    (router)   │
#              H's services .                           └─── S   198.51.100.30
#           share 203.0.113.11

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public S 198.51.100.30
    gateway H 203.0.113.11
    behind H A
}
