//! Where a command finds its tasks: in a root, or by way of the daemon that serves it.
//!
//! `--address` is a daemon, `--root` a root; then comes `DEWAR_ADDRESS`; with none of them it is the daemon on the default socket
//! if one listens there, else the default root. What is told is the same either way.

use std::fmt;
use std::time::Duration;

use super::failure::Failure;
use super::pattern::Patterns;
use super::run::whereabouts;
use super::{kill, runner};
use crate::checkpoint::Root;
use crate::checkpoint::paths::Place;
use crate::control::Request;
use crate::explain::explain;
use crate::meter::{Detail, Meter};
use crate::observe::{self, Sight};
use crate::proto::{TaskExplanation, TaskSummary, TaskUsage, TaskView, Timestamp};
use crate::task::TaskId;

#[cfg(feature = "net")]
use {
    super::args::{AddressArg, NodeArg},
    super::term::escape,
    crate::client::{Address, Client, ClientError},
    crate::proto::{RemoveRequest, TaskFilter, TaskState},
    tonic::Code,
};

/// Environment variable that names a daemon.
#[cfg(feature = "net")]
const ADDRESS: &str = "DEWAR_ADDRESS";

/// The tasks of a node.
#[derive(Debug)]
pub(super) enum Node {
    /// Those of a root, which is read and written here.
    Root(Root),
    /// Those that a daemon serves.
    #[cfg(feature = "net")]
    Daemon(Box<Client>),
}

/// A task that was looked at, or why it cannot be told of.
pub(super) type Seen = (TaskId, Result<Told, Failure>);

/// What is known of a task.
#[derive(Debug)]
pub(super) enum Told {
    /// All that there is.
    All(Box<Sight>),
    /// What a list of the daemon says of a task that has ended.
    #[cfg_attr(not(feature = "net"), expect(dead_code, reason = "there is no daemon"))]
    Listed(Box<TaskSummary>),
}

/// How much is to be known of tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// What is on a line of `dewar status`.
    Line,
    /// All that there is.
    All,
}

/// Tells what a task uses.
pub(super) type Gauge<'a> = Box<dyn FnMut() -> Result<TaskUsage, Failure> + 'a>;

/// Which tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Which {
    /// Those that have not ended.
    Active,
    /// Those that have ended.
    Finished,
    /// Both.
    All,
}

impl Node {
    /// The daemon, if it is one that is to be asked.
    ///
    /// # Errors
    ///
    /// [`Failure`]: a daemon that was named and does not answer.
    #[cfg(feature = "net")]
    pub(super) fn daemon(arg: &NodeArg) -> Result<Option<Self>, Failure> {
        if !arg.roots.roots.is_empty() {
            return Ok(None);
        }
        let client = match named(arg.address.as_ref())? {
            Some(address) => Some(Client::connect(address)?),
            None => default_client(),
        };
        Ok(client.map(|client| Self::Daemon(Box::new(client))))
    }

    /// The root, unless a daemon is asked.
    pub(super) fn root(&self) -> Option<&Root> {
        match self {
            Self::Root(root) => Some(root),
            #[cfg(feature = "net")]
            Self::Daemon(_) => None,
        }
    }

    /// The ids of its tasks that match, in their order.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(super) fn list(&self, patterns: &Patterns, which: Which) -> Result<Vec<TaskId>, Failure> {
        let mut ids = match self {
            Self::Root(root) => match which {
                Which::Active => root.list(Place::Active)?,
                Which::Finished => root.list(Place::Finished)?,
                Which::All => observe::list(root)?.into_iter().map(|(id, _)| id).collect(),
            },
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                let tasks = client.list(filter(patterns, which))?;
                tasks.iter().filter_map(|task| TaskId::new(&*task.task_id).ok()).collect()
            }
        };
        ids.retain(|id| patterns.matches(id));
        Ok(ids)
    }

    /// Looks at its tasks that match.
    ///
    /// # Errors
    ///
    /// [`Failure`]; one task that cannot be read hides no other.
    pub(super) fn look(
        &self,
        patterns: &Patterns,
        which: Which,
        #[cfg_attr(not(feature = "net"), expect(unused_variables, reason = "all is read here"))]
        depth: Depth,
    ) -> Result<Vec<Seen>, Failure> {
        match self {
            Self::Root(root) => {
                let tasks = observe::list(root)?.into_iter();
                // One that has ended may not be filed away yet; what is filed away has ended.
                let may_be = |place: Place| which != Which::Active || place == Place::Active;
                let tasks = tasks.filter(|(id, place)| may_be(*place) && patterns.matches(id));
                let look = |(id, place)| {
                    let sight = observe::look(root, &id, place).map_err(Failure::from);
                    (id, sight.map(|sight| Told::All(Box::new(sight))))
                };
                Ok(tasks.map(look).collect())
            }
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                let mut tasks = client.list(filter(patterns, which))?;
                tasks.retain(|task| {
                    TaskId::new(&*task.task_id).is_ok_and(|id| patterns.matches(&id))
                });
                // A call for each task takes longer than all else. Of a daemon of before a list says less.
                let is_told =
                    |task: &TaskSummary| depth == Depth::Line && task.process_count.is_some();
                let (told, asked): (Vec<_>, Vec<_>) = tasks.into_iter().partition(is_told);
                let told = told.into_iter().filter_map(|task| {
                    Some((TaskId::new(&*task.task_id).ok()?, Ok(Told::Listed(Box::new(task)))))
                });
                Ok(told.chain(sights(client, &asked)).collect())
            }
        }
    }

    /// All that is told of a task that was named.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if there is no such task.
    pub(super) fn view(&self, id: &TaskId) -> Result<TaskView, Failure> {
        match self {
            Self::Root(root) => Ok(observe::look(root, id, whereabouts(root, id)?)?.view),
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                client.view(id.as_str()).map_err(|status| self.unknown(id, status))
            }
        }
    }

    /// Why each process of a task that was named is running, or is not.
    ///
    /// # Errors
    ///
    /// [`Failure::Usage`] if there is no such task.
    pub(super) fn explain(&self, id: &TaskId) -> Result<TaskExplanation, Failure> {
        match self {
            Self::Root(root) => Ok(explain(root, id, whereabouts(root, id)?)?),
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                client.explain(id.as_str()).map_err(|status| self.unknown(id, status))
            }
        }
    }

    /// Asks for the end of a task, in `wait`, or in the time that it gives itself.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(super) fn kill(
        &self,
        id: &TaskId,
        wait: Option<Duration>,
        lost: bool,
        reason: Option<&str>,
    ) -> Result<(), Failure> {
        match self {
            Self::Root(root) => kill::on_root(root, id, wait, lost, reason),
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                let reason = reason.map(str::to_owned);
                match (lost, wait) {
                    (false, None) => client.kill(id.as_str(), reason)?,
                    (lost, wait) => {
                        let wait = wait.unwrap_or_default();
                        let kill = crate::control::to_kill(wait, lost, reason);
                        client.order(id.as_str(), kill)?;
                    }
                }
                Ok(())
            }
        }
    }

    /// Removes what is kept of a task that has ended.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(super) fn remove(&self, id: &TaskId, sandbox: bool) -> Result<(), Failure> {
        match self {
            Self::Root(root) => crate::remove::remove(root, id, sandbox)
                .map_err(|error| Failure::unavailable(&error)),
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                let request = RemoveRequest { task_id: id.to_string(), sandbox };
                client.block_on(client.runner().remove(request))?;
                Ok(())
            }
        }
    }

    /// Whether it is known what its tasks used in the past.
    ///
    /// # Errors
    ///
    /// [`Failure::Unavailable`] says who would know.
    pub(super) fn keeps_history(&self) -> Result<(), Failure> {
        match self {
            Self::Root(root) => Err(Failure::Unavailable(format!(
                "what the tasks in {} used in the past only a daemon knows that served them then: see `dewar serve --help`",
                root.path().display()
            ))),
            #[cfg(feature = "net")]
            Self::Daemon(_) => Ok(()),
        }
    }

    /// What tells, each time that it is called, what a task uses and has used, or at a time `at` in the past, which a root does
    /// not know of.
    pub(super) fn gauge<'a>(
        &'a self,
        id: &TaskId,
        detail: Detail,
        at: Option<Timestamp>,
    ) -> Gauge<'a> {
        match self {
            Self::Root(root) => {
                let mut meter = Meter::new(root.clone(), id.clone());
                Box::new(move || {
                    if at.is_some() {
                        self.keeps_history()?;
                    }
                    meter.read(detail).map_err(|error| Failure::unavailable(&error))
                })
            }
            #[cfg(feature = "net")]
            Self::Daemon(client) => {
                let (id, by_process) = (id.to_string(), detail == Detail::Processes);
                Box::new(move || Ok(client.usage(&id, by_process, at)?))
            }
        }
    }

    /// Has the runner of a task asked to do something. Tells which limits the kernel rounded.
    ///
    /// # Errors
    ///
    /// [`Failure`].
    pub(super) fn order(&self, id: &TaskId, request: &Request) -> Result<Vec<String>, Failure> {
        match self {
            Self::Root(root) => runner::order(root, id, request),
            #[cfg(feature = "net")]
            Self::Daemon(client) => Ok(client.order(id.as_str(), request.clone())?),
        }
    }
}

#[cfg(feature = "net")]
impl Node {
    /// What the daemon said of a task that was named: of one that is not there as a root says it.
    fn unknown(&self, id: &TaskId, status: tonic::Status) -> Failure {
        match status.code() {
            Code::NotFound => {
                Failure::Usage(escape(&format!("there is no task {id} {self}")).into_owned())
            }
            _ => status.into(),
        }
    }
}

/// As in `no such task in …`.
impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root(root) => write!(f, "in {}", root.path().display()),
            #[cfg(feature = "net")]
            Self::Daemon(client) => write!(f, "of the daemon on {}", client.address()),
        }
    }
}

/// The daemon that a command cannot do without.
///
/// # Errors
///
/// [`Failure::Unavailable`] says what to do where none listens.
#[cfg(feature = "net")]
pub(super) fn daemon(arg: &AddressArg) -> Result<Client, Failure> {
    let address = match named(arg.address.as_ref())? {
        Some(address) => address,
        None => {
            let path = crate::daemon::default_socket();
            Address::Unix(path.map_err(|error| Failure::unavailable(&error))?)
        }
    };
    Client::connect(address).map_err(|error| match error {
        ClientError::Absent(_) => {
            let what = "`dewar serve` starts one, --address names another";
            Failure::Unavailable(format!("{error}: {what}"))
        }
        error => error.into(),
    })
}

/// The daemon that was named, by an option or else in the environment.
#[cfg(feature = "net")]
fn named(option: Option<&Address>) -> Result<Option<Address>, Failure> {
    if let Some(address) = option {
        return Ok(Some(address.clone()));
    }
    let Some(text) = std::env::var_os(ADDRESS).filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let address = text.to_string_lossy().parse::<Address>();
    address.map(Some).map_err(|error| Failure::Usage(format!("{ADDRESS}: {error}")))
}

/// The daemon on the default socket, if one listens there.
#[cfg(feature = "net")]
fn default_client() -> Option<Client> {
    Client::connect(Address::Unix(crate::daemon::default_socket().ok()?)).ok()
}

/// What the daemon is asked for; what of it matches is looked at here once more.
#[cfg(feature = "net")]
fn filter(patterns: &Patterns, which: Which) -> TaskFilter {
    use TaskState as S;
    let states: &[S] = match which {
        Which::Active => &[S::Active, S::Cleaning, S::Finalizing, S::Corrupt],
        Which::Finished => &[S::Success, S::Failed, S::Killed, S::Lost],
        Which::All => &[],
    };
    let states = states.iter().map(|&state| state.into()).collect();
    TaskFilter { states, pattern: patterns.together(), ..TaskFilter::default() }
}

/// Each of these tasks, but those that were removed meanwhile.
#[cfg(feature = "net")]
fn sights(client: &Client, tasks: &[TaskSummary]) -> Vec<Seen> {
    let ids: Vec<_> = tasks.iter().map(|task| task.task_id.clone()).collect();
    let sight = |task: &TaskSummary, view: TaskView| Sight {
        view,
        accepted: task.accept_time.map_or(0, |time| time.unix_nanos()),
    };
    let seen = |(task, view): (&TaskSummary, Result<TaskView, tonic::Status>)| {
        let id = TaskId::new(&*task.task_id).ok()?;
        match view {
            Err(status) if status.code() == Code::NotFound => None,
            view => {
                let told = view.map(|view| Told::All(Box::new(sight(task, view))));
                Some((id, told.map_err(Failure::from)))
            }
        }
    };
    tasks.iter().zip(client.views(&ids)).filter_map(seen).collect()
}
