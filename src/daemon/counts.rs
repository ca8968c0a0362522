//! How many connections, or commands, somebody has at one time.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::peer::Peer;

/// Who or what has them.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Whose {
    /// A user of this host.
    User(u32),
    /// The subject of a certificate.
    Subject(Arc<str>),
    /// An address, as long as it is not known who it is.
    Address(IpAddr),
    /// All of which it is not known.
    Uncertified,
}

impl Whose {
    /// Those of a caller.
    pub(crate) fn of(peer: &Peer) -> Self {
        match &peer.certificate {
            Some(certificate) => Self::Subject(certificate.subject.clone()),
            None => Self::User(peer.uid),
        }
    }
}

/// How many there are.
#[derive(Debug, Clone, Default)]
pub(crate) struct Counts(Arc<Mutex<HashMap<Whose, usize>>>);

impl Counts {
    fn shared(&self) -> MutexGuard<'_, HashMap<Whose, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, if there are fewer than `most`.
    pub(crate) fn admit(&self, whose: Whose, most: usize) -> Option<Counted> {
        let mut counts = self.shared();
        let count = counts.entry(whose.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        drop(counts);
        Some(Counted { whose, counts: self.clone() })
    }
}

/// One that is counted until this is dropped.
#[derive(Debug)]
pub(crate) struct Counted {
    whose: Whose,
    counts: Counts,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.counts.shared();
        if let Some(count) = counts.get_mut(&self.whose) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.whose);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_has_so_many_and_gets_more_for_those_given_back() {
        let counts = Counts::default();
        let user = || counts.admit(Whose::User(4711), 2);
        let (first, second) = (user().unwrap(), user().unwrap());

        assert!(user().is_none());
        assert!(counts.admit(Whose::User(4712), 2).is_some());
        drop(first);
        assert!(user().is_some());
        drop(second);
        assert!(counts.shared().is_empty());
    }
}
