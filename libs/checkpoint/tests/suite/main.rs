//! One suite for every store: the same claims on memory, on local disk and over the S3 protocol.

#![allow(clippy::unwrap_used)] // a failed step of a test is a failed test

mod commits;
mod cover;
mod damage;
mod digests;
mod faults;
mod faulty;
mod keeping;
mod layers;
mod ledger;
mod mutations;
mod quarantine;
mod records;
mod resharding;
mod rollbacks;
mod roots;
mod roundtrip;
mod storm;
mod support;
