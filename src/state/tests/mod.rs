//! The core under test: rules by subject, outcomes, and random tasks in virtual time.

mod ending;
mod explain;
mod kills;
mod order;
mod outcomes;
mod pauses;
mod random;
mod records;
mod recovery;
mod reference;
mod retries;
mod runs;
mod script;
mod sim;
mod size;
