//! Compiles `mesh.proto` without `protoc`: protox parses it, tonic's generator writes the code.

use std::error::Error;
use std::path::PathBuf;

use protox::prost::Message as _;

fn main() -> Result<(), Box<dyn Error>> {
    // The package that is built lies in `crates/mesh`; `proto/` stands at the top, where users look for it.
    let proto =
        PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").ok_or("no CARGO_MANIFEST_DIR")?)
            .join("../../proto");
    let file = proto.join("mesh.proto");
    let descriptors = protox::compile([&file], [&proto])?;
    let out = PathBuf::from(std::env::var_os("OUT_DIR").ok_or("no OUT_DIR")?);
    // For gRPC reflection.
    std::fs::write(out.join("mesh.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().bytes(".").compile_fds(descriptors)?;
    println!("cargo:rerun-if-changed={}", file.display());
    Ok(())
}
