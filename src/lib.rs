//! dewar runs tasks, each a DAG of processes, in cgroup v2, and never loses track of one.

pub mod cgroup;
pub mod checkpoint;
pub mod cli;
pub mod control;
pub mod coordinator;
pub mod failpoint;
pub mod identity;
pub mod launch;
pub mod observe;
pub mod proto;
pub mod runner;
pub mod sandbox;
pub mod state;
pub mod sys;
pub mod task;
#[cfg(test)]
mod testing;
pub mod view;
