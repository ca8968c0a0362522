//! How much of something each user has at one time, beside the admins.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::peer::Peer;

/// A number of things for each user.
#[derive(Debug)]
pub(crate) struct Quota {
    most: usize,
    taken: Mutex<HashMap<u32, usize>>,
}

impl Quota {
    /// At most `most` for a user.
    pub(crate) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::default() })
    }

    /// One for `peer`, until it is dropped; `None` if it has all it may have. Admins may have any number.
    pub(crate) fn take(self: &Arc<Self>, peer: &Peer) -> Option<Share> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(peer.uid).or_default();
        if !peer.is_admin && *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Share { quota: self.clone(), uid: peer.uid })
    }
}

/// One of what a user may have so many of.
#[derive(Debug)]
pub(crate) struct Share {
    quota: Arc<Quota>,
    uid: u32,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut taken = self.quota.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_and_gets_more_for_those_given_back() {
        let quota = Quota::new(2);
        let [user, other] =
            [4711, 4712].map(|uid| Peer { uid, pid: None, is_admin: false, certificate: None });
        let admin = Peer { uid: 0, pid: None, is_admin: true, certificate: None };
        let (first, _second) = (quota.take(&user).unwrap(), quota.take(&user).unwrap());

        assert!(quota.take(&user).is_none());
        assert!(quota.take(&other).is_some());
        let admins: Vec<_> = (0..9).map(|_| quota.take(&admin).unwrap()).collect();
        drop(first);
        assert!(quota.take(&user).is_some());
        drop((admins, _second));
        assert!(quota.taken.lock().unwrap().is_empty());
    }
}
