//! On machines where all controllers are on cgroup v2.

mod contained;
mod hosts;
mod limits;
mod smoke;
