//! natbox.
