//! Compiles the schemas without a protoc, and keeps their description for server reflection.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=schema");
    let control = protox::compile(["schema/control.proto"], ["schema"])?;
    tonic_prost_build::configure().compile_fds(control)?;
    let pool = protox::compile(["schema/pool.proto"], ["schema"])?;
    tonic_prost_build::configure().compile_fds(pool)?;
    let rows = protox::compile(["schema/rows.proto"], ["schema"])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("rows.bin"), prost::Message::encode_to_vec(&rows))?;
    tonic_prost_build::configure().compile_fds(rows)?;
    Ok(())
}
