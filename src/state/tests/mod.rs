//! The core under test: rules by subject, outcomes, and random tasks in virtual time.

mod order;
mod outcomes;
mod reference;
mod retries;
mod runs;
mod script;
mod sim;
