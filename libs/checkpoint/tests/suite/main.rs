//! One suite for every store: the same claims on memory and on local disk.

#![allow(clippy::unwrap_used)] // a failed step of a test is a failed test

mod commits;
mod cover;
mod digests;
mod mutations;
mod records;
mod roundtrip;
mod support;
