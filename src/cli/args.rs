//! The command line: what may be asked for, and the text of `--help`.

use std::convert::Infallible;
use std::ffi::OsString;
#[cfg(feature = "net")]
use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use chrono::DateTime;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::engine::ArgValueCompleter;

use super::completion;
#[cfg(feature = "net")]
use crate::client::Address;
use crate::control::REASON_MAX;
use crate::gc::{Amount, Limits};
use crate::proto::Timestamp;
use crate::sys::clock;
#[cfg(feature = "net")]
use crate::web::Listen;

const ABOUT: &str = "\
Runs tasks, each a set of processes in their order, in cgroup v2, and never loses track of one.";

const EXIT_STATUS: &str = "\
Exit status of run, resume and wait:
  0 SUCCESS   1 FAILED   3 KILLED   4 LOST
  2 bad command line or task file: nothing was started
  5 cannot be done here or now (no cgroup v2, not permitted, another runner holds the task)
  70 a defect of dewar
Exit status of the other commands: 0 done, 1 nothing matched, 2 bad use; of exec, that of the command.

A pattern is a regular expression that matches a whole task id.

Commands with --address and --root ask the daemon that --address names, or work on the directories that --root names; else the
daemon of DEWAR_ADDRESS, else the one on the default socket if it is there, else they work on the default directory.";

/// The `dewar` command line.
#[derive(Debug, Parser)]
#[command(name = "dewar", version, about = ABOUT, after_help = EXIT_STATUS)]
#[command(disable_help_subcommand = true, infer_subcommands = false)]
pub(super) struct Cli {
    /// What is to be done.
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Run a task to its end.
    Run(Run),
    /// See that a task has a runner, and follow it to its end.
    Resume(Resume),
    /// Have the daemon run a task, and return once it is accepted.
    #[cfg(feature = "net")]
    Launch(Launch),
    /// Wait for the end of a task, or until it is in a state.
    Wait(Wait),
    /// End tasks.
    Kill(Kill),
    /// Send a signal to the processes of tasks.
    Signal(Signal),
    /// Freeze tasks: nothing of them runs, and no time passes for them.
    Pause(Pause),
    /// Let paused tasks go on.
    ResumePaused(ResumePaused),
    /// Change the limits of a task that runs, or tell them.
    Update(Update),
    /// Tell what is known of tasks.
    Status(Status),
    /// Tell why each process of a task is running, or is not.
    Explain(Explain),
    /// Tell what tasks use.
    Stats(Stats),
    /// Show what live tasks use, those first that use the most, again and again on a terminal.
    Top(Top),
    /// Tell of tasks as they are, and then of each transition as it happens.
    #[cfg(feature = "net")]
    Watch(Watch),
    /// Print the log of a process.
    #[command(visible_alias = "tail")]
    Logs(Logs),
    /// Run a command in a live task.
    #[cfg(feature = "net")]
    Exec(Exec),
    /// Remove what is kept of tasks that have ended.
    Remove(Remove),
    /// Remove what is kept of tasks that have ended, the oldest first, as limits say.
    Gc(Gc),
    /// Print a checkpoint stream.
    Read(Read),
    /// Check a task file, and show the task and its plan.
    Inspect(Inspect),
    /// Print what a shell needs to complete commands, options and ids of tasks.
    Completion(Completion),
    /// Serve control and observation of all tasks over gRPC.
    #[cfg(feature = "net")]
    Serve(Box<Serve>),
    /// Ask the daemon whether it serves.
    #[cfg(feature = "net")]
    Health(Health),
}

#[cfg(feature = "net")]
const SERVE_EXAMPLES: &str = "\
Examples:
  dewar serve                                     as root: /run/dewar/dewar.sock, tasks in /var/lib/dewar
  dewar serve --address /tmp/d.sock --root /tmp/d  somewhere else
  dewar serve --web '[::1]:8080'                  the page for browsers, elsewhere on loopback
  grpcurl -plaintext -unix /run/dewar/dewar.sock dewar.v1.ObserverService/ListTasks

The daemon may be killed, restarted or replaced at any time: tasks do not notice. docs/api.md has every call.
With OTEL_EXPORTER_OTLP_ENDPOINT=http://HOST:4317 each launch is a trace for OpenTelemetry: docs/tracing.md.";

/// `dewar serve`.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(after_help = SERVE_EXAMPLES, group(clap::ArgGroup::new("tls_role").multiple(true)))]
pub(super) struct Serve {
    /// Where the tasks of this node are kept.
    #[command(flatten)]
    pub(super) root: RootArg,

    /// Unix socket to listen on [default: the one that the service manager hands over, else /run/dewar/dewar.sock as root, else
    /// $XDG_RUNTIME_DIR/dewar/dewar.sock]
    #[arg(long, value_name = "PATH", env = "DEWAR_ADDRESS", value_parser = socket)]
    pub(super) address: Option<PathBuf>,

    /// Permission bits of the socket, octal: with 666 every user may connect, and see their own tasks
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = mode)]
    pub(super) socket_mode: u32,

    /// Group whose members may see and do everything, as root may; ignored if there is no such group
    #[arg(long, value_name = "GROUP", default_value = "dewar")]
    pub(super) group: String,

    /// Group whose members may see everything, and do no more than anybody else; ignored if there is no such group [default: none]
    #[arg(long, value_name = "GROUP")]
    pub(super) observer_group: Option<String>,

    /// Loopback address of the page for browsers, or `off`; each user sees there what they see on the socket
    /// [default: 127.0.0.1:1338, if it is free]
    #[arg(long, value_name = "ADDR:PORT|off", env = "DEWAR_WEB")]
    pub(super) web: Option<Listen>,

    /// Cgroup that all others are made in [default: the one that was delegated, else as root /sys/fs/cgroup/dewar]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup_base: Option<PathBuf>,

    /// How often it is read what each live task uses; 0 or off: never, and no history is kept
    #[arg(long, value_name = "INTERVAL", default_value = "10s", value_parser = sample_interval)]
    pub(super) sample_interval: Duration,

    /// How long that is kept: 1 to 10000 readings of each task
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub(super) sample_history: Duration,

    /// How often the sandbox of each live task is measured, at most; 0 or off, or without samples: never
    #[arg(long, value_name = "INTERVAL", default_value = "60s", value_parser = sample_interval)]
    pub(super) disk_interval: Duration,

    #[command(flatten)]
    pub(super) tls: Tls,

    #[command(flatten)]
    pub(super) gc: ServeGc,

    /// How the log is written to standard error
    #[arg(long, value_enum, default_value_t = LogFormat::Text)]
    pub(super) log_format: LogFormat,

    /// What is logged: error, warn, info, debug or trace, or filters by module such as `dewar::daemon=debug`
    #[arg(long, value_name = "FILTER", default_value = "info", env = "DEWAR_LOG")]
    pub(super) log: String,
}

/// How TCP is served, if at all: with all of it, or not.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(next_help_heading = "TCP, with certificates on both sides")]
pub(super) struct Tls {
    /// Address to listen on beside the socket [default: none]
    #[arg(long, value_name = "ADDR:PORT", requires_all = ["tls_cert", "tls_key", "tls_client_ca", "tls_role"])]
    pub(super) tls_listen: Option<SocketAddr>,

    /// Certificate of the daemon, with intermediate ones after it, as PEM [default: none]
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    pub(super) tls_cert: Option<PathBuf>,

    /// Its private key, as PEM; a file that is closed to others [default: none]
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    pub(super) tls_key: Option<PathBuf>,

    /// Certificates of those who certify clients, as PEM [default: none]
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    pub(super) tls_client_ca: Option<PathBuf>,

    /// Their lists of revocations, as PEM, one of each; then what none of them covers is refused, as is all once one is out of date
    /// [default: nothing is revoked]
    #[arg(long, value_name = "FILE", requires = "tls_listen")]
    pub(super) tls_client_crl: Option<PathBuf>,

    /// Who may see and do everything: a DNS name or URI among the subject alternative names of the client's certificate; may be
    /// repeated
    #[arg(long, value_name = "NAME", requires = "tls_listen", group = "tls_role")]
    pub(super) tls_admin: Vec<String>,

    /// Who may see everything and change nothing; may be repeated. A certificate with none of these names is refused
    #[arg(long, value_name = "NAME", requires = "tls_listen", group = "tls_role")]
    pub(super) tls_observer: Vec<String>,
}

#[cfg(feature = "net")]
const HEALTH_EXAMPLES: &str = "\
Examples:
  dewar health                         exit status 0: it serves; 1: it does not, and why
  dewar health --address /tmp/d.sock   one that listens somewhere else";

/// `dewar health`.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(after_help = HEALTH_EXAMPLES)]
pub(super) struct Health {
    /// Who is asked.
    #[command(flatten)]
    pub(super) daemon: AddressArg,

    /// How long to wait for its answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration)]
    pub(super) timeout: Duration,
}

/// How a log is written.
#[cfg(feature = "net")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// A line for people.
    Text,
    /// A JSON object a line.
    Json,
}

/// Path of a socket to listen on, as clients write it, or any other.
#[cfg(feature = "net")]
fn socket(text: &str) -> Result<PathBuf, String> {
    if !text.contains(':') {
        return Ok(text.into());
    }
    match text.parse() {
        Ok(Address::Unix(path)) => Ok(path),
        Ok(Address::Tls(_)) | Err(_) => Err("expected the path of a socket".to_owned()),
    }
}

#[cfg(feature = "net")]
fn mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("expected octal permission bits, such as 660".to_owned()),
    }
}

/// Where the tasks of this node are kept.
#[derive(Debug, Default, Args)]
pub(super) struct RootArg {
    /// Directory of all checkpoints [default: /var/lib/dewar as root, else $XDG_STATE_HOME/dewar or ~/.local/state/dewar]
    #[arg(long, value_name = "DIR")]
    pub(super) root: Option<PathBuf>,
}

/// Where the tasks are kept, in one directory or in several.
#[derive(Debug, Default, Args)]
pub(super) struct RootsArg {
    /// Directory of all checkpoints; may be repeated, and each task is then told with its own [default: /var/lib/dewar as root, else
    /// $XDG_STATE_HOME/dewar or ~/.local/state/dewar]
    #[arg(long = "root", value_name = "DIR")]
    pub(super) roots: Vec<PathBuf>,
}

/// Where the tasks are found.
#[derive(Debug, Default, Args)]
pub(super) struct NodeArg {
    /// Directories.
    #[command(flatten)]
    pub(super) roots: RootsArg,

    /// Daemon to ask: PATH or unix://PATH of its socket, or https://HOST:PORT [env: DEWAR_ADDRESS] [default: the one on the default socket, if it listens]
    #[cfg(feature = "net")]
    #[arg(long, value_name = "ADDRESS", conflicts_with = "roots")]
    pub(super) address: Option<Address>,
}

/// A daemon that is asked.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
pub(super) struct AddressArg {
    /// Daemon to ask: PATH or unix://PATH of its socket, or https://HOST:PORT [env: DEWAR_ADDRESS] [default: /run/dewar/dewar.sock as root, else
    /// $XDG_RUNTIME_DIR/dewar/dewar.sock]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) address: Option<Address>,
}

/// A root that is worked on, whether or not a daemon serves it.
#[derive(Debug, Args)]
pub(super) struct LocalArg {
    /// The root.
    #[command(flatten)]
    pub(super) root: RootArg,

    /// Refused, and not taken for something else [default: none]
    #[arg(long = "address", hide = true, value_parser = no_daemon)]
    pub(super) _address: Option<Infallible>,
}

fn no_daemon(_: &str) -> Result<Infallible, String> {
    Err("this command needs no daemon and asks none; `dewar launch`, `watch` and `wait` do"
        .to_owned())
}

/// What fills in the templates of a task file.
#[derive(Debug, Args)]
pub(super) struct Bindings {
    /// Host port that {{thermos.ports[NAME]}} stands for; may be repeated
    #[arg(short = 'P', long = "port", value_name = "NAME:PORT", value_parser = port)]
    pub(super) ports: Vec<(String, NonZeroU16)>,

    /// Text that {{NAME}} stands for; may be repeated
    #[arg(short = 'E', long = "env", value_name = "NAME=VALUE", value_parser = binding)]
    pub(super) bindings: Vec<(String, String)>,

    /// Id of the task [default: its name and the time, such as web-20260801-093000.123456]
    #[arg(long, value_name = "ID", visible_alias = "id")]
    pub(super) task_id: Option<String>,

    /// User that the processes run as; only root may name another [default: the task's own, else whoever calls]
    #[arg(long, value_name = "USER")]
    pub(super) user: Option<String>,
}

const RUN_EXAMPLES: &str = "\
Examples:
  dewar run hello.yaml                      run a task file, watch it, exit as it ends
  dewar run web.yaml -P http:8080 --detach  start it, print its id, and leave it to run
  dewar run -- make -j4 test                run one command as a task of one process
  dewar run build.yaml --output json        one JSON object a line: each transition, last the task

^C asks the task to end: SIGTERM, then finalizers, within its finalization_wait. A second ^C kills it now.
Killing dewar itself loses nothing: the task goes on, and `dewar resume ID` follows it again. If its runner is
killed, another one goes on with the task.";

/// `dewar run`.
#[derive(Debug, Args)]
#[command(after_help = RUN_EXAMPLES, override_usage = "dewar run [OPTIONS] <FILE>\n       dewar run [OPTIONS] -- <CMD>...")]
pub(super) struct Run {
    /// Task file, YAML or JSON; - is standard input
    #[arg(value_name = "FILE", required_unless_present = "command")]
    pub(super) file: Option<PathBuf>,

    /// Command line of a task of one process; a single CMD is given to bash as it is, several arrive as they were typed
    #[arg(last = true, value_name = "CMD", conflicts_with = "file")]
    pub(super) command: Vec<OsString>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) local: LocalArg,

    /// What fills in the templates.
    #[command(flatten)]
    pub(super) bindings: Bindings,

    /// Directory that the task runs in, made if missing [default: ROOT/sandboxes/ID]
    #[arg(long, value_name = "DIR")]
    pub(super) sandbox: Option<PathBuf>,

    /// Directory of the logs, <process>/<run>/{stdout,stderr} in it [default: .logs in the sandbox]
    #[arg(long, value_name = "DIR")]
    pub(super) log_dir: Option<PathBuf>,

    /// Make the sandbox the root directory of every process; root only [default: no]
    #[arg(long)]
    pub(super) chroot: bool,

    /// Return once the task is accepted and print its id [default: follow it to its end]
    #[arg(long)]
    pub(super) detach: bool,

    /// How processes are held together: v2, a cgroup for each run; none, process trees only, which is weaker
    #[arg(long, value_enum, value_name = "HOW", default_value = "v2")]
    pub(super) cgroup: Cgroup,

    /// Cgroup v2 directory that tasks are put under [default: the delegated one, or <mount>/dewar as root]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup_base: Option<PathBuf>,

    /// Run although this host cannot enforce a limit that the task asks for; its status lists it [default: refuse]
    #[arg(long)]
    pub(super) allow_unenforced: bool,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,

    /// Name of the task and its process, with CMD
    #[arg(long, value_name = "NAME", default_value = "simple", conflicts_with = "file")]
    pub(super) name: String,

    /// Failed runs that fail the process, with CMD; 0: retry for ever
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "file")]
    pub(super) max_failures: u32,
}

const RESUME_EXAMPLES: &str = "\
Example:
  dewar resume web-20260801-093000.123456   start a runner if none lives, and follow the task to its end

A task that has ended is printed at once. Output and exit status are those of run.";

/// `dewar resume`.
#[derive(Debug, Args)]
#[command(after_help = RESUME_EXAMPLES)]
pub(super) struct Resume {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::all))]
    pub(super) task: String,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) local: LocalArg,

    /// Return once a runner lives and print the id [default: follow the task to its end]
    #[arg(long)]
    pub(super) detach: bool,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

#[cfg(feature = "net")]
const LAUNCH_EXAMPLES: &str = "\
Examples:
  dewar launch hello.yaml                   have the daemon run a task file; print its id
  dewar launch web.yaml -P http:8080 --task-id web-1 --label job=web
  dewar logs -f $(dewar launch hello.yaml)  and follow what it prints

The task is on disk and has a runner when this returns; it goes on whatever becomes of the daemon. Under an id the same task
is launched once, however often it is asked for. PATH of the task is that of login(1), not that of this command.
With OTEL_EXPORTER_OTLP_ENDPOINT it tells OpenTelemetry of itself, beneath TRACEPARENT: docs/tracing.md.";

/// `dewar launch`.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(after_help = LAUNCH_EXAMPLES)]
pub(super) struct Launch {
    /// Task file, YAML or JSON; - is standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// Who is asked.
    #[command(flatten)]
    pub(super) daemon: AddressArg,

    /// What fills in the templates.
    #[command(flatten)]
    pub(super) bindings: Bindings,

    /// What the task is found by later; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = binding)]
    pub(super) labels: Vec<(String, String)>,

    /// Directory that the task runs in, made if missing [default: sandboxes/ID in the root of the daemon]
    #[arg(long, value_name = "DIR")]
    pub(super) sandbox: Option<PathBuf>,

    /// Directory of the logs, <process>/<run>/{stdout,stderr} in it [default: .logs in the sandbox]
    #[arg(long, value_name = "DIR")]
    pub(super) log_dir: Option<PathBuf>,

    /// Make the sandbox the root directory of every process; admins only [default: no]
    #[arg(long)]
    pub(super) chroot: bool,

    /// How processes are held together: v2, a cgroup for each run; none, process trees only, which is weaker
    #[arg(long, value_enum, value_name = "HOW", default_value = "v2")]
    pub(super) cgroup: Cgroup,

    /// Run although the host cannot enforce a limit that the task asks for; its status lists it [default: refuse]
    #[arg(long)]
    pub(super) allow_unenforced: bool,

    /// What is printed: the id, or the task as JSON
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

const WAIT_EXAMPLES: &str = "\
Examples:
  dewar wait web-1                          return when it has ended, with its end as exit status
  dewar wait web-1 --state finalizing       or when its finalizers run
  dewar wait web-1 --timeout 10s || echo \"not in time: $?\"

Exit status 0 as well if a state was waited for and reached; 5 if the time was over.";

/// `dewar wait`.
#[derive(Debug, Args)]
#[command(after_help = WAIT_EXAMPLES)]
pub(super) struct Wait {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::all))]
    pub(super) task: String,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// State that is waited for, or one that comes after it; may be repeated [default: the end, which always counts]
    #[arg(long = "state", value_enum, value_name = "STATE")]
    pub(super) states: Vec<Stage>,

    /// Longest time to wait, such as 10s or 2m [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) timeout: Option<Duration>,

    /// What is printed: a line, or the task as JSON
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

/// A state that a task goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Stage {
    /// Its regular processes run.
    Active,
    /// Regular processes are told to end.
    Cleaning,
    /// Finalizers run.
    Finalizing,
}

const KILL_EXAMPLES: &str = "\
Examples:
  dewar kill web-20260801-093000.123456     end one task, with the time its task file gives it
  dewar kill --wait 0s 'web-.*'             end every web task now
  dewar kill --lost 'web-.*'                end them now, as LOST
  dewar kill web-1 --reason 'disk is full'  say why, to whoever follows it or reads its checkpoint

A second kill can only shorten the time. Returns when the request is on disk; resume waits for the end.";

/// `dewar kill`.
#[derive(Debug, Args)]
#[command(after_help = KILL_EXAMPLES)]
pub(super) struct Kill {
    /// Patterns of task ids
    #[arg(value_name = "REGEX", required = true, add = ArgValueCompleter::new(completion::live))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Time for the task to end by itself, finalizers too, such as 500ms, 10s, 2m [default: its finalization_wait]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) wait: Option<Duration>,

    /// End it now, as LOST instead of KILLED [default: no]
    #[arg(long, conflicts_with = "wait")]
    pub(super) lost: bool,

    /// Why, kept with the task for whoever asks later; at most 1024 bytes [default: nothing]
    #[arg(long, value_name = "TEXT", value_parser = reason)]
    pub(super) reason: Option<String>,
}

const SIGNAL_EXAMPLES: &str = "\
Examples:
  dewar signal HUP web-20260801-093000.123456       the first process of each live run
  dewar signal --process server USR1 'web-.*'       of one process of every web task
  dewar signal --all 9 web-20260801-093000.123456   everything that they have forked

SIGNAL is a name, with or without SIG, or a number; RTMIN+1 is one too. What a signal does to a run counts as the run's own
end; to end a task, use kill. A paused task gets it when it goes on.";

/// `dewar signal`.
#[derive(Debug, Args)]
#[command(after_help = SIGNAL_EXAMPLES)]
pub(super) struct Signal {
    /// Signal to send
    #[arg(value_name = "SIGNAL", value_parser = crate::task::signal::parse)]
    pub(super) signal: i32,

    /// Patterns of task ids
    #[arg(value_name = "REGEX", required = true, add = ArgValueCompleter::new(completion::live))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Name of the process whose run is meant [default: every one]
    #[arg(long, value_name = "P")]
    pub(super) process: Option<String>,

    /// Send it to everything that a run has forked [default: to its first process]
    #[arg(long)]
    pub(super) all: bool,
}

const PAUSE_EXAMPLES: &str = "\
Examples:
  dewar pause web-20260801-093000.123456    freeze one task
  dewar pause 'web-.*'                      freeze every web task

While a task is paused, no run is started, and no deadline and no min_duration goes on; runs can still be killed from
outside. The task stays paused whatever becomes of its runner, also across a boot, until resume-paused, or until kill,
which lets it go on so that it can end. Returns when everything stands still; a task that is paused stays so.";

/// `dewar pause`.
#[derive(Debug, Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(super) struct Pause {
    /// Patterns of task ids
    #[arg(value_name = "REGEX", required = true, add = ArgValueCompleter::new(completion::live))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,
}

const RESUME_PAUSED_EXAMPLES: &str = "\
Example:
  dewar resume-paused 'web-.*'              let every web task go on

Deadlines and delays are later by the length of the pause. A task that is not paused goes on as it did.";

/// `dewar resume-paused`.
#[derive(Debug, Args)]
#[command(after_help = RESUME_PAUSED_EXAMPLES)]
pub(super) struct ResumePaused {
    /// Patterns of task ids
    #[arg(value_name = "REGEX", required = true, add = ArgValueCompleter::new(completion::live))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,
}

const REMOVE_EXAMPLES: &str = "\
Examples:
  dewar remove web-20260801-093000.123456   forget one task; its sandbox stays
  dewar remove --sandbox 'web-.*'           every web task that has ended, with its files

A task that has not ended is not removed. An id can be used again once its task is removed.";

/// `dewar remove`.
#[derive(Debug, Args)]
#[command(after_help = REMOVE_EXAMPLES)]
pub(super) struct Remove {
    /// Patterns of task ids
    #[arg(value_name = "REGEX", required = true, add = ArgValueCompleter::new(completion::finished))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Remove the sandbox, too, if it is the one that the root has for the task [default: leave it]
    #[arg(long)]
    pub(super) sandbox: bool,
}

const GC_EXAMPLES: &str = "\
Examples:
  dewar gc --max-age 2d12h                        what ended more than two days and a half ago
  dewar gc --max-space 20G --max-tasks 1000       the oldest, until the others are within both limits
  dewar gc --min-free 10% --min-free-inodes 5%    the oldest, until so much of the file system is free
  dewar gc --max-age 1d --delete data 'web-.*'    only the files of web tasks: status and logs stay
  dewar gc --max-tasks 100 --dry-run              tell what would go

Of tasks that match a REGEX, or of all. Removed are sandboxes in <root>/sandboxes alone; never a task that has not ended, or ended
a moment ago. Of several roots each is kept within the limits by itself. `dewar serve --gc-max-age` and the like do the same all the time; `dewar remove` removes tasks by name.";

/// `dewar gc`.
#[derive(Debug, Args)]
#[command(after_help = GC_EXAMPLES)]
#[command(group(clap::ArgGroup::new("limit").multiple(true).required(true)))]
pub(super) struct Gc {
    /// Patterns of task ids; none: all tasks
    #[arg(value_name = "REGEX", add = ArgValueCompleter::new(completion::finished))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) roots: RootsArg,

    /// Remove what ended longer ago than this, such as 2d5h [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = age, group = "limit")]
    pub(super) max_age: Option<Duration>,

    /// Remove the oldest until no more tasks are left that have ended [default: no limit]
    #[arg(long, value_name = "N", group = "limit")]
    pub(super) max_tasks: Option<u64>,

    /// Remove the oldest until the others take no more space than this, such as 20G; what counts is what --delete names
    /// [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size, group = "limit")]
    pub(super) max_space: Option<u64>,

    /// Remove the oldest until so much of the file system is free: 10% or a size [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = amount, group = "limit")]
    pub(super) min_free: Option<Amount>,

    /// Remove the oldest until so many inodes of the file system are free: 10% or a number [default: no limit]
    #[arg(long, value_name = "N", value_parser = amount, group = "limit")]
    pub(super) min_free_inodes: Option<Amount>,

    /// Never remove what ended less long ago, so that whoever launched it can learn how it ended
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = age)]
    pub(super) keep_at_least: Duration,

    /// What of a task is removed: its files, its logs in the sandbox, and all that is known of it; the last only with the other two
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',', default_values = ["data", "logs", "metadata"])]
    pub(super) delete: Vec<Part>,

    /// Remove tasks whose checkpoint is damaged, too [default: keep them]
    #[arg(long)]
    pub(super) corrupt: bool,

    /// Tell what would be removed, and remove nothing [default: remove it]
    #[arg(long)]
    pub(super) dry_run: bool,

    /// What is printed of each task
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

impl Gc {
    /// Its limits.
    pub(super) fn limits(&self) -> Limits {
        let Self { max_age, max_space, max_tasks, min_free, min_free_inodes, .. } = *self;
        let Self { keep_at_least, corrupt, .. } = *self;
        Limits { max_age, max_space, max_tasks, min_free, min_free_inodes, keep_at_least, corrupt }
    }
}

/// What is kept of a task that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Part {
    /// The files of its sandbox, but for the logs.
    Data,
    /// Its logs.
    Logs,
    /// Its checkpoint.
    Metadata,
}

/// When the daemon removes tasks that have ended.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(next_help_heading = "Garbage collection: off without any of the first five")]
pub(super) struct ServeGc {
    /// Remove what ended longer ago than this, such as 2d5h [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = age)]
    pub(super) gc_max_age: Option<Duration>,

    /// Remove the oldest until no more tasks are left that have ended [default: no limit]
    #[arg(long, value_name = "N")]
    pub(super) gc_max_tasks: Option<u64>,

    /// Remove the oldest until the others take no more space than this, such as 20G [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub(super) gc_max_space: Option<u64>,

    /// Remove the oldest until so much of the file system is free: 10% or a size [default: no limit]
    #[arg(long, value_name = "SIZE", value_parser = amount)]
    pub(super) gc_min_free: Option<Amount>,

    /// Remove the oldest until so many inodes of the file system are free: 10% or a number [default: no limit]
    #[arg(long, value_name = "N", value_parser = amount)]
    pub(super) gc_min_free_inodes: Option<Amount>,

    /// Never remove what ended less long ago, so that whoever launched it can learn how it ended
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = age)]
    pub(super) gc_keep_at_least: Duration,

    /// Remove tasks whose checkpoint is damaged, too [default: keep them]
    #[arg(long)]
    pub(super) gc_corrupt: bool,
}

#[cfg(feature = "net")]
impl ServeGc {
    /// Its limits.
    pub(super) fn limits(&self) -> Limits {
        Limits {
            max_age: self.gc_max_age,
            max_space: self.gc_max_space,
            max_tasks: self.gc_max_tasks,
            min_free: self.gc_min_free,
            min_free_inodes: self.gc_min_free_inodes,
            keep_at_least: self.gc_keep_at_least,
            corrupt: self.gc_corrupt,
        }
    }
}

const UPDATE_EXAMPLES: &str = "\
Examples:
  dewar update web-1 ram=256MB cpu_limit=1.5     the task as a whole, from now on
  dewar update web-1 --process server pids=max   one process: its live run, and later ones
  dewar update web-1 'io.max=[{path: /, wbps: 10MB}]'
  dewar update web-1                             tell the limits in force

FIELD is a field of resources as in a task file, or an entry of one (io.weight, hugetlb[2MB]); VALUE is YAML, as there; max
is no limit. What is not named stays. Refused is what this host cannot enforce, and less memory than is in use.";

/// `dewar update`.
#[derive(Debug, Args)]
#[command(after_help = UPDATE_EXAMPLES)]
pub(super) struct Update {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::live))]
    pub(super) task: String,

    /// Limits that change
    #[arg(value_name = "FIELD=VALUE")]
    pub(super) changes: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Name of the process whose limits are meant [default: the task as a whole]
    #[arg(long, value_name = "P")]
    pub(super) process: Option<String>,

    /// Allow less memory than is in use: the kernel takes back what it can, and kills where that is not enough [default: refuse]
    #[arg(long)]
    pub(super) force: bool,
}

const STATUS_EXAMPLES: &str = "\
Examples:
  dewar status                              all tasks, oldest first
  dewar status --only active -v             what runs now, with its processes
  dewar status 'web-.*' --output json       one JSON object a line
  dewar status --root /srv/a --root /srv/b  all tasks of both directories, each with its own";

/// `dewar status`.
#[derive(Debug, Args)]
#[command(after_help = STATUS_EXAMPLES)]
pub(super) struct Status {
    /// Patterns of task ids [default: every task]
    #[arg(value_name = "REGEX", add = ArgValueCompleter::new(completion::all))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Tell of these only [default: both]
    #[arg(long, value_enum, value_name = "WHICH")]
    pub(super) only: Option<Only>,

    /// Tell more: -v processes, -vv runs, -vvv why each run ended and what it used
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub(super) verbose: u8,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "table")]
    pub(super) output: StatusOutput,
}

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  dewar explain web-20260801-093000.123456         every process, and why it is running or is not
  dewar explain web-20260801-093000.123456 server  one of them
  dewar explain web-20260801-093000.123456 --output json";

/// `dewar explain`.
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
pub(super) struct Explain {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::all))]
    pub(super) task: String,

    /// Names of processes [default: all]
    #[arg(value_name = "PROCESS")]
    pub(super) processes: Vec<String>,

    /// Where the task is.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "table")]
    pub(super) output: StatusOutput,
}

const STATS_EXAMPLES: &str = "\
Examples:
  dewar stats                               what the tasks that have not ended use, and have used
  dewar stats --watch                       the same once a second, with CPU in percent of one CPU
  dewar stats web-20260801-093000.123456 --by-process
  dewar stats --watch=5s --output json      one JSON object for each task and sample
  dewar stats web-1 --at -10m               what it used ten minutes ago, as the daemon read it then

What a host does not account for is told as -, in JSON it is absent: see docs/accounting.md.";

/// `dewar stats`.
#[derive(Debug, Args)]
#[command(after_help = STATS_EXAMPLES)]
pub(super) struct Stats {
    /// Patterns of task ids; tasks that have ended are told of too [default: every task that has not ended]
    #[arg(value_name = "REGEX", add = ArgValueCompleter::new(completion::all))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Tell of each process, too [default: no]
    #[arg(long)]
    pub(super) by_process: bool,

    /// Tell what was used at that time: 2026-08-01T09:30:00Z, or -10m for ten minutes ago. Of each task the nearest reading that the daemon
    /// keeps is told, with when it was made [default: now]
    #[arg(long, value_name = "TIME", value_parser = at, allow_hyphen_values = true, conflicts_with = "watch")]
    pub(super) at: Option<At>,

    /// Tell again and again, each second or as often as given, until every task that was named has ended [default: once]
    #[arg(long, value_name = "INTERVAL", num_args = 0..=1, require_equals = true, default_missing_value = "1s", value_parser = interval)]
    pub(super) watch: Option<Duration>,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "table")]
    pub(super) output: StatusOutput,
}

const TOP_EXAMPLES: &str = "\
Examples:
  dewar top                                 what live tasks use; q ends it
  dewar top --by-process --sort mem         each live run, those with the most memory first
  dewar top --once 'web-.*'                 once, of some tasks
  dewar top --output json --interval 5s     one JSON object for each task, with what it used in five seconds

Keys: c, m, i, n sort by CPU, memory, I/O and name; p turns to processes and back; arrows, j, k and page keys scroll; q quits.";

/// `dewar top`.
#[derive(Debug, Args)]
#[command(after_help = TOP_EXAMPLES)]
pub(super) struct Top {
    /// Patterns of task ids [default: every task that has not ended]
    #[arg(value_name = "REGEX", add = ArgValueCompleter::new(completion::live))]
    pub(super) patterns: Vec<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Tell of each live run instead [default: no]
    #[arg(long)]
    pub(super) by_process: bool,

    /// What comes first
    #[arg(long, value_enum, value_name = "WHAT", default_value = "cpu")]
    pub(super) sort: Sort,

    /// Time from one reading to the next
    #[arg(long, value_name = "INTERVAL", default_value = "1s", value_parser = interval)]
    pub(super) interval: Duration,

    /// Read twice and print once, as where standard output is no terminal [default: no]
    #[arg(long)]
    pub(super) once: bool,

    /// What is printed; JSON is printed once
    #[arg(long, value_enum, value_name = "FORM", default_value = "table")]
    pub(super) output: StatusOutput,
}

/// Which tasks come first in `dewar top`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// Those that use the most CPU time.
    Cpu,
    /// Those that hold the most memory.
    Mem,
    /// Those that read and write the most.
    Io,
    /// By their names.
    Name,
}

#[cfg(feature = "net")]
const WATCH_EXAMPLES: &str = "\
Examples:
  dewar watch                               every task as it is, then what happens
  dewar watch web-1                         all that has happened to one task, and what happens, to its end
  dewar watch --output json                 the messages of the API, one a line, each with a cursor
  dewar watch --output json --cursor 1c8-42 go on after the message that had this cursor

Nothing is told twice, and nothing is left out in silence: where the daemon is replaced, the history of one task is gone on with;
that of all tasks ends with exit status 5, as what happened in between is not known.";

/// `dewar watch`.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(after_help = WATCH_EXAMPLES)]
pub(super) struct Watch {
    /// Id of the task [default: every task]
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::all))]
    pub(super) task: Option<String>,

    /// Who is asked.
    #[command(flatten)]
    pub(super) daemon: AddressArg,

    /// Go on after the message that had this cursor [default: begin with the tasks as they are, or with the first record of TASK]
    #[arg(long, value_name = "CURSOR")]
    pub(super) cursor: Option<String>,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

#[cfg(feature = "net")]
const EXEC_EXAMPLES: &str = "\
Examples:
  dewar exec web-1 -- ls -l                 in its cgroup, as its user, in its root directory and sandbox
  dewar exec -it web-1 -- bash              with a terminal
  tar c . | dewar exec -i web-1 -- tar x    with this command's standard input

Signals that this command gets are passed on: SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2; the third SIGINT or SIGTERM ends it.
When it ends, the command is killed, all of it. Exit status: that of the command, 128 + N if signal N killed it; else 1, 2 or 5.";

/// `dewar exec`.
#[cfg(feature = "net")]
#[derive(Debug, Args)]
#[command(after_help = EXEC_EXAMPLES)]
pub(super) struct Exec {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::live))]
    pub(super) task: String,

    /// Program and its arguments; no shell is between
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) command: Vec<String>,

    /// Where the task is.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Pass standard input on [default: the command has none]
    #[arg(short, long)]
    pub(super) interactive: bool,

    /// Give the command a terminal [default: pipes]
    #[arg(short, long)]
    pub(super) tty: bool,

    /// Variable of its environment, beside those of the task; may be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = binding)]
    pub(super) setenv: Vec<(String, String)>,

    /// Working directory, in the root directory of the task [default: the sandbox]
    #[arg(long, value_name = "DIR")]
    pub(super) cwd: Option<String>,
}

const LOGS_EXAMPLES: &str = "\
Examples:
  dewar logs web-20260801-093000.123456     the log of its last run
  dewar logs -f ID server --stderr          follow the errors of one process, across retries, to the end of the task
  dewar logs ID server --run 0 > log        the log of its first run, byte for byte
  dewar logs -f ID server --tail 10         the last ten lines, and what comes after them";

/// `dewar logs`.
#[derive(Debug, Args)]
#[command(after_help = LOGS_EXAMPLES)]
pub(super) struct Logs {
    /// Id of the task
    #[arg(value_name = "TASK", add = ArgValueCompleter::new(completion::all))]
    pub(super) task: String,

    /// Name of the process [default: the only one, else the first that runs, else the last that ran]
    #[arg(value_name = "PROCESS")]
    pub(super) process: Option<String>,

    /// Where the tasks are.
    #[command(flatten)]
    pub(super) node: NodeArg,

    /// Number of the run, from 0 [default: the last one]
    #[arg(long, value_name = "N")]
    pub(super) run: Option<u32>,

    /// Print stderr [default: stdout]
    #[arg(long)]
    pub(super) stderr: bool,

    /// Go on with what is written and with later runs, until the task (with --run: the run) ends [default: no]
    #[arg(short, long)]
    pub(super) follow: bool,

    /// Begin with the last N lines of the run, 0: with what comes after them [default: with its first line]
    #[arg(long, value_name = "N")]
    pub(super) tail: Option<u64>,

    /// Print control characters to a terminal as they are [default: shown as \x1b and the like]
    #[arg(long)]
    pub(super) raw: bool,
}

const READ_EXAMPLES: &str = "\
Examples:
  dewar read ROOT/checkpoints/ID/runner             the task as its stream tells it
  dewar read --records ROOT/checkpoints/ID/runner   every record as JSON, one a line

Says on stderr whether the stream ends cleanly, in a torn record (a crash while it was written), or is corrupt.";

/// `dewar read`.
#[derive(Debug, Args)]
#[command(after_help = READ_EXAMPLES)]
pub(super) struct Read {
    /// Checkpoint stream of a runner or of a coordinator
    #[arg(value_name = "STREAM")]
    pub(super) stream: PathBuf,

    /// Print the records, not what they add up to [default: no]
    #[arg(long)]
    pub(super) records: bool,

    /// What is printed; records are always JSON
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

const INSPECT_EXAMPLES: &str = "\
Examples:
  dewar inspect web.yaml -P http:8080       check it, fill it in, show its plan
  dewar inspect web.yaml --output json      the same for programs, one JSON object";

/// `dewar inspect`.
#[derive(Debug, Args)]
#[command(after_help = INSPECT_EXAMPLES)]
pub(super) struct Inspect {
    /// Task file, YAML or JSON; - is standard input
    #[arg(value_name = "FILE")]
    pub(super) file: PathBuf,

    /// What fills in the templates.
    #[command(flatten)]
    pub(super) bindings: Bindings,

    /// Cgroup v2 directory that tasks would be put under [default: the delegated one, or <mount>/dewar as root]
    #[arg(long, value_name = "DIR")]
    pub(super) cgroup_base: Option<PathBuf>,

    /// What is printed
    #[arg(long, value_enum, value_name = "FORM", default_value = "text")]
    pub(super) output: Output,
}

const COMPLETION_EXAMPLES: &str = "\
Examples:
  source <(dewar completion bash)           in ~/.bashrc
  source <(dewar completion zsh)            in ~/.zshrc, after compinit
  dewar completion fish | source            in ~/.config/fish/config.fish

Ids are those of the daemon or of the root that the line names, or that the command would find by itself.";

/// `dewar completion`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETION_EXAMPLES)]
pub(super) struct Completion {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub(super) shell: Shell,
}

/// A shell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shell {
    /// bash, 4.4 or newer.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// Form of what is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people: live on a terminal, plain lines elsewhere.
    Text,
    /// For programs: JSON, one object a line.
    Json,
}

/// Form of `dewar status` and `dewar stats`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum StatusOutput {
    /// For people.
    Table,
    /// For programs: JSON, one object a line.
    Json,
}

/// A time in the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum At {
    /// On the wall clock.
    Time(Timestamp),
    /// So long ago.
    Ago(Duration),
}

impl At {
    /// The time that it is.
    pub(super) fn time(self) -> Timestamp {
        match self {
            Self::Time(time) => time,
            Self::Ago(ago) => {
                let ago = i64::try_from(ago.as_nanos()).unwrap_or(i64::MAX);
                Timestamp::from_unix_nanos(clock::now().wall.saturating_sub(ago))
            }
        }
    }
}

fn at(text: &str) -> Result<At, String> {
    const EXPECTED: &str = "expected a time such as 2026-08-01T09:30:00Z, or -10m";
    if let Some(ago) = text.strip_prefix('-') {
        return duration(ago).map(At::Ago).map_err(|_| EXPECTED.to_owned());
    }
    let time = DateTime::parse_from_rfc3339(text).map_err(|_| EXPECTED)?;
    let nanos = time.timestamp_nanos_opt().ok_or(EXPECTED)?;
    Ok(At::Time(Timestamp::from_unix_nanos(nanos)))
}

/// How processes are held together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Cgroup {
    /// A cgroup v2 leaf for each run.
    V2,
    /// Child subreapers only: weaker.
    None,
}

/// Which tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Only {
    /// Tasks that have not ended.
    Active,
    /// Tasks that have ended.
    Finished,
}

fn reason(text: &str) -> Result<String, String> {
    match text.len() {
        ..=REASON_MAX => Ok(text.to_owned()),
        bytes => Err(format!("has {bytes} bytes; at most {REASON_MAX} are kept")),
    }
}

fn port(text: &str) -> Result<(String, NonZeroU16), String> {
    let (name, port) = text.split_once(':').ok_or("expected NAME:PORT, such as http:8080")?;
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    let port = port.parse().map_err(|_| format!("{port:?} is no port: expected 1 to 65535"))?;
    Ok((name.to_owned(), port))
}

fn binding(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// A time between two samples.
fn interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(10);
    match duration(text)? {
        interval if interval < LEAST => Err("is too short: expected at least 10ms".to_owned()),
        interval => Ok(interval),
    }
}

/// A time between two readings of the daemon; 0: there are none.
#[cfg(feature = "net")]
fn sample_interval(text: &str) -> Result<Duration, String> {
    const LEAST: Duration = Duration::from_millis(100);
    match text {
        "off" => Ok(Duration::ZERO),
        text => match duration(text)? {
            interval if interval.is_zero() || interval >= LEAST => Ok(interval),
            _ => Err("is too short: expected at least 100ms, or off".to_owned()),
        },
    }
}

/// A time of several parts such as `2d5h`, or of one.
fn age(text: &str) -> Result<Duration, String> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let is_number = |c: char| c.is_ascii_digit() || c == '.';
        let unit = rest.find(|c| !is_number(c)).unwrap_or(rest.len());
        let end = rest[unit..].find(is_number).map_or(rest.len(), |length| unit + length);
        sum = sum.checked_add(duration(&rest[..end])?).ok_or("is too long")?;
        rest = &rest[end..];
    }
    if text.is_empty() { Err("expected a time such as 10m or 2d5h".to_owned()) } else { Ok(sum) }
}

/// A number of bytes such as `20G`, `1.5GiB`, `500MB`, with powers of 1024 as in a task file.
fn size(text: &str) -> Result<u64, String> {
    const EXPECTED: &str = "expected a size such as 500M or 20G";
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let power = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(format!("unknown unit {unit:?}: {EXPECTED}")),
    };
    let number: f64 = number.parse().map_err(|_| EXPECTED)?;
    let bytes = number * (1u64 << power) as f64;
    // Beyond, one byte is not told from the next.
    if bytes < (1u64 << 53) as f64 * 1024.0 {
        Ok(bytes as u64)
    } else {
        Err("is too large".to_owned())
    }
}

/// A share such as `10%`, or a number, with a unit if it is of bytes.
fn amount(text: &str) -> Result<Amount, String> {
    let Some(percent) = text.strip_suffix('%') else { return size(text).map(Amount::Number) };
    match percent.parse::<f64>() {
        Ok(share) if (0.0..=100.0).contains(&share) => {
            Ok(Amount::Share((share * 100.0).round() as u16))
        }
        _ => Err("expected 0% to 100%".to_owned()),
    }
}

/// A time such as `500ms`, `10s`, `1.5s`, `2m`, `1h`, `1d`; a bare number is seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3_600.0,
        "d" => 86_400.0,
        _ => return Err(format!("unknown unit {unit:?}: expected ms, s, m, h or d")),
    };
    let number: f64 = number.parse().map_err(|_| "expected a time such as 500ms, 10s or 2m")?;
    Duration::try_from_secs_f64(number * seconds).map_err(|_| "is too long".to_owned())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[cfg(feature = "net")]
    #[test]
    fn a_daemon_listens_where_its_clients_look() {
        for (text, path) in [
            ("unix:///run/d.sock", Some("/run/d.sock")),
            ("d.sock", Some("d.sock")),
            ("https://h:1", None),
        ] {
            let served = match parse(&format!("dewar serve --address {text}")) {
                Ok(Command::Serve(serve)) => serve.address,
                _ => None,
            };
            assert_eq!(served, path.map(PathBuf::from), "{text}");
        }
    }

    #[test]
    fn a_file_and_a_command_exclude_each_other_and_one_is_needed() {
        assert!(matches!(parse("dewar run t.yaml"), Ok(Command::Run(_))));
        let Ok(Command::Run(run)) = parse("dewar run --task-id x -- make -j4 --name") else {
            panic!("not parsed");
        };
        assert_eq!(run.command, ["make", "-j4", "--name"]);
        assert_eq!(run.bindings.task_id.as_deref(), Some("x"));

        let kind = |line| parse(line).unwrap_err().kind();
        assert_eq!(kind("dewar run"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind("dewar run t.yaml -- make"), ErrorKind::ArgumentConflict);
        assert_eq!(kind("dewar run t.yaml --name x"), ErrorKind::ArgumentConflict);
    }

    #[test]
    fn a_binding_splits_at_its_first_equals_sign() {
        let Ok(Command::Run(run)) = parse("dewar run t.yaml -E a=b=c -P http:80 -E d=") else {
            panic!("not parsed");
        };
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(run.bindings.bindings, [pair("a", "b=c"), pair("d", "")]);
        assert_eq!(run.bindings.ports[0].1.get(), 80);
    }

    #[test]
    fn a_bad_port_or_binding_says_what_was_expected() {
        for (line, message) in [
            ("dewar run t -P http", "expected NAME:PORT, such as http:8080"),
            ("dewar run t -P http:0", "\"0\" is no port: expected 1 to 65535"),
            ("dewar run t -P http:65536", "\"65536\" is no port: expected 1 to 65535"),
            ("dewar run t -P :80", "the name is empty"),
            ("dewar run t -E a", "expected NAME=VALUE"),
            ("dewar kill x --wait 1w", "unknown unit \"w\": expected ms, s, m, h or d"),
            ("dewar kill x --wait s", "expected a time such as 500ms, 10s or 2m"),
            ("dewar stats --watch=1ms", "is too short: expected at least 10ms"),
            ("dewar stats --at 10m", "expected a time such as 2026-08-01T09:30:00Z, or -10m"),
            ("dewar stats --at -10x", "expected a time such as 2026-08-01T09:30:00Z, or -10m"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.to_string().contains(message), "{line}: {error}");
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn a_time_has_a_unit_and_may_have_a_fraction() {
        for (text, millis) in
            [("0s", 0), ("30", 30_000), ("1.5s", 1_500), ("250ms", 250), ("2m", 120_000)]
        {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(
            duration("1e30h"),
            Err("unknown unit \"e30h\": expected ms, s, m, h or d".into())
        );
        assert_eq!(duration(&format!("{}h", "9".repeat(30))), Err("is too long".into()));
    }

    #[test]
    fn an_age_may_have_several_parts() {
        let parsed = |text| age(text).map(|age| age.as_secs());

        assert_eq!(parsed("2d5h"), Ok(190_800));
        assert_eq!(parsed("1h30m10s"), Ok(5_410));
        assert_eq!(parsed("90"), Ok(90));
        for text in ["", "d", "2d5x", "5h 3m"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_binary_units_and_may_be_shares() {
        assert_eq!(size("20G"), Ok(20 << 30));
        assert_eq!(size("1.5KiB"), Ok(1536));
        assert_eq!(size("7"), Ok(7));
        for text in ["", "G", "5X", "-1", "9999999T"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(amount("10%"), Ok(Amount::Share(1000)));
        assert_eq!(amount("0.5%"), Ok(Amount::Share(50)));
        assert_eq!(amount("1M"), Ok(Amount::Number(1 << 20)));
        for text in ["101%", "-1%", "%", "x%"] {
            assert!(amount(text).is_err(), "{text}");
        }
    }

    #[test]
    fn garbage_is_not_collected_without_a_limit() {
        let kind = |line| parse(line).unwrap_err().kind();
        assert_eq!(kind("dewar gc"), ErrorKind::MissingRequiredArgument);
        assert_eq!(kind("dewar gc web-.*"), ErrorKind::MissingRequiredArgument);
        assert!(parse("dewar gc --max-age 2d5h --delete data,logs web-.*").is_ok());
    }

    #[test]
    fn a_task_after_watch_is_no_interval() {
        let Ok(Command::Stats(stats)) = parse("dewar stats --watch web") else {
            panic!("not parsed");
        };
        assert_eq!(
            (stats.watch, &*stats.patterns),
            (Some(Duration::from_secs(1)), &["web".to_owned()][..])
        );
    }

    #[test]
    fn a_time_in_the_past_is_one_of_the_calendar_or_so_long_ago() {
        let parsed = |text: &str| match parse(&format!("dewar stats --at {text}")) {
            Ok(Command::Stats(stats)) => stats.at,
            _ => None,
        };
        let nanos = 1_785_576_600_250_000_000;
        let time = Some(At::Time(Timestamp::from_unix_nanos(nanos)));

        assert_eq!(parsed("2026-08-01T09:30:00.25Z"), time);
        assert_eq!(parsed("2026-08-01T11:30:00.25+02:00"), time);
        assert_eq!(parsed("-1.5h"), Some(At::Ago(Duration::from_secs(5400))));
        let ago = At::Ago(Duration::from_secs(60)).time().unix_nanos();
        assert!((59..62).contains(&((clock::now().wall - ago) / 1_000_000_000)));
        let both = parse("dewar stats --at -1m --watch").unwrap_err();
        assert_eq!(both.kind(), ErrorKind::ArgumentConflict);
    }

    #[cfg(feature = "net")]
    #[test]
    fn the_daemon_samples_now_and_then_or_never() {
        let parsed = |text: &str| match parse(&format!("dewar serve{text}")) {
            Ok(Command::Serve(serve)) => Ok((serve.sample_interval, serve.sample_history)),
            Ok(_) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        };
        let (hour, ten) = (Duration::from_secs(3600), Duration::from_secs(10));

        assert_eq!(parsed(""), Ok((ten, hour)));
        for off in ["off", "0"] {
            assert_eq!(parsed(&format!(" --sample-interval {off}")), Ok((Duration::ZERO, hour)));
        }
        let short = parsed(" --sample-interval 99ms").unwrap_err();
        assert!(short.contains("is too short: expected at least 100ms, or off"), "{short}");
    }

    /// V13, V42.
    #[cfg(feature = "net")]
    #[test]
    fn sandboxes_are_measured_each_minute_or_never() {
        let parsed = |text: &str| match parse(&format!("dewar serve{text}")) {
            Ok(Command::Serve(serve)) => Ok(serve.disk_interval.as_secs()),
            Ok(_) => Err(String::new()),
            Err(error) => Err(error.to_string()),
        };

        assert_eq!(parsed(""), Ok(60));
        assert_eq!(parsed(" --disk-interval 5m"), Ok(300));
        for off in ["off", "0"] {
            assert_eq!(parsed(&format!(" --disk-interval {off}")), Ok(0));
        }
        assert!(parsed(" --disk-interval 99ms").unwrap_err().contains("is too short"));
    }

    #[test]
    fn losing_a_task_gives_it_no_time() {
        assert_eq!(
            parse("dewar kill x --lost --wait 1s").unwrap_err().kind(),
            ErrorKind::ArgumentConflict
        );
    }

    #[test]
    fn every_option_says_its_default() {
        for command in Cli::command().get_subcommands() {
            for option in command.get_opts() {
                let help = option.get_help().map(ToString::to_string).unwrap_or_default();
                let repeated = help.contains("may be repeated");
                let said = help.contains("[default:") || !option.get_default_values().is_empty();
                let flag = help.starts_with("Tell more");
                assert!(
                    said || repeated || flag,
                    "{} {}: {help}",
                    command.get_name(),
                    option.get_id()
                );
            }
        }
    }
}
