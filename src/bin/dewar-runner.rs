//! The runner of one task.
fn main() {}
