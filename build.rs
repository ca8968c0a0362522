//! Turns `proto/` into Rust: messages by prost, their proto3 JSON by pbjson. No `protoc` is needed. And links the unwinder in.
#![allow(clippy::disallowed_methods, reason = "generates code")]

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, io};

use prost::Message;

const PROTOS: [&str; 5] = [
    "dewar/v1/task.proto",
    "dewar/v1/record.proto",
    "dewar/v1/view.proto",
    "dewar/v1/control.proto",
    "dewar/v1/usage.proto",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    link_unwinder();
    let descriptors = protox::compile(PROTOS, ["proto"]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    let set = out.join("descriptors.bin");
    let bytes = descriptors.encode_to_vec();
    fs::write(&set, &bytes)?;

    prost_build::Config::new()
        .file_descriptor_set_path(&set)
        .skip_protoc_run()
        .compile_well_known_types()
        .btree_map(["."])
        // Most processes have none, and there may be very many.
        .boxed(".dewar.v1.ProcessView.resources")
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_protos(&PROTOS, &["proto"])?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .btree_map(["."])
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .extern_path(".google.protobuf", "::pbjson_types")
        .emit_fields()
        .build(&[".dewar"])?;
    Ok(())
}

/// Has the unwinder linked in where the C compiler has it as an archive, and not loaded as `libgcc_s.so` by each `dewar` and
/// each `dewar-runner` that starts: a tenth of a millisecond each time, for something that only a panic needs.
fn link_unwinder() {
    println!("cargo:rerun-if-env-changed=CC");
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let Ok(answer) = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output() else {
        return;
    };
    // A compiler that does not have it answers with the bare name.
    let path = PathBuf::from(String::from_utf8_lossy(&answer.stdout).trim_end());
    if let Some(dir) = path.parent().filter(|dir| dir.is_absolute()) {
        println!("cargo:rustc-link-search=native={}", dir.display());
        println!("cargo:rustc-link-lib=static=gcc_eh");
    }
}
