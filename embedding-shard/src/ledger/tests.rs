//! The protocol alone.
