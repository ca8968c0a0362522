//! Turns `proto/` into Rust: messages by prost, their proto3 JSON by pbjson. No `protoc` is needed. And links the unwinder in.
#![allow(clippy::disallowed_methods, reason = "generates code")]

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, io};

use prost::Message;
use prost_types::FileDescriptorSet;

const PROTOS: [&str; 7] = [
    "dewar/v1/task.proto",
    "dewar/v1/record.proto",
    "dewar/v1/view.proto",
    "dewar/v1/control.proto",
    "dewar/v1/usage.proto",
    "dewar/v1/runner_service.proto",
    "dewar/v1/observer_service.proto",
];

fn main() -> io::Result<()> {
    println!("cargo:rerun-if-changed=proto");
    link_unwinder();
    let descriptors = protox::compile(PROTOS, ["proto"]).map_err(io::Error::other)?;
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    let set = out.join("descriptors.bin");
    let bytes = descriptors.encode_to_vec();
    fs::write(&set, &bytes)?;

    let mut messages = prost_build::Config::new();
    messages
        .compile_well_known_types()
        // Most processes have none, and there may be very many.
        .boxed(".dewar.v1.ProcessView.resources")
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .extern_path(".google.protobuf", "::pbjson_types")
        .btree_map(["."]);
    compile(messages, descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .btree_map(["."])
        .extern_path(".google.protobuf.Timestamp", "crate::proto::Timestamp")
        .extern_path(".google.protobuf", "::pbjson_types")
        .emit_fields()
        .build(&[".dewar"])?;
    Ok(())
}

/// Messages, and with the feature `net` servers and clients of the services.
#[cfg(feature = "net")]
fn compile(messages: prost_build::Config, descriptors: FileDescriptorSet) -> io::Result<()> {
    tonic_prost_build::configure().compile_fds_with_config(descriptors, messages)
}

#[cfg(not(feature = "net"))]
fn compile(mut messages: prost_build::Config, descriptors: FileDescriptorSet) -> io::Result<()> {
    messages.compile_fds(descriptors)
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
