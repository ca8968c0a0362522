//! dewar runs tasks, each a DAG of processes, in cgroup v2, and never loses track of one.

pub mod coordinator;
pub mod identity;
pub mod proto;
pub mod sandbox;
pub mod sys;
pub mod task;

#[cfg(test)]
mod testing;
