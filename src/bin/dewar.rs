//! The `dewar` command: a program of `dewar run`, which becomes `dewar-full` for all else.
#![cfg_attr(target_env = "gnu", no_main)]

dewar::program!(dewar::cli::front);
