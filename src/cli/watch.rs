//! `dewar watch`.

use tonic::Status;

use super::args::{Output, Watch};
use super::failure::{Failure, status};
use super::out::{self, Out};
use super::patience::Patience;
use super::printer::stdout_style;
use super::term::Style;
use super::{json, node, report, words};
use crate::client::Client;
use crate::proto::watch_tasks_response::Message;
use crate::proto::{TaskSummary, WatchTasksRequest, WatchTasksResponse};

/// Tells of tasks as they are, and then what happens.
///
/// # Errors
///
/// [`Failure`], also where what happened in between cannot be told.
pub(super) fn run(args: &Watch) -> Result<u8, Failure> {
    let client = node::daemon(&args.daemon)?;
    let request = WatchTasksRequest {
        task_id: args.task.clone(),
        cursor: args.cursor.clone(),
        ..WatchTasksRequest::default()
    };
    let printer = Printer { out: Out::default(), output: args.output, style: stdout_style() };
    let mut watcher = Watcher { request, printer, has_told: false, patience: Patience::default() };
    client.block_on(async {
        tokio::select! {
            over = watcher.run(&client) => over?,
            () = out::unread() => {}
        }
        Ok(status::SUCCESS)
    })
}

struct Watcher {
    /// What is asked for next: its cursor is that of the last message.
    request: WatchTasksRequest,
    printer: Printer,
    /// Whether something was told, so that to begin anew would tell it twice.
    has_told: bool,
    patience: Patience,
}

impl Watcher {
    /// Tells what daemons tell, one after the other, to the end of the task.
    async fn run(&mut self, client: &Client) -> Result<(), Failure> {
        loop {
            let mut observer = client.observer();
            let lost = match observer.watch_tasks(self.request.clone()).await {
                Ok(answers) => self.tell(answers.into_inner()).await?,
                Err(status) => Some(status),
            };
            let Some(status) = lost else { return Ok(()) };
            if self.has_told && self.request.cursor.is_none() {
                return Err(status.into());
            }
            self.patience.wait(status).await?;
        }
    }

    /// Tells what comes until it ends: well, or with a status.
    async fn tell(
        &mut self,
        mut answers: tonic::Streaming<WatchTasksResponse>,
    ) -> Result<Option<Status>, Failure> {
        loop {
            match answers.message().await {
                Ok(Some(answer)) => {
                    self.patience.renew();
                    self.printer.print(&answer)?;
                    self.has_told = true;
                    if !answer.cursor.is_empty() {
                        self.request.cursor = Some(answer.cursor);
                    }
                    if self.printer.out.is_gone() {
                        return Ok(None);
                    }
                }
                Ok(None) => return Ok(None),
                Err(status) => return Ok(Some(status)),
            }
        }
    }
}

/// Prints a line for each message.
struct Printer {
    out: Out,
    output: Output,
    style: Style,
}

impl Printer {
    fn print(&mut self, answer: &WatchTasksResponse) -> Result<(), Failure> {
        let line = match self.output {
            Output::Json => json::line(answer)?,
            Output::Text => line(answer, self.style).unwrap_or_default(),
        };
        Ok(self.out.write(line)?)
    }
}

/// A message for people; `None` where it says nothing to them.
fn line(answer: &WatchTasksResponse, style: Style) -> Option<String> {
    match answer.message.as_ref()? {
        Message::Task(task) => Some(summary(task, style)),
        Message::SnapshotEnd(_) => None,
        Message::Event(event) => report::event_of_task(event, style),
        Message::RemovedTaskId(id) => Some(format!("{} removed\n", words::name(id))),
    }
}

/// A task as it is, with the time of its end, or else of its acceptance.
fn summary(task: &TaskSummary, style: Style) -> String {
    let time = task.end_time.or(task.accept_time).map(words::clock).unwrap_or_default();
    let state = style.task(task.state(), words::task_state(task.state())).into_owned();
    let paused = if task.is_paused { " paused" } else { "" };
    format!("{} {} {state}{paused}\n", style.dim(&time), words::name(&task.task_id))
}
