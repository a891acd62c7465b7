# shellcheck shell=bash
# Two peers, each behind a NAT of its own, and two public supernodes: the lecture's picture.
#
#        private            .              public internet              .           private
#                           .                                           .
#       A ────────────── N1 ──────────────────┬────────────────────── N2 ────────────── S
#   10.64.1.2    10.64.1.1 . 203.0.113.11     │          203.0.113.12 . 10.64.2.1    10.64.2.2
#                           .             internet                      .
#                           .             (router)                      .
#                           .             ┌───┴───┐                     .
#                           .             P       P'
#                                198.51.100.10   198.51.100.20
#                                198.51.100.11   198.51.100.21
#
# P' is written P2 on the command line.

topology() {
    internet
    public P 198.51.100.10 198.51.100.11
    public P2 198.51.100.20 198.51.100.21
    gateway N1 203.0.113.11
    gateway N2 203.0.113.12
    behind N1 A 1
    behind N2 S 2
}
