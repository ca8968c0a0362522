//! What a command does that lasts longer than a daemon: it waits for the next one.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::Status;

use super::failure::Failure;
use crate::causes::tell;
use crate::client;

/// How long another daemon is waited for.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pause between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Patience with a daemon that is gone.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Since when it is.
    since: Option<Instant>,
}

impl Patience {
    /// The daemon has answered.
    pub(super) fn renew(&mut self) {
        self.since = None;
    }

    /// Waits before another try, where `status` says that the daemon is gone, and another may come.
    ///
    /// # Errors
    ///
    /// What was said, if it was something else, or patience is at its end.
    pub(super) async fn wait(&mut self, status: Status) -> Result<(), Failure> {
        if !client::is_gone(&status) {
            return Err(status.into());
        }
        if self.since.is_none() {
            tell!("dewar: the daemon is gone; waiting for another one");
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() > PATIENCE {
            return Err(status.into());
        }
        sleep(PAUSE).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_at_once_and_a_daemon_that_is_gone_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut patience = Patience::default();
            assert!(patience.wait(Status::unavailable("gone")).await.is_ok());
            let refused = patience.wait(Status::not_found("no")).await.unwrap_err();
            assert_eq!((refused.status(), refused.to_string().as_str()), (1, "no"));

            patience.since = Instant::now().checked_sub(PATIENCE + PAUSE);
            assert_eq!(patience.wait(Status::unavailable("gone")).await.unwrap_err().status(), 5);
            patience.renew();
            assert!(patience.wait(Status::unavailable("gone")).await.is_ok());
        });
    }
}
