//! On machines where all controllers are on cgroup v2.

mod accounting;
mod contained;
mod cost;
mod hosts;
mod limits;
mod oom;
mod quota;
mod smoke;
mod unkillable;
mod update;
