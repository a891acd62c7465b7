//! An internet in memory.
