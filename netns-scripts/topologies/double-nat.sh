# shellcheck shell=bash
# A home behind a carrier's NAT: A's packets are translated twice. The middle net is the carriers' own, RFC 6598.
#
#        home              .           carrier             .        public internet
#                          .                               .
#       A ──────────── N1 ──────────────────────────── N2 ──────── internet ───┬─── P   198.51.100.10, 198.51.100.11
#   10.64.1.2  10.64.1.1 . 100.64.0.2      100.64.0.1 . 203.0.113.12 (router)  │
#                          .                               .                   └─── S   198.51.100.30

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public S 198.51.100.30
    gateway N2 203.0.113.12
    carried N1 N2 100.64.0.0/24
    behind N1 A
}
