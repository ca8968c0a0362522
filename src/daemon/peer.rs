//! What a caller may see and do. Who it is the kernel says (unix(7), `SO_PEERCRED`), or over TCP a certificate; and nothing else.

use std::sync::Arc;

use nix::unistd::{Group, geteuid};
use tonic::{Request, Status};

use super::status;

/// Who may see and do everything, beside root and the daemon's own user.
#[derive(Debug, Clone, Copy, Default)]
pub struct Admins {
    /// Members of this group.
    pub gid: Option<u32>,
    /// Members of this group may see everything, and do no more than anybody else.
    pub observers: Option<u32>,
}

impl Admins {
    /// The groups that are called so in the host's database, as far as they are there.
    pub fn groups(name: &str, observers: Option<&str>) -> Self {
        let gid = |name: &str| Some(Group::from_name(name).ok()??.gid.as_raw());
        Self { gid: gid(name), observers: observers.and_then(gid) }
    }
}

/// What whoever has a certificate may do. Without a role it is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// See and do everything.
    Admin,
    /// See everything, and change nothing.
    Observer,
}

/// A certificate that was verified, and has a role.
#[derive(Debug, Clone)]
pub(crate) struct Certificate {
    /// Whose it is, for the log.
    pub(crate) subject: Arc<str>,
    pub(crate) role: Role,
}

/// A caller, as the kernel knows who made the connection, or as its certificate says.
#[derive(Debug, Clone)]
pub(crate) struct Peer {
    /// User id. Over TCP the daemon's own, as whom an admin launches tasks.
    pub(crate) uid: u32,
    /// Process id; a hint, as it may be used again.
    pub(crate) pid: Option<i32>,
    /// Whether all tasks are its own.
    pub(crate) is_admin: bool,
    /// Whether it sees all tasks; of a caller over TCP its certificate says so.
    pub(crate) is_observer: bool,
    /// Of a caller over TCP.
    pub(crate) certificate: Option<Certificate>,
}

impl Peer {
    pub(crate) fn new(uid: u32, groups: &[u32], pid: Option<i32>, admins: Admins) -> Self {
        let is_in = |gid: Option<u32>| gid.is_some_and(|gid| groups.contains(&gid));
        let is_admin = uid == 0 || uid == geteuid().as_raw() || is_in(admins.gid);
        Self { uid, pid, is_admin, is_observer: is_in(admins.observers), certificate: None }
    }

    /// Whoever has `certificate`.
    pub(super) fn certified(certificate: Certificate) -> Self {
        let is_admin = certificate.role == Role::Admin;
        let uid = geteuid().as_raw();
        Self { uid, pid: None, is_admin, is_observer: false, certificate: Some(certificate) }
    }

    /// The caller of `request`.
    pub(crate) fn of<T>(request: &Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(status::no_peer)
    }

    /// The user, where the caller is one of this host.
    pub(crate) fn user(&self) -> Option<u32> {
        self.certificate.is_none().then_some(self.uid)
    }

    /// The caller of `request`, which changes something: what somebody may only see does not exist for it.
    pub(crate) fn that_controls<T>(request: &Request<T>) -> Result<Self, Status> {
        let peer = Self { is_observer: false, ..Self::of(request)? };
        match &peer.certificate {
            Some(Certificate { role: Role::Observer, subject }) => {
                let text = format!("{subject}: its certificate is that of an observer");
                Err(status::denied(text))
            }
            Some(Certificate { role: Role::Admin, .. }) | None => Ok(peer),
        }
    }

    /// Whether tasks of the user `owner` exist for it. `None`: nobody knows whose it is.
    pub(crate) fn sees(&self, owner: Option<u32>) -> bool {
        match &self.certificate {
            // Both roles see everything; the user id is not the caller's.
            Some(Certificate { role: Role::Admin | Role::Observer, .. }) => true,
            None => self.is_admin || self.is_observer || owner == Some(self.uid),
        }
    }
}

/// What is logged of a call: its method, who called, and the id that the caller gave it.
pub(super) fn span(request: &tonic::codegen::http::Request<()>) -> tracing::Span {
    let peer = request.extensions().get::<Peer>();
    let id = request.headers().get("x-request-id").and_then(|id| id.to_str().ok());
    tracing::info_span!(
        "call",
        method = request.uri().path(),
        uid = peer.and_then(Peer::user),
        pid = peer.and_then(|peer| peer.pid),
        certificate = peer.and_then(|peer| Some(peer.certificate.as_ref()?.subject.as_ref())),
        request_id = id.filter(|id| id.len() <= 128),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// attack 54: root, the group and the daemon's own user see all, anybody else their own.
    #[test]
    fn a_user_sees_their_own_tasks_and_admins_all() {
        let admins = Admins { gid: Some(77), observers: Some(88) };
        let stranger = geteuid().as_raw() + 1001;

        assert!(Peer::new(0, &[], None, admins).sees(None));
        assert!(Peer::new(stranger, &[5, 77], None, admins).sees(Some(5)));
        let own = Peer::new(stranger, &[5], None, admins);
        assert!(own.sees(Some(stranger)));
        assert!(!own.sees(Some(stranger + 1)) && !own.sees(Some(0)) && !own.sees(None));
    }

    #[test]
    fn an_observer_sees_all_and_controls_their_own() {
        let admins = Admins { gid: Some(77), observers: Some(88) };
        let stranger = geteuid().as_raw() + 1001;
        let observer = Peer::new(stranger, &[88], None, admins);
        assert!(observer.sees(Some(stranger + 1)) && observer.sees(None) && !observer.is_admin);

        let mut request = Request::new(());
        request.extensions_mut().insert(observer);
        let controls = Peer::that_controls(&request).unwrap();
        assert!(controls.sees(Some(stranger)));
        assert!(!controls.sees(Some(stranger + 1)) && !controls.sees(None));
    }
}
