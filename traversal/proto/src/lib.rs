//! The engines of peer-to-peer traversal, pure: packets, a clock reading and a seed in; data out.
