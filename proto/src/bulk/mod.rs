//! Framed bulk protocol.
