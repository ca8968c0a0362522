//! On machines where all controllers are on cgroup v2.

mod contained;
mod limits;
mod smoke;
mod update;
