//! Who a run is: resolved once, in the host's user database, before anything is started, and from
//! then on numbers.
//!
//! The numbers are recorded with the task, so finalizers and later runners get the same ones, and
//! neither a `passwd` file in a sandbox nor one that was changed since has a say. A user is named
//! by login name alone: text that looks like a number is a name like any other, and is unknown
//! unless somebody has it.

use std::ffi::CString;

use nix::errno::Errno;
use nix::unistd::{Gid, Uid, User, getegid, geteuid, getgrouplist, getgroups};

use crate::proto::Identity;

/// The id that system calls read as "leave it as it is".
const NO_ID: u32 = u32::MAX;

/// Why there is no identity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// Nobody has that login name.
    #[error(
        "user {name:?} is not in the user database of this host; a login name is expected, not a number"
    )]
    Unknown {
        /// As it was given.
        name: String,
    },
    /// Only root may take another identity.
    #[error(
        "only root may run a task as another user: {name:?} has uid {uid}, the caller {caller}"
    )]
    NotPermitted {
        /// As it was given.
        name: String,
        /// Uid of that name.
        uid: u32,
        /// Effective uid of the caller.
        caller: u32,
    },
    /// The database gives an id that means "unchanged" to the system calls that take it.
    #[error("user {name:?} has {kind} {NO_ID}, which is no id")]
    NoId {
        /// Login name.
        name: String,
        /// `uid` or `gid`.
        kind: &'static str,
    },
    /// Its home directory is no UTF-8.
    #[error("home directory of user {name:?} is not UTF-8")]
    Home {
        /// Login name.
        name: String,
    },
    /// The database could not be read.
    #[error("user database, asked for {name:?}")]
    Database {
        /// What was asked for.
        name: String,
        /// What it answered.
        #[source]
        errno: Errno,
    },
}

/// The identity of `user`, or the caller's own.
///
/// # Errors
///
/// See [`IdentityError`].
pub fn resolve(user: Option<&str>) -> Result<Identity, IdentityError> {
    user.map_or_else(current, named)
}

/// The identity of the caller, as the kernel has it: its groups too are those of this process. It
/// is kept, not taken (`switch` is false). A caller whom the database does not know goes by its
/// uid, and has its home at `/`.
///
/// # Errors
///
/// [`IdentityError::Database`], [`IdentityError::Home`].
pub fn current() -> Result<Identity, IdentityError> {
    let uid = geteuid();
    let number = uid.as_raw().to_string();
    let (user, home) = match in_database(&number, User::from_uid(uid))? {
        Some(user) => (user.name.clone(), home(&user)?),
        None => (number, "/".to_owned()),
    };
    own(user, home)
}

/// The identity of the login name `name`. Root takes it, with exactly the groups that the database
/// gives it (`switch` is true), even its own; anybody else may name only itself, and keeps what it
/// has.
///
/// # Errors
///
/// See [`IdentityError`].
pub fn named(name: &str) -> Result<Identity, IdentityError> {
    let user = look_up(name)?;
    let caller = geteuid();
    if caller.is_root() {
        return from_database(user);
    }
    if user.uid != caller {
        let (uid, caller) = (user.uid.as_raw(), caller.as_raw());
        return Err(IdentityError::NotPermitted { name: name.to_owned(), uid, caller });
    }
    let home = home(&user)?;
    own(user.name, home)
}

/// The entry whose login name is `name`, byte for byte: some databases answer to other spellings
/// too.
fn look_up(name: &str) -> Result<User, IdentityError> {
    let unknown = || IdentityError::Unknown { name: name.to_owned() };
    if name.is_empty() || name.contains('\0') {
        return Err(unknown());
    }
    in_database(name, User::from_name(name))?.filter(|user| user.name == name).ok_or_else(unknown)
}

/// What the database answered; some say "no such user" by an error: `getpwnam(3)`.
fn in_database(
    name: &str,
    answer: Result<Option<User>, Errno>,
) -> Result<Option<User>, IdentityError> {
    match answer {
        Ok(found) => Ok(found),
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        Err(errno) => Err(IdentityError::Database { name: name.to_owned(), errno }),
    }
}

/// This process under a name.
fn own(user: String, home: String) -> Result<Identity, IdentityError> {
    let gid = getegid();
    let groups =
        getgroups().map_err(|errno| IdentityError::Database { name: user.clone(), errno })?;
    checked(Identity {
        user,
        uid: geteuid().as_raw(),
        gid: gid.as_raw(),
        groups: ascending(groups, gid),
        home,
        switch: false,
    })
}

/// An identity to be taken.
fn from_database(user: User) -> Result<Identity, IdentityError> {
    let database = |errno| IdentityError::Database { name: user.name.clone(), errno };
    let name = CString::new(user.name.as_str()).map_err(|_| database(Errno::EINVAL))?;
    let groups = getgrouplist(&name, user.gid).map_err(database)?;
    let home = home(&user)?;
    checked(Identity {
        uid: user.uid.as_raw(),
        gid: user.gid.as_raw(),
        groups: ascending(groups, user.gid),
        home,
        user: user.name,
        switch: true,
    })
}

/// Group ids, the primary one among them, ascending, each once.
fn ascending(groups: Vec<Gid>, primary: Gid) -> Vec<u32> {
    let mut ids: Vec<u32> = groups.into_iter().chain([primary]).map(Gid::as_raw).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Refuses ids that the setters would take for "unchanged".
fn checked(identity: Identity) -> Result<Identity, IdentityError> {
    let refuse = |kind| Err(IdentityError::NoId { name: identity.user.clone(), kind });
    if identity.uid == NO_ID {
        return refuse("uid");
    }
    if identity.groups.contains(&NO_ID) {
        return refuse("gid");
    }
    Ok(identity)
}

fn home(user: &User) -> Result<String, IdentityError> {
    let home = user.dir.to_str().ok_or_else(|| IdentityError::Home { name: user.name.clone() })?;
    Ok(home.to_owned())
}

/// Whether this process already has the uid and gid of `identity`, real, effective and saved.
pub fn is_current(identity: &Identity) -> bool {
    let uid = Uid::from_raw(identity.uid);
    let gid = Gid::from_raw(identity.gid);
    let uids = nix::unistd::getresuid();
    let gids = nix::unistd::getresgid();
    uids.is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [uid; 3])
        && gids.is_ok_and(|ids| [ids.real, ids.effective, ids.saved] == [gid; 3])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{ORDINARY, alone, become_ordinary, is_root};

    /// Attack 5, S39: none of these is ever read as a number.
    #[test]
    fn only_a_login_name_that_exists_names_a_user() {
        for name in [
            "",
            " ",
            "0",
            "+0",
            "-1",
            "0x0",
            "00",
            "4294967295",
            "4294967296",
            "65534",
            " root",
            "root ",
            "ROOT",
            "ro\0ot",
            "nobody-here",
            "../root",
            "root:x:0:0",
        ] {
            assert_eq!(resolve(Some(name)), Err(IdentityError::Unknown { name: name.to_owned() }));
        }
    }

    /// Attack 3: the set is that of the database, whatever groups the caller is in.
    #[test]
    fn root_takes_exactly_the_groups_of_the_database() {
        alone(|| {
            if !is_root() {
                return;
            }
            nix::unistd::setgroups(&[Gid::from_raw(4242), Gid::from_raw(7)]).unwrap();

            let root = named("root").unwrap();
            let nobody = named("nobody").unwrap();

            assert_eq!((root.uid, root.gid, root.groups, root.switch), (0, 0, vec![0], true));
            assert_eq!((nobody.uid, nobody.switch), (65534, true));
            assert!(nobody.groups.contains(&nobody.gid) && !nobody.groups.contains(&4242));
        });
    }

    #[test]
    fn groups_are_ascending_and_have_the_primary_one_once() {
        let groups = [30, 5, 30].map(Gid::from_raw).to_vec();

        assert_eq!(ascending(groups.clone(), Gid::from_raw(5)), [5, 30]);
        assert_eq!(ascending(groups, Gid::from_raw(6)), [5, 6, 30]);
    }

    #[test]
    fn only_root_may_name_another_user() {
        alone(|| {
            if !is_root() {
                return;
            }
            become_ordinary();

            let error = named("root").unwrap_err();

            let name = "root".to_owned();
            assert_eq!(error, IdentityError::NotPermitted { name, uid: 0, caller: ORDINARY });
        });
    }

    #[test]
    fn a_caller_without_an_entry_goes_by_its_number() {
        alone(|| {
            if !is_root() {
                return;
            }
            become_ordinary();

            let own = resolve(None).unwrap();

            assert_eq!((own.user.as_str(), own.home.as_str()), ("54321", "/"));
            assert_eq!(
                (own.uid, own.gid, own.groups.as_slice()),
                (ORDINARY, ORDINARY, &[ORDINARY][..])
            );
            assert!(!own.switch && is_current(&own));
        });
    }

    /// Attack 5: to the setters that id means "as it is".
    #[test]
    fn an_id_that_means_unchanged_is_refused() {
        let sound = Identity {
            user: "odd".to_owned(),
            groups: vec![5],
            uid: 5,
            gid: 5,
            ..Identity::default()
        };
        let uid = Identity { uid: u32::MAX, ..sound.clone() };
        let gid = Identity { groups: vec![5, u32::MAX], ..sound.clone() };
        let refused = |kind| Err(IdentityError::NoId { name: "odd".to_owned(), kind });

        assert_eq!(checked(uid), refused("uid"));
        assert_eq!(checked(gid), refused("gid"));
        assert!(checked(sound).is_ok());
    }
}
