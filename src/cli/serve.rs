//! `dewar serve`: the daemon.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use super::args::{LogFormat, Serve, Tls};
use super::failure::{Failure, status};
use super::place;
use crate::daemon::{self, Admins, Sampling, TlsOptions};

/// Serves until it is told to stop.
///
/// # Errors
///
/// [`Failure`].
pub(super) fn run(args: &Serve) -> Result<u8, Failure> {
    log(args)?;
    let options = daemon::Options {
        root: place::root(&args.root)?,
        socket: args.address.clone(),
        socket_mode: args.socket_mode,
        admins: Admins::groups(&args.group, args.observer_group.as_deref()),
        cgroup_base: args.cgroup_base.clone(),
        tls: tls(&args.tls),
        web: args.web.unwrap_or_default(),
        sampling: sampling(args)?,
        gc: args.gc.limits(),
    };
    daemon::serve(options).map_err(|error| Failure::unavailable(&error))?;
    Ok(status::SUCCESS)
}

fn sampling(args: &Serve) -> Result<Option<Sampling>, Failure> {
    let Serve { sample_interval: interval, sample_history: history, .. } = *args;
    if interval.is_zero() {
        return Ok(None);
    }
    let disk = args.disk_interval;
    let sampling = Sampling::new(interval, history)
        .map(|of| if disk.is_zero() { of } else { of.with_disk(disk) });
    sampling.map(Some).ok_or_else(|| {
        let most = Sampling::MOST;
        let found = format!("--sample-history {history:?} with --sample-interval {interval:?}");
        Failure::Usage(format!("{found}: expected 1 to {most} readings in that time"))
    })
}

/// The command line has all of it, or none.
fn tls(args: &Tls) -> Option<TlsOptions> {
    Some(TlsOptions {
        address: args.tls_listen?,
        cert: args.tls_cert.clone()?,
        key: args.tls_key.clone()?,
        client_ca: args.tls_client_ca.clone()?,
        client_crl: args.tls_client_crl.clone(),
        admins: args.tls_admin.clone(),
        observers: args.tls_observer.clone(),
    })
}

fn log(args: &Serve) -> Result<(), Failure> {
    let filter = EnvFilter::try_new(&args.log)
        .map_err(|error| Failure::Usage(format!("--log {:?}: {error}", args.log)))?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    // That a line could not be written would be written there, too, by what panics if it cannot: of a full disk no daemon dies.
    let log = log.log_internal_errors(false);
    match args.log_format {
        LogFormat::Json => log.json().init(),
        // The journal has its own times.
        LogFormat::Text if std::env::var_os("JOURNAL_STREAM").is_some() => {
            log.without_time().with_ansi(false).init();
        }
        LogFormat::Text => log.with_ansi(io::stderr().is_terminal()).init(),
    }
    Ok(())
}
