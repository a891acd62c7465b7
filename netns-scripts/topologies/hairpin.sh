# shellcheck shell=bash
# Two hosts behind the same NAT: they meet only if it hairpins, that is, if a packet from inside to its own public
# address comes back in. (The kernel's masquerade does not.)
#
#        private              .              public internet
#                             .
#       A ─────────────┐      .
#   10.64.1.2          │      .
#                      ├── N1 ─────────────── internet ───┬─── P   198.51.100.10, 198.51.100.11
#   10.64.2.2          │      . 203.0.113.11   (router)   │
#       B ─────────────┘      .                           └─── S   198.51.100.30
#                             .

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public S 198.51.100.30
    gateway N1 203.0.113.11
    behind N1 A 1
    behind N1 B 2
}
