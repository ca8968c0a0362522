//! The `dewar` command.
#![cfg_attr(target_env = "gnu", no_main)]

dewar::program!(dewar::cli::main);
