//! The model against golden vectors, against an f64 reference of its own, and against itself: one program, so that
//! libtorch is linked once.
#![allow(clippy::unwrap_used)] // a test's helpers may fail where they stand

mod bits;
mod expert_parallel;
mod fixture;
mod golden;
mod hugging_face;
mod placements;
mod reference;
mod rope;
mod training;
