//! Who asks: the user whose the socket at the other end of the connection is, as the kernel knows it.
//!
//! Loopback is no login: every user of the host, and every task, reaches it. Nothing that is sent says who somebody is, so that there
//! is no password to guess and no cookie to steal. Whoever the kernel does not name is told nothing.
//!
//! A program that passes on the connections of others speaks for its own user: of `ssh -L` that is the user who has logged in.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use nix::unistd::{Uid, User, getgrouplist};
use tonic::Status;

use super::answer::Failure;
use crate::daemon::Admins;
use crate::daemon::peer::Peer;
use crate::sys::sock_diag;

/// Who made a connection.
#[derive(Debug, Clone)]
pub(super) enum Identified {
    /// A user of this host.
    User(Peer),
    /// It is not known, for this reason.
    Nobody(Arc<str>),
}

/// Finds out who connected from `client` to `server`. It may ask the host's database of users, and take its time.
pub(super) fn identify(client: SocketAddr, server: SocketAddr, admins: Admins) -> Identified {
    match sock_diag::user_of(client, server) {
        Ok(Some(uid)) => Identified::User(peer(uid, admins)),
        Ok(None) => Identified::Nobody("the kernel knows no socket at its other end".into()),
        Err(error) => Identified::Nobody(format!("the kernel does not tell: {error}").into()),
    }
}

/// A user, with their groups where these could make a difference.
fn peer(uid: u32, admins: Admins) -> Peer {
    match Peer::new(uid, &[], None, admins) {
        peer if peer.is_admin => peer,
        _ => Peer::new(uid, &groups(uid), None, admins),
    }
}

/// The groups of a user as a login would give them: the kernel tells those of a process over unix sockets alone. A user whom the
/// host's database does not know has none.
fn groups(uid: u32) -> Vec<u32> {
    let Ok(Some(user)) = User::from_uid(Uid::from_raw(uid)) else { return Vec::new() };
    let groups = std::ffi::CString::new(user.name).ok();
    let groups = groups.and_then(|name| getgrouplist(&name, user.gid).ok()).unwrap_or_default();
    groups.into_iter().map(nix::unistd::Gid::as_raw).collect()
}

/// The caller of a request. A page that does not take one has nobody's tasks to tell of.
#[derive(Debug)]
pub(super) struct Caller(pub(super) Peer);

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match parts.extensions.get() {
            Some(Identified::User(peer)) => Ok(Self(peer.clone())),
            Some(Identified::Nobody(why)) => {
                Err(Status::permission_denied(format!("it is not known who asks: {why}")).into())
            }
            None => Err(Status::permission_denied("it is not known who asks").into()),
        }
    }
}
