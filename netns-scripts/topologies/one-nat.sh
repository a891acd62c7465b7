# shellcheck shell=bash
# A client behind one NAT, and two public servers. P has two addresses, as a reflector that classifies NATs needs.
#
#        private            .              public internet
#                           .
#       A ────────────── N1 ─────────────── internet ───┬─── P
#   10.64.1.2    10.64.1.1 . 203.0.113.11    (router)   │    198.51.100.10
#                           .                .254       │    198.51.100.11
#                           .                           └─── S
#                           .                                198.51.100.30

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public S 198.51.100.30
    gateway N1 203.0.113.11
    behind N1 A
}
