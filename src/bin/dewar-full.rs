//! All commands of `dewar`, the daemon among them. Started by `dewar`, not by people.
#![cfg_attr(target_env = "gnu", no_main)]

dewar::program!(dewar::cli::main);
