# shellcheck shell=bash
# The NAT is the gateway of an Ethernet: ordinary hosts on a switch, no TUN in any of them.
#
#        private LAN                      .              public internet
#                                         .
#       A ───────────┐                    .
#   192.168.1.2      │                    .
#                 switch ──────────── N1 ─────────────── internet ───┬─── P   198.51.100.10, 198.51.100.11
#   192.168.1.3      │      192.168.1.1 . 203.0.113.11   (router)    │
#       B ───────────┘                    .                          └─── S   198.51.100.30

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public S 198.51.100.30
    gateway N1 203.0.113.11
    lan N1 192.168.1.0/24 A B
}
