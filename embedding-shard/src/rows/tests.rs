//! Tests of rows as a whole.
