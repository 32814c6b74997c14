//! gRPC control schema.
