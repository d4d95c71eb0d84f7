//! Compiles the protocol definitions with protox, so that no `protoc` needs to be installed.

use std::path::PathBuf;

use prost::Message as _;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = [
        "holdfast/agent/v1/agent.proto",
        "holdfast/instance/v1/instance.proto",
        "holdfast/inventory/v1/inventory.proto",
    ];
    let etcd = ["etcd/rpc.proto"];
    for file in files.iter().chain(&etcd) {
        println!("cargo::rerun-if-changed={file}");
    }
    let descriptors = protox::compile(files, ["."])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure().compile_fds(descriptors)?;
    // Another's contract: we are its client, and its descriptors are not for our reflection.
    tonic_prost_build::configure().build_server(false).compile_fds(protox::compile(etcd, ["."])?)?;
    Ok(())
}
